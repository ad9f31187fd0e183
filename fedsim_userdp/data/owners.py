"""Records with several owners: bounding in how many used records any one person appears."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.data.layout import release_pages
from fedsim_userdp.data.records import check_bound
from fedsim_userdp.data.store import TokenStore

Tokens = NDArray[np.int64]
MOST_KEY_BYTES = 64


@dataclass(frozen=True)
class PoolRecord:
    """One source record of the pool that centralized mechanisms train on.

    Attributes:
        place: Number of the source record in the corpus, from 0; public.
        user: The store's number of the user under whom it is filed.
        tokens: Token ids, 1-d; empty for a blank record, which counts and adds zero.
    """

    place: int
    user: int
    tokens: Tokens


def bound_owners(
    owner_offsets: NDArray[np.int64], owners: NDArray[np.int64], k: int, *, order: Iterable[int] | None = None
) -> NDArray[np.bool_]:
    """Returns which source records to use so that nobody owns more than k of them.

    Greedy: records are gone through in `order`, and one is used if each of its owners has fewer than k used
    records so far. No unused record could be added to the result.

    Guarantee: every owner index is among the owners of at most k used records.
    Assumes: which source records there are and who owns which is public ("fixed graph"). What is used depends on
        ownership alone, never on text, but one person's joining or leaving can change which records of others are
        used; so neighbouring data sets must have the same records and owners, one person's records being blank in
        one of them. Blank records must be among those given, or blanking would change what is used of others.

    Args:
        owner_offsets: [num_sources + 1] position of each source record's first owner in `owners`.
        owners: Owner indices, >= 0, each at most once per record.
        k: Largest number of used records per owner, >= 1.
        order: Numbers of the records to consider, each at most once, in that order; the others are not used. None
            for all in the stored order.

    Returns:
        [num_sources] True for each used record.

    Raises:
        ValueError: k < 1.

    Source: Ganesh et al., "It's My Data Too: Private ML for Datasets with Multi-User Training Examples",
        arXiv 2503.03622, greedy contribution bounding.
    """
    check_bound(k)
    num_records = len(owner_offsets) - 1
    used = np.zeros(num_records, bool)
    if num_records == 0:
        return used
    num_used = np.zeros(int(owners.max(initial=-1)) + 1, np.int64)
    for record in range(num_records) if order is None else order:
        of_record = owners[owner_offsets[record] : owner_offsets[record + 1]]
        if (num_used[of_record] < k).all():
            num_used[of_record] += 1
            used[record] = True
    return used


def count_owners(store: TokenStore, users: NDArray[np.int64]) -> int:
    """Returns how many distinct people own a source record of one of `users` (numbers in the store).

    Blank records count, as who owns what is public. Where no owners are declared, it is the number of `users`.
    """
    if not store.declares_owners:
        return len(users)
    offsets, owners = store.owner_arrays()
    is_theirs = np.repeat(np.isin(store.source_users(), users), np.diff(offsets))
    return len(np.unique(owners[is_theirs]))


class OwnerBoundedStore(TokenStore):
    """A token store of which only source records within the owner bound are used, one window of each.

    Guarantee: whatever the texts, every owner owns at most k records of the pool, and blanking all texts of one owner
        changes only the tokens of these: `used` depends on `key`, k, `users` and who owns what; the window of a record
        on `key`, its place and its own text.
    Assumes: who owns what is public.

    Args:
        path: Folder of the store, whose corpus declared owners.
        k: Largest number of used source records that any person owns, >= 1.
        key: 1 to 64 bytes that decide the order in which records are considered, and the window of a long one.
        users: Users whose records may be used, such as those of the training split; None for all. The records of the
            others do not count towards anybody's k.

    Attributes:
        used: [num_sources] True for each used source record.

    Raises:
        ValueError: the corpus declared no owners, k < 1, or a key of another length.
    """

    def __init__(
        self, path: str | os.PathLike[str], k: int, key: bytes, users: NDArray[np.int64] | None = None
    ) -> None:
        super().__init__(Path(path))
        if not isinstance(key, bytes) or not 1 <= len(key) <= MOST_KEY_BYTES:
            raise ValueError(f"key must be 1 to {MOST_KEY_BYTES} bytes, got {type(key).__name__}")
        self.k, self.key, self.users = k, key, users
        offsets, owners = self.owner_arrays()
        of_users = np.arange(len(offsets) - 1)
        if users is not None:
            of_users = np.flatnonzero(np.isin(self.source_users(), users))
        order = sorted(map(int, of_users), key=lambda place: (_keyed(key, b"order", place), place))
        self.used = bound_owners(offsets, owners, k, order=order)
        self._places = np.flatnonzero(self.used)
        self._chosen = self._one_window_each()
        users_of = self.source_users()[self._places]
        self._by_user = np.argsort(users_of, kind="stable")
        self._users_in_order = users_of[self._by_user]

    def pool(self) -> list[PoolRecord]:
        """Returns every used source record, in the order of the corpus; blank ones have no tokens."""
        users = self.source_users()[self._places]
        records = zip(self._places, users, self._chosen, strict=True)
        pool = [PoolRecord(int(place), int(user), self._tokens_of(int(chosen))) for place, user, chosen in records]
        release_pages(self._arrays["tokens"])
        return pool

    @property
    def records_per_user(self) -> NDArray[np.int64]:
        """[num_places] number of used records with text, >= 0."""
        with_text = self.source_users()[self._places[self._chosen >= 0]]
        return np.bincount(with_text, minlength=self.num_places).astype(np.int64)

    @property
    def tokens_per_user(self) -> NDArray[np.int64]:
        """[num_places] number of tokens in used records, >= 0."""
        chosen = self._chosen[self._chosen >= 0]
        total = np.zeros(self.num_places, np.int64)
        lengths = self.record_offsets[chosen + 1] - self.record_offsets[chosen]
        np.add.at(total, self.source_users()[self._places[self._chosen >= 0]], lengths)
        return total

    def num_records(self, user: int) -> int:
        """Returns how many used records with text `user` has, possibly 0."""
        return len(self._chosen_by(user))

    def num_tokens(self, user: int) -> int:
        """Returns how many tokens the used records of `user` have, possibly 0."""
        return sum(map(len, self.records(user)))

    def records(self, user: int) -> list[Tokens]:
        """Returns the token ids of each used record of `user` that has text, one window of each."""
        return [self._tokens_of(int(record)) for record in self._chosen_by(user)]

    def __reduce__(  # type: ignore[override]
        self,
    ) -> tuple[type[OwnerBoundedStore], tuple[str, int, bytes, NDArray[np.int64] | None]]:
        return OwnerBoundedStore, (str(self.path), self.k, self.key, self.users)

    def _one_window_each(self) -> NDArray[np.int64]:
        """Number of the stored record that each used source record gives, -1 for a blank one."""
        first, num = (array[self._places] for array in self.source_windows())
        drawn = [
            int.from_bytes(_keyed(self.key, b"window", int(place)), "big") % int(of) if of else 0
            for place, of in zip(self._places, num, strict=True)
        ]
        return np.where(num > 0, first + np.array(drawn, np.int64), -1)

    def _chosen_by(self, user: int) -> NDArray[np.int64]:
        """Numbers of the stored records that are used of a user."""
        self._range("user_offsets", user)
        start, end = np.searchsorted(self._users_in_order, [user, user + 1])
        chosen = self._chosen[self._by_user[start:end]]
        return chosen[chosen >= 0]

    def _tokens_of(self, record: int) -> Tokens:
        """Token ids of a stored record, none for -1, as a copy."""
        if record < 0:
            return np.empty(0, np.int64)
        start, end = self._range("record_offsets", record)
        return self._arrays["tokens"][start:end].astype(np.int64)


def _keyed(key: bytes, purpose: bytes, place: int) -> bytes:
    """16 bytes that look random and follow from key, purpose and place."""
    return hashlib.blake2b(place.to_bytes(8, "big"), key=key, digest_size=16, person=purpose).digest()
