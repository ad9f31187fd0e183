"""What a corpus looks like before any training, and what a bound on records per user keeps of it.

None of this is private: it describes users' data exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.data.owners import OwnerBoundedStore
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
        k: Bound on records per user; with declared owners, on the source records that anybody owns, blank or not.
        users_capped: Users with more than k records; with declared owners, owners with more than k source records.
        records_kept: Records used; with declared owners, used source records that have text.
        records_dropped: Records not used; with declared owners, source records that have text and are not used.
        tokens_kept: Tokens used; without declared owners those expected when the k records are drawn at random.
            With them, one window of each used source record counts.
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
        num_users: Users who have a record in the store.
        num_places: Users whom the corpus names, those without a usable record included.
        num_sources: Records as the corpus gave them, blank ones included.
        num_owners: Distinct owners of source records, users included; `num_users` unless owners are declared.
        num_words: Words of these users' text, before tokenisation and dropping.
        records_per_user: Distribution of records over the users who have any.
        tokens_per_user: Distribution of tokens over these.
        ownership: "declared" where records have several declared owners, else "assigned".
        records_per_owner: Distribution of source records over declared owners; None without them.
        bounds: Effect of each bound asked for.
        dropped: Number of things left out or repaired while reading and tokenising, by reason.
        is_private: Always False; written next to the figures so that nobody publishes them as private.
    """

    num_users: int
    num_places: int
    num_sources: int
    num_owners: int
    num_words: int
    records_per_user: Distribution
    tokens_per_user: Distribution
    ownership: Literal["assigned", "declared"]
    records_per_owner: Distribution | None
    bounds: tuple[BoundEffect, ...]
    dropped: dict[str, int]
    is_private: bool = False

    def to_dict(self) -> dict[str, object]:
        """Returns the figures as nested dictionaries and lists that JSON can hold."""
        content = asdict(self)
        content["bounds"] = list(content["bounds"])
        return content


def corpus_statistics(store: TokenStore, bounds: Sequence[int] = (), seed: int = 0) -> CorpusStatistics:
    """Returns the figures of a store; no user's id or text is among them.

    Args:
        store: The tokenised corpus.
        bounds: Values of k, each >= 1, whose effect to work out.
        seed: Decides the order in which records with several owners are considered; a run draws its own.

    Raises:
        ValueError: a bound below 1.
    """
    effect = _owner_bound_effect if store.declares_owners else _user_bound_effect
    return CorpusStatistics(
        num_users=store.num_users,
        num_places=store.num_places,
        num_sources=store.stats.num_sources,
        num_owners=store.stats.num_owners,
        num_words=store.stats.num_words,
        records_per_user=distribution(store.records_per_user[store.has_records]),
        tokens_per_user=distribution(store.tokens_per_user[store.has_records]),
        ownership="declared" if store.declares_owners else "assigned",
        records_per_owner=distribution(_records_per_owner(store)) if store.declares_owners else None,
        bounds=tuple(effect(store, k, seed) for k in bounds),
        dropped=dict(store.stats.dropped),
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


def _user_bound_effect(store: TokenStore, k: int, seed: int) -> BoundEffect:
    """What a bound keeps where each record has one owner, whatever the seed."""
    return bound_effect(store.records_per_user, store.tokens_per_user, k)


def _owner_bound_effect(store: TokenStore, k: int, seed: int) -> BoundEffect:
    """What a bound keeps where records have several owners."""
    bounded = OwnerBoundedStore(store.path, k, f"statistics {seed}".encode())
    records, tokens = int(bounded.records_per_user.sum()), int(bounded.tokens_per_user.sum())
    return BoundEffect(
        k=k,
        users_capped=int((_records_per_owner(store) > k).sum()),
        records_kept=records,
        records_dropped=int((store.source_windows()[1] > 0).sum()) - records,
        tokens_kept=tokens,
        tokens_dropped=store.stats.num_tokens - tokens,
    )


def _records_per_owner(store: TokenStore) -> NDArray[np.int64]:
    """Records of each person who owns one, in no particular order."""
    counts = np.bincount(store.owner_arrays()[1])
    return counts[counts > 0].astype(np.int64)
