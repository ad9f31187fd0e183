"""Ids of users and owners: one person has one id, in whatever form a program wrote it.

What cannot be seen is set aside around an id and refused within one, as `ann` with a sign without width in it would be
another user who reads the same. Two signs within are set aside too, the joiner and the non-joiner (U+200D, U+200C):
Persian, Hindi or Sinhala words and emoji need them, so that a refusal would shut out people for their names. Two ids
that differ in these alone become one user. That is safe: what is promised to one user is then promised to both at once.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal

from fedsim_userdp.errors import DataError

RULE = 3  # to be raised whenever an id comes out otherwise: token stores are then built anew
REWRITTEN = "user id in another form than the one it is read as (spaces around it, unseen signs, accents apart)"
LARGEST_WHOLE_FLOAT = 2**53  # from here on several whole numbers are one float
# First and last of what shows nothing, or a space that is not the ordinary one: control characters, white space, signs
# of format, Unicode's Default_Ignorable_Code_Point, and letters that are blank.
_UNSEEN_RANGES = (
    *((0x00, 0x20), (0x7F, 0xA0), (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x1680, 0x1680)),
    *((0x17B4, 0x17B5), (0x180B, 0x180F), (0x2000, 0x200F), (0x2028, 0x202F), (0x205F, 0x206F), (0x2800, 0x2800)),
    *((0x3000, 0x3000), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB)),
    *((0x13430, 0x1343F), (0x16FE4, 0x16FE4), (0x1BCA0, 0x1BCA3), (0x1D159, 0x1D159), (0x1D173, 0x1D17A)),
    (0xE0000, 0xE0FFF),
)
UNSEEN = "".join(chr(code) for first, last in _UNSEEN_RANGES for code in range(first, last + 1))
_UNSEEN_SIGN = re.compile(f"(?! )[{''.join(f'{chr(first)}-{chr(last)}' for first, last in _UNSEEN_RANGES)}]")
_WITHOUT_JOINERS = {0x200C: None, 0x200D: None}
# 1.0, 1,00, 1e+05 or 1.5e3, not 1.5, and not 12e3, which may be a word of hexadecimal digits.
AS_FRACTION = re.compile(r"[+-]?(?:\d+[.,]0*|[.,]0+|\d+(?:[.,]\d*)?[eE]\+\d+|\d+[.,]\d*[eE]\d+)")


def composed(text: str) -> str:
    """Returns a text in Unicode's composed form (NFC), in which an accented letter is one character."""
    return unicodedata.normalize("NFC", text)


def plain_id(text: str) -> str:
    """Returns an id composed, without joiners in it and without what cannot be seen around it; case stays as it is."""
    return composed(text.translate(_WITHOUT_JOINERS)).strip(UNSEEN)


def unseen_in(text: str) -> str | None:
    """Returns the first sign within a plain id that cannot be seen, by code point and name; None if all can be."""
    if (found := _UNSEEN_SIGN.search(text)) is None:
        return None
    return f"U+{ord(found[0]):04X} {unicodedata.name(found[0], 'control character or unnamed')}"


def as_seen(text: str) -> str:
    """Returns a text with an ordinary space for every space, and without all else that cannot be seen."""
    return _UNSEEN_SIGN.sub(lambda sign: " " if sign[0].isspace() else "", text)


def check_seen(text: str, where: str, what: str = "an id") -> str:
    """Returns a plain id in which everything can be seen.

    Args:
        text: An id as `plain_id` has it.
        where: File, line and column, for messages.
        what: What it is the id of, for messages.

    Raises:
        DataError: something within it cannot be seen; names the sign and never the id.
    """
    if sign := unseen_in(text):
        raise DataError(
            f"{where}: {what} holds {sign}, which cannot be seen, and would be another user than the id without it: "
            "take it out, or write an ordinary space instead"
        )
    return text


def id_of(value: object, where: str) -> str | None:
    """Returns a user's id: text as `plain_id` has it, whole numbers in decimal, however typed; None for all else.

    Args:
        value: The cell, as the file's reader gives it.
        where: File, line and column, for messages.

    Raises:
        DataError: text with something in it that cannot be seen, text that a program made of a whole number by way of
            a fraction, which stands elsewhere as that number, or a float too large to tell whole numbers apart.
    """
    if isinstance(value, str):
        found = check_seen(plain_id(value), where)
        if AS_FRACTION.fullmatch(found):
            raise DataError(
                f"{where}: an id is a whole number written with decimals or an exponent, and would be another user "
                "than the number: write 7 instead of 7.0 (columns with gaps as Int64), or set a letter before it"
            )
        return found or None
    if isinstance(value, float) and value.is_integer() and abs(value) >= LARGEST_WHOLE_FLOAT:
        raise DataError(f"{where}: an id is a number too large for its type: several ids may be one; write it as text")
    return whole_number(value)


def count_alike(ids: Iterable[str]) -> int:
    """Returns how many of these different ids are like another but for case, width (full or half) or white space."""
    forms = Counter(" ".join(unicodedata.normalize("NFKC", text.casefold()).casefold().split()) for text in ids)
    return sum(num for num in forms.values() if num > 1)


def whole_number(value: object) -> str | None:
    """Returns a whole number in decimal if that is what a value is for certain, whatever its type; else None."""
    if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_WHOLE_FLOAT:
        value = int(value)
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None
