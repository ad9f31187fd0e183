"""Figures of a study, drawn once for files (SVG, PDF, PNG) and for the page."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedsim_userdp.plain_files import write_file
from fedsim_userdp.report.files import replacing
from fedsim_userdp.report.plots import COLOURS
from fedsim_userdp.studies.groups import GroupLine
from fedsim_userdp.studies.summary import Curve, Line, Pair

FOLDER, FORMATS = "figures", ("svg", "pdf", "png")
_INK, _FAINT = "#1b2a33", "#8a979e"  # of text and lines; on the page they follow its theme
_MARKERS = "osD^vPX*"
_MOST_PAIRS = 40
_DPI = 200
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,
}


def figures_of(
    lines: Sequence[Line],
    pairs: Sequence[Pair],
    curves: Sequence[Curve],
    footer: str,
    groups: Sequence[GroupLine] = (),
) -> dict[str, tuple[Figure, str]]:
    """Returns the figures that a study has enough for, by name, each with a sentence that says what it shows.

    Args:
        lines: the table.
        pairs: differences between mechanisms.
        curves: perplexity by round.
        footer: corpus, model, delta and k; that figures are not private is added.
        groups: what selection did to public groups.
    """
    found: dict[str, tuple[Figure, str]] = {}
    with mpl.rc_context(_STYLE):
        axis = _numeric_axis(lines)
        if axis:
            said = f"Perplexity on held-out users against {axis}: mean over seeds and its 95% interval."
            found[f"perplexity-by-{axis.replace('_', '-')}"] = _against(lines, axis), said
        elif any(line.perplexity for line in lines):
            found["perplexity"] = _levels(lines), "Perplexity on held-out users: mean over seeds and its 95% interval."
        if shown := [pair for pair in pairs if pair.difference.interval.low is not None][:_MOST_PAIRS]:
            said = "Differences of perplexity between mechanisms, paired by seed, with their 95% intervals."
            found["differences"] = _forest(shown), said
        if curves:
            found["learning-curves"] = _curves(curves), "Perplexity by round, the mean over seeds."
        if drawn := [line for line in groups if line.mean_rounds is not None]:
            found["participation"] = _participation(drawn), "Rounds that a user of each public group took part in."
        noisy = [line for line in lines if line.noise_multiplier and line.axes.get("epsilon") is not None]
        if len({line.axes["epsilon"] for line in noisy}) > 1:
            found["noise-by-epsilon"] = _noise(noisy), "Noise multiplier that each mechanism needs against epsilon."
        for figure, _ in found.values():
            note = f"{footer}; perplexities are NOT private"
            figure.supxlabel(note, fontsize=7, color=_FAINT, x=0.99, ha="right")
    return found


def write_figures(folder: Path, figures: Mapping[str, tuple[Figure, str]]) -> None:
    """Writes each figure to `figures/NAME.svg`, `.pdf` and `.png`."""
    for name, (figure, said) in figures.items():
        for form in FORMATS:
            with replacing(folder / FOLDER / f"{name}.{form}") as temporary:
                write_file(temporary, _drawn(figure, form, said))


def svg_of(name: str, figure: Figure, said: str) -> str:
    """Returns a figure as an SVG element for a page: its ids its own, its ink that of the page.

    Args:
        name: of the figure.
        figure: the figure.
        said: what it shows, for those who do not see it.
    """
    text = _drawn(figure, "svg", said).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    for ink in (_INK, _FAINT):
        text = text.replace(ink, "currentColor")
    for size in ("width", "height"):  # which the page's own width decides
        text = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{said}"', 1)


def _drawn(figure: Figure, form: str, said: str) -> bytes:
    """A figure in a file format, without the time of day."""
    image = io.BytesIO()
    metadata: dict[str, str | None] = {"Title": said}
    metadata |= {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form, {})
    with mpl.rc_context({**_STYLE, "svg.hashsalt": said}):
        figure.savefig(image, format=form, dpi=_DPI, metadata=metadata, transparent=form == "svg")
    return image.getvalue()


def _numeric_axis(lines: Sequence[Line]) -> str:
    """The first axis with two numbers or more; empty where there is none."""
    for axis in lines[0].axes if lines else ():
        values = {line.axes[axis] for line in lines if line.axes[axis] is not None}
        if len(values) > 1 and all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            return axis
    return ""


def _mechanisms(lines: Sequence[Line]) -> list[str]:
    """Names of mechanisms in the order of their first line."""
    return list(dict.fromkeys(line.mechanism for line in lines))


def _look(name: str, names: Sequence[str]) -> dict[str, object]:
    """Colour and marker of a mechanism."""
    at = list(names).index(name)
    spare = ("#000000", "#7f3c8d", "#b07aa1", "#4c6b22")
    return {"color": COLOURS.get(name, spare[at % len(spare)]), "marker": _MARKERS[at % len(_MARKERS)]}


def _against(lines: Sequence[Line], axis: str) -> Figure:
    """Perplexity against a numeric axis, with bands; mechanisms that do not depend on it are dashed levels."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes, names = figure.subplots(), _mechanisms(lines)
    others = [name for name in (lines[0].axes if lines else ()) if name != axis]
    for name in names:
        look = _look(name, names)
        groups: dict[tuple[str, ...], list[Line]] = {}
        for line in lines:
            if line.mechanism == name and line.perplexity is not None:
                groups.setdefault(tuple(str(line.axes[other]) for other in others), []).append(line)
        for other, group in groups.items():
            label = ", ".join((name, *(value for value in other if value != "None")))
            _series(axes, group, axis, label, look)
    axes.set_xlabel(axis.replace("_", " "))
    axes.set_ylabel("perplexity (lower is better)")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    values = sorted({float(line.axes[axis]) for line in lines if line.axes[axis] is not None})
    if values[0] > 0 and values[-1] / values[0] > 4:
        axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()
    return figure


def _series(axes: Axes, group: Sequence[Line], axis: str, label: str, look: Mapping[str, object]) -> None:
    """One mechanism's line with its band, or a level."""
    found = [(line.axes[axis], line.perplexity) for line in group if line.perplexity is not None]
    if found and found[0][0] is None:
        axes.axhline(found[0][1].mean, color=str(look["color"]), linestyle="--", linewidth=1.2, label=label)
        return
    found.sort(key=lambda pair: float(pair[0]))
    at = [float(value) for value, _ in found]
    axes.plot(at, [one.mean for _, one in found], label=label, linewidth=1.6, markersize=5, **look)  # type: ignore[arg-type]
    banded = [(x, one.low, one.high) for x, (_, one) in zip(at, found, strict=True) if one.low is not None]
    if banded:
        xs, lows, highs = zip(*banded, strict=True)
        axes.fill_between(xs, lows, highs, color=str(look["color"]), alpha=0.15, linewidth=0)


def _levels(lines: Sequence[Line]) -> Figure:
    """Perplexity of each line, with its interval."""
    shown = [line for line in lines if line.perplexity is not None]
    figure = Figure(figsize=(7, 0.9 + 0.34 * len(shown)), layout="constrained")
    axes, names = figure.subplots(), _mechanisms(lines)
    for place, line in enumerate(shown):
        assert line.perplexity is not None
        look, one = _look(line.mechanism, names), line.perplexity
        if one.low is not None and one.high is not None:
            axes.plot([one.low, one.high], [place, place], color=str(look["color"]), linewidth=2)
        axes.plot([one.mean], [place], markersize=6, **look)  # type: ignore[arg-type]
    labels = [", ".join((line.mechanism, *(str(v) for v in line.axes.values() if v is not None))) for line in shown]
    axes.set_yticks(range(len(shown)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("perplexity (lower is better)")
    return figure


def _forest(pairs: Sequence[Pair]) -> Figure:
    """Differences with their intervals; filled where the two can be told apart."""
    figure = Figure(figsize=(7, 0.9 + 0.3 * len(pairs)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0.0, color=_FAINT, linewidth=1)
    for place, pair in enumerate(pairs):
        one = pair.difference.interval
        assert one.low is not None
        assert one.high is not None
        axes.plot([one.low, one.high], [place, place], color="#0072b2", linewidth=1.8)
        fill = "#0072b2" if pair.is_different else "white"
        axes.plot([one.mean], [place], "o", color="#0072b2", markerfacecolor=fill, markersize=5)
    labels = [
        f"{pair.one} - {pair.other}" + "".join(f", {axis} {v}" for axis, v in pair.axes.items() if v is not None)
        for pair in pairs
    ]
    axes.set_yticks(range(len(pairs)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("difference of perplexity; filled: told apart by Holm's test over all pairs")
    return figure


def _curves(curves: Sequence[Curve]) -> Figure:
    """Perplexity by round, a panel for each setting (at most three)."""
    settings = list(dict.fromkeys(curve.setting for curve in curves if curve.setting))[:3] or [""]
    figure = Figure(figsize=(3.2 * len(settings) + 1.6, 3.4), layout="constrained")
    panels = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(curve.mechanism for curve in curves))
    for axes, setting in zip(panels, settings, strict=True):
        for curve in curves:
            if curve.setting in (setting, ""):
                look = _look(curve.mechanism, names)
                if len(curve.rounds) == 1:
                    axes.axhline(curve.perplexities[0], color=str(look["color"]), linestyle="--", label=curve.mechanism)
                else:
                    axes.plot(curve.rounds, curve.perplexities, markersize=3, label=curve.mechanism, **look)
        axes.set_title(setting, fontsize=9)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("perplexity")
    handles, labels = panels[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    panels[-1].legend(unique.values(), unique.keys(), fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _participation(groups: Sequence[GroupLine]) -> Figure:
    """Mean rounds of a user by public group, a row for each mechanism and setting; the first public column."""
    shown = [line for line in groups if line.column == groups[0].column]
    rows = list(dict.fromkeys(_row_of(line) for line in shown))
    values = list(dict.fromkeys(str(line.value) for line in shown))
    figure = Figure(figsize=(7, 1.1 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for at, value in enumerate(values):
        points = [(line.mean_rounds, rows.index(_row_of(line))) for line in shown if str(line.value) == value]
        colour = tuple(COLOURS.values())[1:][at % (len(COLOURS) - 1)]
        label = f"{groups[0].column} {value}"
        axes.plot(*zip(*points, strict=True), _MARKERS[at % len(_MARKERS)], color=colour, label=label)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("rounds a user took part in, the mean over the group's users and seeds")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _row_of(line: GroupLine) -> str:
    """Mechanism and setting of a line."""
    return ", ".join((line.mechanism, *(str(value) for value in line.axes.values() if value is not None)))


def _noise(lines: Sequence[Line]) -> Figure:
    """Noise multiplier against epsilon."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes, names = figure.subplots(), _mechanisms(lines)
    for name in names:
        points = {float(line.axes["epsilon"]): line.noise_multiplier for line in lines if line.mechanism == name}
        at = sorted(points)
        axes.plot(at, [points[x] or 0.0 for x in at], label=name, linewidth=1.6, **_look(name, names))  # type: ignore[arg-type]
    axes.set_xlabel("epsilon")
    axes.set_ylabel("noise multiplier")
    axes.set_yscale("log")
    for number_format in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        number_format(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xticks(sorted({float(line.axes["epsilon"]) for line in lines}))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
