"""One release under the mixture of Gaussians, and its privacy loss.

The pair: Q = N(0, s^2) without the user, P = sum_i w_i N(i, s^2) with them, w = Binom(k, q), in units of the clip norm.
k = 1 is the Poisson-subsampled Gaussian; k records of a user under record-level sampling are the general case
(Choquette-Choo et al., arXiv 2310.15526; Charles et al., arXiv 2407.07737). The privacy loss L(x) = log P(x)/Q(x) is
convex and increasing in x, from log w_0 at minus infinity.
"""

import dataclasses
import functools
import math

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The dominating pair of one release, or a part of it: weights may sum to less than one.

    Attributes:
        noise_multiplier: s > 0.
        support: Numbers i of sampled records, increasing, shape (m,).
        log_weights: log w_i, shape (m,).
    """

    noise_multiplier: float
    support: Floats
    log_weights: Floats

    def truncated(self, log_mass: float) -> "Mixture":
        """Returns the mixture without its largest counts, of probability at most e^log_mass together."""
        survival = np.logaddexp.accumulate(self.log_weights[::-1])[::-1]
        num_kept = max(int(np.count_nonzero(survival > log_mass)), min(2, self.support.size))
        return Mixture(self.noise_multiplier, self.support[:num_kept], self.log_weights[:num_kept])

    def distance(self) -> float:
        """Returns the total variation distance of P and Q, exactly for k = 1, else an upper bound by convexity."""
        each = special.erf(self.support / (2.0 * math.sqrt(2.0) * self.noise_multiplier))
        return float(np.exp(self.log_weights) @ each)

    def log_ratio(self, x: Floats) -> tuple[Floats, Floats]:
        """Returns L(x) and its slope L'(x), each of the shape of x (one axis)."""
        variance = self.noise_multiplier**2
        peak = np.full_like(x, -np.inf)
        for i, log_w in zip(self.support, self.log_weights, strict=True):
            np.maximum(peak, log_w + i * (x - i / 2.0) / variance, out=peak)
        total, moment, excess = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
        for i, log_w in zip(self.support, self.log_weights, strict=True):
            exponent = i * (x - i / 2.0) / variance
            term = np.exp(exponent + log_w - peak)
            total += term
            moment += i * term
            excess += np.exp(log_w) * np.expm1(np.minimum(exponent, 50.0))
        value = peak + np.log(total)
        near_zero = (np.abs(value) < 0.5) & (np.abs(excess) < 0.7)
        value[near_zero] = np.log1p(excess[near_zero])  # keeps the digits that a sum of exponentials near 1 loses
        return value, moment / total / variance

    def masses(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        """Returns Q, P and P - Q of the intervals (x_j, x_{j+1}], each of shape (len(x) - 1,)."""
        without = interval_mass(x / self.noise_multiplier)
        with_user, difference = np.zeros_like(without), np.zeros_like(without)
        for i, log_w in zip(self.support, self.log_weights, strict=True):
            shifted = interval_mass((x - i) / self.noise_multiplier)
            with_user += np.exp(log_w) * shifted
            difference += np.exp(log_w) * (shifted - without)
        return without, with_user, difference


def binomial_mixture(noise_multiplier: float, sampling_prob: float, records: int) -> Mixture:
    """Returns the pair of a user with `records` >= 1 records, each sampled with `sampling_prob` in (0, 1]."""
    i = np.arange(records + 1.0)
    log_weights = _log_choose(records) + special.xlogy(i, sampling_prob) + special.xlog1py(records - i, -sampling_prob)
    kept = np.isfinite(log_weights)
    return Mixture(noise_multiplier, i[kept], np.asarray(log_weights[kept]))


@functools.lru_cache(maxsize=64)
def _log_choose(records: int) -> Floats:
    """log of "records choose i" for i = 0 to records, from exact integers: differences of gammaln lose three digits."""
    return np.array([math.log(math.comb(records, i)) for i in range(records + 1)])


def interval_mass(u: Floats) -> Floats:
    """Returns the standard normal mass of (u_j, u_{j+1}], from whichever tail keeps the digits."""
    tail: Floats = special.ndtr(-np.abs(u))
    left, right = tail[:-1], tail[1:]
    mass: Floats = np.where(u[1:] <= 0.0, right - left, left - right)
    return np.asarray(np.where((u[:-1] < 0.0) & (u[1:] > 0.0), 1.0 - left - right, mass))
