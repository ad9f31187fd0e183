"""The least noise that meets a target."""

import math
from collections.abc import Callable

from fedsim_userdp.privacy.errors import AccountingError

_LEAST_RATIO = 0.998  # of the target; the promise is 0.99
_MAX_EVALUATIONS = 80
_LOG_RANGE = (math.log(1e-3), math.log(1e7))


def least_noise(epsilon_of: Callable[[float], float], target: float, start: float, step: float) -> float:
    """Returns a noise multiplier whose epsilon is at most the target, and at least 99% of it.

    Args:
        epsilon_of: Noise multiplier -> epsilon in [0, inf]; decreasing. AccountingError counts as infinite.
        target: Epsilon, in (0, inf).
        start: Where to begin, in (1e-3, 1e7).
        step: First step from there, on a log scale, > 0.

    Raises:
        AccountingError: No noise multiplier in [1e-3, 1e7] gives an epsilon within 1% below the target.
    """

    def excess(log_noise: float) -> float:
        """log(epsilon / target), kept finite."""
        try:
            value = epsilon_of(math.exp(log_noise))
        except AccountingError:
            value = math.inf
        return max(min(math.log(value / target), 50.0), -50.0) if value > 0.0 else -50.0

    low, at_low, high, at_high = _bracket(excess, math.log(start), step)
    for _ in range(_MAX_EVALUATIONS):
        if math.log(_LEAST_RATIO) <= at_high:
            return math.exp(high)
        middle = _between(low, at_low, high, at_high)
        at_middle = excess(middle)
        if at_middle > 0.0:
            low, at_low = middle, at_middle
        else:
            high, at_high = middle, at_middle
        if high - low < 1e-9:
            break
    if at_high >= math.log(0.99):
        return math.exp(high)
    raise AccountingError(f"no noise multiplier has an epsilon between 99% and 100% of {target:g} by this accountant")


def _bracket(excess: Callable[[float], float], start: float, step: float) -> tuple[float, float, float, float]:
    """Two log noise multipliers on either side of the target, with their excess."""
    here, at_here = start, excess(start)
    direction = 1.0 if at_here > 0.0 else -1.0
    while _LOG_RANGE[0] <= here + direction * step <= _LOG_RANGE[1]:
        there = here + direction * step
        at_there = excess(there)
        if (at_there > 0.0) != (at_here > 0.0):
            return (here, at_here, there, at_there) if direction > 0.0 else (there, at_there, here, at_here)
        here, at_here, step = there, at_there, step * 2.0
    raise AccountingError("the target is out of reach of noise multipliers from 0.001 to 1e7")


def _between(low: float, at_low: float, high: float, at_high: float) -> float:
    """Where the chord meets a point just below the target, off the ends; the middle where it is not to be trusted."""
    aim = math.log((1.0 + _LEAST_RATIO) / 2.0)
    if at_low >= 20.0 or at_high <= -20.0:
        return (low + high) / 2.0
    share = (at_low - aim) / (at_low - at_high)
    return low + (high - low) * min(max(share, 0.02), 0.98)
