"""What the author of a message typed: text that is quoted, answered or forwarded is cut.

A heuristic, and it follows from that one message only. tests/data/mail_forms.yaml holds the forms that it is measured
on; docs/decisions/0013 compares it with libraries.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from fedsim_userdp.data.attributions import LONGEST, announced, is_aol, is_somebodys

ODD_SPACES = dict.fromkeys(map(ord, "\u00a0\u2007\u202f\u2009\t"), " ") | dict.fromkeys(map(ord, "\ufeff\u200b\u200e"))
# What follows one of these lines was written by someone else, or earlier.
CUT_AT = re.compile(
    r"""
      -{2,}\ ?(?:Original\ (?:Message|Appointment)|Original-?Nachricht|Ursprüngliche\ (?:Nachricht|Mail)
                |Message\ (?:d['\u2019]origine|original)|Mensaje\ original|Messaggio\ originale|Mensagem\ original
                |Oorspronkelijk\ bericht|Origineel\ bericht|Ursprungligt\ meddelande|Oprindelig\ meddelelse)\ ?-{2,}
    | -{3,}\ ?(?:Forwarded\ (?:by|message)|Begin\ forwarded\ message|Weitergeleitete\ Nachricht
                |Message\ (?:transféré|transmis|réexpédié)|Mensaje\ reenviado|Messaggio\ inoltrato|Mensagem\ encaminhada
                |Doorgestuurd\ bericht|Vidarebefordrat\ meddelande)\b
    | (?:Begin\ forwarded\ message|Anfang\ der\ weitergeleiteten\ (?:E-?Mail|Nachricht)
        |Début\ du\ message\ (?:réexpédié|transféré)|Inicio\ del\ mensaje\ reenviado|Inizio\ messaggio\ inoltrato
        |Begin\ doorgestuurd\ bericht)\ ?:$
    """,
    re.VERBOSE | re.IGNORECASE,
)
HEADERS = {
    "from": "from von de da van från fra expéditeur remitente mittente afzender",
    "to": "to an à para a aan till til pour destinataire",
    "copy": "cc bcc kopie copie copia",
    "date": "sent date gesendet datum envoyé enviado enviada fecha inviato data verzonden skickat sendt",
    "subject": "subject betreff objet asunto oggetto assunto onderwerp ämne emne",
    "sender": "sent_by",
}
KIND_OF = {word.replace("_", " "): kind for kind, words in HEADERS.items() for word in words.split()}
HEADER = re.compile(rf"[* ]*({'|'.join(sorted(KIND_OF, key=len, reverse=True))})(?: el| em| le)?\*? ?:", re.IGNORECASE)
BLOCK_LINES = 8
DATED = re.compile(r"\d\d?/\d\d?/\d{2,4}\s+\d\d?:\d\d(?::\d\d)?\s*(?:[AP]M)?", re.IGNORECASE)
PREAMBLE_LINES = 4
PREAMBLE_GAP = 2
RULE = re.compile(r"[_-]{5,}")
QUOTED = re.compile(r"[>|]")
INITIALS = re.compile(r"([A-Z][A-Za-z]{1,9})>+(?: |$)")
WRAPPED_AT = 60  # a quoted line as long as this may have lost its end to the line below it


def own_text(body: str) -> str:
    """Returns the lines of a message that its author wrote, without those quoted or forwarded.

    Lines that begin with >, | or initials (JR>) are dropped one by one, so that answers between them stay, and so is
    the line that announces them. Where no such line follows an announcement ("On <date>, <name> wrote:", a line of a
    forwarding program, a block of header lines) everything after it is cut.
    """
    lines = body.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    plain = [" ".join(line[: LONGEST + 1].translate(ODD_SPACES).split()) for line in lines]
    names = Counter(found[1] for line in plain if (found := INITIALS.match(line)))
    is_quoted = [_is_quoted(line, names) for line in plain]
    own = _own_lines(plain, is_quoted)
    return "\n".join(lines[index].rstrip() for index in own).strip()


def _own_lines(plain: Sequence[str], is_quoted: Sequence[bool]) -> list[int]:
    """Numbers of the lines that are the author's."""
    own: list[int] = []
    index = 0
    while index < len(plain):
        if num := announced(plain, index) or bool(CUT_AT.match(plain[index])):
            following = _next_with_text(plain, index + num)
            if is_aol(plain[index]) and following < len(plain) and plain[following].startswith("<<"):
                index = _after_angles(plain, following)
            elif following < len(plain) and is_quoted[following]:
                index += num
            else:
                break
        elif not is_quoted[index] and HEADER.match(plain[index]) and _is_header_block(plain, index):
            start = _preamble_start(plain, index)
            own = [each for each in own if each < start]
            break
        else:
            if not is_quoted[index] and not _goes_with_quote(plain, is_quoted, index):
                own.append(index)
            index += 1
    return own


def _is_quoted(line: str, names: Counter[str]) -> bool:
    """Whether a line is marked as quoted; a first name before > counts where it stands twice."""
    found = INITIALS.match(line)
    is_named = found is not None and (names[found[1]] > 1 or (found[1].isupper() and len(found[1]) <= 3))
    return is_named or QUOTED.match(line) is not None


def _goes_with_quote(plain: Sequence[str], is_quoted: Sequence[bool], index: int) -> bool:
    """Whether a line says who wrote the quoted lines below it, or is the end of the one above it."""
    if is_somebodys(plain[index]):
        following = _next_with_text(plain, index + 1)
        return following < len(plain) and is_quoted[following]
    is_between = 0 < index < len(plain) - 1 and is_quoted[index - 1] and is_quoted[index + 1]
    return bool(plain[index]) and is_between and len(plain[index - 1]) >= WRAPPED_AT


def _next_with_text(plain: Sequence[str], index: int) -> int:
    """Index of the first line from `index` on that is not blank, or the number of lines."""
    while index < len(plain) and not plain[index]:
        index += 1
    return index


def _after_angles(plain: Sequence[str], index: int) -> int:
    """Index after the line that ends AOL's << ... >>, or the number of lines."""
    while index < len(plain) and not plain[index].endswith(">>"):
        index += 1
    return min(index + 1, len(plain))


def _is_header_block(plain: Sequence[str], index: int) -> bool:
    """Whether the lines from `index` on are headers of another message.

    These are three different ones, one of which names people, or two where a name has an address or a date.
    """
    block = plain[index : index + BLOCK_LINES]
    kinds = {KIND_OF[found[1].lower()] for line in block if (found := HEADER.match(line))}
    if not kinds & {"from", "to", "sender"}:
        return False
    heads = [*plain[max(0, index - PREAMBLE_LINES) : index], *(line for line in block if HEADER.match(line))]
    is_addressed = any("@" in line or DATED.search(line) for line in heads)
    return len(kinds) >= 3 or (len(kinds) == 2 and is_addressed)


def _preamble_start(plain: Sequence[str], index: int) -> int:
    """First line of the rule, or the name and date, above a header block; `index` itself when there is none."""
    end = index
    while end > 0 and index - end < PREAMBLE_GAP and not plain[end - 1]:
        end -= 1
    if end > 0 and RULE.fullmatch(plain[end - 1]):
        return end - 1
    start = end
    while start > 0 and end - start < PREAMBLE_LINES and plain[start - 1]:
        start -= 1
    return start if any(DATED.search(line) for line in plain[start:end]) else index
