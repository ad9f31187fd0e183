"""Which of a user's records are used: at most k, decided from that user's records alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]


@runtime_checkable
class RecordSelector(Protocol):
    """Chooses what a user contributes. Any class with these members can be named by `_target_`.

    Guarantee: `select` is given one user's records and nothing else, so no other user's data can change what a
        user contributes.  One that is not this package's is copied for every call (`copy.deepcopy`), so that it
        remembers nothing: neither of other users, nor of the same user's earlier rounds, nor in a second call.

    Assumes: nothing is kept in its class or module from one call to the next. A few users are asked again after others,
        and a selection that then answers otherwise is refused; what this does not show is an assumption of the claim.

    Attributes:
        fresh: True to choose anew at every participation of a user, False to choose once for all. A centralized
            mechanism always chooses once.
    """

    fresh: bool

    def select(self, records: Sequence[Tokens], k: int, generator: np.random.Generator) -> list[Tokens]:
        """Returns at most `k` token arrays made of this user's records.

        None may be longer than the longest record that there can be (`tokens.window`): a run refuses it.

        Args:
            records: One user's records, each 1-d token ids; may be empty.
            k: Bound on what comes back, >= 1.
            generator: Source of randomness, addressed by seed and user (and round, when `fresh`).

        Raises:
            ValueError: k < 1.
        """
        ...


class RandomRecords:
    """k records drawn without replacement; all of them, in order, when there are no more than k.

    Args:
        fresh: Whether to draw anew at every participation.
    """

    def __init__(self, fresh: bool = True) -> None:
        self.fresh = fresh

    def select(self, records: Sequence[Tokens], k: int, generator: np.random.Generator) -> list[Tokens]:
        """Returns min(k, len(records)) records, in the user's order."""
        check_bound(k)
        if len(records) <= k:
            return list(records)
        chosen = np.sort(generator.choice(len(records), size=k, replace=False))
        return [records[index] for index in chosen]


class LongestRecords:
    """The k records with the most tokens; of equally long ones the earlier."""

    fresh = False

    def select(self, records: Sequence[Tokens], k: int, generator: np.random.Generator) -> list[Tokens]:
        """Returns min(k, len(records)) records, longest first."""
        check_bound(k)
        return [records[index] for index in smallest([-len(record) for record in records], k)]


class ShortestRecords:
    """The k records with the fewest tokens; of equally long ones the earlier."""

    fresh = False

    def select(self, records: Sequence[Tokens], k: int, generator: np.random.Generator) -> list[Tokens]:
        """Returns min(k, len(records)) records, shortest first."""
        check_bound(k)
        return [records[index] for index in smallest([len(record) for record in records], k)]


class RandomChunks:
    """k contiguous windows of the user's joined tokens, none overlapping another.

    The records are joined in order; a grid of windows is laid over them at a random offset that loses no window,
    and k windows of the grid are drawn without replacement. A user with less than one window gives all there is.

    Args:
        window: Tokens of a chunk, >= 2, at most the store's window: a chunk is a record.
        fresh: Whether to draw anew at every participation.

    Raises:
        ValueError: window < 2.
    """

    def __init__(self, window: int = 64, fresh: bool = True) -> None:
        if window < 2:
            raise ValueError(f"window must be at least 2 tokens, got {window}")
        self.window = window
        self.fresh = fresh

    def select(self, records: Sequence[Tokens], k: int, generator: np.random.Generator) -> list[Tokens]:
        """Returns at most k windows of exactly `window` tokens (or one shorter one), in the user's order."""
        check_bound(k)
        if not len(records):
            return []
        joined = np.concatenate(records)
        num_windows, spare = divmod(len(joined), self.window)
        if num_windows == 0:
            return [joined]
        offset = int(generator.integers(spare + 1))
        chosen = np.sort(generator.choice(num_windows, size=min(k, num_windows), replace=False))
        return [joined[start : start + self.window] for start in offset + chosen * self.window]


def check_bound(k: int) -> None:
    """Raises ValueError unless k, the bound on a user's records, is at least 1."""
    if k < 1:
        raise ValueError(f"records_per_user (k) must be at least 1, got {k}")


def smallest(scores: Sequence[float] | NDArray[np.float64], k: int) -> list[int]:
    """Returns the positions of the k smallest scores, smallest first, earlier ones first among equals."""
    return [int(index) for index in np.argsort(np.asarray(scores), kind="stable")[:k]]
