"""Signals: a clipped number of each user of a cohort, released by public group, which the budget pays for.

A selector with `signals` sees their noisy sums and counts in `past`; docs/decisions/0017 says what they cost.
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.errors import ConfigError, PluginError
from fedsim_userdp.plugins import calling
from fedsim_userdp.population import Population, Reported

if TYPE_CHECKING:
    from fedsim_userdp.privacy.noise import NoiseSource  # which imports torch

LOSS = "loss"
EACH_USER = "user"  # as the column of groups: every user is a group of their own
_TOLERANCE = 1 + 1e-9  # of sums in float64


@dataclass(frozen=True)
class Signal:
    """A number of each user of a cohort, beside the update: the mean loss of the user's records before training.

    Attributes:
        bound: the number is clipped to [0, bound]; in nats for the loss, above 0.
        groups: the public column whose values are the groups; "user" where each user is one; None for all in one.
        share: of the privacy budget of each round (in inverse squared noise multipliers) that it takes, in (0, 1).
    """

    bound: float
    groups: str | None = None
    share: float = 0.1

    def __post_init__(self) -> None:
        if not _is_number(self.bound) or not 0 < self.bound <= 1e6:
            raise ConfigError(f"signals.{LOSS}.bound={self.bound} must be above 0 and at most 1e6")
        if not _is_number(self.share) or not 0 < self.share < 1:
            raise ConfigError(f"signals.{LOSS}.share={self.share} must lie between 0 and 1")
        if self.groups is not None and not isinstance(self.groups, str):
            raise ConfigError(f"signals.{LOSS}.groups={self.groups} must be the name of a public column, or null")

    def group_of(self, population: Population) -> NDArray[np.int64]:
        """Returns the number of each user's group, shape [num_users]; groups are in the order of their values.

        Raises:
            ConfigError: there is no such column, or it has no single value for each user.
        """
        if self.groups is None:
            return np.zeros(len(population), dtype=np.int64)
        if self.groups == EACH_USER and EACH_USER not in population.columns:
            return np.arange(len(population))
        values = population.column(self.groups)
        if values.ndim != 1:
            raise ConfigError(f"signals.{LOSS}.groups={self.groups} must have one value for each user, not a list")
        return np.unique(values, return_inverse=True)[1].astype(np.int64)


def signal_of(selector: object) -> Signal | None:
    """Returns the signal that a selector pays for; None where it has no `signals`.

    Raises:
        ConfigError: `signals` is no mapping from "loss" to a `Signal`, or to its settings.
    """
    with calling("selection", selector, "signals"):
        given = getattr(selector, "signals", None)
    if given is None or (isinstance(given, Mapping) and not given):
        return None
    name = type(selector).__name__
    if not isinstance(given, Mapping) or list(given) != [LOSS]:
        found = ", ".join(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
        raise ConfigError(f"selection={name}: signals must be a mapping with {LOSS!r} alone, got {found}")
    if isinstance(given[LOSS], Signal):
        return given[LOSS]
    names = [field.name for field in fields(Signal)]
    if not isinstance(given[LOSS], Mapping) or not {"bound"} <= set(given[LOSS]) <= set(names):
        raise ConfigError(f"selection={name}: signals.{LOSS} takes {', '.join(names)}; bound is needed")
    return Signal(**{str(key): value for key, value in given[LOSS].items()})


@dataclass(frozen=True)
class Query:
    """What the users of a request send besides their updates.

    Attributes:
        bound: see `Signal`.
        num_groups: number of public groups, at least 1.
        group_of: number of each user's group, by the user's number.
    """

    bound: float
    num_groups: int
    group_of: Mapping[int, int]

    def answer(self, user: int, value: float, weight: float) -> NDArray[np.float64]:
        """Returns what one user adds: sums and counts of the groups, shape [2, num_groups].

        Guarantee: in one group, at most weight * bound / 2 of the sum and weight of the count; exact zeros where the
            value is no number.
        """
        found = np.zeros((2, self.num_groups))
        if not math.isnan(value):
            clipped = min(max(value, 0.0), self.bound)
            found[:, self.group_of[user]] = weight * (clipped - self.bound / 2), weight
        return found

    def misfit(
        self, answer: NDArray[np.float64], users: Sequence[int], weights: Sequence[float] | None = None
    ) -> str | None:
        """Returns what of an answer cannot be the sum of some users' own; None where it can.

        Args:
            answer: sums and counts of the groups.
            users: numbers of the users.
            weights: theirs; None for 1.
        """
        if answer.shape == (2, 1) and not answer.any():
            return None
        if answer.shape != (2, self.num_groups) or not np.isfinite(answer).all():
            return "the answer's signals are not those that were asked for"
        groups = [self.group_of[user] for user in users]
        most = np.bincount(groups, weights=weights, minlength=self.num_groups) * _TOLERANCE
        sums, counts = answer
        if (counts < 0).any() or (counts > most).any() or (np.abs(sums) > most * self.bound / 2).any():
            return "the answer's signals pass their bound"
        return None


@dataclass(frozen=True)
class PaidSignal:
    """A signal as a server asks for it and releases it.

    Attributes:
        signal: what it is.
        group_of: number of each user's group, shape [num_users].
        noise_multiplier: of the sums, and of the counts, at least 0.
    """

    signal: Signal
    group_of: NDArray[np.int64]
    noise_multiplier: float

    @property
    def num_groups(self) -> int:
        """Number of public groups."""
        return int(self.group_of.max()) + 1

    def query(self, users: Sequence[int]) -> Query:
        """Returns what some users are asked for."""
        return Query(self.signal.bound, self.num_groups, {user: int(self.group_of[user]) for user in users})

    def release(self, answer: NDArray[np.float64], source: "NoiseSource", round: int) -> Reported:
        """Returns a round's sums and counts by group, with noise.

        Guarantee: two Gaussian mechanisms of noise multiplier `noise_multiplier`, the sums with sensitivity bound / 2
            for a user of weight 1, the counts with 1; their noise is independent of the update's.

        Args:
            answer: sums of distances from bound / 2, and counts, shape [2, num_groups], or zeros
                of shape [2, 1].
            source: where noise comes from.
            round: the round that the noise belongs to, at least 1.
        """
        sums, counts = np.broadcast_to(answer, (2, self.num_groups))
        if self.noise_multiplier:
            drawn = source.standard_normal(2 * self.num_groups, round, "signals").reshape(2, self.num_groups)
            sums = sums + drawn[0] * self.noise_multiplier * self.signal.bound / 2
            counts = counts + drawn[1] * self.noise_multiplier
        return Reported(sums + counts * self.signal.bound / 2, counts)


def check_told_of_groups(signal: Signal, noise_multiplier: float, name: str) -> None:
    """Raises ConfigError where single users are to be told apart by what noise would hide.

    Args:
        signal: what is paid for.
        noise_multiplier: of its sums and counts.
        name: of the selector's class.
    """
    if signal.groups == EACH_USER and noise_multiplier:
        raise ConfigError(
            f"selection={name}: signals.{LOSS}.groups={EACH_USER} tells of single users, and the budget allows their "
            f"loss to be told with an error of {noise_multiplier / 2:.2g} times the bound each round, which tells "
            "nothing: name a public column whose groups have many users, or set privacy.epsilon=inf"
        )


def check_followed(selector: object, *, follows_past: bool) -> None:
    """Raises PluginError where a selector pays for signals that it is never shown."""
    if signal_of(selector) is not None and not follows_past:
        raise PluginError(
            f"selection={type(selector).__name__} has signals and does not follow them: state probabilities, and "
            "most(round, population), the highest that they may be; choose by cohort() under acc.Unamplified; or leave "
            "signals out"
        )


def _is_number(value: object) -> bool:
    """Whether a value is a real number; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
