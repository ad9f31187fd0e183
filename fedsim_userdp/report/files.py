"""Writing result files: whole or not at all, with a mark inside where figures are not private."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim_userdp.plain_files import make_folder, move, remove, sync, sync_entry, write_file
from fedsim_userdp.report.records import OF_ROUNDS, ROUND_FIELDS, ROW_FIELDS, ResultRow, RoundRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_PRIVATE = "not_private"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write a file or folder to, which then takes the place of `path`: whole or not at all.

    Raises:
        OSError: when the disk is full or broken, naming `path`; what was at `path` is still there.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".new.{path.name}")
    try:
        remove(temporary)  # left by a process that was killed, or a link to somewhere else
        yield temporary
        for file in temporary.rglob("*") if temporary.is_dir() else [temporary]:
            sync(file)
        if path.is_dir():
            remove(path)
        move(temporary, path)
        sync_entry(path)
    except OSError as error:
        with suppress(OSError):
            remove(temporary)  # room for the rest of the folder
        error.filename = error.filename or str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, so that a reader never sees half of it."""
    with replacing(path) as temporary:
        write_file(temporary, text.encode())


def write_figure(path: Path, figure: "Figure", *, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a figure as PNG, with what its metadata say of it."""
    image = io.BytesIO()  # matplotlib would follow what lies at a path
    figure.savefig(image, format="png", dpi=130, metadata=metadata)
    with replacing(path) as temporary:
        write_file(temporary, image.getvalue())


def write_json(path: Path, value: object) -> None:
    """Writes `value` as JSON; infinities and NaN are refused, since other readers do not know them."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Writes the rows with these columns; None becomes an empty cell."""
    write_text(path, csv_text(columns, rows))


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Returns the rows as CSV with these columns; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_results(folder: Path, rows: Sequence[ResultRow]) -> None:
    """Writes `results.csv` and `results.json`."""
    write_text(folder / "results.csv", results_csv(rows))
    write_json(folder / "results.json", [row.to_dict() for row in rows])


def results_csv(rows: Sequence[ResultRow]) -> str:
    """Returns the rows as CSV, each metric in a column `metric_NAME`."""
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    columns = (*ROW_FIELDS[:-1], *(f"metric_{name}" for name in names), ROW_FIELDS[-1])
    dicts = [
        {key: value for key, value in row.to_dict().items() if key != "metrics"}
        | {f"metric_{name}": row.metrics.get(name) for name in names}
        for row in rows
    ]
    return csv_text(columns, dicts)


def write_rounds(folder: Path, records: Sequence[RoundRecord]) -> None:
    """Writes the rounds' diagnostics to `not_private/rounds.csv`, each row with the mark that they are."""
    rows = [{**asdict(record), "not_private": OF_ROUNDS} for record in records]
    write_csv(folder / NOT_PRIVATE / "rounds.csv", (*ROUND_FIELDS, "not_private"), rows)
