"""Writing a token store: records stream in in any order and come out grouped by user."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import KeysView, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsim_userdp.data.corpus import DropCounts
from fedsim_userdp.data.layout import (
    INDEX_DTYPES,
    META,
    ArraySeal,
    StoreMeta,
    TokenStats,
    append_values,
    array_path,
    seal_array,
    write_array,
    write_meta,
)
from fedsim_userdp.errors import DataError
from fedsim_userdp.naming import naming

GATHER_TOKENS = 1 << 22
ARRIVAL = "arrival"


class StoreWriter:
    """Builds a store in a new folder; memory grows with the number of records, not with their tokens.

    Tokens go to the disk as they come. `finish` leaves out the records of users below `min_words`, groups the others
    by user in order of the users' first appearance and writes `store.json` last, so that a folder without it is no
    store. Every user keeps a place, with or without records.

    Where some record names further owners, nothing is left out for a user's number of words, and each source record
    is kept with its owners, blank or not.

    Args:
        folder: A new or empty folder.
        vocab_size: Tokens are in [0, vocab_size); decides between 16 and 32 bits a token.
        min_words: The records of users with fewer words than this in total are left out; 0 keeps all.

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
        self._file = array_path(folder, ARRIVAL).open("wb", buffering=0)
        self._people: dict[str, int] = {}
        self._words = array("q")
        self._is_user = bytearray()
        self._source_users = array("q")
        self._source_windows = array("q")
        self._record_lengths = array("q")
        self._owner_counts = array("q")
        self._owners = array("q")

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def people(self) -> KeysView[str]:
        """Ids of all users and owners so far, in order of appearance."""
        return self._people.keys()

    def add_words(self, user_id: str, num_words: int) -> None:
        """Counts `num_words` (>= 0) more words for the user, who need not have a record yet."""
        self._words[self._user(user_id)] += num_words

    def add(self, user_id: str, tokens: ArrayLike, owners: Sequence[str] = ()) -> None:
        """Adds one source record that is one record; see `add_source`."""
        self.add_source(user_id, [tokens], owners)

    def add_source(self, user_id: str, windows: Sequence[ArrayLike], owners: Sequence[str] = ()) -> None:
        """Adds one source record, in pieces that are records of their own.

        Args:
            user_id: The user it is filed under; not empty.
            windows: Token ids of each piece, 1-d, at least one, each in [0, vocab_size); none for a blank record.
            owners: Further owners; the user is one whether named or not.

        Raises:
            ValueError: a piece without tokens, or an id outside the range.
        """
        lengths = np.fromiter(map(np.size, windows), np.int64, len(windows))
        tokens = np.concatenate([np.asarray(window) for window in windows]) if len(windows) else np.empty(0, np.int64)
        self._add_tokens(lengths, tokens)
        self._source_users.append(self._user(user_id))
        self._source_windows.append(len(windows))
        if owners:
            self._add_owners(user_id, owners)

    def add_users(
        self, user_ids: Sequence[str], num_records: ArrayLike, record_lengths: ArrayLike, tokens: ArrayLike
    ) -> None:
        """Adds many users' records at once, each a source record of its own.

        Args:
            user_ids: [n] ids, not empty.
            num_records: [n] records of each user, >= 0.
            record_lengths: [sum(num_records)] tokens of each record, >= 1, user after user.
            tokens: [sum(record_lengths)] token ids, each in [0, vocab_size).

        Raises:
            ValueError: lengths that do not add up, an empty record, or an id outside the range.
        """
        counts, lengths = np.asarray(num_records, np.int64), np.asarray(record_lengths, np.int64)
        if len(user_ids) != len(counts) or len(lengths) != counts.sum():
            raise ValueError(
                f"num_records add up to {counts.sum()} for {len(user_ids)} user_ids and {len(lengths)} record_lengths"
            )
        self._add_tokens(lengths, np.asarray(tokens))
        users = np.fromiter(map(self._user, user_ids), np.int64, len(user_ids))
        self._source_users.frombytes(np.repeat(users, counts).tobytes())
        self._source_windows.frombytes(np.ones(len(lengths), np.int64).tobytes())

    def finish(self, *, fingerprint: str, dropped: DropCounts | None = None) -> Path:
        """Writes the store and returns its folder.

        Args:
            fingerprint: Digest of everything that decided the content.
            dropped: What was left out before the records came here.

        Raises:
            DataError: no user is left with a record, or two ids that UTF-8 cannot hold read the same.
        """
        self._file.close()
        sources, windows = np.frombuffer(self._source_users, np.int64), np.frombuffer(self._source_windows, np.int64)
        users = np.repeat(sources, windows)
        places = np.flatnonzero(np.frombuffer(self._is_user, np.uint8))
        order = self._order(users)
        self.dropped.merge(dropped or DropCounts())
        if not len(order):
            raise DataError(f"no user is left: {self._why_none()}")
        lengths = np.frombuffer(self._record_lengths, np.int64)[order]
        num_records = np.bincount(users[order], minlength=len(self._people))[places]
        arrays = {"tokens": self._write_tokens(order, lengths)}
        index = {"record_offsets": _offsets(lengths), "user_offsets": _offsets(num_records), **self._ids(places)}
        if self._owners:
            index |= self._owned(sources, places) | self._located(windows, order)
        arrays |= {name: write_array(self.folder, name, values) for name, values in index.items()}
        with naming(self.folder / META):
            write_meta(self.folder, StoreMeta(fingerprint, self._stats(places, num_records, index), arrays))
        return self.folder

    def _add_tokens(self, lengths: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """Writes records' tokens to the disk and notes their lengths."""
        _check_block(lengths, tokens, self.vocab_size)
        append_values(self._file, tokens.astype(self._dtype))
        self._record_lengths.frombytes(lengths.tobytes())

    def _user(self, user_id: str) -> int:
        """Index of a user, who gets a place."""
        index = self._person(user_id)
        self._is_user[index] = 1
        return index

    def _person(self, user_id: str) -> int:
        """Index of a user or owner, by first appearance."""
        index = self._people.setdefault(user_id, len(self._words))
        if index == len(self._words):
            self._words.append(0)
            self._is_user.append(0)
        return index

    def _add_owners(self, user_id: str, owners: Sequence[str]) -> None:
        """Notes who owns the latest source record."""
        self._owner_counts.extend([0] * (len(self._source_users) - len(self._owner_counts)))
        people = dict.fromkeys(self._person(owner) for owner in (user_id, *owners))
        self._owner_counts[-1] = len(people)
        self._owners.extend(people)

    def _order(self, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """Records in the order of the store: grouped by user, within a user as they came; counts those left out."""
        is_few = self._with_few_words(users)
        records = np.arange(len(users)) if self._owners else np.flatnonzero(~is_few[users])
        return records[np.argsort(users[records], kind="stable")]

    def _with_few_words(self, users: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which people have records and too few words; counts them and those without a record."""
        has_record = np.bincount(users, minlength=len(self._people)) > 0
        is_user = np.frombuffer(self._is_user, np.uint8).astype(bool)
        self.dropped.add("user without a usable record", num=int((is_user & ~has_record).sum()))
        few: NDArray[np.bool_] = has_record & (np.frombuffer(self._words, np.int64) < self.min_words)
        reason = f"user with fewer than {self.min_words} words"
        if self._owners:
            self.dropped.add(f"{reason}, used all the same as others own these records too", num=int(few.sum()))
        else:
            self.dropped.add(reason, num=int(few.sum()))
            self.dropped.add(f"record of a {reason}", num=int(few[users].sum()))
        return few

    def _why_none(self) -> str:
        """The counts of what was left out, in words."""
        first_at = self.dropped.first_at
        counts = [
            f"{reason}: {num}" + (f" (first at {first_at[reason]})" if reason in first_at else "")
            for reason, num in self.dropped.counts.items()
        ]
        return "; ".join(counts) or "the corpus has no records"

    def _write_tokens(self, order: NDArray[np.int64], lengths: NDArray[np.int64]) -> ArraySeal:
        """Copies the tokens from arrival order into the store's order, a few MiB at a time."""
        arrived = np.memmap(array_path(self.folder, ARRIVAL), self._dtype, "r")
        starts = _offsets(np.frombuffer(self._record_lengths, np.int64))[order]
        ends = np.cumsum(lengths)
        with array_path(self.folder, "tokens").open("wb", buffering=0) as file:
            first = 0
            while first < len(order):
                done = ends[first] - lengths[first]
                last = max(first + 1, int(np.searchsorted(ends, done + GATHER_TOKENS, "right")))
                append_values(file, arrived[_ranges(starts[first:last], lengths[first:last])])
                first = last
        del arrived
        array_path(self.folder, ARRIVAL).unlink()
        return seal_array(self.folder, "tokens", self._dtype.str, int(ends[-1]))

    def _ids(self, places: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """User ids as bytes, their positions, and their hashes."""
        people = list(self._people)
        ids = [people[index].encode("utf-8", "backslashreplace") for index in places]
        if len(set(ids)) < len(ids):
            raise DataError(
                "two user ids read the same once what UTF-8 cannot hold is written as \\udc80 and the like: rename one"
            )
        return {
            "id_bytes": np.frombuffer(b"".join(ids), INDEX_DTYPES["id_bytes"]),
            "id_offsets": _offsets(np.fromiter(map(len, ids), np.int64, len(ids))),
            "id_hashes": np.frombuffer(b"".join(map(hash_id, ids)), INDEX_DTYPES["id_hashes"]),
        }

    def _owned(self, sources: NDArray[np.int64], places: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """User and owners of each source record, in the order in which they came."""
        counts = np.zeros(len(sources), np.int64)
        counts[: len(self._owner_counts)] = np.frombuffer(self._owner_counts, np.int64)
        alone = counts == 0
        offsets = _offsets(counts + alone)
        owners = np.empty(offsets[-1], np.int64)
        owners[offsets[:-1][alone]] = sources[alone]
        owners[_ranges(offsets[:-1][~alone], counts[~alone])] = np.frombuffer(self._owners, np.int64)
        number = _numbers(owners, places, len(self._people))
        return {"owner_offsets": offsets, "owners": number[owners], "source_users": number[sources]}

    def _located(self, windows: NDArray[np.int64], order: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Where the records of each source record are in the store's order; they stand side by side there."""
        position = np.empty(len(order), np.int64)
        position[order] = np.arange(len(order))
        records = np.zeros(len(windows), np.int64)
        records[windows > 0] = position[_offsets(windows)[:-1][windows > 0]]
        return {"source_records": records, "source_windows": windows}

    def _stats(
        self, places: NDArray[np.int64], num_records: NDArray[np.int64], index: dict[str, NDArray[Any]]
    ) -> TokenStats:
        """Counts of what the store holds and of what was left out."""
        num_users = int((num_records > 0).sum())
        return TokenStats(
            num_users=num_users,
            num_records=int(num_records.sum()),
            num_tokens=int(index["record_offsets"][-1]),
            num_words=int(np.frombuffer(self._words, np.int64)[places[num_records > 0]].sum()),
            num_owners=int(max(len(places), index["owners"].max() + 1)) if self._owners else num_users,
            num_places=len(places),
            num_sources=len(self._source_users),
            dropped=self.dropped.counts,
            first_at=self.dropped.first_at,
        )


def hash_id(user_id: bytes) -> bytes:
    """Returns the 8-byte hash of a user id on which splits are based."""
    return hashlib.blake2b(user_id, digest_size=8, person=b"fedsim user").digest()


def _check_block(lengths: NDArray[np.int64], tokens: NDArray[np.int64], vocab_size: int) -> None:
    """Raises ValueError unless records and tokens fit together."""
    if tokens.ndim != 1 or len(tokens) != lengths.sum():
        raise ValueError(f"record_lengths add up to {lengths.sum()} for tokens of shape {tokens.shape}")
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


def _numbers(owners: NDArray[np.int64], places: NDArray[np.int64], num_people: int) -> NDArray[np.int64]:
    """[num_people] number of each person: users 0 to n - 1 and other owners after them, in order of appearance."""
    number = np.full(num_people, -1, np.int64)
    number[places] = np.arange(len(places))
    others = np.setdiff1d(owners, places)
    number[others] = len(places) + np.arange(len(others))
    return number
