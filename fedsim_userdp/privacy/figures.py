"""Epsilon and delta in print: never below what was computed, so that the printed claim holds as well."""

from decimal import ROUND_CEILING, Decimal

_MOST_DIGITS = 15  # that a float holds


def rounded_up(value: float, digits: int = 4) -> str:
    """Returns a number of so many significant digits that is not below `value`; zeros at the end are left out.

    Args:
        value: Epsilon or delta, in [0, inf].
        digits: At least 1.
    """
    return f"{_ceiling(value, digits):.{digits}g}"


def in_column(value: float, decimals: int = 2) -> str:
    """Returns a number of so many decimals that is not below `value` >= 0; a small one has two significant digits."""
    if 0 < value < 10**-decimals:
        return rounded_up(value, 2)
    exact = Decimal(repr(value))
    if not exact.is_finite() or exact.adjusted() >= _MOST_DIGITS:
        return f"{value:.{decimals}f}"
    return f"{exact.quantize(Decimal((0, (1,), -decimals)), ROUND_CEILING):.{decimals}f}"


def in_powers(value: float) -> str:
    """Returns a delta with two significant digits and a power of ten, such as 6.4e-04; not below `value`."""
    return f"{_ceiling(value, 2):.1e}"


def _ceiling(value: float, digits: int) -> float:
    """The least number of so many significant digits, at most 15, that is not below `value`."""
    exact = Decimal(repr(value))  # 1e-05 stays what it was given as
    if not exact.is_finite() or not exact or digits > _MOST_DIGITS:
        return value
    return float(exact.quantize(Decimal((0, (1,), exact.adjusted() - digits + 1)), ROUND_CEILING))
