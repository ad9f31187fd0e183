"""Corpora in a table: one row a record, with a column for the user and one for the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

from fedsim_userdp.data.arrow_rows import datasets_files, read_datasets_folder, read_parquet
from fedsim_userdp.data.corpus import DropCounts, Record
from fedsim_userdp.data.csv_rows import read_csv
from fedsim_userdp.data.ids import REWRITTEN, id_of
from fedsim_userdp.data.owner_cells import check_owner, owners_of
from fedsim_userdp.data.rows import Row, RowReader, decode_text, read_jsonl
from fedsim_userdp.data.source import files_in, fingerprint_files, of_one_split, require_path, short
from fedsim_userdp.errors import DataError

Form = Literal["jsonl", "csv", "parquet", "datasets"]
SHOWN_COLUMNS = 12
SUFFIXES = {"jsonl": (".jsonl", ".ndjson"), "csv": (".csv", ".tsv"), "parquet": (".parquet",)}


class TableCorpus:
    """A user's own table: JSONL, CSV, Parquet, or a folder saved by Hugging Face `datasets`.

    The same user id in several files is one user, read as `ids.id_of` has it: white space around it aside, whole
    numbers as such. A row without an id is left out and counted, one without text is blank and counted. Refused are a
    missing column, files of several splits, several users in a row, ids such as "7.0", and owners that cannot be read
    for certain.

    Args:
        path: A file, or a folder of such files, which are read in alphabetical order.
        form: "jsonl", "csv", "parquet", or "datasets" for a `save_to_disk` folder.
        user_column: Column with the user's id.
        text_column: Column with the text.
        owners_column: Column with further owners of the record: a list, or ids separated by `owners_separator`; see
            `owner_cells.owners_of`.
        owners_separator: Separates owners in a text column; not empty.
        delimiter: Separates fields of a CSV file; "\\t", as it comes from a command line, is a tab. See
            `csv_rows.read_csv` for files that say it themselves.
        name: What to call the corpus in tables; None for its form.
        license: Licence of the text, for the model card.

    Raises:
        DataError: an unknown form, a delimiter that is not one character, an empty separator, or a column's name that
            is none.
    """

    source = "local files"

    def __init__(
        self,
        path: str | Path | None,
        form: Form = "jsonl",
        *,
        user_column: str = "user_id",
        text_column: str = "text",
        owners_column: str | None = None,
        owners_separator: str = ";",
        delimiter: str = ",",
        name: str | None = None,
        license: str = "unknown",
    ) -> None:
        if form not in ("jsonl", "csv", "parquet", "datasets"):
            raise DataError(f"form must be jsonl, csv, parquet or datasets, got {form!r}")
        delimiter = "\t" if delimiter == "\\t" else delimiter
        if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n':
            raise DataError(f"delimiter must be one character and no quote, such as ';' or '\\t', got {delimiter!r}")
        if not isinstance(owners_separator, str) or not owners_separator:
            raise DataError(f"owners_separator must be text that is not empty, got {owners_separator!r}")
        self.path = path
        self.form = form
        self.user_column = column_name(user_column, "user_column")
        self.text_column = column_name(text_column, "text_column")
        self.owners_column = None if owners_column is None else column_name(owners_column, "owners_column")
        self.owners_separator = owners_separator
        self.delimiter = delimiter
        self.name = name or form
        self.license = license
        self.dropped = DropCounts()

    def records(self) -> Iterator[Record]:
        """Yields one record a row, in the order of the files."""
        self.dropped.clear()
        for place in self._places(self.dropped):
            for at, row in self._reader()(place, self.dropped):
                if record := self._record(row, at):
                    yield record

    def columns(self, names: Sequence[str]) -> Iterator[tuple[str, str, Row]]:
        """Yields place, user and the named columns of each row that names a user.

        Raises:
            DataError: a row lacks one of them.
        """
        for place in self._places():
            for at, row in self._reader(names)(place, DropCounts()):
                user = user_of(row, self.user_column, DropCounts(), at)
                if user is not None:
                    yield at, user, {name: column(row, name, "selection.public_columns", at) for name in names}

    def fingerprint(self) -> str:
        """Returns a digest of the files' content and of the columns read."""
        settings: dict[str, object] = {
            "form": [self.form, self.delimiter, self.owners_separator],
            "columns": [self.user_column, self.text_column, self.owners_column],
        }
        files = datasets_files(self._root()) if self.form == "datasets" else self._places()
        return fingerprint_files(files, settings)

    def _root(self) -> Path:
        """The configured file or folder."""
        wanted = "a folder saved with datasets' save_to_disk" if self.form == "datasets" else f"a {self.form} file"
        columns = f"columns {self.user_column!r} and {self.text_column!r}"
        return require_path(self.path, corpus=self.name, get_it=f"bring {wanted} with {columns}")

    def _places(self, dropped: DropCounts | None = None) -> list[Path]:
        """What the reader is called with; counts what else lies there."""
        root = self._root()
        if self.form == "datasets":
            return [root]
        return of_one_split(files_in(root, SUFFIXES[self.form], dropped), root)

    def _reader(self, more: Sequence[str] = ()) -> RowReader:
        """The reader of this form, of the corpus' columns and of more."""
        own = [self.user_column, self.text_column, self.owners_column]
        columns = [name for name in dict.fromkeys([*own, *more]) if name]
        if self.form == "csv":
            return partial(read_csv, delimiter=self.delimiter, columns=columns)
        if self.form == "jsonl":
            return read_jsonl
        return partial(read_parquet if self.form == "parquet" else read_datasets_folder, columns=columns)

    def _record(self, row: Row, at: str) -> Record | None:
        """One row as a record, or None after counting why not."""
        user_id = user_of(row, self.user_column, self.dropped, at)
        if user_id is None:
            self.dropped.add("row without a user id", at=at)
            return None
        owners = self._owners(user_id, row, at)
        text = text_of(column(row, self.text_column, "data.text_column", at), self.dropped, at)
        if text is None:
            self.dropped.add("row without text", at=at)
            return Record(user_id, "", owners, at, is_missing=True)
        return Record(user_id, text, owners, at)

    def _owners(self, user_id: str, row: Row, at: str) -> tuple[str, ...]:
        """Further owners that a row names; the user is an owner too, and must be one."""
        if self.owners_column is None:
            return ()
        with _naming(self.user_column):
            check_owner(user_id, self.owners_separator, at)
        value = column(row, self.owners_column, "data.owners_column", at)
        with _naming(self.owners_column):
            return owners_of(value, self.owners_separator, at)


def column_name(name: object, key: str) -> str:
    """Returns the name of a column, which may be a number on the command line (`data.user_column=0`).

    Raises:
        DataError: it is neither text nor a number, or empty.
    """
    if isinstance(name, bool) or not isinstance(name, str | int | float) or name == "":
        raise DataError(f"{key} must be a column's name, got {name!r}")
    return str(name)


def column(row: Row, name: str, key: str, at: str) -> object:
    """Returns the value of column `name`.

    Raises:
        DataError: there is no such column; names those there are and the configuration key.
    """
    if name not in row:
        there = [short(other, 40) for other in list(row)[:SHOWN_COLUMNS]] + ["..."] * (len(row) > SHOWN_COLUMNS)
        raise DataError(f"{at}: no column {name!r}; it has {', '.join(there) or 'none'}; set {key}=NAME")
    return row[name]


def one_user(value: object, at: str) -> object:
    """Returns the value of a user column.

    Raises:
        DataError: it is a list or an object: a record is filed under one user.
    """
    if isinstance(value, list | dict | tuple | set):
        raise DataError(
            f"{at}: a record is filed under one user, found {type(value).__name__}; name one in data.user_column and "
            "the others in data.owners_column"
        )
    return value


def user_of(row: Row, name: str, dropped: DropCounts, at: str) -> str | None:
    """Returns the id in the user column `name`, None where there is none; counts a text that is read as another.

    Raises:
        DataError: there is no such column, or it holds several users, or an id that could be two; see `ids.id_of`.
    """
    value = one_user(column(row, name, "data.user_column", at), at)
    user_id = id_of(value, f"{at}: column {name!r}")
    if user_id is not None and isinstance(value, str) and value != user_id:
        dropped.add(REWRITTEN, at=at)
    return user_id


def text_of(value: object, dropped: DropCounts, at: str) -> str | None:
    """Returns a text: text as it is, bytes decoded, a list of paragraphs joined with line breaks; else None."""
    if isinstance(value, bytes):
        return decode_text(value, dropped, at)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    return value if isinstance(value, str) else None


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Adds to what is refused within the block in which column it stands."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{error} (column {name!r})") from error
