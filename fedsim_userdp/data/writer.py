"""Writing a token store: records stream in in any order and come out grouped by user."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsim_userdp.data.corpus import DataError, DropCounts
from fedsim_userdp.data.layout import (
    INDEX_DTYPES,
    ArraySeal,
    StoreMeta,
    TokenStats,
    array_path,
    seal_array,
    write_array,
    write_meta,
)

GATHER_TOKENS = 1 << 22
ARRIVAL = "arrival"


class StoreWriter:
    """Builds a store in a new folder; memory grows with the number of records, not with their tokens.

    Tokens go to the disk as they come. `finish` leaves out users below `min_words`, groups the records by user
    in order of the users' first appearance and writes `store.json` last, so that a folder without it is no store.

    Args:
        folder: A new or empty folder.
        vocab_size: Tokens are in [0, vocab_size); decides between 16 and 32 bits a token.
        min_words: Users with fewer words than this in total are left out; 0 keeps all.

    Raises:
        ValueError: vocab_size < 1 or min_words < 0.
    """

    def __init__(self, folder: Path, *, vocab_size: int, min_words: int = 0) -> None:
        if vocab_size < 1:
            raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
        if min_words < 0:
            raise ValueError(f"min_words must be at least 0, got {min_words}")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # it holds user ids
        self.folder = folder
        self.vocab_size = vocab_size
        self.min_words = min_words
        self.dropped = DropCounts()
        self._dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<i4")
        self._file = array_path(folder, ARRIVAL).open("wb")
        self._people: dict[str, int] = {}
        self._words = array("q")
        self._is_user = bytearray()
        self._record_users = array("q")
        self._record_lengths = array("q")
        self._owner_counts = array("q")
        self._owners = array("q")

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add_words(self, user_id: str, num_words: int) -> None:
        """Counts `num_words` (>= 0) more words for the user, who need not have a record yet."""
        user = self._person(user_id)
        self._words[user] += num_words
        self._is_user[user] = 1

    def add(self, user_id: str, tokens: ArrayLike, owners: Sequence[str] = ()) -> None:
        """Adds one record.

        Args:
            user_id: The record's user; not empty.
            tokens: Token ids, 1-d, at least one, each in [0, vocab_size).
            owners: Further owners of the record; the user is one whether named or not.

        Raises:
            ValueError: no tokens, or an id outside the range.
        """
        self.add_users([user_id], [1], [np.size(tokens)], tokens)
        if owners:
            self._add_owners(user_id, owners)

    def add_users(
        self, user_ids: Sequence[str], num_records: ArrayLike, record_lengths: ArrayLike, tokens: ArrayLike
    ) -> None:
        """Adds many users' records at once.

        Args:
            user_ids: [n] ids, not empty.
            num_records: [n] records of each user, >= 1.
            record_lengths: [sum(num_records)] tokens of each record, >= 1, user after user.
            tokens: [sum(record_lengths)] token ids, each in [0, vocab_size).

        Raises:
            ValueError: lengths that do not add up, an empty record, or an id outside the range.
        """
        users = np.fromiter((self._person(user_id) for user_id in user_ids), np.int64, len(user_ids))
        counts = np.asarray(num_records, np.int64)
        lengths = np.asarray(record_lengths, np.int64)
        values = np.asarray(tokens)
        _check_block(counts, lengths, values, self.vocab_size)
        values.astype(self._dtype).tofile(self._file)
        self._record_users.frombytes(np.repeat(users, counts).tobytes())
        self._record_lengths.frombytes(lengths.tobytes())

    def finish(self, *, fingerprint: str, dropped: DropCounts | None = None) -> Path:
        """Writes the store and returns its folder.

        Args:
            fingerprint: Digest of everything that decided the content.
            dropped: What was left out before the records came here.

        Raises:
            DataError: no user is left.
        """
        self._file.close()
        users = np.frombuffer(self._record_users, np.int64)
        kept = self._kept_people(users)
        self.dropped.merge(dropped or DropCounts())
        if not len(kept):
            raise DataError(f"no user is left: {self._why_none()}")
        order = self._order(users, kept)
        lengths = np.frombuffer(self._record_lengths, np.int64)[order]
        arrays = {"tokens": self._write_tokens(order, lengths)}
        num_records = np.bincount(users, minlength=len(self._people))[kept]
        index = {"record_offsets": _offsets(lengths), "user_offsets": _offsets(num_records), **self._ids(kept)}
        num_owners = len(kept)
        if self._owners:
            owned = self._owned(order, kept)
            num_owners = int(max(num_owners, owned["owners"].max() + 1))
            index |= owned
        arrays |= {name: write_array(self.folder, name, values) for name, values in index.items()}
        stats = self._stats(kept, lengths, num_owners)
        write_meta(self.folder, StoreMeta(fingerprint, stats, arrays))
        return self.folder

    def _person(self, user_id: str) -> int:
        """Index of a user or owner, by first appearance."""
        index = self._people.setdefault(user_id, len(self._words))
        if index == len(self._words):
            self._words.append(0)
            self._is_user.append(0)
        return index

    def _add_owners(self, user_id: str, owners: Sequence[str]) -> None:
        """Notes who owns the latest record."""
        self._owner_counts.extend([0] * (len(self._record_users) - len(self._owner_counts)))
        people = dict.fromkeys(self._person(owner) for owner in (user_id, *owners))
        self._owner_counts[-1] = len(people)
        self._owners.extend(people)

    def _kept_people(self, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """People who stay as users, in order of appearance; counts those who do not."""
        has_record = np.bincount(users, minlength=len(self._people)) > 0
        is_user = np.frombuffer(self._is_user, np.uint8).astype(bool)
        self.dropped.add("user without a usable record", num=int((is_user & ~has_record).sum()))
        enough = np.frombuffer(self._words, np.int64) >= self.min_words
        few = has_record & ~enough
        self.dropped.add(f"user with fewer than {self.min_words} words", num=int(few.sum()))
        self.dropped.add(f"record of a user with fewer than {self.min_words} words", num=int(few[users].sum()))
        return np.flatnonzero(has_record & enough)

    def _why_none(self) -> str:
        """The counts of what was left out, in words."""
        first_at = self.dropped.first_at
        counts = [
            f"{reason}: {num}" + (f" (first at {first_at[reason]})" if reason in first_at else "")
            for reason, num in self.dropped.counts.items()
        ]
        return "; ".join(counts) or "the corpus has no records"

    def _order(self, users: NDArray[np.int64], kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Records in the order of the store: grouped by kept user, within a user as they came."""
        is_kept = np.zeros(len(self._people), bool)
        is_kept[kept] = True
        records = np.flatnonzero(is_kept[users])
        return records[np.argsort(users[records], kind="stable")]

    def _write_tokens(self, order: NDArray[np.int64], lengths: NDArray[np.int64]) -> ArraySeal:
        """Copies the tokens from arrival order into the store's order, a few MiB at a time."""
        arrived = np.memmap(array_path(self.folder, ARRIVAL), self._dtype, "r")
        starts = _offsets(np.frombuffer(self._record_lengths, np.int64))[order]
        ends = np.cumsum(lengths)
        with array_path(self.folder, "tokens").open("wb") as file:
            first = 0
            while first < len(order):
                done = ends[first] - lengths[first]
                last = max(first + 1, int(np.searchsorted(ends, done + GATHER_TOKENS, "right")))
                arrived[_ranges(starts[first:last], lengths[first:last])].tofile(file)
                first = last
        del arrived
        array_path(self.folder, ARRIVAL).unlink()
        return seal_array(self.folder, "tokens", self._dtype.str, int(ends[-1]))

    def _ids(self, kept: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """User ids as bytes, their positions, and their hashes."""
        people = list(self._people)
        ids = [people[index].encode("utf-8", "backslashreplace") for index in kept]
        return {
            "id_bytes": np.frombuffer(b"".join(ids), INDEX_DTYPES["id_bytes"]),
            "id_offsets": _offsets(np.fromiter(map(len, ids), np.int64, len(ids))),
            "id_hashes": np.frombuffer(b"".join(map(hash_id, ids)), INDEX_DTYPES["id_hashes"]),
        }

    def _owned(self, order: NDArray[np.int64], kept: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Owners of each record in the store's order, kept users first in the numbering."""
        counts = np.zeros(len(self._record_users), np.int64)
        counts[: len(self._owner_counts)] = np.frombuffer(self._owner_counts, np.int64)
        named = np.frombuffer(self._owners, np.int64)
        alone = counts == 0
        people = np.empty(int(counts.sum() + alone.sum()), np.int64)
        starts = _offsets(counts + alone)[:-1]
        people[starts[alone]] = np.frombuffer(self._record_users, np.int64)[alone]
        people[_ranges(starts[~alone], counts[~alone])] = named
        lengths = (counts + alone)[order]
        owners = people[_ranges(starts[order], lengths)]
        return {"owner_offsets": _offsets(lengths), "owners": _renumbered(owners, kept, len(self._people))}

    def _stats(self, kept: NDArray[np.int64], lengths: NDArray[np.int64], num_owners: int) -> TokenStats:
        """Counts of what the store holds and of what was left out."""
        words = int(np.frombuffer(self._words, np.int64)[kept].sum())
        counts, first_at = self.dropped.counts, self.dropped.first_at
        return TokenStats(len(kept), len(lengths), int(lengths.sum()), words, num_owners, counts, first_at)


def hash_id(user_id: bytes) -> bytes:
    """Returns the 8-byte hash of a user id on which splits are based."""
    return hashlib.blake2b(user_id, digest_size=8, person=b"fedsim user").digest()


def _check_block(
    num_records: NDArray[np.int64], lengths: NDArray[np.int64], tokens: NDArray[np.int64], vocab_size: int
) -> None:
    """Raises ValueError unless a block of users, records and tokens fits together."""
    if len(lengths) != num_records.sum() or tokens.ndim != 1 or len(tokens) != lengths.sum():
        raise ValueError(
            f"num_records add up to {num_records.sum()} for {len(lengths)} record_lengths, which add up to "
            f"{lengths.sum()} for tokens of shape {tokens.shape}"
        )
    if len(lengths) and lengths.min() < 1:
        raise ValueError("record_lengths must be at least 1, got an empty record")
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise ValueError(f"token ids must be in [0, {vocab_size}), got {tokens.min()} to {tokens.max()}")


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n + 1] start positions of pieces of the given lengths."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions start, start + 1, ... start + length - 1 of each piece, one after the other."""
    ends = np.cumsum(lengths)
    positions: NDArray[np.int64] = np.repeat(starts - (ends - lengths), lengths)
    positions += np.arange(len(positions))
    return positions


def _renumbered(people: NDArray[np.int64], kept: NDArray[np.int64], num_people: int) -> NDArray[np.int64]:
    """Numbers the kept users 0 to n - 1 and all others after them, in order of appearance."""
    number = np.full(num_people, -1, np.int64)
    number[kept] = np.arange(len(kept))
    others = np.setdiff1d(people, kept)
    number[others] = len(kept) + np.arange(len(others))
    return number[people]
