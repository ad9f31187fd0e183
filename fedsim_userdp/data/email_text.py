"""What the author of an e-mail wrote: headers decoded, quoted and forwarded text cut."""

from __future__ import annotations

import re
from email import message_from_bytes
from email.message import Message

from fedsim_userdp.data.corpus import DropCounts
from fedsim_userdp.data.rows import decode_text

# Everything from the first of these lines on was written by someone else, or earlier.
CUT_AT = re.compile(
    r"""
      [ \t>]*-{2,}[ ]*Original\ Message[ ]*-{2,}           # Outlook
    | [ \t>]*-{4,}[ ]*Forwarded\ (?:by|message)\b            # Lotus Notes, others
    | [ \t>]*-{3,}[ ]*Begin\ forwarded\ message
    | [ \t]*Begin\ forwarded\ message:[ \t]*$
    | [ \t]*On\ [^\n]{6,200}\ wrote:[ \t]*$                  # "On Mon, 1 Jan 2001, Ann wrote:"
    """,
    re.VERBOSE | re.IGNORECASE,
)
DATED = re.compile(r"\d\d?/\d\d?/\d{2,4}\s+\d\d?:\d\d(?::\d\d)?\s*(?:[AP]M)?", re.IGNORECASE)
HEADER = re.compile(r"[ \t]*(from|sent|to|cc|bcc|subject|date|sent by):", re.IGNORECASE)
QUOTED = re.compile(r"[ \t]*[>|]")
ATTRIBUTION = re.compile(r".{1,200}\b(?:wrote|writes):[ \t]*$", re.IGNORECASE)
PREAMBLE_LINES = 4
PREAMBLE_GAP = 2


def parse_email(raw: bytes) -> Message:
    """Returns a message as the standard library reads it; malformed ones are read as far as possible."""
    return message_from_bytes(raw)


def body_of(message: Message, dropped: DropCounts, at: str) -> str:
    """Returns the plain text of a message, in the charset it declares if that fits, else UTF-8, else latin-1."""
    for part in message.walk():
        if part.get_content_type() == "text/plain":
            payload = part.get_payload(decode=True)
            raw = payload if isinstance(payload, bytes) else b""
            try:
                return raw.decode(part.get_content_charset() or "utf-8")
            except (UnicodeDecodeError, LookupError):
                return decode_text(raw, dropped, at)
    return ""


def own_text(body: str) -> str:
    """Returns the lines of a message that its author wrote, without those quoted or forwarded.

    Text after a forwarding or reply mark is cut; so is a block of at least two header lines (From, To, Sent,
    Subject, ...) with what follows, including the name and date that Lotus Notes puts above it; lines that
    begin with > or | are dropped one by one, so that answers between them stay.
    """
    lines = body.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    kept = lines[: _first_foreign(lines)]
    own = [
        line
        for index, line in enumerate(kept)
        if not QUOTED.match(line) and not (ATTRIBUTION.match(line) and _is_quoted_next(kept, index))
    ]
    return "\n".join(line.rstrip() for line in own).strip()


def _first_foreign(lines: list[str]) -> int:
    """Index of the first line of forwarded or quoted text, or the number of lines."""
    for index, line in enumerate(lines):
        if CUT_AT.match(line):
            return index
        if HEADER.match(line) and _is_header_block(lines, index):
            return _preamble_start(lines, index)
    return len(lines)


def _is_header_block(lines: list[str], index: int) -> bool:
    """Whether the lines from `index` on are headers of another message, at least two different ones."""
    names = set()
    for line in lines[index : index + 6]:
        if found := HEADER.match(line):
            names.add(found[1].lower())
    return len(names) >= 2 and bool(names & {"from", "to", "sent by"}) and bool(names & {"subject", "sent", "cc", "to"})


def _preamble_start(lines: list[str], index: int) -> int:
    """First line of the name and date above a header block; `index` itself when there is none."""
    end = index
    while end > 0 and index - end < PREAMBLE_GAP and not lines[end - 1].strip():
        end -= 1
    start = end
    while start > 0 and end - start < PREAMBLE_LINES and lines[start - 1].strip():
        start -= 1
    return start if any(DATED.search(line) for line in lines[start:end]) else index


def _is_quoted_next(lines: list[str], index: int) -> bool:
    """Whether the next line that is not blank is quoted."""
    following = (line for line in lines[index + 1 :] if line.strip())
    return bool(QUOTED.match(next(following, "")))
