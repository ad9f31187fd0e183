"""What one run promises: the calibrated release, its accountant and its epsilon."""

import math
from dataclasses import dataclass
from typing import Literal

from fedsim_userdp.privacy import accounting as acc
from simulations.task import Budget


@dataclass(frozen=True)
class Guarantee:
    """The promise of one run.

    Attributes:
        release: what the run releases, with its noise multiplier; None where there is no noise.
        method: the accountant's name; None for the release's default.
        delta: the delta that epsilon is reported at.
        level: whom the promise covers: "user", "record" or "nobody".
    """

    release: acc.Description | None
    method: str | None
    delta: float
    level: Literal["user", "record", "nobody"]

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise on the sum, divided by the clip norm; 0 without noise."""
        return 0.0 if self.release is None else self.release.noise_multiplier

    @property
    def epsilon(self) -> float | None:
        """User-level epsilon of the whole run, recomputed from the release; None where there is no such promise."""
        if self.release is None or self.level != "user":
            return None
        return acc.epsilon(self.release, self.delta, self.method)

    def epsilon_by(self, method: str) -> float | None:
        """Epsilon of the same run by another accountant; None where there is no noise."""
        return None if self.release is None else acc.epsilon(self.release, self.delta, method)

    def epsilon_per_round(self, rounds: int) -> list[float]:
        """User-level epsilon after each of the rounds; empty where there is no such promise."""
        if self.release is None or self.level != "user":
            return []
        return acc.epsilon_per_round(self.release, self.delta, rounds, self.method)

    def in_words(self) -> str:
        """One sentence."""
        if self.release is None or self.level == "nobody":
            return "none: trained without noise"
        if self.level == "record":
            return "for one record only (neighbours: add or remove one record); NO user-level guarantee"
        return f"user level (neighbours: {self.release.adjacency.value}), accountant {self.method or 'default'}"


def calibrated(
    release: acc.Description, budget: Budget, method: str | None, level: Literal["user", "record"]
) -> Guarantee:
    """Returns the promise of `release` with the least noise that keeps the budget; no noise at epsilon = infinity."""
    if math.isinf(budget.epsilon):
        return Guarantee(None, method, budget.delta, "nobody")
    found = acc.calibrate(release, epsilon=budget.epsilon, delta=budget.delta, method=method)
    return Guarantee(found, method, budget.delta, level)


NO_GUARANTEE = Guarantee(None, None, 1.0, "nobody")
