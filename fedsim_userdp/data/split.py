"""Users for training, for evaluation and for tuning: three sets without a common user."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.data.corpus import DataError
from fedsim_userdp.data.store import TokenStore


@dataclass(frozen=True)
class UserSplit:
    """Disjoint sets of users that together are all users of a store; each ascending, int64.

    Attributes:
        train: Users that training may sample.
        heldout: Users on whom results are reported; never trained or tuned on.
        validation: Users for tuning; never trained or reported on.
    """

    train: NDArray[np.int64]
    heldout: NDArray[np.int64]
    validation: NDArray[np.int64]


def split_users(
    store: TokenStore, *, heldout_users: int, validation_users: int = 0, seed: int, keep_places: bool = False
) -> UserSplit:
    """Returns which users train, which are held out and which serve validation.

    Users are ranked by a keyed hash of their id; the smallest are held out, the next ones serve validation.
    The result depends on the ids and the seed only, not on the order of users or on anybody's text.

    Args:
        store: The users.
        heldout_users: Number of held-out users, >= 0.
        validation_users: Number of validation users, >= 0.
        seed: Key of the hash; any integer.

    Raises:
        DataError: a negative number, or no user left to train on.
    """
    if heldout_users < 0 or validation_users < 0:
        raise DataError(f"heldout_users and validation_users must be >= 0, got {heldout_users}, {validation_users}")
    away = heldout_users + validation_users
    if away >= store.num_users:
        raise DataError(
            f"split.heldout_users={heldout_users} and split.validation_users={validation_users} leave nobody to train "
            f"on: the corpus has {store.num_users} users after dropping; hold out fewer or lower tokens.min_words"
        )
    order = np.argsort(_keyed(np.asarray(store.id_hashes), seed), kind="stable").astype(np.int64)
    parts = (order[away:], order[:heldout_users], order[heldout_users:away])
    return UserSplit(*(np.sort(part) for part in parts))


def _keyed(hashes: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Mixes 64-bit hashes with a key: the finaliser of SplitMix64 after adding the key, bijective per seed."""
    key = hashlib.blake2b(f"user split {seed}".encode(), digest_size=8).digest()
    mixed: NDArray[np.uint64] = hashes.astype(np.uint64) ^ np.frombuffer(key, "<u8")[0]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
