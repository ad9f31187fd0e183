"""Columns of a corpus' table that are declared public: one value for each user."""

from collections.abc import Iterable, Iterator, Sequence

from fedsim_userdp.data.public_facts import USER_COLUMN, PublicFacts
from fedsim_userdp.data.rows import Row
from fedsim_userdp.data.table import TableCorpus
from fedsim_userdp.errors import DataError


def public_columns(corpus: object, names: Sequence[str]) -> PublicFacts:
    """Returns what columns of a corpus say of its users, as public facts.

    Args:
        corpus: reads a table.
        names: of the columns, at least one; neither that of ids nor that of texts.

    Raises:
        DataError: the corpus reads no table; a column is none, is missing in a row, or is that of ids, texts or owners;
            or users have two values, of whom it says how many.
    """
    if not isinstance(corpus, TableCorpus):
        raise DataError(
            f"selection.public_columns: {type(corpus).__name__} reads no table with columns; give a file by "
            "selection.public"
        )
    own = (corpus.user_column, corpus.text_column, corpus.owners_column, USER_COLUMN)
    for name in names:
        if not isinstance(name, str) or name in own:
            raise DataError(
                f"selection.public_columns={list(names)} must name columns other than those of ids, texts and owners"
            )
    return PublicFacts(_one_each(corpus.columns(names), names), f"columns {', '.join(names)} of {corpus.name}")


def _one_each(rows: Iterable[tuple[str, str, Row]], names: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """One row of public facts for each user, once all have been read."""
    found: dict[str, tuple[str, Row]] = {}
    contradicted = {name: set[str]() for name in names}
    for at, user, row in rows:
        _, first = found.setdefault(user, (at, {USER_COLUMN: user, **row}))
        for name in names:
            if first[name] != row[name]:
                contradicted[name].add(user)
    for name, users in contradicted.items():
        if users:
            raise DataError(
                f"selection.public_columns: {len(users)} users have more than one value in column {name!r}, and what "
                "is public of a user is one"
            )
    yield from found.values()
