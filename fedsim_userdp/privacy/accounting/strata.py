"""Cohorts with a fixed number of users of each public group."""

import dataclasses
from typing import TYPE_CHECKING, Self

from fedsim_userdp.privacy.accounting.one_run import Adjacency, FixedSize
from fedsim_userdp.privacy.validation import check_count, check_noise_multiplier

if TYPE_CHECKING:
    import dp_accounting


@dataclasses.dataclass(frozen=True)
class FixedSizeStrata:
    """So many users of each public group, drawn uniformly without replacement, afresh in each round.

    Guarantee: for a user of a group of n users, of whom m take part, each round is what `FixedSize` has of m of n
        users: whoever replaces the user is of the same group, so that the other groups' parts are equal. Epsilon and
        delta are those of the costliest group.
    Assumes: groups are public; the draws of groups and rounds are independent of each other, of data and of losses.

    Attributes:
        noise_multiplier: stddev of the noise on the sum / clip norm C (not / sensitivity), in (0, inf).
        groups: (users, users a round) of each group, at least one; users >= users a round >= 1.
        rounds: Number of releases, in [1, 1e9].
    """

    noise_multiplier: float
    groups: tuple[tuple[int, int], ...]
    rounds: int

    adjacency = Adjacency.REPLACE_USER_IN_GROUP

    def __post_init__(self) -> None:
        """Raises ValueError where an attribute is out of range."""
        check_noise_multiplier("noise_multiplier", self.noise_multiplier)
        if not isinstance(self.groups, tuple) or not self.groups:
            raise ValueError(f"groups must be a tuple of at least one (users, users a round), got {self.groups!r}")
        for group in self.groups:
            if not isinstance(group, tuple) or len(group) != 2:
                raise ValueError(f"groups must be tuples of (users, users a round), got {group!r}")
            check_count("users of a group", group[0])
            check_count("users a round of a group", group[1], 1, group[0])
        check_count("rounds", self.rounds)

    @property
    def num_users(self) -> int:
        """Number of users of all groups."""
        return sum(users for users, _ in self.groups)

    @property
    def cohort_size(self) -> int:
        """Users per round."""
        return sum(chosen for _, chosen in self.groups)

    def apart(self) -> list[FixedSize]:
        """Returns the run as it is for each distinct group."""
        pairs = dict.fromkeys(self.groups)
        return [FixedSize(self.noise_multiplier, users, chosen, self.rounds) for users, chosen in pairs]

    def event(self) -> "dp_accounting.DpEvent":
        """Returns the dp_accounting event of the group of which the largest share takes part; see `FixedSize.event`."""
        return max(self.apart(), key=lambda group: group.cohort_size / group.num_users).event()

    @property
    def num_releases(self) -> int:
        """Number of releases."""
        return self.rounds

    def first(self, num_releases: int) -> Self:
        """Returns the first `num_releases` >= 1 releases of the run, or more of the same."""
        return dataclasses.replace(self, rounds=num_releases)

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """Returns the same run with another noise multiplier."""
        return dataclasses.replace(self, noise_multiplier=noise_multiplier)
