"""Writing result files: whole or not at all."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from fedsim_userdp.report.records import ROUND_FIELDS, ROW_FIELDS, ResultRow, RoundRecord

NOT_PRIVATE = "not_private"


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` through a temporary file, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: object) -> None:
    """Writes `value` as JSON; infinities and NaN are refused, since other readers do not know them."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Writes the rows with these columns; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_results(folder: Path, rows: Sequence[ResultRow]) -> None:
    """Writes `results.csv` and `results.json`."""
    dicts = [row.to_dict() for row in rows]
    write_csv(folder / "results.csv", ROW_FIELDS, dicts)
    write_json(folder / "results.json", dicts)


def write_rounds(folder: Path, records: Sequence[RoundRecord]) -> None:
    """Writes the rounds' diagnostics to `not_private/rounds.csv`."""
    write_csv(folder / NOT_PRIVATE / "rounds.csv", ROUND_FIELDS, [asdict(record) for record in records])
