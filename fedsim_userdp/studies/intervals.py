"""How sure a mean or a difference is: intervals over seeds, and tests of several pairs at once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

LEVEL = 0.95
Name = TypeVar("Name")


@dataclass(frozen=True)
class Interval:
    """A mean with an interval that holds the truth with probability 95%, under its assumptions.

    Attributes:
        mean: the middle.
        low: lower end; None where one value says nothing of how they spread.
        high: upper end; likewise.
        number: values that it rests on.
    """

    mean: float
    low: float | None
    high: float | None
    number: int

    @property
    def in_words(self) -> str:
        """The interval in figures, such as `67.2 [66.1, 68.3]`."""
        if self.low is None or self.high is None:
            return f"{self.mean:.4g}"
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def over_seeds(values: Sequence[float]) -> Interval:
    """Returns the mean of values of several seeds with Student's t interval; they are taken as independent and normal.

    Args:
        values: one for each seed, at least one, finite.

    Raises:
        ValueError: there is none, or one is not finite.
    """
    if not values or not np.isfinite(values).all():
        raise ValueError(f"values must be finite and at least one, got {list(values)}")
    mean, number = float(np.mean(values)), len(values)
    if number < 2:
        return Interval(mean, None, None, number)
    from scipy.stats import t

    half = float(t.ppf((1 + LEVEL) / 2, number - 1)) * float(np.std(values, ddof=1)) / math.sqrt(number)
    return Interval(mean, mean - half, mean + half, number)


@dataclass(frozen=True)
class Difference:
    """What one mechanism's figure is above another's, paired by seed.

    Attributes:
        interval: of the mean difference.
        p_value: of no difference, two-sided; None for one pair.
    """

    interval: Interval
    p_value: float | None


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Returns the mean difference `one` - `other` over the seeds that both have; None where they share none.

    Args:
        one: figures by seed.
        other: likewise.
    """
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return None
    differences = [one[seed] - other[seed] for seed in seeds]
    interval = over_seeds(differences)
    if len(seeds) < 2:
        return Difference(interval, None)
    from scipy.stats import t

    error = float(np.std(differences, ddof=1)) / math.sqrt(len(seeds))
    if error == 0:
        return Difference(interval, 0.0 if interval.mean else 1.0)
    return Difference(interval, float(2 * t.sf(abs(interval.mean) / error, len(seeds) - 1)))


def holm(p_values: Mapping[Name, float], level: float = 1 - LEVEL) -> set[Name]:
    """Returns whose hypothesis of no difference falls, so that with probability 1 - `level` no true one does.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    Args:
        p_values: by name.
        level: probability that any true hypothesis of the family falls, in (0, 1).
    """
    fallen: set[Name] = set()
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    for place, (name, p_value) in enumerate(ordered):
        if p_value > level / (len(ordered) - place):
            break
        fallen.add(name)
    return fallen
