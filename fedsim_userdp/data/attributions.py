"""Lines by which mail programs announce somebody else's text: "On <date>, <name> wrote:" in the languages it comes in.

A heuristic: programs word these lines as they like, and people write such sentences themselves. A line is taken for a
program's where it names an address, or a day of a year or a time of day and then a name. A line is read by itself or
with the two that follow, 400 characters at most, so that the time taken grows with the length of a text only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST = 400
MOST_LINES = 3
OPENED = re.compile(
    r"""
      (?:[Oo]n|At)\ .+\b(?:wrote|writes?):
    | Am\ .+\ schrieb\ ?(?P<german>.*):
    | Le\ .+\ a\ écrit\ ?:
    | El\ .+\ escribió\ ?:
    | Il\ .+\ ha\ scritto\ ?:
    | Em\ .+\ escreveu\ ?:
    | Op\ .+\ schreef\ (?P<dutch>.+):
    | Op\ .+\ heeft\ (?P<forum>.+)\ geschreven:
    | Den\ .+\ skrev\ ?(?P<nordic>.*):
    """,
    re.VERBOSE,
)
OPENING = re.compile(r"(?:[Oo]n|At|Am|Le|El|Il|Em|Op|Den) ")
AOL = re.compile(
    r"""
      In\ a\ message\ dated\ .*\d.*\ writes?: | In\ einer\ e-?mail\ vom\ .*\d.*\ schreib(?:t|en).*:
    | Dans\ un\ e-?mail\ daté\ .*\d.*\ écrit\ ?:
    """,
    re.VERBOSE | re.IGNORECASE,
)
AOL_OPENING = re.compile(r"In a message dated |In einer e-?mail vom |Dans un e-?mail daté ", re.IGNORECASE)
VERB = r"(?:wrote|writes|schrieb|a écrit|escribió|ha scritto|escreveu|schreef|skrev)"
# With an address in front of the verb no opening is needed.
BY_ADDRESS = re.compile(
    rf"[^@]+@[^@]+ {VERB} ?:|[^@]+@[^@]+ (?:wrote on|schrieb am) [^@]*\d[^@]*:"
    r"|[^@]+@[^@]+ wrote in message(?: <?news:\S+)?|Quoting [^@]+@[^@]+:"
)
BY_DATE = re.compile(r"\d{4}\D\d\d?\D\d\d?[^@:]* \d\d?:\d\d[^@]*<[^@]+@[^@]+> ?:|.+ schrieb am [^@]*\d\d?:\d\d:")
GROUPWISE = re.compile(r">>> .*\d.*>>>")
SECOND_LINE = re.compile(rf"{VERB}\b|in message\b|news:")
SOMEBODY = re.compile(rf".+\b{VERB}\b.*:")
WHEN = re.compile(r"\d\d?[:h]\d\d|\d\d?[./-]\d\d?[./-]\d\d|\d{4}[./-]\d\d?[./-]\d|\b(?:19|20)\d\d\b")
AFTER_TIME = re.compile(r"[\s,.()]*(?:[AaPp]\.?[Mm]\b\.?|Uhr\b|[A-Z]{3,5}\b(?=\)|,))?[\s,.()]*")
NO_NAME = re.compile(
    r"""
      the|an?|my|our|your|his|her|their|its|this|that|s?he|it|they|i|I|we|one|some|somebody|someone
    | der|die|das|eine?|meine?|unsere?|er|sie|es|ich|wir|man
    | le|la|les|une?|mon|ma|notre|ils?|elles?|on|je|nous|el|l[oa]s|una|mi|nuestr[oa]|yo|nosotros
    | lo|gli|o|os|as|uma?|meu|minha|el[ea]|eu|nós|de|het|een|mijn|hij|zij|ik|wij
    """,
    re.VERBOSE,
)


def announced(lines: Sequence[str], index: int) -> int:
    """Returns how many lines from `index` on announce somebody else's text for certain, 0 for none.

    Args:
        lines: Lines of a message with single plain spaces, none at their ends.
        index: Where to look, in [0, len(lines)).
    """
    first = lines[index]
    if not first:
        return 0
    for num in range(1, MOST_LINES + 1):
        text = _joined(lines, index, num)
        if text is None:
            return 0
        if _is_announcement(text):
            return num
    return 0


def is_somebodys(line: str) -> bool:
    """Returns whether a line says that somebody wrote something, which counts only before quoted lines."""
    return len(line) <= LONGEST and line.endswith(":") and SOMEBODY.fullmatch(line) is not None


def is_aol(line: str) -> bool:
    """Returns whether a line begins as AOL's announcements do, whose quotes stand in << and >>."""
    return AOL_OPENING.match(line) is not None


def _joined(lines: Sequence[str], index: int, num: int) -> str | None:
    """`num` lines as one, None where they can be no announcement: some are blank, or a sentence of their own."""
    part = lines[index : index + num]
    if len(part) < num or not all(part):
        return None
    first, last = part[0], part[-1]
    if num > 1:
        goes_on = AOL_OPENING.match(first) or (OPENING.match(first) and any(map(str.isdigit, first)))
        if not goes_on and not ("@" in first and SECOND_LINE.match(last)):
            return None
        if first.endswith((".", "!", "?", ":")) or OPENING.match(last):
            return None
    text = " ".join(part)
    return text if len(text) <= LONGEST else None


def _is_announcement(text: str) -> bool:
    """Whether a text, its lines joined, is a mail program's."""
    if GROUPWISE.fullmatch(text):
        return True
    if not text.endswith((":", "...", "message")) and "news:" not in text:
        return False
    if AOL.fullmatch(text) or BY_ADDRESS.fullmatch(text) or BY_DATE.fullmatch(text):
        return True
    found = OPENED.fullmatch(text)
    if found is None:
        return False
    return "@" in text or _names_somebody_then(text, next((each for each in found.groups() if each), ""))


def _names_somebody_then(text: str, name: str) -> bool:
    """Whether a text has a day of a year or a time of day, and then a name; "the judge" is none."""
    times = list(WHEN.finditer(text))
    if not times:
        return False
    after = AFTER_TIME.sub("", text[times[-1].end() :].lstrip("0123456789:.+-"), count=1)
    words = (name or after).replace("wrote:", "").split()
    return bool(words) and not NO_NAME.fullmatch(words[0]) and not words[0].startswith(("schrieb", "schreef", "skrev"))
