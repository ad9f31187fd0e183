"""Equal effort: every mechanism that trains gets the same number of trials over a space of its own."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fedsim_userdp.studies.grid import Cell, CellResult

_WIDTH = 10.0  # a setting is tried from a tenth of the given value to ten times that
_BORDER = 0.05  # of a range, within which a winner lies on its border
# Settings that are tuned, by the mechanism's class; a class of one's own is run as it is given.
_TUNED: Mapping[str, tuple[str, ...]] = {
    "UserWise": ("clip_norm", "learning_rate"),
    "UserWiseAdaptive": ("clip_norm", "learning_rate", "target_quantile"),
    "RecordLevelDP": ("clip_norm", "learning_rate"),
    "NonPrivate": ("learning_rate",),
}
_SHARES = frozenset({"target_quantile"})  # which are tried on a straight scale


@dataclass(frozen=True)
class Range:
    """From where to where a setting is tried.

    Attributes:
        low: lower end, above 0.
        high: upper end.
        is_log: whether it is tried on a logarithmic scale.
    """

    low: float
    high: float
    is_log: bool

    def place_of(self, value: float) -> float:
        """Returns where in the range a value lies, in [0, 1]."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def is_border(self, value: float) -> bool:
        """Returns whether a value lies within a twentieth of the range of one of its ends."""
        return not _BORDER <= self.place_of(value) <= 1 - _BORDER


Space = Mapping[str, Range]


def space_of(kind: str, given: Mapping[str, Any]) -> Space:
    """Returns the search space of a mechanism: from a tenth of each tuned setting to ten times it.

    Args:
        kind: name of the mechanism's class.
        given: its settings.
    """
    return {name: _range(name, given) for name in _TUNED.get(kind, ())}


def _range(name: str, given: Mapping[str, Any]) -> Range:
    """Where a setting is tried."""
    if name in _SHARES:
        return Range(0.2, 0.8, is_log=False)
    return Range(given[name] / _WIDTH, given[name] * _WIDTH, is_log=True)


def settings_to_try(space: Space, trials: int, seed: int) -> list[dict[str, float]]:
    """Returns the settings of each trial: points of a scrambled Sobol sequence, the same whenever they are asked for.

    Args:
        space: the ranges.
        trials: how many, at least 0.
        seed: of the sequence.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the sampler may change, and that its first point is drawn at random
        sampler = optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=seed)
    search = optuna.create_study(sampler=sampler)
    ranges: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(one.low, one.high, log=one.is_log) for name, one in space.items()
    }
    found = []
    for _ in range(trials):
        trial = search.ask(ranges)
        found.append({name: float(trial.params[name]) for name in space})
        search.tell(trial, 0.0)  # so that the next one is sampled in the same space
    return found


@dataclass
class Search:
    """The trials of a mechanism at one setting.

    Attributes:
        mechanism: its name.
        axes: the setting, by axis; empty where one search is for all.
        space: where settings are tried.
        trials: what was tried, in the order of the sequence.
    """

    mechanism: str
    axes: Mapping[str, Any]
    space: Space
    trials: list[CellResult] = field(default_factory=list)

    @property
    def ranked(self) -> list[CellResult]:
        """The trials that are done, that of least perplexity on validation users first."""
        done = [one for one in self.trials if one.status == "done" and one.row is not None]
        return sorted(done, key=lambda one: (float(dict(one.row or {})["perplexity"]), one.cell.name))

    @property
    def winner(self) -> Mapping[str, float]:
        """Settings of the best trial; empty where none has a result."""
        return next((one.tried for one in self.ranked), {})

    @property
    def on_border(self) -> list[str]:
        """Settings of the best trial that lie on the border of their range."""
        return [name for name, value in self.winner.items() if self.space[name].is_border(value)]

    def is_for(self, cell: Cell) -> bool:
        """Returns whether a cell takes its settings from here."""
        return cell.mechanism == self.mechanism and all(
            cell.axes.get(axis) in (None, at) for axis, at in self.axes.items()
        )

    def to_json(self) -> dict[str, object]:
        """Returns what was searched and which trial won, as JSON values."""
        return {
            "mechanism": self.mechanism,
            "axes": dict(self.axes),
            "space": {name: asdict(one) for name, one in self.space.items()},
            "sampler": "Optuna's QMCSampler, scrambled Sobol",
            "num_trials": len(self.trials),
            "ranked": [one.cell.name for one in self.ranked],
            "winner": dict(self.winner),
            "on_border": self.on_border,
        }
