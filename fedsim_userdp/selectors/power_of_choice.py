"""Groups of large loss take part more often, by signals that are paid for (Cho et al. 2020, arXiv 2010.01243)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.population import Past, Population
from fedsim_userdp.signals import LOSS, Signal, signal_of


@dataclass(frozen=True)
class PowerOfChoiceSelector:
    """Spends a round's cohort on the public groups with the largest mean loss, as it was released so far.

    The source picks the users of largest loss out of some candidates.  That would tell of single users, so whole groups
    are ranked here, by what the signal told of them with noise: a matter of post-processing.  `explore` of the cohort
    is spread over everybody, so that each group goes on to be heard.  The rest goes to the group of largest loss, each
    of its users with a probability of at most `most_prob`, then to the next.  A group of which nothing is known comes
    first.  What everybody is accounted for is `most_prob` in every round.

    Attributes:
        cohort_size: expected users in a round, above 0 and at most `most_prob` of all.
        most_prob: the highest probability with which a user takes part, in (0, 1].
        signals: what is paid for: "loss" to a `Signal`, or to its settings.
        explore: share of the cohort that is spread over everybody, in (0, 1].
        half_life: rounds after which what was told of a loss counts half, above 0.
    """

    cohort_size: float
    most_prob: float
    signals: Mapping[str, Signal | Mapping[str, object]]
    explore: float = 0.3
    half_life: float = 10.0

    def __post_init__(self) -> None:
        if not self.cohort_size > 0:
            raise ValueError(f"cohort_size={self.cohort_size} must be above 0")
        if not self.half_life > 0:
            raise ValueError(f"half_life={self.half_life} must be above 0")
        for name, share in (("most_prob", self.most_prob), ("explore", self.explore)):
            if not 0 < share <= 1:
                raise ValueError(f"{name}={share} must lie in (0, 1]")
        signal = signal_of(self)
        if signal is None or signal.groups is None:
            raise ValueError(f"signals.{LOSS} must be there, with a public column as its groups")
        object.__setattr__(self, "signals", {LOSS: signal})

    def most(self, round: int, population: Population) -> float:
        """Returns `most_prob`."""
        if self.cohort_size > self.most_prob * len(population) * (1 + 1e-9):
            raise ValueError(
                f"cohort_size={self.cohort_size:g} is more than most_prob={self.most_prob:g} of {len(population)} users"
            )
        return self.most_prob

    def probabilities(self, round: int, population: Population, past: Past) -> NDArray[np.float64]:
        """Returns each user's probability: that of exploring, and what is left for the user's group."""
        group_of = self._signal.group_of(population)
        sizes = np.bincount(group_of)
        base = min(self.explore * self.cohort_size / len(population), self.most_prob)
        means = np.broadcast_to(past.means(LOSS, self.half_life), sizes.shape)
        if np.isnan(means).all():  # nothing is known yet
            return np.full(len(population), self.cohort_size / len(population))
        ranked = np.argsort(-np.nan_to_num(means, nan=np.inf), kind="stable")
        room = sizes[ranked] * (self.most_prob - base)
        before = np.concatenate([[0.0], np.cumsum(room)[:-1]])
        given = np.clip(self.cohort_size - base * len(population) - before, 0.0, room)
        probs = np.empty(len(sizes))
        probs[ranked] = base + given / sizes[ranked]
        return np.minimum(probs, self.most_prob)[group_of]

    @property
    def _signal(self) -> Signal:
        """The signal that is paid for."""
        signal = self.signals[LOSS]
        assert isinstance(signal, Signal)
        return signal
