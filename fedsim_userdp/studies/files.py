"""What a study's folder holds: `study.json`, with every cell's result, and its table in three formats."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedsim_userdp import __version__
from fedsim_userdp.report.files import write_csv, write_json, write_text
from fedsim_userdp.studies.grid import CellResult
from fedsim_userdp.studies.summary import Line, Pair
from fedsim_userdp.studies.tuning import Search

FILE, FORMAT = "study.json", 1
NOT_PRIVATE = "all but axes, settings, epsilon and delta is computed from users' data without noise"
_COLUMNS = (
    "mechanism",
    "perplexity",
    "low",
    "high",
    "seeds",
    "epsilon",
    "delta",
    "noise_multiplier",
    "records_per_user",
)


def write_study(
    folder: Path,
    config: Mapping[str, Any],
    results: Sequence[CellResult],
    trials: Sequence[CellResult],
    searches: Sequence[Search],
    lines: Sequence[Line],
) -> None:
    """Writes `study.json`: settings, cells, trials, what was searched, and the table.

    Args:
        folder: of the study.
        config: its settings.
        results: every cell.
        trials: every trial.
        searches: what trials were made for, and which won.
        lines: the table.
    """
    content: dict[str, object] = {
        "format": FORMAT,
        "version": __version__,
        "not_private": NOT_PRIVATE,
        "config": config,
        "cells": [one.to_json() for one in results],
        "trials": [one.to_json() for one in trials],
        "searches": [one.to_json() for one in searches],
        "table": [asdict(line) for line in lines],
    }
    write_json(folder / FILE, in_json(content))


def in_json(value: Any) -> Any:
    """Returns a value with texts for what JSON has no number for, such as `inf`."""
    if isinstance(value, Mapping):
        return {key: in_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [in_json(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_tables(folder: Path, axes: Sequence[str], lines: Sequence[Line], pairs: Sequence[Pair]) -> None:
    """Writes `table.csv`, `table.md` and `table.tex` (booktabs), and `differences.csv`."""
    rows = [_row(line) for line in lines]
    columns = (_COLUMNS[0], *map(_column, axes), *_COLUMNS[1:], "not_private")
    write_csv(folder / "table.csv", columns, [{**row, "not_private": "perplexity, low, high"} for row in rows])
    shown = ("mechanism", *axes, "perplexity", "seeds", "noise", "k")
    cells = [[_shown(line, key) for key in shown] for line in lines]
    write_text(folder / "table.md", _markdown(shown, cells))
    write_text(folder / "table.tex", _latex(shown, cells))
    write_csv(
        folder / "differences.csv",
        (
            "one",
            "other",
            *map(_column, axes),
            "difference",
            "low",
            "high",
            "p_value",
            "is_different",
            "seeds",
            "not_private",
        ),
        [_pair_row(pair) for pair in pairs],
    )


def _column(axis: str) -> str:
    """The column of an axis: what was asked for, beside what was delivered."""
    return f"{axis}_target" if axis in _COLUMNS else axis


def _row(line: Line) -> dict[str, object]:
    """A line of `table.csv`."""
    interval = line.perplexity
    return {
        "mechanism": line.mechanism,
        **{_column(axis): value for axis, value in line.axes.items()},
        "perplexity": None if interval is None else interval.mean,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
        "seeds": 0 if interval is None else interval.number,
        "epsilon": line.epsilon,
        "delta": line.delta,
        "noise_multiplier": line.noise_multiplier,
        "records_per_user": line.records_per_user,
    }


def _pair_row(pair: Pair) -> dict[str, object]:
    """A line of `differences.csv`."""
    interval = pair.difference.interval
    return {
        "one": pair.one,
        "other": pair.other,
        **{_column(axis): value for axis, value in pair.axes.items()},
        "difference": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "p_value": pair.difference.p_value,
        "is_different": pair.is_different,
        "seeds": interval.number,
        "not_private": "difference, low, high, p_value",
    }


def _shown(line: Line, key: str) -> str:
    """A cell of the table as text."""
    if key == "mechanism":
        return line.mechanism
    if key == "perplexity":
        return line.in_words
    if key == "seeds":
        return "" if line.perplexity is None else str(line.perplexity.number)
    if key == "noise":
        return f"{line.noise_multiplier:.3f}" if line.noise_multiplier else "-"
    if key == "k":
        return "-" if line.records_per_user is None else str(line.records_per_user)
    value = line.axes.get(key)
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *cells]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped) + "\nPerplexities are not private.\n"


_ESCAPED = {"\\": r"\textbackslash{}", **{char: f"\\{char}" for char in "&%$#_{}"}, "~": r"\textasciitilde{}"}


def _latex(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table in LaTeX, for the package booktabs."""
    rows = [
        " & ".join("".join(_ESCAPED.get(char, char) for char in cell) for cell in line) for line in (columns, *cells)
    ]
    body = " \\\\\n".join(rows[1:])
    return (
        "% needs \\usepackage{booktabs}; perplexities are not private\n"
        f"\\begin{{tabular}}{{{'l' * len(columns)}}}\n\\toprule\n{rows[0]} \\\\\n\\midrule\n{body} \\\\\n"
        "\\bottomrule\n\\end{tabular}\n"
    )
