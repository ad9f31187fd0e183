"""BookSum: chapters of public-domain books; a book is a user."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from fedsim_userdp.data.corpus import DropCounts, Record
from fedsim_userdp.data.csv_rows import read_csv
from fedsim_userdp.data.rows import Row, RowReader, read_jsonl
from fedsim_userdp.data.source import files_in, fingerprint_files, require_path
from fedsim_userdp.data.table import column, text_of, user_of
from fedsim_userdp.errors import DataError

GET_IT = (
    "download the chapter-level CSV files of kmfoda/booksum from huggingface.co, or make the JSONL files with "
    "gather_data.py of github.com/salesforce/booksum"
)
SUFFIXES = (".csv", ".jsonl", ".gathered")
TEXT_COLUMNS = ("chapter", "text")


class BooksumCorpus:
    """Chapters by book. A chapter that stands there once per summary is used once.

    Reads the CSV form (`bid`, `chapter`, ...) and the JSONL form (`bid`, `text` as a string or a list of
    paragraphs). Repeats are found by text, white space aside, within one book only.

    Args:
        path: A file, or a folder with the train, validation and test files, which are read together.
        user_column: Column that names the book.
        text_column: Column with the chapter; None takes `chapter`, or else `text`.
        keep_aggregates: Whether to use rows marked `is_aggregate`, which hold several chapters at once and may
            overlap with single ones of the same book.

    Attributes:
        dropped: What the last pass left out: repeated chapters, aggregates, rows without a book; and rows without
            text, each of which is a blank record of its book.
    """

    name = "booksum"
    license = "BSD-3-Clause (alignments); texts in the public domain"
    source = "github.com/salesforce/booksum"

    def __init__(
        self,
        path: str | Path | None,
        user_column: str = "bid",
        text_column: str | None = None,
        keep_aggregates: bool = True,
    ) -> None:
        self.path = path
        self.user_column = user_column
        self.text_column = text_column
        self.keep_aggregates = keep_aggregates
        self.dropped = DropCounts()

    def records(self) -> Iterator[Record]:
        """Yields each chapter once, in the order of the files."""
        self.dropped.clear()
        seen: set[bytes] = set()
        for file in self._files(self.dropped):
            reader: RowReader = read_csv if file.suffix.lower() == ".csv" else read_jsonl
            for at, row in reader(file, self.dropped):
                record = self._record(row, at)
                if record is None:
                    continue
                key = hashlib.blake2b(repr((record.user_id, record.text.split())).encode("utf-8", "replace")).digest()
                if key in seen and not record.is_missing:
                    self.dropped.add("repeated chapter", at=at)
                    continue
                seen.add(key)
                yield record

    def fingerprint(self) -> str:
        """Returns a digest of the files' content and of the settings."""
        settings: dict[str, object] = {
            "columns": [self.user_column, self.text_column],
            "keep_aggregates": self.keep_aggregates,
        }
        return fingerprint_files(self._files(), settings)

    def _files(self, dropped: DropCounts | None = None) -> list[Path]:
        """The files to read; counts what else lies there."""
        return files_in(require_path(self.path, corpus=self.name, get_it=GET_IT), SUFFIXES, dropped)

    def _record(self, row: Row, at: str) -> Record | None:
        """One row as a record, or None after counting why not."""
        book = user_of(row, self.user_column, self.dropped, at)
        text = text_of(self._text(row, at), self.dropped, at)
        if not self.keep_aggregates and str(row.get("is_aggregate")).lower() == "true":
            self.dropped.add("aggregate of several chapters", at=at)
        elif book is None:
            self.dropped.add("row without a book", at=at)
        elif text is None:
            self.dropped.add("row without text", at=at)
            return Record(book, "", at=at, is_missing=True)
        else:
            return Record(book, text, at=at)
        return None

    def _text(self, row: Row, at: str) -> object:
        """The chapter's text, whichever column holds it."""
        if self.text_column is not None:
            return column(row, self.text_column, "data.text_column", at)
        for name in TEXT_COLUMNS:
            if name in row:
                return row[name]
        hint = "; this is an alignment file without text: run gather_data.py first" if "chapter_path" in row else ""
        raise DataError(f"{at}: no column 'chapter' or 'text'; set data.text_column=NAME{hint}")
