"""Records with several owners: bounding in how many used records any one person appears."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.privacy.streams import RunKey


def bound_owners(
    owner_offsets: NDArray[np.int64], owners: NDArray[np.int64], k: int, *, order: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """Returns which records to use so that nobody owns more than k of them.

    Greedy: records are gone through in `order`, and one is used if each of its owners has fewer than k used
    records so far. No unused record could be added to the result.

    Guarantee: every owner index is among the owners of at most k used records.
    Assumes: which records there are and who owns which is public ("fixed graph"). What is used depends on ownership
        alone, never on text, but one person's joining or leaving can change which records of others are used; so
        neighbouring data sets must have the same records and owners, one person's records being blank in one of
        them.

    Args:
        owner_offsets: [num_records + 1] position of each record's first owner in `owners`.
        owners: Owner indices, >= 0, each at most once per record.
        k: Largest number of used records per owner, >= 1.
        order: Numbers of the records to consider, each at most once, in that order; the others are not used. None
            for all in the stored order.

    Returns:
        [num_records] True for each used record.

    Raises:
        ValueError: k < 1.

    Source: Ganesh et al., "It's My Data Too: Private ML for Datasets with Multi-User Training Examples",
        arXiv 2503.03622, greedy contribution bounding.
    """
    if k < 1:
        raise ValueError(f"records_per_user (k) must be at least 1, got {k}")
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
    """Returns how many distinct people own a record of one of `users` (numbers in the store), these included."""
    offsets, owners = store.owner_arrays()
    starts, ends = store.user_offsets[users], store.user_offsets[users + 1]
    marked = np.zeros(int(owners.max(initial=-1)) + 1, bool)
    for first, last in zip(offsets[starts], offsets[ends], strict=True):
        marked[owners[first:last]] = True
    return int(marked.sum())


class OwnerBoundedStore(TokenStore):
    """A token store of which only records within the owner bound are used; users may be left with none.

    Records are considered in an order drawn from `seed`, so that no user is favoured by where they stand.

    Args:
        path: Folder of the store.
        k: Largest number of used records that any person owns, >= 1.
        seed: Seed of the order.
        users: Users whose records may be used, such as those of the training split; None for all. The records of the
            others do not count towards anybody's k.

    Attributes:
        used: [records of the store] True for each used record.
    """

    def __init__(self, path: str | os.PathLike[str], k: int, seed: int, users: NDArray[np.int64] | None = None) -> None:
        super().__init__(Path(path))
        self.k = k
        self.seed = seed
        self.users = users
        offsets, owners = self.owner_arrays()
        order = RunKey.seeded(seed).generator("records").permutation(len(offsets) - 1)
        if users is not None:
            order = order[np.repeat(np.isin(np.arange(self.num_users), users), np.diff(self.user_offsets))[order]]
        self.used = bound_owners(offsets, owners, k, order=order)

    @property
    def records_per_user(self) -> NDArray[np.int64]:
        """[num_users] number of used records, >= 0."""
        return np.add.reduceat(self.used.astype(np.int64), self.user_offsets[:-1])

    @property
    def tokens_per_user(self) -> NDArray[np.int64]:
        """[num_users] number of tokens in used records, >= 0."""
        return np.add.reduceat(np.diff(self.record_offsets) * self.used, self.user_offsets[:-1])

    def num_records(self, user: int) -> int:
        """Returns how many used records `user` has, possibly 0."""
        return int(self._used_by(user).sum())

    def num_tokens(self, user: int) -> int:
        """Returns how many tokens the used records of `user` have, possibly 0."""
        return sum(map(len, self.records(user)))

    def records(self, user: int) -> list[NDArray[np.int64]]:
        """Returns the token ids of each used record of `user`."""
        return [record for record, used in zip(super().records(user), self._used_by(user), strict=True) if used]

    def __reduce__(  # type: ignore[override]
        self,
    ) -> tuple[type[OwnerBoundedStore], tuple[str, int, int, NDArray[np.int64] | None]]:
        return OwnerBoundedStore, (str(self.path), self.k, self.seed, self.users)

    def _used_by(self, user: int) -> NDArray[np.bool_]:
        """Which of the user's stored records are used."""
        start, end = self._range("user_offsets", user)
        return self.used[start:end]
