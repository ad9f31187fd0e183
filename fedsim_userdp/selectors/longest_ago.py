"""The users who took part longest ago, of those who are there."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.population import Past, Population
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.selectors.availability import is_available


@dataclass
class _Schedule:
    """The cohorts of a population so far, and how they go on; plain arrays, so that a selector can be copied.

    Attributes:
        of: ids and hours of the users that it is for, as bytes.
        place: of each user in the queue, shape [num_users]; places that were left stay empty.
        done: the cohorts of the first rounds.
    """

    of: tuple[bytes, ...] = ()
    place: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    done: list[NDArray[np.int64]] = field(default_factory=list)


@dataclass(frozen=True)
class LongestAgoSelector:
    """Takes the `cohort_size` users who took part longest ago, or never, of those who are available in the round.

    They stand in a queue, at first by number, which follows from hashes of ids; who took part goes to its end.  The
    schedule is public and follows from public facts alone, so that the cap is what it gives.

    Guarantee: no amplification by sampling; nobody is in more rounds than the schedule says (`acc.Unamplified`), whose
    neighbours empty one user's records.

    Attributes:
        cohort_size: users in a round, at least 1; fewer where fewer are available.
        begin: public column of the first hour in which a user is available (`AvailabilitySelector`); None for always.
        end: public column of the hour after the last; None for always.
        hours_per_day: rounds after which the day begins again, at least 1.
    """

    cohort_size: int
    begin: str | None = None
    end: str | None = None
    hours_per_day: int = 24
    _schedule: _Schedule = field(default_factory=_Schedule, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.cohort_size < 1:
            raise ValueError(f"cohort_size={self.cohort_size} must be at least 1")
        if self.hours_per_day < 1:
            raise ValueError(f"hours_per_day={self.hours_per_day} must be at least 1")
        if (self.begin is None) != (self.end is None):
            raise ValueError(f"begin={self.begin} and end={self.end} must both be public columns, or both be null")

    def cohort(
        self,
        round: int,
        population: Population,
        past: Past,
        rng_round: np.random.Generator,
        rng_run: np.random.Generator,
    ) -> NDArray[np.int64]:
        """Returns the round's users; nothing is drawn."""
        return self._cohorts(population, round)[round - 1]

    def expected_cohort_size(self, population: Population) -> float:
        """Returns `cohort_size`.

        Raises:
            ValueError: when there are fewer users.
        """
        if self.cohort_size > len(population):
            raise ValueError(f"cohort_size={self.cohort_size} must be at most the {len(population)} users")
        return float(self.cohort_size)

    def release(self, noise_multiplier: float, population: Population, rounds: int) -> acc.Description:
        """Returns `acc.Unamplified` with the most rounds that the schedule gives to anybody."""
        counts = np.zeros(len(population), dtype=np.int64)
        for users in self._cohorts(population, rounds):
            counts[users] += 1
        return acc.Unamplified(noise_multiplier=noise_multiplier, max_participations=max(int(counts.max()), 1))

    def _cohorts(self, population: Population, rounds: int) -> list[NDArray[np.int64]]:
        """The cohorts of the first rounds, each computed once."""
        kept, of = self._schedule, self._followed(population)
        if kept.of != of:
            kept.of, kept.place, kept.done = of, np.arange(len(population)), []
        while len(kept.done) < rounds:
            kept.done.append(self._next(population, kept.place, len(kept.done) + 1))
        return kept.done[:rounds]

    def _followed(self, population: Population) -> tuple[bytes, ...]:
        """All of a population that the schedule follows from."""
        columns = [name for name in (self.begin, self.end) if name is not None]
        return population.id_hashes.tobytes(), *(population.numbers(name).tobytes() for name in columns)

    def _next(self, population: Population, place: NDArray[np.int64], round: int) -> NDArray[np.int64]:
        """The cohort of a round, who goes to the end of the queue."""
        there = np.arange(len(population))
        if self.begin is not None and self.end is not None:
            there = there[is_available(population, self.begin, self.end, self.hours_per_day, round)]
        chosen = there[np.argsort(place[there])[: self.cohort_size]]
        place[chosen] = place.max() + 1 + np.arange(len(chosen))
        return np.sort(chosen)
