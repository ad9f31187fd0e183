"""The training users as privacy units: which of a user's records go into an update."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsim_userdp.data.records import RecordSelector
from fedsim_userdp.data.split import split_users
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.privacy.streams import numpy_generator
from fedsim_userdp.training.batches import Unit


@dataclass(frozen=True)
class TrainingUsers:
    """Training users and how each picks at most k records.

    Attributes:
        store: every user's records as token ids.
        users: the store's number of each training user, shape [users]; training user i is `users[i]`.
        selector: a per-user decision from that user's records, k and a generator.
        records_per_user: k, the most records that a user contributes, at least 1.
        seed: the run's seed, at least 0.

    Raises:
        ValueError: when `records_per_user` is below 1.
    """

    store: TokenStore
    users: np.ndarray
    selector: RecordSelector
    records_per_user: int
    seed: int

    def __post_init__(self) -> None:
        if self.records_per_user < 1:
            raise ValueError(f"mechanism.records_per_user={self.records_per_user} must be at least 1")

    def __len__(self) -> int:
        return len(self.users)

    def units(self, users: Iterable[int], round: int) -> list[Unit]:
        """Returns the chosen records of each of `users` as one unit a user; those without any are left out."""
        chosen = ((user, self.chosen_records(user, round)) for user in users)
        return [Unit(user, records) for user, records in chosen if records]

    def capped_records(self) -> list[np.ndarray]:
        """Returns every training record after capping each user at k once and for all, for the centralized runs."""
        return [record for user in range(len(self)) for record in self.chosen_records(user, round=0)]

    def chosen_records(self, user: int, round: int) -> list[np.ndarray]:
        """Returns at most k records of one user; a selector that is not `fresh` answers the same in every round."""
        number = int(self.users[user])
        address = round if self.selector.fresh else 0
        generator = numpy_generator(self.seed, "records", round=address, user=self.store.user_id(number))
        return self.selector.select(self.store.records(number), self.records_per_user, generator)


@dataclass(frozen=True)
class TrainingUsersRecipe:
    """What a process needs to open the training users by itself; small and picklable at any population.

    Attributes:
        store_path: folder of the token store.
        heldout_users: number of users set aside for evaluation, at least 0.
        validation_users: number of users set aside for tuning, at least 0; with `heldout_users` fewer than all.
        split_seed: seed of the split, any integer.
        selector: see `TrainingUsers`.
        records_per_user: k, at least 1.
        seed: the run's seed, at least 0.
    """

    store_path: Path
    heldout_users: int
    validation_users: int
    split_seed: int
    selector: RecordSelector
    records_per_user: int
    seed: int

    def open(self) -> TrainingUsers:
        """Returns the training users, the store memory-mapped.

        Raises:
            DataError: when the folder holds no sound store, or a number of users set aside is out of range.
            ValueError: when `records_per_user` is below 1.
        """
        store = TokenStore(self.store_path)
        split = split_users(
            store, heldout_users=self.heldout_users, validation_users=self.validation_users, seed=self.split_seed
        )
        return TrainingUsers(store, split.train, self.selector, self.records_per_user, self.seed)
