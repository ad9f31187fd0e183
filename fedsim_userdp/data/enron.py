"""Enron e-mail: what each mailbox owner sent."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

from fedsim_userdp.data.addresses import Addresses, addresses_of, people_of
from fedsim_userdp.data.corpus import DropCounts, Record
from fedsim_userdp.data.csv_rows import read_csv
from fedsim_userdp.data.email_text import body_of, parse_head
from fedsim_userdp.data.quotes import own_text
from fedsim_userdp.data.source import fingerprint_files, require_path
from fedsim_userdp.data.table import column
from fedsim_userdp.errors import DataError

GET_IT = (
    "download enron_mail_20150507.tar.gz from www.cs.cmu.edu/~enron and unpack it (its maildir folder), or take "
    "emails.csv from kaggle.com/datasets/wcukierski/enron-email-dataset"
)
SENT_FOLDERS = ("_sent", "_sent_mail", "sent", "sent_items", "sent_mail")
OTHER_FOLDER = "message in another folder than sent mail"
UNTOLD = "message whose sender and recipients cannot all be told from its headers, counted as blank"


class EnronCorpus:
    """Enron users: a user is a mailbox, a record is the text of one message that its owner sent.

    Only folders of sent mail are read, so that the mailbox is the author. Quoted and forwarded text is cut, by a
    heuristic that looks at that message alone; attachments are not read. With
    `owners="sender"` a text that stands in the same mailbox before, white space aside, is dropped: sent mail is filed
    several times. With `owners="all"` every message is given, since one message's text must not decide whether another
    one, which others own too, is used; and one whose people cannot all be told from its headers is blank.

    Args:
        path: The unpacked `maildir` (or the folder that holds it), or `emails.csv`.
        sent_folders: Names of folders of sent mail, directly in the mailbox; case, spaces and hyphens do not matter.
        owners: "sender" when the mailbox is the only owner of a message; "all" when those own it as well whom its
            headers name as sender or recipient. People with a mailbox of their own are known by it (the one from
            which their address sent most), others by their address.

    Attributes:
        dropped: What the last pass left out: other folders, repeated texts, links, attachments; how many messages were
            cut, and how many are blank as their people or text could not be told.

    Raises:
        DataError: an unknown value of `owners`.
    """

    name = "enron"
    license = "public record (FERC); research use"
    source = "www.cs.cmu.edu/~enron"

    def __init__(
        self,
        path: str | Path | None,
        sent_folders: Sequence[str] = SENT_FOLDERS,
        owners: Literal["sender", "all"] = "sender",
    ) -> None:
        if owners not in ("sender", "all"):
            raise DataError(f"owners must be 'sender' or 'all', got {owners!r}")
        self.path = path
        self.sent_folders = {_plain(folder) for folder in sent_folders}
        self.owners = owners
        self.dropped = DropCounts()

    def records(self) -> Iterator[Record]:
        """Yields the sent messages, in the order of the CSV file or mailbox by mailbox."""
        mailboxes = self._mailboxes() if self.owners == "all" else {}
        self.dropped.clear()
        seen: set[bytes] = set()
        for at, mailbox, raw in self._sent():
            body = body_of(raw, self.dropped, at)
            text = own_text(body or "")
            if body is not None and len(text.split()) < len(body.split()):
                self.dropped.add("message from which quoted or forwarded text was cut", at=at)
            record = Record(mailbox, text, at=at, is_missing=body is None)
            if self.owners == "all":
                yield self._owned(record, people_of(parse_head(raw)), mailboxes)
                continue
            key = hashlib.blake2b(repr((mailbox, text.split())).encode("utf-8", "replace"), digest_size=16).digest()
            if text and key in seen:
                self.dropped.add("repeated message of a mailbox", at=at)
                continue
            seen.add(key)
            yield record

    def fingerprint(self) -> str:
        """Returns a digest of the CSV file, or of the names, sizes and times of the sent messages."""
        root = self._root()
        settings: dict[str, object] = {"sent_folders": sorted(self.sent_folders), "owners": self.owners, "form": 4}
        if root.is_file():
            return fingerprint_files([root], settings)
        messages = (file for _, file in self._sent_files(root) if not file.is_symlink())
        return fingerprint_files(messages, settings, root=root)

    def _root(self) -> Path:
        """The CSV file, or the folder of mailboxes."""
        path = require_path(self.path, corpus=self.name, get_it=GET_IT)
        if path.is_file() and path.suffix.lower() != ".csv":
            raise DataError(f"{path}: expected the unpacked maildir folder or emails.csv; {GET_IT}")
        return path / "maildir" if (path / "maildir").is_dir() else path

    def _sent(self) -> Iterator[tuple[str, str, bytes]]:
        """Place, mailbox and raw message of everything in a folder of sent mail."""
        root = self._root()
        if root.is_file():
            yield from self._sent_rows(root)
            return
        for mailbox, file in self._sent_files(root):
            if file.is_symlink():
                self.dropped.add("link instead of a file", at=str(file))
            elif not file.is_file():
                self.dropped.add("pipe or device instead of a file", at=str(file))
            else:
                yield str(file), mailbox, file.read_bytes()
        self._count_others(root)

    def _sent_rows(self, file: Path) -> Iterator[tuple[str, str, bytes]]:
        """Sent messages of `emails.csv`, whose column `file` reads mailbox/folder/number."""
        for at, row in read_csv(file, self.dropped):
            place = PurePosixPath(str(column(row, "file", "data.path", at))).parts
            message = str(column(row, "message", "data.path", at))
            if len(place) < 3:
                raise DataError(f"{at}: column 'file' must read mailbox/folder/number, got {'/'.join(place)!r}")
            if _plain(place[1]) in self.sent_folders:
                yield at, place[0], message.encode("utf-8", "surrogateescape")
            else:
                self.dropped.add(OTHER_FOLDER)

    def _sent_files(self, root: Path) -> Iterator[tuple[str, Path]]:
        """Mailbox and file of every sent message below a maildir, sorted; links are not followed."""
        mailboxes = _folders(root)
        sent = [(box, box / name) for box in mailboxes for name in _names(box) if _plain(name) in self.sent_folders]
        if not sent:
            raise DataError(f"{root}: no mailbox with a folder of sent mail in it; {GET_IT}, then set data.path=PATH")
        for box, folder in sent:
            for parent, folders, files in os.walk(folder, onerror=_refuse):
                folders.sort()
                for name in sorted(files):
                    yield box.name, Path(parent, name)

    def _count_others(self, root: Path) -> None:
        """Counts what a maildir holds besides sent mail, without reading it."""
        for place in (root, *_folders(root)):
            for child in place.iterdir():
                if child.is_symlink():
                    self.dropped.add("link instead of a folder", at=str(child))
                elif not child.is_dir():
                    self.dropped.add("file that lies in no folder of a mailbox", at=str(child))
                elif place != root:
                    self._count_below(child, is_sent=_plain(child.name) in self.sent_folders)

    def _count_below(self, folder: Path, *, is_sent: bool) -> None:
        """Counts the messages of a folder that is not one of sent mail, and the links in one that is."""
        for parent, folders, files in os.walk(folder, onerror=_refuse):
            if not is_sent:
                self.dropped.add(OTHER_FOLDER, num=len(files))
                continue
            for link in (Path(parent, name) for name in folders if Path(parent, name).is_symlink()):
                self.dropped.add("link instead of a folder", at=str(link))

    def _mailboxes(self) -> dict[str, str]:
        """The mailbox of each address: the one from which it sent most."""
        sent: dict[str, Counter[str]] = {}
        for _, mailbox, raw in self._sent():
            for address in addresses_of(parse_head(raw), "From"):
                sent.setdefault(address, Counter())[mailbox] += 1
        return {address: max(sorted(boxes), key=boxes.__getitem__) for address, boxes in sent.items()}

    def _owned(self, record: Record, people: Addresses, mailboxes: dict[str, str]) -> Record:
        """A message with everybody whom its headers name; blank if there may be others, which is counted."""
        owners = dict.fromkeys(mailboxes.get(address, address) for address in people.found)
        owners.pop(record.user_id, None)
        if people.is_complete:
            return replace(record, owners=tuple(owners))
        self.dropped.add(UNTOLD, at=record.at)
        return replace(record, text="", owners=tuple(owners), is_missing=True)


def _refuse(error: OSError) -> None:
    """Raises what walking a folder would pass over in silence."""
    raise error


def _plain(folder: str) -> str:
    """A folder's name with case, spaces and hyphens set aside."""
    return folder.strip().lower().replace(" ", "_").replace("-", "_")


def _folders(root: Path) -> list[Path]:
    """Folders directly in `root`, sorted."""
    return sorted(child for child in root.iterdir() if child.is_dir() and not child.is_symlink())


def _names(root: Path) -> list[str]:
    """Names of the folders directly in `root`, sorted."""
    return [folder.name for folder in _folders(root)]
