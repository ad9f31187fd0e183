"""A release that is one of several pairs, by a lot that both of its outputs show.

The pair: P = sum_b v_b (b, P_b) against Q = sum_b v_b (b, Q_b), v being the same on both sides. Its privacy loss is
that of the branch that was drawn, so that its distribution is the mixture of theirs.
"""

import dataclasses
import math

import numpy as np

from fedsim_userdp.privacy.pld.loss import Grid, Loss, Release, prepare
from fedsim_userdp.privacy.pld.mixture import Mixture


@dataclasses.dataclass(frozen=True)
class Branches:
    """The pair of one release.

    Attributes:
        parts: Pairs with their probabilities v > 0, which sum to 1; at least one.
    """

    parts: tuple[tuple[float, Mixture], ...]

    @property
    def noise_multiplier(self) -> float:
        """The least of all branches."""
        return min(mixture.noise_multiplier for _, mixture in self.parts)

    def distance(self) -> float:
        """Returns the total variation distance of P and Q."""
        return math.fsum(prob * mixture.distance() for prob, mixture in self.parts)

    def prepared(self, log_mass: float) -> "PreparedBranches":
        """Returns the release with cuts that remove at most e^log_mass from each of P and Q."""
        return PreparedBranches(tuple((prob, prepare(mixture, log_mass)) for prob, mixture in self.parts))


@dataclasses.dataclass(frozen=True)
class PreparedBranches:
    """Branches prepared for discretization; see `loss.Release`, which has the same methods."""

    parts: tuple[tuple[float, Release], ...]

    @property
    def cut(self) -> float:
        """Probability that the cuts remove from P or Q, an upper bound."""
        return math.fsum(prob * release.cut for prob, release in self.parts)

    def sketch(self, *, removed: bool) -> Loss:
        """Returns the loss of removing (or adding) the user roughly."""
        return _mixed([(prob, release.sketch(removed=removed)) for prob, release in self.parts])

    def largest(self, *, removed: bool) -> float:
        """Returns the largest finite loss of removing (or adding) the user."""
        return max(release.largest(removed=removed) for _, release in self.parts)

    def discretize(self, grid: Grid, *, removed: bool, floor: float = -math.inf) -> Loss:
        """Returns the loss of removing (or adding) the user, on the grid.

        Guarantee: it dominates the true pair, since each branch's does.
        """
        found = []
        for prob, release in self.parts:
            highest = release.largest(removed=removed)
            found.append((prob, release.discretize(grid, removed=removed, floor=min(floor, highest - grid.spacing))))
        return _mixed(found)


def _mixed(parts: list[tuple[float, Loss]]) -> Loss:
    """The mixture of losses, with their probabilities."""
    return Loss(
        np.concatenate([loss.values for _, loss in parts]),
        np.concatenate([prob * loss.probs for prob, loss in parts]),
        math.fsum(prob * loss.infinite for prob, loss in parts),
    )
