"""Owners as a cell of a table names them: read as they are meant, or refused; never guessed and never dropped."""

from __future__ import annotations

import json
import re

from fedsim_userdp.data.ids import AS_FRACTION, check_seen, plain_id, whole_number
from fedsim_userdp.errors import DataError

OTHER_SEPARATORS = ",;|"
QUOTE = "['\u2018\u2019\u201c\u201d\u00ab\u00bb]"  # within a name, as in O'Brien, an apostrophe is no quote
LIST_SYNTAX = re.compile(rf"[\t\r\n\[\](){{}}<>\"`]|^{QUOTE}|{QUOTE}$|{QUOTE}\s*[,;|]|[,;|]\s*{QUOTE}")
FRACTION = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+|\d+(?:\.\d*)?[eE][+-]?\d+)|[+-]?(?:nan|inf|infinity)", re.IGNORECASE)


def owners_of(value: object, separator: str, at: str) -> tuple[str, ...]:
    """Returns the owners that a cell names, each as `ids.plain_id` has it, upper and lower case told apart.

    Read are: nothing or blank text (no further owners); a list of ids; a whole number (one id); text that is a JSON
    list of ids; other text as ids between `separator`, one of which may stand at the end. An id is text or a whole
    number.

    Args:
        value: The cell, as the file's reader gives it.
        separator: What separates ids in text that is no JSON list; not empty.
        at: File and line, for messages.

    Raises:
        DataError: anything else, since an owner who is overlooked is claimed to be protected and is not: an empty id
            in a list or between separators, numbers that are not whole, nested lists, objects, signs of a list that
            is none of the above (brackets, quotes), and in text another separator. Names file and line.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        return _from_text(plain_id(value), separator, at)
    listed = value if isinstance(value, list) else [value]
    return tuple(_owner(owner, separator, at) for owner in listed)


def check_owner(owner: str, separator: str, at: str) -> str:
    """Returns one id given as text, if nothing in it looks like several.

    Raises:
        DataError: it is empty, or holds brackets, quotes, the separator, what cannot be seen or printed, or a number
            with decimals, as which some programs write whole ones.
    """
    if not owner:
        raise _refusal(at, "is empty: leave it out, or write who it is")
    if separator in owner:
        raise _refusal(at, f"holds the separator {separator!r}: list the owners one by one")
    if LIST_SYNTAX.search(owner):
        raise _refusal(at, f"could be several: give a list, or ids separated by {separator!r}, without quotes")
    check_seen(owner, at, "an owner")
    if not owner.isprintable():
        raise _refusal(at, "holds what cannot be printed: take it out")
    if FRACTION.fullmatch(owner) or AS_FRACTION.fullmatch(owner):
        raise _refusal(at, "is no whole number: write it without decimals")
    return owner


def _from_text(text: str, separator: str, at: str) -> tuple[str, ...]:
    """Owners of a text cell that has no white space around it."""
    if not text:
        return ()
    if text.startswith("["):
        return tuple(_owner(owner, separator, at) for owner in _json_list(text, separator, at))
    pieces = [plain_id(piece) for piece in text.split(separator)]
    if len(pieces) > 1 and not pieces[-1]:
        pieces.pop()
    for piece in pieces:
        check_owner(piece, separator, at)
        if other := [sign for sign in OTHER_SEPARATORS if sign in piece]:
            raise _refusal(
                at,
                f"holds {other[0]!r}: set data.owners_separator={other[0]!r} if that separates owners, or write the "
                'cell as a JSON list if it is part of an id, such as ["Smith, John"]',
            )
    return tuple(pieces)


def _json_list(text: str, separator: str, at: str) -> list[object]:
    """The items of a text that starts like a list."""
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refusal(at, f'is no JSON list: write ["u7", "boss"], or ids separated by {separator!r}') from error
    return list(listed)


def _owner(value: object, separator: str, at: str) -> str:
    """One id of a list."""
    if (whole := whole_number(value)) is not None:
        return whole
    if not isinstance(value, str):
        raise _refusal(at, f"is {type(value).__name__}: an id is text or a whole number")
    return check_owner(plain_id(value), separator, at)


def _refusal(at: str, why: str) -> DataError:
    """What is told about an owner that cannot be read: where, and never who, since it may be anybody's name or text."""
    return DataError(f"{at}: an owner {why}")
