"""One thing that `fedsim verify` checked, and when two plain values are the same."""

import math
from dataclasses import dataclass

TOLERANCE = 1e-6  # relative: of accountants on different machines


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        about: What.
        problem: What is wrong with it; empty where it is right.
    """

    about: str
    problem: str = ""

    def line(self) -> str:
        """Returns the check as one line."""
        return f"FAILED: {self.about}: {self.problem}" if self.problem else f"ok: {self.about}"


def difference(stored: object, expected: object, where: str = "") -> str:
    """Returns where a stored JSON value first differs from what is expected, in words; empty where it does not."""
    if isinstance(stored, dict) and isinstance(expected, dict):
        if stored.keys() != expected.keys():
            return f"{where or 'it'} has the keys {sorted(stored)}, expected {sorted(expected)}"
        found = (difference(stored[key], expected[key], f"{where}.{key}".lstrip(".")) for key in expected)
    elif isinstance(stored, list) and isinstance(expected, list):
        if len(stored) != len(expected):
            return f"{where} has {len(stored)} items, expected {len(expected)}"
        found = (difference(a, b, f"{where}[{at}]") for at, (a, b) in enumerate(zip(stored, expected, strict=True)))
    else:
        return "" if is_same(stored, expected) else f"{where} is {stored!r}, expected {expected!r}"
    return next(filter(None, found), "")


def is_same(stored: object, expected: object) -> bool:
    """Returns whether two plain values are the same, numbers within what accountants differ by."""
    numbers = int | float
    if isinstance(stored, bool) or isinstance(expected, bool):
        return stored is expected
    if isinstance(stored, numbers) and isinstance(expected, numbers):
        return math.isclose(stored, expected, rel_tol=TOLERANCE)
    return type(stored) is type(expected) and stored == expected
