"""Users of any number with records of random tokens, as token stores that are built once and kept in the cache."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from fedsim_userdp.cache import require_writable
from fedsim_userdp.data.layout import META
from fedsim_userdp.data.records import RandomRecords
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.data.writer import StoreWriter
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.training.users import TrainingUsersRecipe

VOCABULARY = 256  # tokens that every model knows; the first few may be special ones
_SPECIAL = 8
_FORMAT = 2  # to be raised whenever other tokens are written
_BLOCK = 50_000  # users written at once


@dataclass(frozen=True)
class SyntheticUsers:
    """Users who all have as many records of the same length.

    Attributes:
        num_users: users, at least 1.
        records: records of each, at least 1.
        length: tokens of each record, at least 2.
    """

    num_users: int
    records: int
    length: int

    @property
    def name(self) -> str:
        """Names the store's folder."""
        return f"synthetic-{_FORMAT}-{self.num_users}x{self.records}x{self.length}"

    def recipe(self, cache_dir: Path) -> TrainingUsersRecipe:
        """Returns the users as training users, everybody with all records; builds their store if need be."""
        return TrainingUsersRecipe(
            store_path=synthetic_store(self, cache_dir).path,
            heldout_users=0,
            validation_users=0,
            split_seed=0,
            keep_places=False,
            selector=RandomRecords(fresh=False),
            records_per_user=self.records,
            window=self.length,
            key=RunKey.seeded(0, "benchmark"),
        )


def synthetic_store(users: SyntheticUsers, cache_dir: Path) -> TokenStore:
    """Returns the users' store, built at the first call and kept in the cache; safe under several processes."""
    folder = cache_dir / "benchmark" / users.name
    if not (folder / META).exists():
        require_writable(folder.parent)
        with FileLock(f"{folder}.lock"):
            if not (folder / META).exists():
                temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
                shutil.rmtree(temporary, ignore_errors=True)
                _write(users, temporary)
                shutil.rmtree(folder, ignore_errors=True)
                temporary.rename(folder)
    return TokenStore(folder)


def _write(users: SyntheticUsers, folder: Path) -> None:
    """Writes the store to a new folder."""
    with StoreWriter(folder, vocab_size=VOCABULARY) as writer:
        for first, count in _blocks(users.num_users):
            generator = RunKey.seeded(0).generator("records", user=f"synthetic users from {first}")
            writer.add_users(
                [f"user-{number}" for number in range(first, first + count)],
                np.full(count, users.records),
                np.full(count * users.records, users.length),
                generator.integers(_SPECIAL, VOCABULARY, size=count * users.records * users.length),
            )
        writer.finish(fingerprint=users.name)


def _blocks(num_users: int) -> Iterator[tuple[int, int]]:
    """First user and size of each block."""
    for first in range(0, num_users, _BLOCK):
        yield first, min(_BLOCK, num_users - first)
