"""Closed form of the Gaussian mechanism: delta(epsilon) of N(0, 1) against N(mu, 1), and its inverse.

Source: Balle & Wang, ICML 2018, Theorem 8: delta = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu). T releases of
sensitivity C with noise stddev s C are one with mu = sqrt(T) / s (Dong, Roth & Su 2022, Corollary 2).
"""

import math

from scipy import special


def log_delta(mu: float, epsilon: float) -> float:
    """Returns log delta(epsilon) of a Gaussian of shift `mu` > 0 in standard deviations, for epsilon >= 0."""
    upper = float(special.log_ndtr(mu / 2.0 - epsilon / mu))
    lower = epsilon + float(special.log_ndtr(-mu / 2.0 - epsilon / mu))
    ratio = -math.expm1(min(lower - upper, 0.0))
    return upper + math.log(ratio) if ratio > 0.0 else -math.inf


def epsilon(mu: float, log_delta_target: float) -> float:
    """Returns the smallest epsilon >= 0 whose log delta is at most the target, for a shift `mu` > 0."""
    if log_delta(mu, 0.0) <= log_delta_target:
        return 0.0
    low, high = 0.0, mu**2 / 2.0 + mu * math.sqrt(-2.0 * log_delta_target)  # Gaussian tail bound: enough
    while high - low > 1e-13 + 1e-12 * high:
        middle = (low + high) / 2.0
        low, high = (low, middle) if log_delta(mu, middle) <= log_delta_target else (middle, high)
    return high
