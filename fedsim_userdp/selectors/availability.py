"""Users who can take part at public hours only, as devices that charge at night."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.population import Past, Population


@dataclass(frozen=True)
class AvailabilitySelector:
    """Samples the users who are available in a round; the others wait.

    A round is an hour of a day that has `hours_per_day` of them: round 1 is hour 0.  A user is available from the hour
    in column `begin` up to, not including, the one in column `end`; past midnight where `end` is the smaller one, and
    always where both are the same.

    Attributes:
        sampling_prob: probability with which an available user takes part, in (0, 1].
        begin: public column of the first hour.
        end: public column of the hour after the last.
        hours_per_day: rounds after which the day begins again, at least 1.
    """

    sampling_prob: float
    begin: str = "available_from"
    end: str = "available_to"
    hours_per_day: int = 24

    def __post_init__(self) -> None:
        if not 0 < self.sampling_prob <= 1:
            raise ValueError(f"sampling_prob={self.sampling_prob} must lie in (0, 1]")
        if self.hours_per_day < 1:
            raise ValueError(f"hours_per_day={self.hours_per_day} must be at least 1")

    def probabilities(self, round: int, population: Population, past: Past) -> np.ndarray:
        """Returns `sampling_prob` for those who are available, 0 for the others."""
        there = is_available(population, self.begin, self.end, self.hours_per_day, round)
        return np.where(there, self.sampling_prob, 0.0)

    def denominator(self, round: int, population: Population) -> float:
        """Returns the mean size of a cohort over a day, so that hours in which few are available weigh less."""
        hours = _hours(population, self.begin, self.end, self.hours_per_day)
        return self.sampling_prob * float(hours.sum()) / self.hours_per_day


def is_available(population: Population, begin: str, end: str, hours_per_day: int, round: int) -> NDArray[np.bool_]:
    """Returns who is available in a round, shape [num_users]; arguments as attributes of `AvailabilitySelector`."""
    since = ((round - 1) % hours_per_day - population.numbers(begin)) % hours_per_day
    return np.asarray(since < _hours(population, begin, end, hours_per_day))


def _hours(population: Population, begin: str, end: str, hours_per_day: int) -> NDArray[np.float64]:
    """The hours of a day in which each user is available."""
    length = (population.numbers(end) - population.numbers(begin)) % hours_per_day
    return np.where(length == 0, float(hours_per_day), length)
