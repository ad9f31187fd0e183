"""The plot of `fedsim data`, as PNG."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, PercentFormatter
from numpy.typing import NDArray

from fedsim_userdp.data.statistics import CorpusStatistics, Distribution
from fedsim_userdp.report.data import NOTE
from fedsim_userdp.report.files import write_figure
from fedsim_userdp.report.plots import COLOURS

MOST_BINS = 30
RECORDS, TOKENS, PEOPLE = COLOURS["user_wise"], COLOURS["group_privacy"], COLOURS["zero_shot"]


def plot_data(
    path: Path,
    statistics: CorpusStatistics,
    records_per_user: NDArray[np.int64],
    tokens_per_user: NDArray[np.int64],
    k: int | None = None,
) -> None:
    """Writes one figure: how records and tokens are spread over users, and what each bound keeps.

    Args:
        path: PNG file.
        statistics: Figures of the store.
        records_per_user: [num_users] records of each user, >= 1.
        tokens_per_user: [num_users] tokens of each user, >= 1.
        k: The run's own bound, marked where the bounds are drawn; None for no mark.
    """
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    _spread(panels[0], records_per_user, statistics.records_per_user, "records of a user", RECORDS)
    _spread(panels[1], tokens_per_user, statistics.tokens_per_user, "tokens of a user", TOKENS)
    _bounds(panels[2], statistics, k)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"All figures are {NOTE}.", fontsize=8, color="#555555")
    write_figure(path, figure, metadata={"Description": f"All figures are {NOTE}."})


def _spread(axes: Axes, amounts: NDArray[np.int64], spread: Distribution, label: str, colour: str) -> None:
    """Histogram of an amount over users, on a logarithmic scale, with median and 90th percentile."""
    axes.hist(amounts, bins=_bins(spread), color=colour, alpha=0.8)
    axes.set_xscale("log")
    axes.set_xticks(_ticks(spread), [f"{value:,}" for value in _ticks(spread)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.15)
    for value, name, style in ((spread.median, "median", "-"), (spread.p90, "90%", "--")):
        axes.axvline(value, color="#333333", linestyle=style, linewidth=1, label=f"{name}: {value:,.0f}")
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(f"the top 1% hold {spread.top_1_percent_share:.0%}", fontsize=10)
    axes.set_xlabel(f"{label} (log scale)")
    axes.set_ylabel("users")


def _bins(spread: Distribution) -> list[float]:
    """Edges that grow by a constant factor, never closer than whole numbers are."""
    low, high = max(spread.minimum, 1) - 0.5, spread.maximum + 0.5
    edges = np.geomspace(low, high, MOST_BINS + 1)
    inner = {float(edge) for edge in np.floor(edges[1:-1]) + 0.5}
    return sorted({low, high, *inner})


def _ticks(spread: Distribution) -> list[int]:
    """Powers of ten within the range, with 2 and 5 times them where these are few; else both ends."""
    decades = [10**power for power in range(19)]
    for steps in ((1,), (1, 2, 5)):
        ticks = sorted(step * decade for decade in decades for step in steps)
        inside = [tick for tick in ticks if spread.minimum <= tick <= spread.maximum]
        if len(inside) > 2:
            return inside
    return sorted({spread.minimum, spread.maximum})


def _bounds(axes: Axes, statistics: CorpusStatistics, k: int | None) -> None:
    """Shares that each bound keeps, and of those whom it does not touch."""
    bounds = sorted(statistics.bounds, key=lambda bound: bound.k)
    people = statistics.records_per_owner or statistics.records_per_user
    whom = "owners" if statistics.records_per_owner else "users"
    ks = [bound.k for bound in bounds]
    records = [bound.records_kept / max(bound.records_kept + bound.records_dropped, 1) for bound in bounds]
    tokens = [bound.tokens_kept / max(bound.tokens_kept + bound.tokens_dropped, 1) for bound in bounds]
    untouched = [1 - bound.users_capped / statistics.num_owners for bound in bounds]
    axes.plot(ks, records, color=RECORDS, marker=".", label="records kept")
    axes.plot(ks, tokens, color=TOKENS, marker=".", linestyle="--", label="tokens kept")
    axes.plot(ks, untouched, color=PEOPLE, marker=".", linestyle=":", label=f"{whom} with at most k records")
    if k is not None:
        axes.axvline(k, color="#333333", linewidth=0.8, linestyle="--", label=f"k = {k}, as set")
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if ks[-1] >= 5 * ks[0]:
        axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(ks, [str(value) for value in ks])
    axes.set_title(f"most records of anybody: {people.maximum:,}", fontsize=10)
    axes.set_xlabel(f"k, bound on the used records of {'an owner' if statistics.records_per_owner else 'a user'}")
    axes.legend(frameon=False, fontsize=8)
