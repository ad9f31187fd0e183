"""A corpus of one's own: a folder with one text file for each user, one record a line.

Beside this file:

    fedsim run data._target_=corpus.FolderOfUsers data.path=FOLDER

In Python: `Study.of(FolderOfUsers("FOLDER"))`.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from fedsim_userdp.data.corpus import DropCounts, Record
from fedsim_userdp.errors import DataError


class FolderOfUsers:
    """The text files of a folder; a file's name is its user's id."""

    name, license, source = "folder_of_users", "unknown", "text files of one's own"

    def __init__(self, path: str) -> None:
        self.path, self.dropped = path, DropCounts()

    def records(self) -> Iterator[Record]:
        """Yields every line; an empty file gives a record without text, so that its user is known of."""
        self.dropped.clear()
        if not (files := sorted(Path(self.path).glob("*.txt"))):
            raise DataError(f"data.path={self.path} has no .txt files")
        for file in files:
            for line in file.read_text(encoding="utf-8").splitlines() or [""]:
                yield Record(file.stem, line, at=file.name)

    def fingerprint(self) -> str:
        """Returns a digest of names and contents: it changes whenever the records could."""
        pairs = [(file.name, file.read_bytes()) for file in sorted(Path(self.path).glob("*.txt"))]
        return hashlib.sha256(repr(pairs).encode()).hexdigest()
