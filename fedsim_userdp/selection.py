"""Who takes part in a round, and what that is worth to the accountant (docs/design.md, rule 6).

A selector sees how many users there are, the round and a generator of its own; never text, losses or norms.
What it declares in `release` decides the accounting, and the run checks that it keeps to it.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.streams import numpy_generator


@runtime_checkable
class ClientSelector(Protocol):
    """What a class of your own must offer to choose the cohort of each round."""

    def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
        """Returns the users of this round: distinct integers in [0, num_users), shape [cohort]; may be empty.

        Args:
            num_users: size of the training population, public.
            round: the round, from 1.
            generator: this round's own generator, the same for the same (seed, round).
        """
        ...

    def expected_cohort_size(self, num_users: int) -> float:
        """Returns the denominator of the mean update: the expected number of users in a round, above 0."""
        ...

    def release(self, noise_multiplier: float, num_users: int, rounds: int) -> acc.Description:
        """Returns the description of a whole run, from which epsilon is computed; raises when none is honest."""
        ...


@dataclass(frozen=True)
class PoissonSelector:
    """Every user takes part in each round independently with probability `sampling_prob`.

    Guarantee: the Poisson-subsampled Gaussian over users, add-or-remove of one user (`acc.UserWise`).
    """

    sampling_prob: float

    def __post_init__(self) -> None:
        if not 0 < self.sampling_prob <= 1:
            raise ValueError(f"selection.sampling_prob={self.sampling_prob} must lie in (0, 1]")

    def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
        """Returns a cohort in time O(cohort): a binomial size, then a uniform subset of that size."""
        size = generator.binomial(num_users, self.sampling_prob)
        return np.sort(generator.choice(num_users, size=size, replace=False, shuffle=False))

    def expected_cohort_size(self, num_users: int) -> float:
        """Returns sampling_prob * num_users."""
        return self.sampling_prob * num_users

    def release(self, noise_multiplier: float, num_users: int, rounds: int) -> acc.Description:
        """Returns `acc.UserWise`; a subclass that selects in its own way gets no Poisson claim."""
        if type(self).select is not PoissonSelector.select:
            raise acc.AccountingError(
                f"{type(self).__name__} overrides select(), so it cannot claim Poisson sampling: "
                "declare acc.Unamplified with the most rounds that any user can take part in"
            )
        return acc.UserWise(noise_multiplier=noise_multiplier, sampling_prob=self.sampling_prob, rounds=rounds)


@dataclass(frozen=True)
class FixedSizeSelector:
    """Exactly `cohort_size` users a round, uniformly without replacement.

    Guarantee: replace-one of a user, sensitivity 2 * clip_norm (`acc.FixedSize`); no Poisson claim.
    """

    cohort_size: int

    def __post_init__(self) -> None:
        if self.cohort_size < 1:
            raise ValueError(f"selection.cohort_size={self.cohort_size} must be at least 1")

    def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
        """Returns a uniform subset of `cohort_size` users."""
        if self.cohort_size > num_users:
            raise ValueError(f"selection.cohort_size={self.cohort_size} must be at most the {num_users} users")
        return np.sort(generator.choice(num_users, size=self.cohort_size, replace=False, shuffle=False))

    def expected_cohort_size(self, num_users: int) -> float:
        """Returns `cohort_size`."""
        return float(self.cohort_size)

    def release(self, noise_multiplier: float, num_users: int, rounds: int) -> acc.Description:
        """Returns `acc.FixedSize`."""
        return acc.FixedSize(
            noise_multiplier=noise_multiplier, num_users=num_users, cohort_size=self.cohort_size, rounds=rounds
        )


@dataclass(frozen=True)
class CyclicSelector:
    """Users in a fixed order, `cohort_size` of them a round, starting over at the end.

    Guarantee: no amplification by sampling; each user is assumed in every round that the cycle gives it
    (`acc.Unamplified`), whose neighbours empty one user's records: adding or removing a user would shift the cycle.
    """

    cohort_size: int

    def __post_init__(self) -> None:
        if self.cohort_size < 1:
            raise ValueError(f"selection.cohort_size={self.cohort_size} must be at least 1")

    def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
        """Returns the next `cohort_size` users of the cycle."""
        if self.cohort_size > num_users:
            raise ValueError(f"selection.cohort_size={self.cohort_size} must be at most the {num_users} users")
        start = (round - 1) * self.cohort_size
        return np.sort(np.arange(start, start + self.cohort_size) % num_users)

    def expected_cohort_size(self, num_users: int) -> float:
        """Returns `cohort_size`."""
        return float(self.cohort_size)

    def release(self, noise_multiplier: float, num_users: int, rounds: int) -> acc.Description:
        """Returns `acc.Unamplified` with ceil(rounds * cohort_size / num_users) participations."""
        most = -(-rounds * self.cohort_size // num_users)
        return acc.Unamplified(noise_multiplier=noise_multiplier, max_participations=most)


def foreign_name(selector: ClientSelector) -> str | None:
    """Returns the name of the class where its way to select is not this package's; None where it is."""
    kind = type(selector)
    if any(getattr(kind, "select", None) is known.select for known in (*_WITHOUT_MEMORY, CyclicSelector)):
        return None
    return f"{kind.__module__}.{kind.__qualname__}"


def draw_cohort(selector: ClientSelector, num_users: int, round: int, generator: np.random.Generator) -> list[int]:
    """Returns the selector's cohort after checking that it holds distinct users of the population.

    Raises:
        ValueError: when a user appears twice (its clip bound would count twice) or does not exist.
    """
    cohort = np.asarray(selector.select(num_users, round, generator), dtype=np.int64)
    if cohort.ndim != 1 or len(np.unique(cohort)) != len(cohort):
        raise ValueError(f"{type(selector).__name__} chose a user twice in round {round}: a cohort is a set of users")
    if len(cohort) and (cohort.min() < 0 or cohort.max() >= num_users):
        raise ValueError(f"{type(selector).__name__} chose a user outside [0, {num_users}) in round {round}")
    return [int(user) for user in cohort]


class Cohorts:
    """Draws a run's cohorts and holds the selector to what it declared.

    Guarantee: every cohort is a set of users of the population, and no user is in more of them than declared.  The
    rounds before the first that is asked for are drawn as well, so that both this count and a selector with a memory of
    its own are, in a resumed run, where they would be in one that was never stopped.

    Args:
        selector: chooses the users.
        num_users: size of the population.
        seed: the run's.
        max_participations: the most rounds that a user may be in; None where the selector declared no such number.
    """

    def __init__(self, selector: ClientSelector, num_users: int, seed: int, max_participations: int | None) -> None:
        self._selector, self._num_users, self._seed = selector, num_users, seed
        self._most = max_participations
        self._counts: Counter[int] = Counter()
        self._last = 0

    def draw(self, round: int) -> list[int]:
        """Returns the cohort of a round, from 1.

        Raises:
            ValueError: when the selector does not keep to what it declared; nothing of the round was released.
        """
        if self._most is not None or type(self._selector) not in _WITHOUT_MEMORY:
            for earlier in range(self._last + 1, round):
                self._drawn(earlier)
        self._last = round
        return self._drawn(round)

    def _drawn(self, round: int) -> list[int]:
        """The cohort, counted."""
        generator = numpy_generator(self._seed, "selection", round=round)
        cohort = draw_cohort(self._selector, self._num_users, round, generator)
        if self._most is not None:
            self._counts.update(cohort)
            if cohort and max(self._counts[user] for user in cohort) > self._most:
                raise ValueError(
                    f"{type(self._selector).__name__} declared at most {self._most} rounds for each user and chose one "
                    f"once more in round {round}: what it declared would not hold"
                )
        return cohort


_WITHOUT_MEMORY = (PoissonSelector, FixedSizeSelector)
