"""Records that are in memory already: pairs of user and text, or a table with a column for either."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fedsim_userdp.data.corpus import DropCounts, Record
from fedsim_userdp.data.ids import id_of
from fedsim_userdp.errors import DataError


class InMemoryCorpus:
    """Text of users that a program has at hand.

    Ids are read as those of a file are: white space around them aside, whole numbers as such.

    Args:
        records: pairs of a user's id and a text, in any order; a user may have any number of them.
        name: what to call the corpus in tables.
        license: licence of the text, for the model card.
        user_column: the column of a table that the ids are from, which tells what a user is; None where none is known.

    Raises:
        DataError: a record is no pair, or names no user.
    """

    source = "memory"

    def __init__(
        self,
        records: Iterable[tuple[object, object]] = (),
        name: str = "memory",
        license: str = "unknown",
        user_column: str | None = None,
    ):
        self.name, self.license, self.dropped = name, license, DropCounts()
        self.user_column = user_column
        self._records = [_record(number, one) for number, one in enumerate(records)]

    @classmethod
    def of_table(
        cls, table: Any, user_column: str = "user_id", text_column: str = "text", name: str = "memory"
    ) -> "InMemoryCorpus":
        """Returns the corpus of a table with a column of ids and one of texts, one row a record.

        Args:
            table: rows as mappings, or columns by name: a pandas data frame, a table of `datasets`, a mapping.
            user_column: the column with the user's id.
            text_column: the column with the text.
            name: what to call the corpus.

        Raises:
            DataError: a column is missing.
        """
        if not isinstance(table, Mapping) and not hasattr(table, "columns") and not hasattr(table, "column_names"):
            rows = list(table)
            table = {column: _column_of_rows(rows, column) for column in (user_column, text_column)}
        names = list(getattr(table, "column_names", None) or getattr(table, "columns", None) or table)
        for column in (user_column, text_column):
            if column not in names:
                raise DataError(f"the table has no column {column!r}; it has {', '.join(map(repr, names))}")
        users, texts = list(table[user_column]), list(table[text_column])
        if len(users) != len(texts):
            raise DataError(f"the table has {len(users)} ids and {len(texts)} texts: one of each is a row")
        return cls(zip(users, texts, strict=True), name=name, user_column=str(user_column))

    def records(self) -> Iterator[Record]:
        """Yields the records in their order."""
        self.dropped.clear()
        for record in self._records:
            if record.is_missing:
                self.dropped.add("row without text", at=record.at)
            yield record

    def fingerprint(self) -> str:
        """Returns a digest of ids and texts."""
        digest = hashlib.sha256()
        for record in self._records:
            digest.update(repr((record.user_id, record.text)).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def _column_of_rows(rows: list[Any], column: str) -> list[object]:
    """A column of rows that are mappings."""
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or column not in row:
            names = ", ".join(map(repr, row)) if isinstance(row, Mapping) else f"a {type(row).__name__}"
            raise DataError(f"row {number} has no column {column!r}; it has {names}")
    return [row[column] for row in rows]


def _record(number: int, pair: object) -> Record:
    """The record of a pair."""
    at = f"record {number}"
    if isinstance(pair, str | bytes | Mapping) or not isinstance(pair, Iterable) or len(found := list(pair)) != 2:
        raise DataError(f"{at} must be a pair of a user's id and a text, got {type(pair).__name__}")
    user, text = found
    is_missing = text is None or (isinstance(text, float) and text != text)  # NaN, as a data frame has it
    if not is_missing and not isinstance(text, str):
        raise DataError(f"{at}: its text is {type(text).__name__}: give (user, text) pairs, the text as str")
    return Record(user_id=_id(user, at), text="" if is_missing else str(text), at=at, is_missing=is_missing)


def _id(user: object, at: str) -> str:
    """A user's id."""
    value = user.item() if hasattr(user, "item") else user  # a number of numpy
    if (found := id_of(value, at)) is None:
        raise DataError(f"{at} names no user: an id is text or a whole number, got {type(user).__name__}")
    return found
