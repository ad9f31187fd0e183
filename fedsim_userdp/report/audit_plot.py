"""The plot of `fedsim audit`, as PNG."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim_userdp.privacy.figures import rounded_up
from fedsim_userdp.report.audit import GAMES, NOT_PRIVATE, AuditedClaim, AuditRow
from fedsim_userdp.report.files import write_figure
from fedsim_userdp.report.plots import COLOURS, mark

_CLAIM, _REFUTED = "#000000", COLOURS["group_privacy"]
_TESTS = {"which_direction": COLOURS["user_wise"], "in_or_out": COLOURS["non_private"]}


def plot_audit(path: Path, claims: Sequence[AuditedClaim]) -> None:
    """Writes one figure: each claim with the bounds on it, and the ROC curves of user inference.

    Args:
        path: PNG file.
        claims: The audited runs, at least one.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bounds(left, claims)
    _curves(right, claims)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    metadata = mark(figure, NOT_PRIVATE)
    write_figure(path, figure, metadata=metadata)


def _bounds(axes: Axes, claims: Sequence[AuditedClaim]) -> None:
    """A bar from 0 for each bound, a tick where it could have ended at most, and the claim across the bars."""
    width = 0.8 / len(_TESTS)
    for place, claim in enumerate(claims):
        for row in claim.tests:
            where = place - 0.4 + width * (list(_TESTS).index(row.test) + 0.5)
            _bar(axes, where, width, row)
        if claim.claimed_epsilon is not None:
            axes.hlines(claim.claimed_epsilon, place - 0.42, place + 0.42, color=_CLAIM, linewidth=2)
    for test, colour in _TESTS.items():
        axes.bar(0, 0, color=colour, label=f"lower bound, {GAMES[test]}")
    axes.plot([], [], color=_CLAIM, linewidth=2, label="claimed epsilon")
    axes.plot([], [], color="#888888", linestyle=":", label="most the test could show")
    axes.set_xticks(range(len(claims)), [_label(claim) for claim in claims])
    axes.set_ylabel("user-level epsilon")
    top = max(max(claim.claimed_epsilon or 0.0, *(row.ceiling for row in claim.tests)) for claim in claims)
    axes.set_ylim(0, 1.45 * top)
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    confidence = claims[0].tests[0].confidence
    axes.set_title(f"bounds from one run each, {confidence:.0%} confidence together", fontsize=10)


def _bar(axes: Axes, where: float, width: float, row: AuditRow) -> None:
    """One bound."""
    bars = axes.bar(where, row.lower_bound, 0.9 * width, color=_TESTS[row.test])
    if row.verdict == "refuted":
        bars[0].set(edgecolor=_REFUTED, linewidth=2, hatch="//")
    axes.hlines(row.ceiling, where - 0.45 * width, where + 0.45 * width, color="#888888", linestyle=":")
    axes.annotate(f"{row.lower_bound:.1f}", (where, row.lower_bound), ha="center", va="bottom", fontsize=8)


def _curves(axes: Axes, claims: Sequence[AuditedClaim]) -> None:
    """The ROC curve of user inference for each claim."""
    shades = colormaps["viridis"]
    for place, claim in enumerate(claims):
        low, high = claim.auc_interval
        name = "no noise" if claim.claimed_epsilon is None else f"epsilon {rounded_up(claim.claimed_epsilon, 3)}"
        label = f"{name}: AUC {claim.auc:.3f} ({low:.3f}-{high:.3f})"
        axes.plot(*claim.curve, color=shades(place / max(len(claims) - 0.8, 1)), linewidth=1.3, label=label)
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=0.8, linestyle=":", label="chance")
    axes.set_xlabel("held-out users taken for training users")
    axes.set_ylabel("training users recognised")
    axes.set_title("user inference from users' text", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _label(claim: AuditedClaim) -> str:
    """The claim under its bars."""
    if claim.claimed_epsilon is None:
        return "no noise,\nno claim"
    return f"epsilon {rounded_up(claim.claimed_epsilon, 3)}{chr(10) + 'refuted' if claim.is_refuted else ''}"
