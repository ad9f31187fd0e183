"""Rows of JSONL, CSV, Parquet and Arrow files, each with the place it stands at, read one by one."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from fedsim_userdp.data.corpus import DataError, DropCounts
from fedsim_userdp.data.source import short

Row = dict[str, object]
RowReader = Callable[[Path, DropCounts], Iterator[tuple[str, Row]]]

LONGEST_CSV_FIELD = 2**31 - 1
NOT_UTF8 = "text that is not UTF-8, read as latin-1"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_jsonl(file: Path, dropped: DropCounts) -> Iterator[tuple[str, Row]]:
    """Yields (place, object) for each line of a JSON-lines file; blank lines are skipped.

    Raises:
        DataError: a line is not a JSON object or has a name twice, or the file is UTF-16.
    """
    with file.open("rb") as lines:
        num_rows = 0
        for number, line in enumerate(lines, start=1):
            at = f"{file}:{number}"
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
                _refuse_utf16(line, at)
            if not line.strip():
                continue
            try:
                row = json.loads(decode_text(line, dropped, at), object_pairs_hook=_once_each)
            except (ValueError, RecursionError) as error:  # a ValueError also for a number of thousands of digits
                raise DataError(f"{at}: not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{at}: expected a JSON object, found {type(row).__name__}")
            num_rows += 1
            yield at, row
        _note_without_rows(file, num_rows, dropped)


def read_csv(file: Path, dropped: DropCounts, delimiter: str = ",") -> Iterator[tuple[str, Row]]:
    """Yields (place, row) for each row of a CSV file with a header; fields may be of any length.

    Raises:
        DataError: quoting is broken, a row has more or fewer fields than the header, or the file is UTF-16.
    """
    # Global to the process and by default 128 KiB, which an e-mail or a chapter exceeds.
    csv.field_size_limit(LONGEST_CSV_FIELD)
    # Latin-1 keeps every byte, so that each field can be decoded, and blamed, by itself.
    with file.open(encoding="latin-1", newline="") as text:
        num_rows = 0
        reader = csv.reader(text, strict=True, delimiter=delimiter)
        header: list[str] | None = None
        while True:
            at = f"{file}:{reader.line_num + 1}"
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise DataError(f"{at}: not valid CSV: {error}") from error
            if fields is None:
                return _note_without_rows(file, num_rows, dropped)
            if header is None:
                header = _csv_header(fields, dropped, at)
            elif fields:
                num_rows += 1
                yield at, _csv_row(header, fields, dropped, at)


def read_parquet(file: Path, dropped: DropCounts) -> Iterator[tuple[str, Row]]:
    """Yields (place, row) for each row of a Parquet file.

    Raises:
        DataError: pyarrow is not installed, or the file is not Parquet.
    """
    arrow, parquet = _pyarrow(file), importlib.import_module("pyarrow.parquet")
    if file.stat().st_size == 0:
        return _note_without_rows(file, 0, dropped)
    try:
        with parquet.ParquetFile(file) as table:
            _note_without_rows(file, table.metadata.num_rows, dropped)
            yield from _batch_rows(file, table.iter_batches(batch_size=1024))
    except arrow.ArrowInvalid as error:
        raise DataError(f"{file}: not a Parquet file: {error}") from error


def read_datasets_folder(folder: Path, dropped: DropCounts) -> Iterator[tuple[str, Row]]:
    """Yields (place, row) of a folder that Hugging Face `datasets` wrote with `save_to_disk`.

    Only the Arrow files are read: no code and no pickle is run, and `datasets` need not be installed.

    Raises:
        DataError: pyarrow is not installed, or the folder is not such a folder, has several splits or is incomplete.
    """
    for file in datasets_files(folder):
        arrow = _pyarrow(file)
        try:
            with arrow.memory_map(str(file)) as source, arrow.ipc.open_stream(source) as stream:
                yield from _batch_rows(file, stream)
        except arrow.ArrowInvalid as error:
            raise DataError(f"{file}: not an Arrow stream: {error}") from error


def datasets_files(folder: Path) -> list[Path]:
    """Returns the Arrow files of a `save_to_disk` folder, in order.

    Raises:
        DataError: the folder is none, it has several splits, or its files are not those that it lists.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(child for child in folder.iterdir() if (child / "state.json").is_file())
        if not splits:
            raise DataError(f"{folder}: a saved dataset without a split that has a state.json")
        if len(splits) > 1:
            names = ", ".join(short(split.name, 40) for split in splits)
            raise DataError(f"{folder}: a saved dataset of several splits ({names}): set data.path to one of them")
        return datasets_files(splits[0])
    state_file = folder / "state.json"
    if not state_file.is_file():
        raise DataError(f"{folder}: no state.json: not a folder written by datasets' save_to_disk")
    try:
        state = json.loads(state_file.read_bytes())
        listed = [str(entry["filename"]) for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{state_file}: not readable as the state of a saved dataset") from error
    files = {file.name: file for file in folder.glob("*.arrow")}
    if missing := [name for name in listed if name not in files]:
        raise DataError(f"{state_file}: lists {missing[0]!r}, which is not in the folder")
    if state.get("_indices_data_files"):
        raise DataError(f"{state_file}: has an indices mapping; save it again after flatten_indices()")
    return [files[name] for name in listed]


def decode_text(raw: bytes, dropped: DropCounts, at: str) -> str:
    """Returns `raw` read as UTF-8, or as latin-1 where it is not UTF-8, which is counted."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        dropped.add(NOT_UTF8, at=at)
        return raw.decode("latin-1")


def _csv_header(fields: list[str], dropped: DropCounts, at: str) -> list[str]:
    """Column names, without a byte-order mark."""
    raw = [field.encode("latin-1") for field in fields]
    if raw:
        _refuse_utf16(raw[0], at)
        raw[0] = raw[0].removeprefix(b"\xef\xbb\xbf")
    names = [decode_text(name, dropped, at).strip().strip('"') for name in raw]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{at}: column {twice[0]!r} appears twice")
    return names


def _csv_row(header: list[str], fields: list[str], dropped: DropCounts, at: str) -> Row:
    """One row by column name."""
    if len(fields) != len(header):
        raise DataError(f"{at}: {len(fields)} fields, expected {len(header)} as in the header")
    return {name: decode_text(field.encode("latin-1"), dropped, at) for name, field in zip(header, fields, strict=True)}


def _once_each(pairs: list[tuple[str, object]]) -> Row:
    """A JSON object, of whose values none hides another of the same name."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return row


def _batch_rows(file: Path, batches: Any) -> Iterator[tuple[str, Row]]:
    """Rows of Arrow record batches, numbered from 1."""
    number = 0
    for batch in batches:
        names = batch.schema.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(f"{file}: column {twice[0]!r} appears twice")
        for row in batch.to_pylist():
            number += 1
            yield f"{file}: row {number}", row


def _note_without_rows(file: Path, num_rows: int, dropped: DropCounts) -> None:
    """Counts a file that has no rows, be it empty, blank or a header only."""
    if num_rows == 0:
        dropped.add("empty file", at=str(file))


def _refuse_utf16(start: bytes, at: str) -> None:
    """Raises DataError when a file starts like UTF-16."""
    if start.startswith(UTF16_MARKS):
        raise DataError(f"{at}: the file is UTF-16; save it as UTF-8")


def _pyarrow(file: Path) -> ModuleType:
    """The optional dependency for Parquet and Arrow files."""
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise DataError(f"{file}: reading it needs pyarrow: pip install pyarrow") from error
