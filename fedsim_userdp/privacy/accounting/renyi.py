"""Renyi divergence of the Poisson-subsampled Gaussian at integer orders, in closed form: the check on the PLD.

Independent of the grid and of dp_accounting. Source: Mironov, Talwar & Zhang, arXiv 1908.10530, section 3.3:
    e^((a - 1) D_a) = sum_i Binom(a, q)(i) e^((i^2 - i) / (2 s^2)) for removing a user, which is the worse direction.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from fedsim_userdp.privacy.pld.mixture import Floats

_ORDERS = np.array([*range(2, 65), 80, 100, 128, 180, 256, 360, 512, 720, 1024, 1448, 2048, 4096], dtype=np.float64)
_NUM_TERMS = _ORDERS.astype(np.intp) + 1
_SMALL = 0.1


@functools.lru_cache(maxsize=1 << 14)  # of 600 bytes: groups of users and rounds often have equal probabilities
def rdp_at_integers(noise_multiplier: float, sampling_prob: float) -> Floats:
    """Returns the Renyi divergence of one release at `_ORDERS`, shape (75,), not to be changed.

    Args:
        noise_multiplier: s in (0, inf).
        sampling_prob: q in (0, 1]; 1 is the Gaussian, a / (2 s^2).
    """
    if sampling_prob == 1.0:
        return _ORDERS / (2.0 * noise_multiplier**2)
    order, i, log_choose, starts = _terms()
    log_weight = log_choose + i * math.log(sampling_prob) + (order - i) * math.log1p(-sampling_prob)
    exponent = i * (i - 1.0) / (2.0 * noise_multiplier**2)
    peak = np.maximum.reduceat(log_weight + exponent, starts)
    sums = np.add.reduceat(np.exp(log_weight + exponent - np.repeat(peak, _NUM_TERMS)), starts)
    total = peak + np.log(sums)
    if np.any(total < _SMALL):  # the weights sum to one: summing the rest keeps the digits of a divergence near zero
        weight = np.exp(log_weight)
        small = weight * np.expm1(np.minimum(exponent, 1.0))
        large = np.exp(np.minimum(log_weight + exponent, 1.0)) - weight
        rest = np.log1p(np.add.reduceat(np.where(exponent < 1.0, small, large), starts))
        total = np.where(total < _SMALL, rest, total)
    return np.asarray(total / (_ORDERS - 1.0))


def rdp_of(releases: Sequence[tuple[float, float, int]]) -> Floats:
    """Returns the Renyi divergence of releases (noise multiplier, sampling probability, how often), shape (75,)."""
    return np.asarray(sum((count * rdp_at_integers(noise, prob) for noise, prob, count in releases), np.zeros(1)))


def log_delta_bound(rdp: Floats, epsilon: float) -> float:
    """Returns min over a of (a - 1)(rdp - epsilon + log(1 - 1/a)) - log a, an upper bound of log delta.

    Source: Canonne, Kamath & Steinke, arXiv 2004.00010, Proposition 12.
    """
    return min(float(np.min((_ORDERS - 1.0) * (rdp - epsilon + np.log1p(-1.0 / _ORDERS)) - np.log(_ORDERS))), 0.0)


def epsilon_bound(rdp: Floats, log_delta: float) -> float:
    """Returns the inverse of `log_delta_bound`, an upper bound of epsilon, at least 0."""
    bounds = rdp + np.log1p(-1.0 / _ORDERS) - (log_delta + np.log(_ORDERS)) / (_ORDERS - 1.0)
    return max(float(np.min(bounds)), 0.0)


@functools.cache
def _terms() -> tuple[Floats, Floats, Floats, npt.NDArray[np.intp]]:
    """All terms of all orders, one after the other: a, i, log "a choose i", and where each order begins."""
    order: Floats = np.repeat(_ORDERS, _NUM_TERMS)
    starts = np.cumsum(_NUM_TERMS) - _NUM_TERMS
    i = np.arange(order.size, dtype=np.float64) - np.repeat(starts, _NUM_TERMS)
    log_choose = special.gammaln(order + 1.0) - special.gammaln(i + 1.0) - special.gammaln(order - i + 1.0)
    return np.asarray(order), i, np.asarray(log_choose), starts
