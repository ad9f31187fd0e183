"""Rows of CSV files, as Excel, LibreOffice, pandas and R write them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from fedsim_userdp.data.corpus import DropCounts
from fedsim_userdp.data.rows import BYTE_ORDER_MARK, Row, decode_text, note_without_rows, refuse_other_kinds
from fedsim_userdp.errors import DataError

LONGEST_FIELD = 2**31 - 1
DELIMITERS = ",;\t|"
# How Excel is told, and tells, what separates fields: a line of its own before the header.
SEP_LINE = re.compile(r'"?sep=([^\r\n"])"?[,;\t]*[\r\n]+', re.IGNORECASE)


def read_csv(
    file: Path, dropped: DropCounts, delimiter: str = ",", columns: Sequence[str] = ()
) -> Iterator[tuple[str, Row]]:
    """Yields (place, row) for each row of a CSV file with a header; fields may be of any length.

    Fields are separated by what a first line such as `sep=;` says, else by tabs in a `.tsv` file that was to have
    commas, else by `delimiter`. Columns without a name are passed over; at the end of a row they must be empty.

    Args:
        file: The file.
        dropped: Where to count what is odd about it.
        delimiter: One character.
        columns: Names that are looked for, by which a wrong delimiter is noticed.

    Raises:
        DataError: the columns are there with another delimiter, quoting is broken, a row has more or fewer fields than
            the header, a name stands twice, or the file is of another kind: UTF-16, compressed, a workbook.
    """
    # Global to the process and by default 128 KiB, which an e-mail or a chapter exceeds.
    csv.field_size_limit(LONGEST_FIELD)
    # Latin-1 keeps every byte, so that each field can be decoded, and blamed, by itself.
    with file.open(encoding="latin-1", newline="") as text:
        delimiter, num_before = _start(text, file, delimiter, columns)
        num_rows = 0
        reader = csv.reader(text, strict=True, delimiter=delimiter)
        header: list[str] | None = None
        while True:
            at = f"{file}:{num_before + reader.line_num + 1}"
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise DataError(f"{at}: not valid CSV: {error}") from error
            if fields is None:
                return note_without_rows(file, num_rows, dropped)
            if header is not None and fields:
                num_rows += 1
                yield at, _row(header, fields, dropped, at)
            elif header is None and any(map(str.strip, fields)):
                header = _header(fields, dropped, at)


def _start(text: TextIO, file: Path, delimiter: str, columns: Sequence[str]) -> tuple[str, int]:
    """What separates fields, and how many lines come before the rest; `text` is left there."""
    first = text.readline()
    refuse_other_kinds(first.encode("latin-1"), f"{file}:1")
    mark = BYTE_ORDER_MARK.decode("latin-1")
    if said := SEP_LINE.fullmatch(first.removeprefix(mark)):
        return said[1], 1
    start = len(mark) if first.startswith(mark) else 0
    while first and not first.strip():
        first = text.readline()
    text.seek(start)
    found = {other: _num_found(first.removeprefix(mark), other, columns) for other in (*DELIMITERS, delimiter)}
    if file.suffix.lower() == ".tsv" and delimiter == "," and found["\t"] >= found[","]:
        return "\t", 0
    best = max(found, key=lambda other: (found[other], other == delimiter))
    if found[best] > found[delimiter]:
        raise DataError(f"{file}:1: fields are separated by {best!r}, not {delimiter!r}: set data.delimiter={best!r}")
    return delimiter, 0


def _num_found(line: str, delimiter: str, columns: Sequence[str]) -> int:
    """How many of the columns a header names if that separates its fields."""
    names = [name.strip().strip('"') for name in line.encode("latin-1").decode("utf-8", "replace").split(delimiter)]
    return sum(name in names for name in columns)


def _header(fields: list[str], dropped: DropCounts, at: str) -> list[str]:
    """Column names, without the empty ones at the end."""
    names = [decode_text(field.encode("latin-1"), dropped, at).strip().strip('"') for field in fields]
    while not names[-1]:
        names.pop()
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise DataError(f"{at}: column {twice[0]!r} appears twice")
    return names


def _row(header: list[str], fields: list[str], dropped: DropCounts, at: str) -> Row:
    """One row by column name."""
    if len(fields) < len(header) or any(map(str.strip, fields[len(header) :])):
        raise DataError(f"{at}: {len(fields)} fields, expected {len(header)} as in the header")
    named = zip(header, fields, strict=False)
    return {name: decode_text(field.encode("latin-1"), dropped, at) for name, field in named if name}
