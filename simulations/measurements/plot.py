"""The cost curves of `fedsim benchmark`, as PNG."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from fedsim_userdp.report.files import write_figure
from fedsim_userdp.report.plots import COLOURS
from fedsim_userdp.simulations.measurements.results import CostCurve

LABELS = {
    "cohort": "users in the cohort",
    "records_per_user": "k, records of a user",
    "length": "tokens of a record",
    "rank": "rank of the adapter",
}


def plot_cost_curves(path: Path, curves: Sequence[CostCurve]) -> None:
    """Writes one figure with a panel for each curve, on logarithmic axes, with the fitted slope.

    Args:
        path: PNG file.
        curves: at least one.
    """
    figure = Figure(figsize=(3.6 * len(curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False, sharey=True)
    for axes, curve in zip(panels[0], curves, strict=True):
        _draw(axes, curve)
    panels[0][0].set_ylabel("seconds of a round")
    write_figure(path, figure)


def _draw(axes: Axes, curve: CostCurve) -> None:
    """Every repeat as a dot, the medians as a line, and in grey what growing in proportion would look like."""
    values, colour = list(curve.points), COLOURS["user_wise"]
    for value, seconds in curve.points.items():
        axes.plot([value] * len(seconds), list(seconds), ".", color=colour, alpha=0.35, markersize=5)
    axes.plot(values, curve.medians, color=colour, marker="o", markersize=4, label=f"slope {curve.slope:.2f}")
    last, seconds_there = values[-1], curve.medians[-1]
    proportional = [seconds_there * value / last for value in values]
    axes.plot(values, proportional, color="#888888", linestyle=":", linewidth=1, label="slope 1")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(values, [str(value) for value in values])
    axes.set_xlabel(LABELS.get(curve.axis, curve.axis))
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
