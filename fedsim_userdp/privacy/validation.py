"""Argument checks shared by the privacy part: one sentence with the name, the value and the allowed range."""

import math
import numbers

MAX_RECORDS_PER_USER = 1000
MAX_COUNT = 10**9


def check_real(
    name: str, value: object, low: float, high: float, *, open_low: bool = True, open_high: bool = True
) -> float:
    """Returns `value` as a float if it is a finite real number in the interval, else raises.

    Args:
        name: Name of the argument, for the message.
        value: Anything. `bool` is not a number here.
        low: Lower end of the allowed interval.
        high: Upper end of the allowed interval.
        open_low: Whether `low` itself is excluded.
        open_high: Whether `high` itself is excluded.

    Raises:
        ValueError: `value` is not a finite real number in the interval.
    """
    allowed = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number in {allowed}, got {value!r}")
    number = _to_float(value)
    above = number > low if open_low else number >= low
    below = number < high if open_high else number <= high
    if not (math.isfinite(number) and above and below):
        raise ValueError(f"{name} must be in {allowed}, got {value!r}")
    return number


def check_count(name: str, value: object, low: int = 1, high: int = MAX_COUNT) -> int:
    """Returns `value` as an int if it is a whole number in [low, high], else raises.

    Args:
        name: Name of the argument, for the message.
        value: Anything. `bool` and floats are not counts, numpy integers are.
        low: Smallest allowed value.
        high: Largest allowed value.

    Raises:
        ValueError: `value` is not an integer in [low, high].
    """
    allowed = f"[{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} must be a whole number in {allowed}, got {value!r}")
    count = int(value)
    if not low <= count <= high:
        raise ValueError(f"{name} must be in {allowed}, got {value!r}")
    return count


def check_epsilon(name: str, value: object) -> float:
    """Returns a privacy parameter epsilon in (0, inf); raises ValueError otherwise."""
    return check_real(name, value, 0.0, math.inf)


def check_delta(name: str, value: object) -> float:
    """Returns a privacy parameter delta in (0, 1); raises ValueError otherwise."""
    return check_real(name, value, 0.0, 1.0)


def check_noise_multiplier(name: str, value: object) -> float:
    """Returns a noise multiplier in (0, inf); raises ValueError otherwise."""
    return check_real(name, value, 0.0, math.inf)


def check_sampling_prob(name: str, value: object) -> float:
    """Returns a sampling probability in (0, 1]; raises ValueError otherwise."""
    return check_real(name, value, 0.0, 1.0, open_high=False)


def _to_float(value: numbers.Real) -> float:
    """A real number as a float; what a float cannot hold becomes infinite, and so is rejected."""
    try:
        return float(value)
    except OverflowError:
        return math.inf
