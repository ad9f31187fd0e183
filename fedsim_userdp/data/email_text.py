"""The plain text of an e-mail, whatever is wrong with it: parts and charsets decoded, attachments left alone."""

from __future__ import annotations

import codecs
import re
from email import errors, message_from_bytes
from email.message import Message
from email.parser import BytesHeaderParser
from email.policy import Policy, compat32
from functools import partial

from fedsim_userdp.data.corpus import DropCounts
from fedsim_userdp.data.rows import decode_text

ATTACHED = "attached file or message, not read"
FURTHER = "further text part of a message, not read"
HTML_ONLY = "message with text in HTML only, counted as blank"
UNREADABLE = "message that cannot be read, counted as blank"

# What the standard library raises on malformed parameters and on parts nested too deep.
FAULTS = (errors.MessageError, LookupError, ValueError, TypeError, AttributeError, RecursionError)
LONGEST_HEADER = 10_000  # beyond it the standard library takes the square of the length for its parameters
MOST_BOUNDARIES = 64
LONGEST_CHARSET = 40
_BLANK_LINE, _STRAY_RETURN = re.compile(rb"\n\r?\n"), re.compile(rb"\r(?!\n)")
# Codecs of Python's own that are no charset of mail; some take the square of a text's length.
NO_CHARSETS = frozenset({"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape"})


class _Part(Message):
    """A message or part that refuses what the standard library would take too long for.

    Args:
        boundaries: Those that the message has named so far; one list for all its parts.
        policy: How to parse it.
    """

    def __init__(self, boundaries: list[str | None], policy: Policy = compat32) -> None:
        super().__init__(policy)
        self._boundaries = boundaries

    def get_boundary(self, failobj=None):  # type: ignore[no-untyped-def]
        """Returns the boundary of the parts; every line is compared with those of all parts that are open."""
        self._boundaries.append(super().get_boundary(failobj))
        if len(self._boundaries) > MOST_BOUNDARIES:
            raise errors.BoundaryError(f"a message of more than {MOST_BOUNDARIES} multiparts")
        return self._boundaries[-1]

    def get_param(self, param, failobj=None, header="content-type", unquote=True):  # type: ignore[no-untyped-def]
        """Returns a parameter of a header as the standard library does."""
        if len(str(self.get(header, ""))) > LONGEST_HEADER:
            raise errors.HeaderParseError(f"{header} is longer than {LONGEST_HEADER} characters")
        return super().get_param(param, failobj, header, unquote)


def parse_head(raw: bytes) -> Message:
    """Returns the headers of a message; its text is not looked at, and cannot change how they are read.

    A carriage return that ends no line would end the head early for the standard library, and hide who is named below:
    such a head has a defect.
    """
    message = BytesHeaderParser().parsebytes(raw)
    blank = _BLANK_LINE.search(raw)
    if _STRAY_RETURN.search(raw if blank is None else raw[: blank.start() + 1]):
        message.defects.append(errors.MalformedHeaderDefect("a carriage return within the head"))
    return message


def body_of(raw: bytes, dropped: DropCounts, at: str) -> str | None:
    """Returns the plain text that a message's author typed into it or quoted there.

    That is its first part of plain text that is no attachment, in the charset it declares if that fits, else UTF-8,
    else latin-1. Attached messages and files, HTML and further parts are not read.

    Args:
        raw: The whole message.
        dropped: Where to count what is not read.
        at: Where the message stands.

    Returns:
        The text, empty where the message has none; None where it has one that is not read, since it is in HTML only or
        in parts that cannot be told apart or decoded. These are counted by their reasons.
    """
    try:
        return _body(message_from_bytes(raw, _class=partial(_Part, [])), dropped, at)
    except FAULTS:
        dropped.add(UNREADABLE, at=at)
        return None


def _body(message: Message, dropped: DropCounts, at: str) -> str | None:
    """The text of a message that can be parsed."""
    parts = _parts(message)
    num_attached = sum(kind == "attached" for kind, _ in parts)
    plain = [part for kind, part in parts if kind == "text/plain"]
    text = _decoded(plain[0], dropped, at) if plain else ""
    kinds = {kind for kind, _ in parts}
    dropped.add(ATTACHED, at=at, num=num_attached)
    dropped.add(FURTHER, at=at, num=len(plain) - 1)
    if text.strip():
        return text
    if kinds & {"text/html", "broken"}:
        dropped.add(HTML_ONLY if "text/html" in kinds else UNREADABLE, at=at)
        return None
    return text


def _parts(message: Message) -> list[tuple[str, Message]]:
    """Kind and part of all that a message is made of: text/plain, text/html, attached, or broken."""
    found: list[tuple[str, Message]] = []
    pending = [message]
    while pending:
        part = pending.pop()
        payload = part.get_payload()
        if _is_attached(part):
            found.append(("attached", part))
        elif part.get_content_maintype() != "multipart":
            found.append((part.get_content_type(), part))
        elif isinstance(payload, list):
            pending.extend(each for each in reversed(payload) if isinstance(each, Message))
        else:
            found.append(("broken", part))
    return found


def _is_attached(part: Message) -> bool:
    """Whether a part is a file or message of its own, not text that was typed into the message."""
    if part.get_content_maintype() == "multipart":
        return False
    is_text = part.get_content_type() in ("text/plain", "text/html")
    return not is_text or part.get_content_disposition() == "attachment" or part.get_filename() is not None


def _decoded(part: Message, dropped: DropCounts, at: str) -> str:
    """The text of a part."""
    payload = part.get_payload(decode=True)
    raw = payload if isinstance(payload, bytes) else b""
    if any(isinstance(defect, errors.InvalidBase64LengthDefect) for defect in part.defects):
        raise ValueError("base64 of a wrong length")
    try:
        return raw.decode(_charset(part))
    except (LookupError, ValueError):
        return decode_text(raw, dropped, at)


def _charset(part: Message) -> str:
    """The charset that a part declares, UTF-8 where that is none of mail's.

    Raises:
        LookupError: there is no such charset.
        ValueError: its name has characters that no name has.
    """
    name = part.get_content_charset() or "utf-8"
    if len(name) > LONGEST_CHARSET or codecs.lookup(name).name.replace("-", "_") in NO_CHARSETS:
        return "utf-8"
    return name
