"""Poisson sampling of users whose probabilities and weights are public, and differ between groups and rounds."""

import dataclasses
from typing import TYPE_CHECKING, Self

from fedsim_userdp.errors import AccountingError
from fedsim_userdp.privacy.accounting import trajectories
from fedsim_userdp.privacy.accounting.one_run import Adjacency, PoissonUsers
from fedsim_userdp.privacy.accounting.renyi import epsilon_bound, rdp_of
from fedsim_userdp.privacy.accounting.trajectories import Counts, Trajectory
from fedsim_userdp.privacy.validation import check_count, check_noise_multiplier

if TYPE_CHECKING:
    import dp_accounting

    from fedsim_userdp.privacy.accounting.descriptions import Composed

_LEAST_NOISE = 1e-3  # that of calibrations
_MOST_NOISE = 1e100  # more of it costs no less, and its square would overflow
_LOG_DELTA = -11.5  # 1e-5: where groups are compared


@dataclasses.dataclass(frozen=True)
class PoissonGroups:
    """User-wise training with sampling probabilities and weights that differ between groups of users and rounds.

    A user of a group takes part in a round with the group's probability q, and adds a clipped update times the group's
    weight w: of norm at most w C. With q or w at 0 nothing is released about the user.

    Guarantee: a round is, for a user, a Poisson-subsampled Gaussian of probability q and noise multiplier
        `noise_multiplier / w`, under add-or-remove of one user; where probabilities follow from who else there is (the
        size of a group), for emptying the records of a user who stays in the public population: the two pairs of
        distributions are the same. Epsilon and delta are those of the costliest group: for each group its own rounds
        are composed.
    Assumes: every user takes part in a round independently of the others, with a probability that is public like the
        weights and the groups; a fixed denominator, and fresh noise of stddev `noise_multiplier * C` on the sum.

    Attributes:
        noise_multiplier: stddev of the noise on the sum / clip norm, in (0, inf).
        groups: One trajectory a group, at least one: (sampling_prob, weight, rounds) in the order of rounds.
            sampling_prob in [0, 1], weight >= 0 and finite, rounds >= 1; the same number of rounds in every group.
            Less than 0.001 of noise multiplier / weight is refused by the accountants.
        adjacency: ADD_OR_REMOVE_USER (default) or ZERO_OUT_USER.
    """

    noise_multiplier: float
    groups: tuple[Trajectory, ...]
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_USER

    def __post_init__(self) -> None:
        """Raises ValueError where an attribute is out of range."""
        if self.adjacency not in (Adjacency.ADD_OR_REMOVE_USER, Adjacency.ZERO_OUT_USER):
            raise ValueError(f"adjacency must be ADD_OR_REMOVE_USER or ZERO_OUT_USER, got {self.adjacency!r}")
        check_noise_multiplier("noise_multiplier", self.noise_multiplier)
        trajectories.check_groups(self.groups)

    def event(self) -> "dp_accounting.DpEvent":
        """Returns the dp_accounting event of the costliest group, the one with the largest RDP bound at delta 1e-5."""
        import dp_accounting as dp

        found = [trajectories.counted(trajectory) for trajectory in trajectories.distinct(self.groups)]
        return self._composed(max(found, key=self._bound)).event() if found else dp.NoOpDpEvent()

    @property
    def num_releases(self) -> int:
        """Number of releases."""
        return trajectories.num_rounds(self.groups[0])

    @property
    def is_unweighted(self) -> bool:
        """Whether every weight is 1."""
        return all(weight == 1.0 for trajectory in self.groups for _, weight, _ in trajectory)

    def first(self, num_releases: int) -> Self:
        """Returns the first `num_releases` >= 1 releases of the run.

        Raises:
            ValueError: The run has fewer.
        """
        return self.between(1, num_releases)

    def between(self, first: int, last: int) -> Self:
        """Returns the rounds from `first` to `last`, counted from 1.

        Raises:
            ValueError: The run does not have them.
        """
        check_count("num_releases", last, 1, self.num_releases)
        check_count("first", first, 1, last)
        cut = tuple(trajectories.cut(trajectory, first, last) for trajectory in self.groups)
        return dataclasses.replace(self, groups=cut)

    def singles(self) -> list[tuple[Self, int]]:
        """Returns the distinct single rounds, and how often each is made."""
        counts = trajectories.rounds_counted(self.groups)
        return [(dataclasses.replace(self, groups=groups), count) for groups, count in counts.items()]

    def group(self, group: int) -> "Composed | None":
        """Returns what is released about a user of one group; None where that is nothing."""
        counts = trajectories.counted(self.groups[group])
        return self._composed(counts) if counts else None

    def apart(self) -> list[Self]:
        """Returns a run of one group for each group that may be the costliest, whatever the noise multiplier."""
        return [dataclasses.replace(self, groups=(trajectory,)) for trajectory in trajectories.distinct(self.groups)]

    def kinds(self) -> "list[Composed]":
        """Returns what is released about users of the groups that may be the costliest, as `apart` has them."""
        found = trajectories.distinct(self.groups)
        return [self._composed(trajectories.counted(trajectory)) for trajectory in found]

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """Returns the same run with another noise multiplier."""
        return dataclasses.replace(self, noise_multiplier=noise_multiplier)

    def _composed(self, counts: Counts) -> "Composed":
        """Rounds of one group as Poisson-sampled releases."""
        from fedsim_userdp.privacy.accounting.descriptions import Composed

        return Composed(tuple(PoissonUsers(self._noise(w), q, count) for (q, w), count in counts.items()))

    def _bound(self, counts: Counts) -> float:
        """Upper bound of a group's epsilon at delta 1e-5."""
        return epsilon_bound(rdp_of([(self._noise(w), q, count) for (q, w), count in counts.items()]), _LOG_DELTA)

    def _noise(self, weight: float) -> float:
        """Noise multiplier of a user with a weight above 0."""
        noise = self.noise_multiplier / weight
        if noise < _LEAST_NOISE:
            raise AccountingError(
                f"a weight of {weight:g} leaves a noise multiplier of {noise:g}, and less than {_LEAST_NOISE:g} is not "
                "accounted for"
            )
        return min(noise, _MOST_NOISE)
