"""Cells summed up over seeds: a line for each mechanism and setting, and the differences between mechanisms."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedsim_userdp.studies.grid import CellResult
from fedsim_userdp.studies.intervals import Difference, Interval, holm, over_seeds, paired


@dataclass(frozen=True)
class Line:
    """A mechanism at one setting, over seeds.

    Attributes:
        mechanism: its name.
        axes: value of each axis, None where the mechanism does not depend on it.
        perplexity: over the seeds that are done; None where none is.
        epsilon: user-level epsilon, the largest over seeds; None where there is no such guarantee.
        delta: likewise.
        noise_multiplier: of the first seed.
        records_per_user: k.
        num_missing: cells that failed, diverged, or are not done.
    """

    mechanism: str
    axes: Mapping[str, Any]
    perplexity: Interval | None
    epsilon: float | None
    delta: float | None
    noise_multiplier: float | None
    records_per_user: int | None
    num_missing: int

    @property
    def in_words(self) -> str:
        """The perplexity with its interval, and what is missing."""
        missing = f" ({self.num_missing} without a result)" if self.num_missing else ""
        return ("-" if self.perplexity is None else self.perplexity.in_words) + missing


@dataclass(frozen=True)
class Pair:
    """Two mechanisms at one setting.

    Attributes:
        one: name of a mechanism.
        other: of another one.
        axes: the setting.
        difference: perplexity of `one` less that of `other`, paired by seed.
        is_different: whether they can be told apart, by Holm's test over all pairs of the study; None for one seed.
    """

    one: str
    other: str
    axes: Mapping[str, Any]
    difference: Difference
    is_different: bool | None = None

    @property
    def in_words(self) -> str:
        """A sentence on who is better, by how much."""
        interval = self.difference.interval
        where = ", ".join(f"{axis} {value}" for axis, value in self.axes.items() if value is not None)
        at = f" at {where}" if where else ""
        if not self.is_different:
            of = "one seed" if interval.number < 2 else f"{interval.number} seeds"
            return f"{self.one} and {self.other} cannot be told apart{at} by {of} (difference {interval.in_words})."
        better, worse, sign = (self.one, self.other, -1) if interval.mean < 0 else (self.other, self.one, 1)
        low, high = sorted((sign * (interval.low or 0.0), sign * (interval.high or 0.0)))
        return f"{better} is better than {worse} by {sign * interval.mean:.3g} [{low:.3g}, {high:.3g}]{at}."


@dataclass(frozen=True)
class Curve:
    """How a mechanism's perplexity goes with the rounds, the mean over seeds.

    Attributes:
        mechanism: its name.
        setting: of the axes, in words; empty where the mechanism depends on none.
        rounds: those with an evaluation.
        perplexities: after each of these.
    """

    mechanism: str
    setting: str
    rounds: tuple[int, ...]
    perplexities: tuple[float, ...]


def curves_of(results: Sequence[CellResult], rounds: Mapping[str, Mapping[int, float]]) -> list[Curve]:
    """Returns the learning curve of each mechanism and setting.

    Args:
        results: the cells.
        rounds: perplexity by round of each cell that is done, by the cell's name.
    """
    groups: dict[tuple[object, ...], list[CellResult]] = {}
    for one in results:
        if one.status == "done" and rounds.get(one.cell.name):
            groups.setdefault(_key(one), []).append(one)
    found = []
    for group in groups.values():
        of_seeds = [rounds[one.cell.name] for one in group]
        shared = sorted(set.intersection(*(set(one) for one in of_seeds)))
        means = tuple(sum(one[at] for one in of_seeds) / len(of_seeds) for at in shared)
        axes = group[0].cell.axes
        setting = ", ".join(f"{axis} {value}" for axis, value in axes.items() if value is not None)
        found.append(Curve(group[0].cell.mechanism, setting, tuple(shared), means))
    return found


def lines_of(results: Sequence[CellResult]) -> list[Line]:
    """Returns a line for each mechanism and setting, in the order of the cells."""
    groups: dict[tuple[object, ...], list[CellResult]] = {}
    for one in results:
        groups.setdefault(_key(one), []).append(one)
    return [_line(group) for group in groups.values()]


def pairs_of(results: Sequence[CellResult]) -> list[Pair]:
    """Returns the differences between mechanisms at the same setting; one that does not depend on an axis is at all."""
    figures: dict[tuple[object, ...], dict[int, float]] = {}
    first: dict[tuple[object, ...], CellResult] = {}
    for one in results:
        if one.status == "done" and one.row is not None:
            figures.setdefault(_key(one), {})[one.cell.seed] = float(one.row["perplexity"])
            first.setdefault(_key(one), one)
    found = []
    for (a, one), (b, other) in itertools.combinations(first.items(), 2):
        axes = _shared(one.cell.axes, other.cell.axes)
        if one.cell.mechanism == other.cell.mechanism or axes is None:
            continue
        difference = paired(_for_all(figures[a], figures[b], one), _for_all(figures[b], figures[a], other))
        if difference is not None:
            found.append(Pair(one.cell.mechanism, other.cell.mechanism, axes, difference))
    values = {n: pair.difference.p_value for n, pair in enumerate(found) if pair.difference.p_value is not None}
    fallen = holm(values)
    return [replace(pair, is_different=n in fallen if n in values else None) for n, pair in enumerate(found)]


def _for_all(figures: Mapping[int, float], others: Mapping[int, float], one: CellResult) -> Mapping[int, float]:
    """Figures by seed; of what no seed changes, one for each seed of the other mechanism."""
    return figures if one.cell.is_seeded else dict.fromkeys(others, next(iter(figures.values())))


def _key(one: CellResult) -> tuple[object, ...]:
    """What cells have in common that differ in their seed alone."""
    return (one.cell.mechanism, *(str(value) for value in one.cell.axes.values()))


def _shared(one: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The setting that two cells are both at; None where there is none."""
    if any(None not in (one[axis], other[axis]) and one[axis] != other[axis] for axis in one):
        return None
    return {axis: other[axis] if one[axis] is None else one[axis] for axis in one}


def _line(group: Sequence[CellResult]) -> Line:
    """The line of cells that differ in their seed alone."""
    done = [one.row for one in group if one.status == "done" and one.row is not None]
    cell = group[0].cell
    epsilons = [row["epsilon"] for row in done if row["epsilon"] is not None]
    return Line(
        cell.mechanism,
        cell.axes,
        over_seeds([float(row["perplexity"]) for row in done]) if done else None,
        max(epsilons, default=None),
        max((row["delta"] for row in done if row["delta"] is not None), default=None),
        done[0]["noise_multiplier"] if done else None,
        done[0]["records_per_user"] if done and done[0]["rounds"] else None,
        len(group) - len(done),
    )
