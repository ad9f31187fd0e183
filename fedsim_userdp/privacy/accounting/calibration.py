"""The least noise that meets a target."""

import math
from collections.abc import Callable

from fedsim_userdp.errors import AccountingError

_LEAST_RATIO = 0.998  # of the target; the promise is 0.99
_NARROW = 2e-5
_LOG_RANGE = (math.log(1e-3), math.log(1e7))


def least_noise(epsilon_of: Callable[[float], float], target: float, start: float, step: float) -> float:
    """Returns a noise multiplier whose epsilon is at most the target, and at least 99% of it.

    Where epsilon jumps over that range (group privacy and RDP can), it is the least noise below the jump instead.

    Args:
        epsilon_of: Noise multiplier -> epsilon in [0, inf]; decreasing. AccountingError counts as infinite.
        target: Epsilon, in (0, inf).
        start: Where to begin, in (1e-3, 1e7).
        step: First step from there, on a log scale, > 0.

    Raises:
        AccountingError: No noise multiplier up to 1e7 meets the target, or even the least one, 1e-3, falls short of it.
    """

    def excess(log_noise: float) -> float:
        """log(epsilon / target), kept finite."""
        try:
            value = epsilon_of(math.exp(log_noise))
        except AccountingError:
            value = math.inf
        return max(min(math.log(value / target), 50.0), -50.0) if value > 0.0 else -50.0

    low, at_low, high, at_high = _bracket(excess, math.log(start), step)
    side = 0
    while at_high < math.log(_LEAST_RATIO) and high - low > _NARROW:
        middle = (low + high) / 2.0 if abs(side) > 1 else _chord(low, at_low, high, at_high)
        at_middle = excess(middle)
        if at_middle > 0.0:
            low, at_low, side = middle, at_middle, max(side, 0) + 1
        else:
            high, at_high, side = middle, at_middle, min(side, 0) - 1
    return math.exp(high)


def _bracket(excess: Callable[[float], float], start: float, step: float) -> tuple[float, float, float, float]:
    """Two log noise multipliers on either side of the target, with their excess."""
    here, at_here = start, excess(start)
    direction = 1.0 if at_here > 0.0 else -1.0
    while _LOG_RANGE[0] < here < _LOG_RANGE[1]:
        there = min(max(here + direction * step, _LOG_RANGE[0]), _LOG_RANGE[1])
        at_there = excess(there)
        if (at_there > 0.0) != (at_here > 0.0):
            return (here, at_here, there, at_there) if direction > 0.0 else (there, at_there, here, at_here)
        here, at_here, step = there, at_there, step * 2.0
    raise AccountingError("the target is out of reach of noise multipliers from 0.001 to 1e7")


def _chord(low: float, at_low: float, high: float, at_high: float) -> float:
    """Where the chord meets a point just below the target; the middle where an end is out of scale."""
    if at_low >= 20.0 or at_high <= -20.0:
        return (low + high) / 2.0
    share = (at_low - math.log((1.0 + _LEAST_RATIO) / 2.0)) / (at_low - at_high)
    return low + (high - low) * min(max(share, 0.02), 0.98)
