"""What a corpus is: text records that belong to users, and an account of what was left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Record:
    """One piece of text.

    Attributes:
        user_id: The user in whose data set the record is trained on; not empty. Ids that differ only in what
            `ids.plain_id` sets aside are one.
        text: The text itself, any length; empty for a row or message that names a user and has no text. Such a
            record is to be given all the same: its user keeps a place, and its owners are owners.
        owners: Everybody whom the record is about, for records with several owners (an e-mail belongs to its
            sender and its recipients). Empty means that `user_id` is the only owner; `user_id` counts as an
            owner whether named here or not.
        at: Where it stands, such as file and line; told when something is wrong with the record.
        is_missing: True where the source has no text at all, which the corpus has counted itself.
    """

    user_id: str
    text: str
    owners: tuple[str, ...] = ()
    at: str = field(default="", compare=False)
    is_missing: bool = field(default=False, compare=False)


@dataclass
class DropCounts:
    """Counts of what was left out or repaired, by reason, with the place where each reason first applied."""

    counts: dict[str, int] = field(default_factory=dict)
    first_at: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, *, at: str = "", num: int = 1) -> None:
        """Counts `num` (>= 0) cases of `reason`; `at` names the file and line, kept for the first case."""
        if num < 1:
            return
        self.counts[reason] = self.counts.get(reason, 0) + num
        if at:
            self.first_at.setdefault(reason, at)

    def merge(self, other: DropCounts) -> None:
        """Adds the counts of `other` to these."""
        for reason, num in other.counts.items():
            self.add(reason, at=other.first_at.get(reason, ""), num=num)

    def clear(self) -> None:
        """Forgets everything counted."""
        self.counts.clear()
        self.first_at.clear()


@runtime_checkable
class Corpus(Protocol):
    """Where users' text comes from. Any class with these members can be named by `_target_` in `conf/data`.

    Attributes:
        name: Short name for tables, file names chosen by the project and messages.
        license: The licence of the text as far as known, or "unknown".
        source: Where the corpus is to be had, in words.
        dropped: What the last complete pass over `records()` left out or repaired, and why.
    """

    name: str
    license: str
    source: str
    dropped: DropCounts

    def records(self) -> Iterator[Record]:
        """Yields every record in an order that depends on the source files and settings only.

        The records of one user may come apart. Each call starts a new pass and resets `dropped`. Whoever is named
        as a user gets at least one record, if only one without text.

        Assumes: one user's records do not depend on another user's.  A corpus that gives each text once, whoever wrote
            it first, drops one of near-duplicates of several users, or scales, sorts or cuts texts by what is in
            others, lets one user change what is used of another, so that no claim for a user holds; nothing can tell
            that from outside.  Repeats within one user's texts may be dropped.

        Assumes: where records have several owners, which records are given, in which order and who owns them does
            not follow from anybody's text, as the privacy claim takes that as public.

        Raises:
            DataError: a file is missing, unreadable or not in the expected form.
        """
        ...

    def fingerprint(self) -> str:
        """Returns a hex digest that changes whenever `records()` could yield something else.

        Raises:
            DataError: the source is missing.
        """
        ...
