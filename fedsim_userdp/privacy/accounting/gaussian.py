"""Closed form of the Gaussian mechanism: delta(epsilon) of N(0, 1) against N(mu, 1), and its inverse.

Source: Balle & Wang, ICML 2018, Theorem 8: delta = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu). T releases of
sensitivity C with noise stddev s C are one with mu = sqrt(T) / s (Dong, Roth & Su 2022, Corollary 2).
"""

import math

import numpy as np
from scipy import special

_EPS = float(np.finfo(np.float64).eps)


def log_delta(mu: float, epsilon: float) -> float:
    """Returns log delta(epsilon >= 0) of a Gaussian of shift `mu` > 0 in standard deviations, rounded up."""
    upper = float(special.log_ndtr(mu / 2.0 - epsilon / mu))
    return log_difference(upper, epsilon + float(special.log_ndtr(-mu / 2.0 - epsilon / mu)), 1.0 + epsilon)


def log_difference(log_upper: float, log_lower: float, size: float) -> float:
    """Returns log(e^upper - e^lower), rounded up by what rounding may have done to the two logarithms.

    Args:
        log_upper: The larger logarithm, up to rounding.
        log_lower: The smaller one.
        size: Largest number, in absolute value, that went into them besides the result, >= 1.
    """
    if log_upper == -math.inf:
        return -math.inf
    doubt = 8.0 * _EPS * (size + abs(log_upper))
    return log_upper + math.log(-math.expm1(min(log_lower - log_upper, 0.0) - doubt))


def epsilon(mu: float, log_delta_target: float) -> float:
    """Returns the smallest epsilon >= 0 whose log delta is at most the target, for a shift `mu` > 0."""
    if log_delta(mu, 0.0) <= log_delta_target:
        return 0.0
    low, high = 0.0, mu**2 / 2.0 + mu * math.sqrt(-2.0 * log_delta_target)  # Gaussian tail bound: enough
    while high - low > 1e-13 + 1e-12 * high:
        middle = (low + high) / 2.0
        low, high = (low, middle) if log_delta(mu, middle) <= log_delta_target else (middle, high)
    return high
