"""Canary users: who they are, whether they take part, and what they send.

Guarantee: the coins, the updates and the places of the canaries are drawn before the run from the stream "audit",
which nothing else uses, so that neither selection, noise nor anybody's training can depend on them except through the
canaries' own updates.  An absent canary is a user without records: population, denominator and sampling stay the same,
and the neighbouring runs of the audit are those of the accounting, with and without one user's data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.audit.directions import Directions, Floats
from fedsim_userdp.privacy.streams import RunKey


@dataclass(frozen=True)
class CanaryKind:
    """What a canary sends, and how much data it says to have.

    Attributes:
        name: label in tables and files.
        norm: L2 norm of its gradient before clipping, in clip norms, above 0.
        num_records: records that it brings, each with that gradient, at least 1.
        record_tokens: tokens of a record, at least 2.
    """

    name: str
    norm: float
    num_records: int
    record_tokens: int


def canary_kinds(records_per_user: int, window: int) -> dict[str, CanaryKind]:
    """Returns the kinds by name, each the worst case for one mistake.

    Args:
        records_per_user: k, the most records of a user in a round.
        window: the most tokens of a record.
    """
    kinds = (
        CanaryKind("direction", norm=1.0, num_records=1, record_tokens=2),
        CanaryKind("oversized", norm=100.0, num_records=1, record_tokens=2),
        CanaryKind("many_records", norm=1.0, num_records=records_per_user, record_tokens=window),
    )
    return {kind.name: kind for kind in kinds}


@dataclass(frozen=True)
class Canaries:
    """The canaries of one run.

    Attributes:
        kinds: each canary's kind.
        included: whether each takes part, by a fair coin, shape [canaries], bool.
        candidates: number of the direction that each sends or would have sent, shape [canaries], int64.
        numbers: each canary's number in the population, shape [canaries], int64, distinct.
        num_users: size of the population: real users and canaries.
        directions: the directions that each chooses from.
    """

    kinds: Sequence[CanaryKind]
    included: NDArray[np.bool_]
    candidates: NDArray[np.int64]
    numbers: NDArray[np.int64]
    num_users: int
    directions: Directions

    def __len__(self) -> int:
        return len(self.kinds)

    @cached_property
    def of_number(self) -> dict[int, int]:
        """The canary that each of their population numbers stands for."""
        return {int(number): canary for canary, number in enumerate(self.numbers)}

    @cached_property
    def real_users(self) -> NDArray[np.int64]:
        """For each population number the number among the real users, -1 for a canary, shape [num_users]."""
        is_real = np.ones(self.num_users, dtype=bool)
        is_real[self.numbers] = False
        return np.where(is_real, np.cumsum(is_real) - 1, -1)

    def update(self, canary: int, clip_norm: float) -> Floats:
        """Returns what a canary sends before clipping, shape [size]."""
        scale = np.float32(self.kinds[canary].norm * clip_norm)
        return scale * self.directions.direction(canary, int(self.candidates[canary]))


def draw_canaries(kinds: Sequence[CanaryKind], num_real_users: int, directions: Directions, seed: int) -> Canaries:
    """Returns canaries with coins, directions and places among the real users drawn from (seed, "audit").

    Args:
        kinds: the kind of each canary, at least one.
        num_real_users: size of the population without them, at least 0.
        directions: the directions that each chooses from.
        seed: the run's seed.

    Raises:
        ValueError: when there is no canary.
    """
    if not kinds:
        raise ValueError("audit.canaries plants nobody: give at least one kind a number above 0")
    num_users = num_real_users + len(kinds)
    generator = RunKey.seeded(seed).generator("audit", user="canaries")
    return Canaries(
        kinds=tuple(kinds),
        included=generator.random(len(kinds)) < 0.5,
        candidates=generator.integers(directions.num_candidates, size=len(kinds)),
        numbers=generator.permutation(num_users)[: len(kinds)],
        num_users=num_users,
        directions=directions,
    )


def kinds_of(counts: Mapping[str, int], kinds: Mapping[str, CanaryKind]) -> list[CanaryKind]:
    """Returns the kind of each canary for the number wanted of each kind.

    Raises:
        ValueError: for an unknown kind or a number that is negative or not whole.
    """
    for name, count in counts.items():
        if name not in kinds:
            raise ValueError(f"audit.canaries.{name} is unknown; expected some of {', '.join(kinds)}")
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ValueError(f"audit.canaries.{name}={count} must be a whole number of at least 0")
    return [kinds[name] for name, count in counts.items() for _ in range(count)]
