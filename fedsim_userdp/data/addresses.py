"""Who an e-mail is from and to: every address of its headers, and whether they name anybody without one.

The standard library's `getaddresses` gives nothing at all for a header with one malformed address, or reads what it can
and drops the rest, depending on the Python version. Here nothing that looks like an address is lost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email import errors
from email.header import decode_header, make_header
from email.message import Message

from fedsim_userdp.data.ids import as_seen, plain_id

SENDERS = ("From", "Sender")
RECIPIENTS = ("To", "Cc", "Bcc", "Resent-To", "Resent-Cc", "Resent-Bcc", "Apparently-To")
# Exchange's own lists, by display name: what To, Cc and Bcc of the corpus were made of.
NAMED_RECIPIENTS = {"X-To": "To", "X-cc": "Cc", "X-bcc": "Bcc"}
# Faults of the head of a message only: those of its parts follow from the text.
BROKEN_HEAD = (
    errors.MissingHeaderBodySeparatorDefect,
    errors.FirstHeaderLineIsContinuationDefect,
    errors.MisplacedEnvelopeHeaderDefect,
    errors.MalformedHeaderDefect,
    errors.InvalidHeaderDefect,
)
# A recipient runs to the next comma or semicolon that is in no quotes, brackets or comment.
PART = re.compile(r'(?:"[^"]*"|<[^<>]*>|\([^()]*\)|[^,;])+')
IN_BRACKETS = re.compile(r"<([^<>]*)>")
ASIDE = re.compile(r'"[^"]*"|\([^()]*\)')
GROUP = re.compile(r"^[^:@<>]*:")
QUOTED_LOCAL = re.compile(r'"([^"]+)"@')
# Tried at the start of a word only, else a long word without @ takes the square of its length.
MAIL = re.compile(r"(?<![^\s,;:<>()\"])[^\s,;:<>()\"]*@[^\s,;:<>()\"]*")
PLAIN_MAIL = re.compile(r"[a-z0-9!#$%&'*+/=?^_`{|}~.-]+@[a-z0-9_.-]+")
X500 = re.compile(r"/?\b(?:CN|OU|O|C|DC)=[^/<>,;\"@]*(?:/\w+=[^/<>,;\"@]*)*", re.IGNORECASE)


@dataclass(frozen=True)
class Addresses:
    """What the headers of a message name.

    Attributes:
        found: Addresses in lower case and Unicode's composed form, each once, in order.
        is_complete: Whether every sender and recipient named has an address among them, as far as can be told.
    """

    found: tuple[str, ...]
    is_complete: bool


def people_of(message: Message) -> Addresses:
    """Returns the addresses of sender and recipients of a message.

    It is not complete where the head of the message is broken, where a part of a header has no address that can be
    read, and where the header of display names has somebody (X-To, X-cc, X-bcc) and its counterpart with addresses
    nobody. Depends on the headers only, never on the text.
    """
    headers = [_read(value) for name in (*SENDERS, *RECIPIENTS) for value in _values(message, name)]
    found = dict.fromkeys(address for addresses in headers for address in addresses.found)
    is_complete = all(addresses.is_complete for addresses in headers)
    return Addresses(tuple(found), is_complete and _is_head_whole(message) and not _only_by_name(message))


def addresses_of(message: Message, *headers: str) -> list[str]:
    """Returns whatever looks like an address in the named headers, in lower case, each once."""
    read = [_read(value).found for header in headers for value in _values(message, header)]
    return list(dict.fromkeys(address for found in read for address in found))


def _read(value: str) -> Addresses:
    """The addresses of one header."""
    parts = [part for part in map(str.strip, PART.findall(value)) if part]
    read = [_read_part(part) for part in parts]
    is_complete = all(
        each.is_complete or _is_last_name(part, following)
        for part, each, following in zip(parts, read, [*parts, ""][1:], strict=True)
    )
    return Addresses(tuple(dict.fromkeys(address for each in read for address in each.found)), is_complete)


def _read_part(part: str) -> Addresses:
    """The addresses of one recipient, also those in encoded words (=?utf-8?q?...?=)."""
    decoded = _decoded(part)
    raw, hidden = _find(part), _find(decoded or "")
    found = tuple(dict.fromkeys([*raw.found, *hidden.found]))
    is_complete = raw.is_complete and hidden.is_complete and decoded is not None
    return Addresses(found, is_complete and bool(found) and _names_nobody_else(part))


def _find(text: str) -> Addresses:
    """Whatever looks like an address; and whether each has the form of one."""
    text = re.sub(r"\s*@\s*", "@", QUOTED_LOCAL.sub(lambda quoted: f"{'.'.join(quoted[1].split())}@", text))
    mails = [mail.strip("'`.[]{}").lower() for mail in MAIL.findall(text)]
    names = ["/" + name.strip(" /'").lower() for name in X500.findall(text)]
    found = tuple(plain_id(as_seen(name)) for name in (*mails, *names))
    return Addresses(found, all(PLAIN_MAIL.fullmatch(mail) for mail in mails))


def _names_nobody_else(part: str) -> bool:
    """Whether a recipient is an address alone, or words before an address in angle brackets."""
    inside = IN_BRACKETS.findall(part)
    if not all(MAIL.search(each) or X500.search(each) for each in inside):
        return False
    rest = part.rpartition(">")[2] if inside else GROUP.sub("", part)
    rest = re.sub(r"\s*@\s*", "@", QUOTED_LOCAL.sub("x@", rest))
    return not X500.sub("", MAIL.sub("", ASIDE.sub("", rest))).strip("' ")


def _is_last_name(part: str, following: str) -> bool:
    """Whether a part is the "Smith" of "Smith, John </O=ENRON/...>", as Exchange writes it without quotes."""
    words = part.strip("'\" ")
    return words.replace(" ", "").isalpha() and any(X500.match(each.strip()) for each in IN_BRACKETS.findall(following))


def _decoded(part: str) -> str | None:
    """A part with its encoded words (=?utf-8?q?...?=) decoded, None where they cannot be."""
    if "=?" not in part:
        return part
    try:
        return str(make_header(decode_header(part)))
    except (errors.HeaderParseError, LookupError, ValueError):
        return None


def _only_by_name(message: Message) -> bool:
    """Whether a header of display names has somebody and its counterpart with addresses has nobody."""
    return any(
        any(value.strip() for value in _values(message, named)) and not addresses_of(message, header)
        for named, header in NAMED_RECIPIENTS.items()
    )


def _is_head_whole(message: Message) -> bool:
    """Whether all headers could be told from the text."""
    return not any(isinstance(defect, BROKEN_HEAD) for defect in message.defects)


def _values(message: Message, header: str) -> list[str]:
    """Every value of a header, folded lines joined."""
    return [" ".join(str(value).split()) for value in message.get_all(header, [])]
