"""Bets against what a selector declares of its cohorts: too even or too uneven sizes, users' rounds and overlaps.

A bet multiplies its stake in each round by a factor that is at least 0 and has the mean 1 where the cohort is drawn as
declared, whatever was drawn before. Such products are martingales, and so is the mean of several bets: under the
declared law it ever reaches w with a probability of at most 1/w, however often one looks (Ville's inequality).
"""

import functools
import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.privacy import accounting as acc

# How much likelier (log) each user of a set is taken to be than declared: less for too even, more for too uneven.
_TILTS = np.array([-4.0, -2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 2.0, 4.0])
_KINDS = ("sizes", "overlaps with the cohort before", "shares of users who were chosen more often than others")


class Wager:
    """Bets against one run's cohorts, drawn by a class that declares Poisson sampling or a fixed size.

    A third of the stake is on sizes: each round's is foretold by those seen so far, mixed with the declared Binomial
    law (nothing to bet on where the size is fixed). The rest is on how many users of a set that is known before are in
    the cohort, the set being the cohort before or the users with more rounds so far than the average: under the
    declared law that number is Binomial, or hypergeometric where the size is fixed, and the bet takes it to be
    exponentially tilted.

    Args:
        declared: what the selector declared.
        num_users: size of the population.

    Attributes:
        log_stakes: natural logarithms of what each bet of the three kinds has become, from 0.
    """

    def __init__(self, declared: acc.PoissonUsers | acc.FixedSize, num_users: int) -> None:
        self._declared, self._num_users = declared, num_users
        self._sizes: Counter[int] = Counter()
        self._counts = np.zeros(num_users, dtype=np.int64)
        self._before = np.empty(0, dtype=np.int64)
        self.log_stakes = [np.zeros(1), np.zeros(len(_TILTS)), np.zeros(len(_TILTS))]

    @property
    def log_wealth(self) -> float:
        """Natural logarithm of what a stake of 1 has become."""
        return _log_mean(np.array(self._log_each))

    @property
    def leading(self) -> str:
        """What of the cohorts has won most, in words."""
        return _KINDS[int(np.argmax(self._log_each))]

    def see(self, cohort: NDArray[np.int64]) -> None:
        """Settles the bets on the next round's cohort: distinct users, shape [cohort]."""
        frequent = np.flatnonzero(self._counts * self._num_users > self._counts.sum())
        of_sets = [self._of_set(users, cohort) for users in (self._before, frequent)]
        factors = [np.array([self._of_size(len(cohort))]), *of_sets]
        self.log_stakes = [stake + factor for stake, factor in zip(self.log_stakes, factors, strict=True)]
        self._sizes[len(cohort)] += 1
        self._counts[cohort] += 1
        self._before = cohort

    @property
    def _log_each(self) -> list[float]:
        """Logarithm of what has become of each kind of bet."""
        return [_log_mean(stake) for stake in self.log_stakes]

    def _of_size(self, size: int) -> float:
        """Logarithm of the factor for the cohort's size: a Polya urn that begins with one ball of the declared law."""
        if isinstance(self._declared, acc.FixedSize):
            return 0.0
        expected = _log_binomial(size, self._num_users, self._declared.sampling_prob)
        seen = math.log(self._sizes[size]) - expected if self._sizes[size] else -math.inf
        return float(np.logaddexp(seen, 0.0)) - math.log1p(self._sizes.total())

    def _of_set(self, users: NDArray[np.int64], cohort: NDArray[np.int64]) -> NDArray[np.float64]:
        """Logarithms of the factors for how many of `users` are in the cohort, one for each tilt."""
        num_common = len(np.intersect1d(users, cohort, assume_unique=True))
        return _TILTS * num_common - _log_means(self._declared, len(users), self._num_users)


@functools.lru_cache(maxsize=4096)
def _log_binomial(successes: int, chances: int, prob: float) -> float:
    """Logarithm of a Binomial probability."""
    from scipy.stats import binom

    return float(binom.logpmf(successes, chances, prob))


@functools.lru_cache(maxsize=4096)
def _log_means(declared: acc.PoissonUsers | acc.FixedSize, size: int, num_users: int) -> NDArray[np.float64]:
    """Logarithm of the mean of exp(tilt * how many of a set of `size` users are in a cohort), one for each tilt."""
    if isinstance(declared, acc.PoissonUsers):
        return size * np.log1p(declared.sampling_prob * np.expm1(_TILTS))
    from scipy.special import logsumexp
    from scipy.stats import hypergeom

    common = np.arange(max(0, size + declared.cohort_size - num_users), min(size, declared.cohort_size) + 1)
    logs = hypergeom.logpmf(common, num_users, size, declared.cohort_size)
    return np.asarray(logsumexp(logs + _TILTS[:, None] * common, axis=1))


def _log_mean(logs: NDArray[np.float64]) -> float:
    """Logarithm of the mean of numbers, of which the logarithms are given; some may be infinite."""
    return float(np.logaddexp.reduce(logs)) - math.log(len(logs))
