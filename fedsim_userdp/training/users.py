"""The training users as privacy units: which of a user's records go into an update."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.data.records import RecordSelector
from fedsim_userdp.data.split import split_users
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.errors import DataError, RecordChoiceError
from fedsim_userdp.plugins import calling, is_own, reason_of
from fedsim_userdp.population import Population
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.training.batches import Unit
from fedsim_userdp.training.central import Pool

Records = Sequence[NDArray[np.int64]]
_ASKED_AGAIN = 3  # users of a round, where the selection is not this package's


@dataclass(frozen=True)
class TrainingUsers:
    """Training users and how each picks at most k records.

    Guarantee: a user's choice does not depend on other users.  A selection that is not this package's is copied for
        every call, so that it cannot remember earlier ones.  A few users of a round are asked again after the others,
        which shows what it remembers in its class or module.

    Attributes:
        store: every user's records as token ids.
        users: the store's number of each training user, shape [users]; training user i is `users[i]`.
        selector: a per-user decision from that user's records, k and a generator.
        records_per_user: k, the most records that a user contributes, at least 1.
        window: the most tokens of a record, `tokens.window`, at least 2.
        key: what the choice of records and dropout masks derive from: the run's key, or its nodes'.

    Raises:
        ValueError: when `records_per_user` is below 1.
    """

    store: TokenStore
    users: np.ndarray
    selector: RecordSelector
    records_per_user: int
    window: int
    key: RunKey

    def __post_init__(self) -> None:
        if self.records_per_user < 1:
            raise ValueError(f"mechanism.records_per_user={self.records_per_user} must be at least 1")

    def __len__(self) -> int:
        return len(self.users)

    @property
    def population(self) -> Population:
        """The users as a selector may know them."""
        return Population(np.asarray(self.store.id_hashes)[self.users])

    def units(self, users: Iterable[int], round: int, weights: Mapping[int, float] | None = None) -> list[Unit]:
        """Returns the chosen records of each of `users` as one unit a user; those without any are left out.

        Args:
            users: numbers of training users.
            round: the round.
            weights: what the users' clipped updates are multiplied by; None for 1.

        Raises:
            RecordChoiceError, PluginError: see `chosen_records` and `refuse_memory`.
        """
        weights = weights or {}
        return [
            Unit(user, records, self.owner(user), weight=weights.get(user, 1.0))
            for user, records in self._choices(users, round)
            if records
        ]

    def pool(self) -> Pool:
        """Returns every training record after capping each user at k once and for all, for the centralized runs."""
        hashes = self.population.id_hashes
        records = [
            (user, place, record)
            for user, chosen in self._choices(range(len(self)), round=0)
            for place, record in enumerate(chosen)
        ]
        return Pool(
            units=[Unit(i, [record], self.owner(user), place) for i, (user, place, record) in enumerate(records)],
            id_hashes=np.array([hashes[user] for user, _, _ in records], dtype=np.uint64),
            places=np.array([place for _, place, _ in records], dtype=np.uint64),
        )

    def chosen_records(self, user: int, round: int) -> list[np.ndarray]:
        """Returns at most k records of one user; a selector that is not `fresh` answers the same in every round.

        Raises:
            RecordChoiceError: when the selector's answer is no choice of at most k of the user's records, or has a
                longer one than `window`; when the selector cannot be copied.
            PluginError: when a selector that is not this package's raises.
        """
        number = int(self.users[user])
        records = self.store.records(number)
        if not records:
            return []
        selector = self._pristine_selector()
        with calling("records", selector, "fresh"):
            address = round if selector.fresh else 0
        generator = self.key.generator("records", round=address, user=self.store.user_id(number))
        copies = [record.copy() for record in records]
        with calling("records", selector, "select()", f"in round {round}" if round else ""):
            chosen = selector.select(copies, self.records_per_user, generator)
        name = type(selector).__name__
        return checked_choice(chosen, records, most=self.records_per_user, window=self.window, name=name)

    def refuse_memory(self, answers: Iterable[tuple[int, Records]], round: int) -> None:
        """Raises RecordChoiceError where the selection, asked again, answers otherwise than before.

        Args:
            answers: users with what `chosen_records` returned in the round, before others were asked.
            round: the round.
        """
        for user, before in answers:
            now = self.chosen_records(user, round)
            if len(now) != len(before) or not all(map(np.array_equal, now, before)):
                raise RecordChoiceError(
                    f"records={type(self.selector).__name__} chose other records of a user when it was asked again "
                    "after other users: a choice must follow from the user's own records, k and the generator that is "
                    "given, and nothing may be kept in a class or module from one call to the next"
                )

    def _choices(self, users: Iterable[int], round: int) -> list[tuple[int, list[np.ndarray]]]:
        """Users with what each gives; a selection that is not this package's is tried for a memory."""
        answers = [(user, self.chosen_records(user, round)) for user in users]
        if not is_own(self.selector):
            self.refuse_memory([(user, records) for user, records in answers if records][:_ASKED_AGAIN], round)
        return answers

    def _pristine_selector(self) -> RecordSelector:
        """The selector to ask once: a copy of one that is not this package's, so that no call leaves anything in it."""
        if is_own(self.selector):
            return self.selector
        try:
            return copy.deepcopy(self.selector)
        except Exception as error:  # anybody's class can refuse to be copied
            raise RecordChoiceError(
                f"records={type(self.selector).__name__} cannot be copied ({reason_of(error)}): every user is asked of "
                "a copy, so that nothing is kept from one user to another; keep what cannot be copied in the module"
            ) from error

    def owner(self, user: int) -> str:
        """Returns the id of a training user."""
        return self.store.user_id(int(self.users[user]))


def checked_choice(chosen: object, records: Records, *, most: int, window: int, name: str) -> list[NDArray[np.int64]]:
    """Returns what a record selection chose, after checking that it is a choice of the user's records.

    Guarantee: at most `most` arrays of one to `window` tokens; each is one of the user's records or a piece of the
    user's records joined, and none is there more often than the user's text has it.

    Args:
        chosen: the answer of `RecordSelector.select`.
        records: the user's records, at least one.
        most: k.
        window: the most tokens of an array; a model may give the users beside a longer one other positions.
        name: of the selection, for the message.

    Raises:
        RecordChoiceError: when it is none; names the selection and says which rule it breaks, and nothing of the text.
    """
    if not isinstance(chosen, list | tuple) or not all(isinstance(record, np.ndarray) for record in chosen):
        raise RecordChoiceError(f"records={name} must return a list of numpy arrays, got {type(chosen).__name__}")
    if len(chosen) > most:
        raise RecordChoiceError(f"records={name} returned {len(chosen)} records of a user, more than k = {most}")
    if any(record.ndim != 1 or not np.issubdtype(record.dtype, np.integer) or not len(record) for record in chosen):
        raise RecordChoiceError(f"records={name} returned an array that is no list of token ids")
    check_lengths(chosen, window, f"records={name}")
    kept = [np.ascontiguousarray(record, dtype=np.int64) for record in chosen]
    own = Counter(record.astype(np.int64).tobytes() for record in records)
    joined = b"".join(record.astype(np.int64).tobytes() for record in records)
    for content, times in Counter(record.tobytes() for record in kept).items():
        if own[content] < times and (found := _occurrences(content, joined)) < times:
            problem = "one that is not the user's" if not found else "one more often than the user has it"
            raise RecordChoiceError(
                f"records={name} returned {problem}: a user contributes own records, each at most once"
            )
    return kept


def check_lengths(records: Records, window: int, origin: str) -> None:
    """Raises RecordChoiceError, naming the origin, where one of the records has more than `window` tokens."""
    if any(len(record) > window for record in records):
        raise RecordChoiceError(f"{origin} returned a record of more than tokens.window = {window} tokens")


def _occurrences(piece: bytes, text: bytes) -> int:
    """How often a piece is in a text of 8-byte numbers, without overlaps."""
    count, start = 0, 0
    while (at := text.find(piece, start)) >= 0:
        count, start = (count + 1, at + len(piece)) if at % 8 == 0 else (count, at + 1)
    return count


def in_order_of_ids(store: TokenStore, users: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the users, numbers in the store, in an order that their ids alone decide: that of their ids' hashes.

    So a user's number does not depend on where the user stands in the corpus.

    Raises:
        DataError: when two ids have one hash, as which nobody meets by chance: both would take part in the same rounds,
            and neither's coin would be the other's secret.
    """
    hashes = np.asarray(store.id_hashes)[users]
    order = np.argsort(hashes, kind="stable")
    ordered, ascending = users[order], hashes[order]
    if (ascending[1:] == ascending[:-1]).any():
        raise DataError("two user ids have the same 64-bit hash, by which coins are drawn: rename one of these users")
    return ordered


@dataclass(frozen=True)
class TrainingUsersRecipe:
    """What a process needs to open the training users by itself; small and picklable at any population.

    Attributes:
        store_path: folder of the token store.
        heldout_users: number of users set aside for evaluation, at least 0.
        validation_users: number of users set aside for tuning, at least 0; with `heldout_users` fewer than all.
        split_seed: seed of the split, any integer.
        keep_places: whether users without a usable record stay, see `split_users`.
        selector: see `TrainingUsers`.
        records_per_user: k, at least 1.
        window: see `TrainingUsers`.
        key: see `TrainingUsers`.
    """

    store_path: Path
    heldout_users: int
    validation_users: int
    split_seed: int
    keep_places: bool
    selector: RecordSelector
    records_per_user: int
    window: int
    key: RunKey

    def open(self) -> TrainingUsers:
        """Returns the training users, the store memory-mapped.

        Raises:
            DataError: when the folder holds no sound store, or a number of users set aside is out of range.
            ValueError: when `records_per_user` is below 1.
        """
        store = TokenStore(self.store_path)
        split = split_users(
            store,
            heldout_users=self.heldout_users,
            validation_users=self.validation_users,
            seed=self.split_seed,
            keep_places=self.keep_places,
        )
        users = in_order_of_ids(store, split.train)
        return TrainingUsers(store, users, self.selector, self.records_per_user, self.window, self.key)
