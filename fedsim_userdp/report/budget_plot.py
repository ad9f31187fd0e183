"""The plot of `fedsim budget`, as PNG."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from fedsim_userdp.privacy.budget import MECHANISMS, BudgetRow
from fedsim_userdp.privacy.figures import rounded_up
from fedsim_userdp.report.budget import axis_value
from fedsim_userdp.report.files import write_figure
from fedsim_userdp.report.plots import COLOURS

LABELS = {"records_per_user": "k, records of a user", "cohort": "cohort, expected users a round"}
_NOISE = "stddev of the noise on the mean update"


def plot_budget(path: Path, plans: Sequence[Sequence[BudgetRow]], axis: str | None = None) -> None:
    """Writes one figure: noise on the mean of each mechanism, and what the user-wise clip norm must be to tie.

    Args:
        path: PNG file.
        plans: Rows of `planning.plan`, one list for each value that was swept.
        axis: What was swept; None draws bars of the first plan.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    if axis is None:
        _bars(left, plans[0], {row.mechanism: row.noise_stddev for row in plans[0]}, _NOISE)
        _bars(right, plans[0], {row.mechanism: row.noise_multiplier for row in plans[0]}, "noise multiplier")
    else:
        _noise(left, plans, axis)
        _ties(right, plans, axis)
        for axes in (left, right):
            _scale(axes, sorted({axis_value(rows[0], axis) for rows in plans}), LABELS.get(axis, axis))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    write_figure(path, figure)


def _bars(axes: Axes, rows: Sequence[BudgetRow], values: dict[str, float | None], label: str) -> None:
    """A bar for each mechanism that has a value."""
    for position, row in enumerate(rows):
        value = values[row.mechanism]
        axes.barh(position, value or 0.0, color=COLOURS[row.mechanism])
        axes.annotate(
            " none" if value is None else f" {rounded_up(value, 3)}", (value or 0.0, position), va="center", fontsize=9
        )
    names = [f"{row.mechanism}\nclip norm {row.clip_norm:g}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(label)


def _noise(axes: Axes, plans: Sequence[Sequence[BudgetRow]], axis: str) -> None:
    """Noise on the mean over the axis, a line for each mechanism."""
    for name in MECHANISMS:
        rows = [row for rows in plans for row in rows if row.mechanism == name]
        points = sorted((axis_value(row, axis), row.noise_stddev) for row in rows if row.noise_stddev is not None)
        if points:
            label = f"{name} (clip norm {rows[0].clip_norm:g})"
            axes.plot(*zip(*points, strict=True), color=COLOURS[name], marker=".", label=label)
    shown = [row.noise_stddev for rows in plans for row in rows if row.noise_stddev is not None]
    if shown and max(shown) >= 10 * min(shown):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0.0)
    axes.set_ylabel(_NOISE)
    axes.legend(frameon=False, fontsize=8)


def _ties(axes: Axes, plans: Sequence[Sequence[BudgetRow]], axis: str) -> None:
    """Tie ratios over the axis, between no averaging effect (1) and the largest one (sqrt k)."""
    for name in MECHANISMS[1:]:
        rows = [row for rows in plans for row in rows if row.mechanism == name]
        points = sorted((axis_value(row, axis), row.tie_ratio) for row in rows if row.tie_ratio is not None)
        if points:
            axes.plot(*zip(*points, strict=True), color=COLOURS[name], marker=".", label=f"to tie with {name}")
    shrinkage = sorted((axis_value(rows[0], axis), math.sqrt(rows[0].records_per_user)) for rows in plans)
    axes.plot(*zip(*shrinkage, strict=True), color="#888888", linestyle=":", label="sqrt(k): unrelated records")
    axes.axhline(1.0, color="#888888", linewidth=0.8)
    axes.set_ylabel("times smaller user-wise clip norm")
    axes.legend(frameon=False, fontsize=8)


def _scale(axes: Axes, values: Sequence[float], label: str) -> None:
    """Ticks at the swept values, on a logarithmic axis where they span much."""
    if values[0] > 0 and values[-1] >= 5 * values[0]:
        axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    shown = values if len(values) <= 8 else values[:: math.ceil(len(values) / 8)]
    axes.set_xticks(shown, [f"{value:g}" for value in shown])
    axes.set_xlabel(label)
