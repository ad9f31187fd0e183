"""The page of a study: one HTML file that opens from the disk and asks for nothing else."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim_userdp import __version__
from fedsim_userdp.privacy.figures import in_column, rounded_up
from fedsim_userdp.report.files import write_text
from fedsim_userdp.studies.grid import CellResult
from fedsim_userdp.studies.groups import GroupLine
from fedsim_userdp.studies.summary import Line, Pair
from fedsim_userdp.studies.tuning import Search

FILE = "report.html"
NOT_PRIVATE = (
    "Perplexities, and all figures and sentences that follow from them, are computed from users' text without noise. "
    "Do not publish them where the users' text is private."
)
_TEMPLATE = Path(__file__).with_name("report.html.j2")
_MOST_SENTENCES = 6


@dataclass(frozen=True)
class Findings:
    """What a page is made of.

    Attributes:
        results: every cell.
        lines: the table.
        pairs: differences between mechanisms.
        searches: what was tuned.
        groups: what selection did to public groups.
        joint: what all runs promise together, a sentence.
        overrides: the study's command line.
        seeds: number of seeds.
    """

    results: Sequence[CellResult]
    lines: Sequence[Line]
    pairs: Sequence[Pair]
    searches: Sequence[Search]
    groups: Sequence[GroupLine]
    joint: str
    overrides: Sequence[str]
    seeds: int


def write_page(folder: Path, found: Findings, figures: Mapping[str, tuple[str, str]]) -> None:
    """Writes `report.html`.

    Args:
        folder: of the study.
        found: what it says.
        figures: SVG elements by name, each with what it shows.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    write_text(folder / FILE, template.render(**_content(found), figures=figures))


def _content(found: Findings) -> dict[str, Any]:
    """What the template shows."""
    axes = list(found.lines[0].axes) if found.lines else []
    done = [one for one in found.results if one.row is not None]
    first = dict(done[0].context) if done else {}
    failed = [one for one in found.results if one.status in ("failed", "diverged")]
    about = (
        f"{len(found.results)} runs on {first.get('data', 'no data')} with model {first.get('model', 'none')}, "
        f"{found.seeds} seed{'s' if found.seeds != 1 else ''}."
    )
    return {
        "title": _title(found),
        "about": about,
        "headline": headline(found.lines, found.pairs),
        "not_private": NOT_PRIVATE,
        "columns": ["mechanism", *map(_heading, axes), "perplexity", "low", "high", "seeds", "epsilon", "noise", "k"],
        "rows": [_row(line, axes) for line in found.lines],
        "advice": advice(found),
        "sureness": sureness(found),
        "guarantees": _guarantees(found.results),
        "joint": found.joint,
        "groups": [_group(one) for one in found.groups],
        "group_columns": ["mechanism", *axes, "group", "users", "rounds a user", "coverage", "perplexity"],
        "searches": [_search(one) for one in found.searches],
        "tuning": _tuning(found.searches),
        "failed": [f"{one.cell.name}: {one.reason}" for one in failed],
        "command": " ".join(["fedsim study", *map(shlex.quote, found.overrides)]),
        "versions": f"fedsim_userdp {__version__}",
    }


def _heading(axis: str) -> str:
    """An axis at the head of its column; epsilon is delivered as well."""
    return "epsilon asked for" if axis == "epsilon" else axis.replace("_", " ")


def _title(found: Findings) -> str:
    """What the study is of."""
    names = list(dict.fromkeys(line.mechanism for line in found.lines))
    return f"{' against '.join(names)}" if len(names) < 3 else f"{len(names)} mechanisms compared"


def headline(lines: Sequence[Line], pairs: Sequence[Pair]) -> list[str]:
    """Returns, for each setting, which mechanism with a user-level guarantee is best, and how sure that is."""
    found = []
    for setting in _settings(lines):
        at = [line for line in lines if _is_at(line, setting) and line.epsilon is not None and line.perplexity]
        at.sort(key=lambda line: line.perplexity.mean if line.perplexity else 0.0)
        if not at:
            continue
        best, where = at[0], _where(setting)
        assert best.perplexity is not None
        figure = best.perplexity.in_words
        text = f"{best.mechanism} has the lowest perplexity{where} of those that protect users: {figure}."
        if len(at) > 1:
            text += f" {_against(best, at[1], setting, pairs)}"
        found.append(text)
    return found[:_MOST_SENTENCES] or ["No mechanism with a user-level guarantee has a result yet."]


def advice(found: Findings) -> list[str]:
    """Returns which mechanism and settings were best at each setting, and what to try next; never beyond the study."""
    said = []
    for setting in _settings(found.lines):
        at = [line for line in found.lines if _is_at(line, setting) and line.epsilon is not None and line.perplexity]
        if not at:
            continue
        best = min(at, key=lambda line: line.perplexity.mean if line.perplexity else 0.0)
        cells = [one for one in found.results if one.cell.mechanism == best.mechanism and _cell_at(one, setting)]
        rows = [one.row for one in cells if one.row]
        row = dict(rows[0] or {}) if rows else {}
        clip = f", clip norm {row['clip_norm']:.3g}" if row.get("clip_norm") else ""
        share = f", sampling probability {row['sampling_prob']:.3g}" if row.get("sampling_prob") else ""
        said.append(
            f"Of what was measured{_where(setting)}: {best.mechanism} with k = {best.records_per_user}{clip}, learning "
            f"rate {row.get('learning_rate', 0.0):.3g}{share}."
        )
    on_border = [one for one in found.searches if one.on_border]
    if on_border:
        names = "; ".join(f"{one.mechanism}: {', '.join(one.on_border)}" for one in on_border)
        said.append(f"The best trial lies on the border of its space ({names}): widen it and tune once more.")
    if not found.searches:
        said.append("Nothing was tuned: study.tune.trials=12 gives each mechanism the same number of trials.")
    unsure = [pair for pair in found.pairs if pair.is_different is False]
    if unsure and found.seeds < 10:
        said.append(
            f"{len(unsure)} of {len(found.pairs)} pairs cannot be told apart by {found.seeds} seeds: more seeds narrow "
            "them."
        )
    return said or ["Nothing was measured yet."]


def sureness(found: Findings) -> list[str]:
    """Returns what intervals and tests are."""
    if found.seeds < 2:
        return ["One seed says nothing of how far results spread: run at least three (study.seeds=[0,1,2])."]
    return [
        f"Intervals are Student's 95% intervals over {found.seeds} seeds, on the same held-out users.",
        "Differences are paired: the same seed draws the same adapter, and the same held-out users are scored.",
        "Two mechanisms are called different by Holm's test over all pairs: with no true difference anywhere, a study "
        "calls any pair different with a probability of at most 5%.",
        "Intervals over other held-out users are not part of this.",
    ]


def _settings(lines: Sequence[Line]) -> list[Mapping[str, Any]]:
    """The settings at which mechanisms with a user-level guarantee were run, without those that are at any."""
    found = {str(line.axes): line.axes for line in lines if line.epsilon is not None}
    return list(found.values())


def _is_at(line: Line, setting: Mapping[str, Any]) -> bool:
    """Whether a line is of a setting."""
    return all(line.axes[axis] in (None, value) for axis, value in setting.items())


def _cell_at(one: CellResult, setting: Mapping[str, Any]) -> bool:
    """Whether a cell is of a setting."""
    return all(one.cell.axes[axis] in (None, value) for axis, value in setting.items())


def _where(setting: Mapping[str, Any]) -> str:
    """A setting in words, to be added to a sentence."""
    said = ", ".join(f"{axis.replace('_', ' ')} {value}" for axis, value in setting.items() if value is not None)
    return f" at {said}" if said else ""


def _against(best: Line, second: Line, setting: Mapping[str, Any], pairs: Sequence[Pair]) -> str:
    """How the best compares with the second, as a sentence."""
    names = {best.mechanism, second.mechanism}
    pair = next((p for p in pairs if {p.one, p.other} == names and dict(p.axes) == dict(setting)), None)
    if pair is None:
        return f"{second.mechanism} is second."
    text = pair.in_words
    return text[0].upper() + text[1:] if not text.startswith((best.mechanism, second.mechanism)) else text


def _row(line: Line, axes: Sequence[str]) -> list[dict[str, object]]:
    """A line of the table, each cell with what it is sorted by."""
    one = line.perplexity
    values: list[tuple[object, str]] = [(line.mechanism, line.mechanism)]
    values += [("", "any") if line.axes[axis] is None else (line.axes[axis], str(line.axes[axis])) for axis in axes]
    values.append(("", "-") if one is None else (one.mean, f"{one.mean:.4g}"))
    values += [("", "-") if one is None or end is None else (end, f"{end:.4g}") for end in _ends(one)]
    values.append((0, "0") if one is None else (one.number, str(one.number)))
    values.append(("", "none") if line.epsilon is None else (line.epsilon, in_column(line.epsilon)))
    noise = line.noise_multiplier
    values.append(("", "-") if not noise else (noise, f"{noise:.3f}"))
    values.append(("", "-") if line.records_per_user is None else (line.records_per_user, str(line.records_per_user)))
    return [{"value": value, "text": text} for value, text in values]


def _ends(one: Any) -> tuple[float | None, float | None]:
    """Both ends of an interval; none without one."""
    return (None, None) if one is None else (one.low, one.high)


def _guarantees(results: Iterable[CellResult]) -> list[dict[str, str]]:
    """What each mechanism promises at each epsilon, once."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for one in results:
        if one.row is None:
            continue
        row = dict(one.row)
        epsilon = "none" if row["epsilon"] is None else rounded_up(row["epsilon"])
        delta = "-" if row["delta"] is None else rounded_up(row["delta"], 3)
        told = {"mechanism": one.cell.mechanism, "epsilon": epsilon, "delta": delta, "guarantee": str(row["guarantee"])}
        found.setdefault((one.cell.mechanism, epsilon), told)
    return list(found.values())


def _group(line: GroupLine) -> list[dict[str, object]]:
    """A line on a public group, each cell with what it is sorted by."""
    values: list[tuple[object, str]] = [(line.mechanism, line.mechanism)]
    values += [("", "any") if value is None else (value, str(value)) for value in line.axes.values()]
    values += [(f"{line.column} {line.value}", f"{line.column} {line.value}"), (line.users, str(line.users))]
    for value, form in ((line.mean_rounds, ".2f"), (line.coverage, ".0%")):
        values.append(("", "-") if value is None else (value, format(value, form)))
    one = line.perplexity
    values.append(("", "-") if one is None else (one.mean, one.in_words))
    return [{"value": value, "text": text} for value, text in values]


def _search(one: Search) -> dict[str, str]:
    """A line on what was tuned."""
    space = ", ".join(f"{name} {one.low:.3g} to {one.high:.3g}" for name, one in one.space.items())
    return {
        "mechanism": one.mechanism,
        "at": ", ".join(f"{axis} {value}" for axis, value in one.axes.items()) or "all",
        "trials": str(len(one.trials)),
        "space": space,
        "winner": ", ".join(f"{name} {value:.3g}" for name, value in one.winner.items()) or "none",
        "border": ", ".join(one.on_border) or "-",
    }


def _tuning(searches: Sequence[Search]) -> str:
    """How it was tuned, as a sentence."""
    if not searches:
        return ""
    return (
        f"Each mechanism that trains got {len(searches[0].trials)} trials on validation users, by a scrambled Sobol "
        "sequence; the best one's settings were frozen before any cell was run. Held-out users were not looked at. "
        "Each cell's statement counts the search."
    )
