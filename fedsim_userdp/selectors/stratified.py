"""As many users of each public group in expectation, however large the groups are."""

from dataclasses import dataclass

import numpy as np

from fedsim_userdp.population import Past, Population


@dataclass(frozen=True)
class StratifiedSelector:
    """Takes `users_per_group` users of each group in expectation: members of small groups take part more often.

    Attributes:
        column: the public column that says a user's group.
        users_per_group: expected users of a group in a round, above 0; all of a group that is no larger.
    """

    column: str
    users_per_group: float

    def __post_init__(self) -> None:
        if not self.users_per_group > 0:
            raise ValueError(f"users_per_group={self.users_per_group} must be above 0")

    def probabilities(self, round: int, population: Population, past: Past) -> np.ndarray:
        """Returns `users_per_group` over the size of the user's group, at most 1."""
        _, group, sizes = np.unique(population.column(self.column), return_inverse=True, return_counts=True)
        return np.minimum(self.users_per_group / sizes, 1.0)[group]
