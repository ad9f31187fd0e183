"""Ids of users and owners: one person has one id, in whatever form a program wrote it."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

from fedsim_userdp.data.corpus import DataError

RULE = 2  # to be raised whenever an id comes out otherwise: token stores are then built anew
LARGEST_WHOLE_FLOAT = 2**53  # from here on several whole numbers are one float
# First and last of white space, control characters, and signs without width such as the byte-order mark.
_UNSEEN_RANGES = (
    *((0x00, 0x20), (0x7F, 0xA0), (0xAD, 0xAD), (0x61C, 0x61C), (0x1680, 0x1680), (0x180E, 0x180E), (0x2000, 0x200F)),
    *((0x2028, 0x202F), (0x205F, 0x206F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
)
UNSEEN = "".join(chr(code) for first, last in _UNSEEN_RANGES for code in range(first, last + 1))
# 1.0, 1,00, 1e+05 or 1.5e3, not 1.5, and not 12e3, which may be a word of hexadecimal digits.
AS_FRACTION = re.compile(r"[+-]?(?:\d+[.,]0*|[.,]0+|\d+(?:[.,]\d*)?[eE]\+\d+|\d+[.,]\d*[eE]\d+)")


def composed(text: str) -> str:
    """Returns a text in Unicode's composed form (NFC), in which an accented letter is one character."""
    return unicodedata.normalize("NFC", text)


def plain_id(text: str) -> str:
    """Returns an id composed and without what cannot be seen around it; upper and lower case stay as they are."""
    return composed(text).strip(UNSEEN)


def id_of(value: object, where: str) -> str | None:
    """Returns a user's id: text as `plain_id` has it, whole numbers in decimal, however typed; None for all else.

    Args:
        value: The cell, as the file's reader gives it.
        where: File, line and column, for messages.

    Raises:
        DataError: text that a program made of a whole number by way of a fraction, which stands elsewhere as that
            number, or a float too large to tell whole numbers apart.
    """
    if isinstance(value, str):
        found = plain_id(value)
        if AS_FRACTION.fullmatch(found):
            raise DataError(
                f"{where}: an id is a whole number written with decimals or an exponent, and would be another user "
                "than the number: write 7 instead of 7.0 (columns with gaps as Int64), or set a letter before it"
            )
        return found or None
    if isinstance(value, float) and value.is_integer() and abs(value) >= LARGEST_WHOLE_FLOAT:
        raise DataError(f"{where}: an id is a number too large for its type: several ids may be one; write it as text")
    return whole_number(value)


def whole_number(value: object) -> str | None:
    """Returns a whole number in decimal if that is what a value is for certain, whatever its type; else None."""
    if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_WHOLE_FLOAT:
        value = int(value)
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None
