"""Rows of Parquet files and of folders that Hugging Face `datasets` saved; needs pyarrow."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from fedsim_userdp.data.corpus import DropCounts
from fedsim_userdp.data.rows import Row, decode_text, note_without_rows
from fedsim_userdp.data.source import short
from fedsim_userdp.errors import DataError

# Text is taken as bytes, as a file may say UTF-8 of what is none.
BYTES_OF = {"string": "binary", "large_string": "large_binary", "string_view": "binary_view"}


def read_parquet(file: Path, dropped: DropCounts, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Yields (place, row) for each row of a Parquet file; only `columns` are read, the others are None.

    Raises:
        DataError: pyarrow is not installed, the file is not Parquet, or one of the columns stands there twice or cannot
            be read.
    """
    arrow, parquet = _pyarrow(file), importlib.import_module("pyarrow.parquet")
    if file.stat().st_size == 0:
        return note_without_rows(file, 0, dropped)
    try:
        with parquet.ParquetFile(file) as table:
            note_without_rows(file, table.metadata.num_rows, dropped)
            names = table.schema_arrow.names
            wanted = _wanted(file, names, columns)
            yield from _rows(file, names, table.iter_batches(batch_size=1024, columns=wanted), wanted, dropped)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a Parquet file that can be read ({type(error).__name__})") from error


def read_datasets_folder(folder: Path, dropped: DropCounts, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Yields (place, row) of a folder that Hugging Face `datasets` wrote with `save_to_disk`, as `read_parquet` does.

    Only the Arrow files are read: no code and no pickle is run, and `datasets` need not be installed.

    Raises:
        DataError: pyarrow is not installed, the folder is not such a folder, has several splits or is incomplete, or
            one of the columns stands there twice or cannot be read.
    """
    for file in datasets_files(folder):
        arrow = _pyarrow(file)
        try:
            with arrow.memory_map(str(file)) as source, arrow.ipc.open_stream(source) as stream:
                names = stream.schema.names
                yield from _rows(file, names, stream, _wanted(file, names, columns), dropped)
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"{file}: not an Arrow stream that can be read ({type(error).__name__})") from error


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


def _wanted(file: Path, names: list[str], columns: Sequence[str]) -> list[str]:
    """Those of the columns that there are."""
    if twice := [name for name in columns if names.count(name) > 1]:
        raise DataError(f"{file}: column {twice[0]!r} appears twice")
    return [name for name in columns if name in names]


def _rows(
    file: Path, names: list[str], batches: Iterable[Any], wanted: list[str], dropped: DropCounts
) -> Iterator[tuple[str, Row]]:
    """Rows of Arrow record batches, numbered from 1, each with all names."""
    number = 0
    for batch in batches:
        values = {name: _values(file, name, batch.column(batch.schema.names.index(name))) for name in wanted}
        is_text = {name for name in wanted if str(_plain_type(batch.schema.field(name).type)) in BYTES_OF}
        for index in range(batch.num_rows):
            number += 1
            at = f"{file}: row {number}"
            row: Row = dict.fromkeys(names)
            for name in wanted:
                value = values[name][index]
                row[name] = decode_text(value, dropped, at) if name in is_text and value is not None else value
            yield at, row


def _values(file: Path, name: str, column: Any) -> list[Any]:
    """The values of one column of a batch, texts as bytes."""
    try:
        if hasattr(column, "dictionary_decode"):
            column = column.dictionary_decode()
        if as_bytes := BYTES_OF.get(str(column.type)):
            column = column.cast(as_bytes)
        return list(column.to_pylist())
    except (ValueError, OverflowError, KeyError, NotImplementedError) as error:  # a date beyond 9999, no such time zone
        raise DataError(f"{file}: column {name!r} cannot be read ({type(error).__name__}): save it as text") from error


def _plain_type(kind: Any) -> Any:
    """The type of a column's values where they are kept in a dictionary, else the type."""
    return getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind


def _pyarrow(file: Path) -> ModuleType:
    """The optional dependency for Parquet and Arrow files."""
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise DataError(f"{file}: reading it needs pyarrow: pip install pyarrow") from error
