"""Where a monotone function crosses zero, from the safe side, and where another one is least."""

import math
from collections.abc import Callable


def crossing(
    function: Callable[[float], float], low: float, high: float, *, width: float = 1e-9, close: float = 1e-9
) -> float:
    """Returns an argument at or just above the zero of a decreasing function, by the Illinois method.

    Args:
        function: Decreasing; above 0 at `low`, at most 0 at `high`.
        low: Lower end.
        high: Upper end.
        width: Stop when the bracket is this narrow, relative to `high`.
        close: Stop when the function at the upper end of the bracket is in [-close, 0].

    Returns:
        The upper end of the last bracket, where the function is at most 0.
    """
    at_low, at_high, side = function(low), function(high), 0
    while high - low > width * abs(high) + 1e-15:
        share = at_low / (at_low - at_high)
        middle = low + (high - low) * min(max(share, 1e-3), 1.0 - 1e-3)
        at_middle = function(middle)
        if at_middle <= 0.0:
            high, at_high, at_low, side = middle, at_middle, at_low / (2.0 if side < 0 else 1.0), -1
            if at_middle >= -close:
                break
        else:
            low, at_low, at_high, side = middle, at_middle, at_high / (2.0 if side > 0 else 1.0), 1
    return high


def minimize(function: Callable[[float], float], low: float, high: float) -> float:
    """Returns the argument of the least value of a quasi-convex function, to 0.02, by golden section."""
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > 0.02:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return (low + high) / 2.0
