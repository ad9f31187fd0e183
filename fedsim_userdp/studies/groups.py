"""What selection did to each public group: rounds, coverage and perplexity, over seeds. Not private."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsim_userdp.report.files import NOT_PRIVATE, write_csv
from fedsim_userdp.studies.grid import CellResult
from fedsim_userdp.studies.intervals import Interval, over_seeds

NOTE = "who took part, and how well each group is modelled: NOT private, do not publish"
_MOST_VALUES = 12  # of a public column, beyond which its groups are not shown


@dataclass(frozen=True)
class GroupLine:
    """A public group under one mechanism and setting.

    Attributes:
        mechanism: its name.
        axes: value of each axis.
        column: the public column.
        value: of the group.
        users: training users in it.
        mean_rounds: rounds that one of them took part in, the mean over users and seeds; None where nobody is drawn.
        coverage: share of them who took part at all, the mean over seeds; None likewise.
        perplexity: on evaluation users of the group, over seeds; None where there are none.
    """

    mechanism: str
    axes: Mapping[str, Any]
    column: str
    value: Any
    users: int
    mean_rounds: float | None
    coverage: float | None
    perplexity: Interval | None


def groups_of(results: Sequence[CellResult], found: Mapping[str, Mapping[str, Any]]) -> list[GroupLine]:
    """Returns a line for each public group of each mechanism and setting.

    Args:
        results: the cells.
        found: the run's entry of `participation.json` for each cell that has one, by the cell's name.
    """
    together: dict[tuple[str, ...], list[CellResult]] = {}
    for one in results:
        if one.status == "done" and one.cell.name in found:
            key = (one.cell.mechanism, *(str(value) for value in one.cell.axes.values()))
            together.setdefault(key, []).append(one)
    return [line for cells in together.values() for line in _lines(cells, found)]


def write_groups(folder: Path, axes: Sequence[str], lines: Sequence[GroupLine]) -> None:
    """Writes `not_private/groups.csv` of a study's folder, a row for each line."""
    columns = ("mechanism", *axes, "column", "value", "users", "mean_rounds", "coverage", "perplexity", "low", "high")
    rows = []
    for line in lines:
        one = {} if line.perplexity is None else asdict(line.perplexity)
        told = {key: value for key, value in asdict(line).items() if key not in ("axes", "perplexity")}
        rows.append(
            {**told, **line.axes, "perplexity": one.get("mean"), "low": one.get("low"), "high": one.get("high")}
            | {"not_private": NOTE}
        )
    write_csv(folder / NOT_PRIVATE / "groups.csv", (*columns, "not_private"), rows)


def _lines(cells: Sequence[CellResult], found: Mapping[str, Mapping[str, Any]]) -> list[GroupLine]:
    """The groups of cells that differ in their seed alone."""
    entries = [found[one.cell.name] for one in cells]
    names = {name: values for entry in entries for name, values in _groups(entry).items()}
    lines = []
    for column, values in names.items():
        for value in values if 1 < len(values) <= _MOST_VALUES else ():
            drawn = [one for entry in entries if (one := _of(entry.get("groups"), column, value))]
            scored = [one for entry in entries if (one := _of(entry.get("perplexity_by_group"), column, value))]
            figures = [float(one["perplexity"]) for one in scored if one["perplexity"] is not None]
            lines.append(
                GroupLine(
                    cells[0].cell.mechanism,
                    cells[0].cell.axes,
                    column,
                    value,
                    int(drawn[0]["users"]) if drawn else 0,
                    _mean([one["mean_rounds"] for one in drawn]),
                    _mean([one["coverage"] for one in drawn]),
                    over_seeds(figures) if figures else None,
                )
            )
    return lines


def _groups(entry: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Values of each public column that is a grouping, of training users where they are drawn."""
    kinds = entry.get("groups") or entry.get("perplexity_by_group") or {}
    return {str(name): [one["value"] for one in groups] for name, groups in kinds.items()}


def _of(kinds: Mapping[str, Any] | None, column: str, value: object) -> Mapping[str, Any]:
    """What is told of one group; nothing where it is not there."""
    listed = (kinds or {}).get(column, ())
    return next((one for one in listed if _is_same(one["value"], value)), {})


def _is_same(one: object, other: object) -> bool:
    """Whether two values of a column are one; a number is the same as whole and as not."""
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other)
    return one == other


def _mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return sum(values) / len(values) if values else None
