"""What a corpus looks like before any training, and what a bound on records per user keeps of it.

None of this is private: it describes users' data exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.data.store import TokenStore

TOP_SHARE = 0.01


@dataclass(frozen=True)
class Distribution:
    """How an amount is spread over users.

    Attributes:
        minimum: Smallest amount of a user.
        median: Median amount.
        p90: 90th percentile.
        maximum: Largest amount.
        total: Sum over users.
        top_1_percent_share: Share of the total that the 1% of users with most hold (at least one user), in [0, 1].
    """

    minimum: int
    median: float
    p90: float
    maximum: int
    total: int
    top_1_percent_share: float


@dataclass(frozen=True)
class BoundEffect:
    """What using at most k records of each user keeps and drops.

    Attributes:
        k: Bound on records per user.
        users_capped: Users with more than k records.
        records_kept: Records used, the sum over users of min(k, records).
        records_dropped: Records not used.
        tokens_kept: Expected tokens used when the k records are drawn at random, rounded.
        tokens_dropped: Tokens not used in that case.
    """

    k: int
    users_capped: int
    records_kept: int
    records_dropped: int
    tokens_kept: int
    tokens_dropped: int


@dataclass(frozen=True)
class CorpusStatistics:
    """Users, records and tokens of a store, and what was left out on the way into it.

    Attributes:
        num_users: Users in the store.
        records_per_user: Distribution of records over users.
        tokens_per_user: Distribution of tokens over users.
        bounds: Effect of each bound asked for.
        dropped: Number of things left out or repaired while reading and tokenising, by reason.
        first_at: Where a reason first applied, where known.
        is_private: Always False; written next to the figures so that nobody publishes them as private.
    """

    num_users: int
    records_per_user: Distribution
    tokens_per_user: Distribution
    bounds: tuple[BoundEffect, ...]
    dropped: dict[str, int]
    first_at: dict[str, str]
    is_private: bool = False

    def to_dict(self) -> dict[str, object]:
        """Returns the figures as nested dictionaries and lists that JSON can hold."""
        content = asdict(self)
        content["bounds"] = list(content["bounds"])
        return content


def corpus_statistics(store: TokenStore, bounds: Sequence[int] = ()) -> CorpusStatistics:
    """Returns the figures of a store.

    Args:
        store: The tokenised corpus.
        bounds: Values of k, each >= 1, whose effect to work out.

    Raises:
        ValueError: a bound below 1.
    """
    return CorpusStatistics(
        num_users=store.num_users,
        records_per_user=distribution(store.records_per_user),
        tokens_per_user=distribution(store.tokens_per_user),
        bounds=tuple(bound_effect(store.records_per_user, store.tokens_per_user, k) for k in bounds),
        dropped=dict(store.stats.dropped),
        first_at=dict(store.stats.first_at),
    )


def distribution(amounts: NDArray[np.int64]) -> Distribution:
    """Returns how `amounts` (one per user, >= 0, at least one user) are spread."""
    ordered = np.sort(amounts)
    total = int(ordered.sum())
    num_top = max(1, round(TOP_SHARE * len(ordered)))
    return Distribution(
        minimum=int(ordered[0]),
        median=float(np.median(ordered)),
        p90=float(np.percentile(ordered, 90)),
        maximum=int(ordered[-1]),
        total=total,
        top_1_percent_share=float(ordered[-num_top:].sum() / total) if total else 0.0,
    )


def bound_effect(records: NDArray[np.int64], tokens: NDArray[np.int64], k: int) -> BoundEffect:
    """Returns what a bound of k records per user keeps.

    Args:
        records: [num_users] records of each user.
        tokens: [num_users] tokens of each user.
        k: The bound, >= 1.

    Raises:
        ValueError: k < 1.
    """
    if k < 1:
        raise ValueError(f"records_per_user (k) must be at least 1, got {k}")
    kept = np.minimum(records, k)
    # A user's k records drawn at random hold k / records of that user's tokens on average.
    expected = tokens * kept / np.maximum(records, 1)
    tokens_kept = round(float(expected.sum()))
    return BoundEffect(
        k=k,
        users_capped=int((records > k).sum()),
        records_kept=int(kept.sum()),
        records_dropped=int((records - kept).sum()),
        tokens_kept=tokens_kept,
        tokens_dropped=int(tokens.sum()) - tokens_kept,
    )
