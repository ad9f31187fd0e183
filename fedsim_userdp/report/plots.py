"""Plots of a comparison, as PNG."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim_userdp.privacy.figures import rounded_up
from fedsim_userdp.report.files import write_figure
from fedsim_userdp.report.records import ResultRow, RoundRecord, people_of

COLOURS = {
    "zero_shot": "#888888",
    "user_wise": "#0072b2",
    "user_wise_adaptive": "#56b4e9",
    "group_privacy": "#d55e00",
    "example_level_tight": "#e69f00",
    "record_level": "#cc79a7",
    "non_private": "#009e73",
}


NOT_PRIVATE = "perplexities are computed from users' text without noise: NOT private"


def mark(figure: Figure, text: str) -> dict[str, str]:
    """Writes into a figure what in it is not private; returns the same as metadata for its PNG file."""
    figure.supxlabel(text, fontsize=8, color="#666666", x=0.99, ha="right")
    return {"Description": text}


def plot_comparison(path: Path, rows: Sequence[ResultRow], records: Sequence[RoundRecord]) -> None:
    """Writes one figure: final perplexity of each mechanism, and perplexity by round."""
    figure = comparison_figure(rows, records)
    write_figure(path, figure, metadata={"Description": NOT_PRIVATE})


def comparison_figure(rows: Sequence[ResultRow], records: Sequence[RoundRecord]) -> Figure:
    """Returns one figure: final perplexity of each mechanism, and perplexity by round."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(left, rows)
    _curves(right, rows, records)
    mark(figure, NOT_PRIVATE)
    return figure


def _names(rows: Sequence[ResultRow]) -> list[str]:
    """The mechanisms in the order of their first row."""
    return list(dict.fromkeys(row.mechanism for row in rows))


def _bars(axes: Axes, rows: Sequence[ResultRow]) -> None:
    """Final perplexity, a bar a mechanism (mean over seeds), a dot a seed."""
    names = _names(rows)
    for position, name in enumerate(names):
        values = [row.perplexity for row in rows if row.mechanism == name and row.perplexity is not None]
        if not values:
            axes.annotate(" diverged", (0.0, position), va="center", fontsize=9)
            continue
        mean = sum(values) / len(values)
        axes.barh(position, mean, color=_colour(name))
        axes.plot(values, [position] * len(values), "k.", markersize=4)
        axes.annotate(f" {mean:.1f}", (max(values), position), va="center", fontsize=9)
    axes.set_yticks(range(len(names)), [_label(name, rows) for name in names], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(f"perplexity on {people_of(rows)} (lower is better)")
    axes.spines[["top", "right"]].set_visible(False)


def _curves(axes: Axes, rows: Sequence[ResultRow], records: Sequence[RoundRecord]) -> None:
    """Perplexity by round, a line a mechanism and seed; mechanisms without rounds are dashed levels."""
    for name in _names(rows):
        for seed in dict.fromkeys(row.seed for row in rows if row.mechanism == name):
            points = [
                (r.round, r.perplexity)
                for r in records
                if r.mechanism == name and r.seed == seed and r.perplexity is not None
            ]
            if len(points) == 1:
                axes.axhline(points[0][1], color=_colour(name), linestyle="--", linewidth=1, label=name)
            elif points:
                axes.plot(*zip(*points, strict=True), color=_colour(name), marker=".", label=name)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), frameon=False, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
    axes.set_ylabel(f"perplexity on {people_of(rows)}")
    axes.spines[["top", "right"]].set_visible(False)


def _colour(name: str) -> str:
    """The mechanism's colour, black for one that is not ours."""
    return COLOURS.get(name, "#000000")


def _label(name: str, rows: Sequence[ResultRow]) -> str:
    """The mechanism and its user-level guarantee."""
    row = next(row for row in rows if row.mechanism == name)
    if row.epsilon is not None:
        return f"{name}\nuser-level $\\varepsilon$ = {rounded_up(row.epsilon, 3)}"
    return f"{name}\n{'no training' if name == 'zero_shot' else 'no user-level guarantee'}"
