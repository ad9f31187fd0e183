"""Users for training, for evaluation and for tuning: three sets without a common user."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.errors import DataError
from fedsim_userdp.population import read_only


@dataclass(frozen=True)
class UserSplit:
    """Disjoint sets of users that together are all that were split; each ascending, int64.

    Attributes:
        train: Users that training may sample.
        heldout: Users on whom results are reported; never trained or tuned on.
        validation: Users for tuning; never trained or reported on.
    """

    train: NDArray[np.int64]
    heldout: NDArray[np.int64]
    validation: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Keeps copies that nobody can write to: a user who stood there twice would count as two."""
        for name in ("train", "heldout", "validation"):
            object.__setattr__(self, name, read_only(getattr(self, name)))


def split_users(
    store: TokenStore, *, heldout_users: int, validation_users: int = 0, seed: int, keep_places: bool = False
) -> UserSplit:
    """Returns which users train, which are held out and which serve validation.

    Users are ranked by a keyed hash of their id, those of equal hash by the id; the smallest are held out, the next
    ones serve validation. The rank depends on the id and the seed only.

    Who is ranked follows what is claimed. For a claim on adding or removing a user, those who have records: without
    records one is not there. For every other claim (a user's records are emptied or replaced, declared owners), all
    whom the corpus names: `keep_places` makes the split, and the number of training users, follow from ids alone.

    Guarantee: with `keep_places`, nobody's text changes the split. Without, a user who joins with records changes the
        training users by one at most, be it by moving another one there or away.

    Args:
        store: The users.
        heldout_users: Number of held-out users, >= 0.
        validation_users: Number of validation users, >= 0.
        seed: Key of the hash; any integer.
        keep_places: Whether users without records are split as well; in training they add zero.

    Raises:
        DataError: a negative number, or no user left to train on.
    """
    for name, number in (("heldout_users", heldout_users), ("validation_users", validation_users)):
        if number < 0:
            raise DataError(f"split.{name}={number} must be at least 0")
    users = np.arange(store.num_places) if keep_places else np.flatnonzero(store.has_records)
    away = heldout_users + validation_users
    if away >= len(users):
        raise DataError(
            f"split.heldout_users={heldout_users} and split.validation_users={validation_users} leave nobody to train "
            f"on: the corpus has {len(users)} users{'' if keep_places else ' after dropping'}; hold out fewer"
            f"{'' if keep_places else ' or lower tokens.min_words'}"
        )
    order = _ranked(store, users, seed)
    parts = (order[away:], order[:heldout_users], order[heldout_users:away])
    return UserSplit(*(np.sort(part) for part in parts))


def _ranked(store: TokenStore, users: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The users by keyed hash of their id; those of equal hash, whom somebody may have sought out, by the id."""
    keyed = _keyed(np.asarray(store.id_hashes)[users], seed)
    order = np.argsort(keyed, kind="stable")
    ranked, keyed = users[order].astype(np.int64), keyed[order]
    for value in np.unique(keyed[1:][keyed[1:] == keyed[:-1]]):
        same = np.flatnonzero(keyed == value)
        ranked[same] = sorted(ranked[same], key=lambda user: store.user_id(int(user)))
    return ranked


def _keyed(hashes: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Mixes 64-bit hashes with a key: the finaliser of SplitMix64 after adding the key, bijective per seed."""
    key = hashlib.blake2b(f"user split {seed}".encode(), digest_size=8).digest()
    mixed: NDArray[np.uint64] = hashes.astype(np.uint64) ^ np.frombuffer(key, "<u8")[0]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
