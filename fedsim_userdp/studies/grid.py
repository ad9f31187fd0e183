"""The cells of a study: every mechanism with every combination of settings and seeds, each run once."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Changes = Mapping[str, Any]  # settings by dotted key

# Axes by their name in `study`, and the settings that they stand for, the one that is set first.
AXES: Mapping[str, tuple[str, ...]] = {
    "epsilon": ("privacy.epsilon",),
    "records_per_user": ("tuned.records_per_user", "mechanism.records_per_user"),
    "rounds": ("tuned.rounds", "mechanism.rounds"),
    "records": ("records",),
    "local_steps": ("local.steps",),
    "lora_rank": ("lora.rank",),
}
CELLS, TRIALS = "cells", "trials"  # folders of their run folders
Status = Literal["planned", "running", "done", "diverged", "failed"]
SELECTION = "selection"  # the axis of `study.selections`
_OF_TRAINING = frozenset({*AXES, SELECTION})
# Axes that a mechanism does not depend on, by its class.
_WITHOUT_EFFECT: Mapping[str, frozenset[str]] = {
    "ZeroShot": _OF_TRAINING,
    "NonPrivate": frozenset({"epsilon", "local_steps"}),
    "RecordLevelDP": frozenset({"local_steps"}),
}
_UNSEEDED = frozenset({"ZeroShot"})  # whose result is the same for every seed


@dataclass(frozen=True)
class Cell:
    """A run of a study.

    Attributes:
        mechanism: its name in tables.
        axes: value of each axis of the study, by name; None where the mechanism does not depend on it.
        seed: the run's seed.
        is_seeded: whether another seed would give another result.
        changes: settings that make it this cell, by dotted key.
        dropped: keys of settings given for the whole study that the cell's own take the place of.
        label: begins the name in place of the mechanism; empty for that.
    """

    mechanism: str
    axes: Mapping[str, Any]
    seed: int
    is_seeded: bool = True
    changes: Changes = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    label: str = ""

    @property
    def name(self) -> str:
        """Names the cell, and its folder."""
        values = [f"{axis}{value}" for axis, value in self.axes.items() if value is not None]
        return "-".join(
            re.sub(r"[^\w.+~]+", "_", part) for part in (self.label or self.mechanism, *values, f"seed{self.seed}")
        )


@dataclass
class CellResult:
    """A cell and what became of it.

    Attributes:
        cell: the cell.
        status: "planned", "running", "done", "diverged" (its perplexity is not finite) or "failed".
        reason: why it failed, a sentence; empty where it did not.
        row: its row of `results.json`; None before it is done.
        context: model and corpus.
        part: the folder that its run folder lies in.
        tried: settings of a trial; empty for a cell.
    """

    cell: Cell
    status: Status = "planned"
    reason: str = ""
    row: Mapping[str, Any] | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    part: str = CELLS
    tried: Mapping[str, float] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Its run folder in the study's."""
        return f"{self.part}/{self.cell.name}"

    def to_json(self) -> dict[str, object]:
        """Returns the cell as JSON values: its axes and result beside each other."""
        row = {} if self.row is None else dict(self.row)
        axes, seed = dict(self.cell.axes), self.cell.seed
        result = {key: value for key, value in row.items() if key not in ("mechanism", "seed")}
        return {
            "name": self.cell.name,
            "folder": self.place,
            "mechanism": self.cell.mechanism,
            "axes": axes,
            "seed": seed,
            "status": self.status,
            "reason": self.reason,
            **({"tried": dict(self.tried)} if self.tried else {}),
            **self.context,
            **result,
        }


@dataclass(frozen=True)
class Entry:
    """A mechanism of a study.

    Attributes:
        name: in tables.
        kind: name of its class.
        changes: settings that choose it, by dotted key.
    """

    name: str
    kind: str
    changes: Changes


@dataclass(frozen=True)
class Choice:
    """A value of an axis.

    Attributes:
        shown: what tables show.
        changes: settings that it stands for, by dotted key.
    """

    shown: Any
    changes: Changes


def cells_of(mechanisms: Sequence[Entry], axes: Mapping[str, Sequence[Choice]], seeds: Sequence[int]) -> list[Cell]:
    """Returns the cells of a grid; those that do not depend on an axis, or on the seed, are there once.

    Args:
        mechanisms: what is compared, at least one.
        axes: the values of each axis, by its name.
        seeds: at least one.
    """
    found: dict[tuple[object, ...], Cell] = {}
    for seed, entry in itertools.product(seeds, mechanisms):
        idle = _WITHOUT_EFFECT.get(entry.kind, frozenset())
        own_seed = seeds[0] if entry.kind in _UNSEEDED else seed
        for chosen in itertools.product(*axes.values()):
            cell = _cell(entry, dict(zip(axes, chosen, strict=True)), own_seed, idle)
            found.setdefault((cell.mechanism, repr(cell.axes), cell.seed), cell)
    return _named_apart(found.values())


def _named_apart(cells: Iterable[Cell]) -> list[Cell]:
    """The cells, those that would have the name of another one numbered."""
    times: dict[str, int] = {}
    kept = []
    for cell in cells:
        times[cell.name] = number = times.get(cell.name, 0) + 1
        kept.append(replace(cell, label=f"{cell.mechanism}~{number}") if number > 1 else cell)
    return kept


def _cell(entry: Entry, chosen: Mapping[str, Choice], seed: int, idle: Iterable[str]) -> Cell:
    """A cell; axes without effect keep what the whole study has."""
    used = {axis: choice for axis, choice in chosen.items() if axis not in idle}
    changes = {**entry.changes, "seed": seed}
    for choice in used.values():
        changes |= choice.changes
    dropped = tuple(key for axis in used for key in AXES.get(axis, ()))
    axes = {axis: used[axis].shown if axis in used else None for axis in chosen}
    return Cell(entry.name, axes, seed, entry.kind not in _UNSEEDED, changes, dropped)
