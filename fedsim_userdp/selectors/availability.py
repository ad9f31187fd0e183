"""Users who can take part at public hours only, as devices that charge at night."""

from dataclasses import dataclass

import numpy as np

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
        since = ((round - 1) % self.hours_per_day - population.numbers(self.begin)) % self.hours_per_day
        return np.where(since < self._hours(population), self.sampling_prob, 0.0)

    def denominator(self, round: int, population: Population) -> float:
        """Returns the mean size of a cohort over a day, so that hours in which few are available weigh less."""
        return self.sampling_prob * float(self._hours(population).sum()) / self.hours_per_day

    def _hours(self, population: Population) -> np.ndarray:
        """The hours of a day in which each user is available."""
        length = (population.numbers(self.end) - population.numbers(self.begin)) % self.hours_per_day
        return np.where(length == 0, self.hours_per_day, length)
