"""Rows of JSONL files, each with the place it stands at, read one by one; and what readers of all tables share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from fedsim_userdp.data.corpus import DropCounts
from fedsim_userdp.errors import DataError

Row = dict[str, object]
RowReader = Callable[[Path, DropCounts], Iterator[tuple[str, Row]]]

NOT_UTF8 = "text that is not UTF-8, read as latin-1"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COMPRESSED = "compressed: unpack it first"
# First bytes of files that are no text, and what is said of them.
OTHER_KINDS = {
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
    b"\x1f\x8b": COMPRESSED,
    b"BZh91AY&SY": COMPRESSED,
    b"\xfd7zXZ\x00": COMPRESSED,
    b"\x28\xb5\x2f\xfd": COMPRESSED,
    b"PK\x03\x04": "a zip archive or a workbook: unpack it, or save the sheet as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "a workbook: save the sheet as CSV in UTF-8",
    b"PAR1\x15": "Parquet: set data=parquet",
}


def read_jsonl(file: Path, dropped: DropCounts) -> Iterator[tuple[str, Row]]:
    """Yields (place, object) for each line of a JSON-lines file; blank lines are skipped.

    Raises:
        DataError: a line is not a JSON object or has a name twice, or the file is of another kind: a JSON array,
            UTF-16, compressed.
    """
    with file.open("rb") as lines:
        num_rows = 0
        for number, line in enumerate(lines, start=1):
            at = f"{file}:{number}"
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
                refuse_other_kinds(line, at)
            if not line.strip():
                continue
            if not num_rows and line.lstrip().startswith(b"["):
                raise DataError(f"{at}: the file is a JSON array; write one object a line (jq -c '.[]' does)")
            try:
                row = json.loads(decode_text(line, dropped, at), object_pairs_hook=_once_each)
            except (ValueError, RecursionError) as error:  # a ValueError also for a number of thousands of digits
                hint = "" if num_rows else "; JSON lines have one whole object a line"
                raise DataError(f"{at}: not valid JSON: {error}{hint}") from error
            if not isinstance(row, dict):
                raise DataError(f"{at}: expected a JSON object, found {type(row).__name__}")
            num_rows += 1
            yield at, row
        note_without_rows(file, num_rows, dropped)


def decode_text(raw: bytes, dropped: DropCounts, at: str) -> str:
    """Returns `raw` read as UTF-8, or as latin-1 where it is not UTF-8, which is counted."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        dropped.add(NOT_UTF8, at=at)
        return raw.decode("latin-1")


def note_without_rows(file: Path, num_rows: int, dropped: DropCounts) -> None:
    """Counts a file that has no rows, be it empty, blank or a header only."""
    if num_rows == 0:
        dropped.add("empty file", at=str(file))


def refuse_other_kinds(start: bytes, at: str) -> None:
    """Raises DataError when a file starts like one that is no text in UTF-8; says what it is and what to do."""
    for first, kind in OTHER_KINDS.items():
        if start.startswith(first):
            raise DataError(f"{at}: the file is {kind}")
    if start[:4].count(0) == 2:  # as in UTF-16 without its mark
        raise DataError(f"{at}: the file is UTF-16; save it as UTF-8")


def _once_each(pairs: list[tuple[str, object]]) -> Row:
    """A JSON object, of whose values none hides another of the same name."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return row
