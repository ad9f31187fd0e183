"""Poisson sampling of users whose cohorts are cut off at a size."""

import dataclasses
from typing import TYPE_CHECKING, Self

from fedsim_userdp.privacy.accounting.one_run import Adjacency
from fedsim_userdp.privacy.pld.branches import Branches
from fedsim_userdp.privacy.pld.mixture import binomial_mixture
from fedsim_userdp.privacy.validation import check_count, check_noise_multiplier, check_sampling_prob

if TYPE_CHECKING:
    import dp_accounting


@dataclasses.dataclass(frozen=True)
class TruncatedPoisson:
    """Poisson sampling of users; where more than `most_users` are drawn, as many of them at random take part.

    Guarantee: with n users, where k of the n - 1 others are drawn, the user changes a round in one of two ways, and k
        has the same law whether the user is there or not. k < most_users: a Poisson-subsampled Gaussian of sensitivity
        C and probability `sampling_prob`. Else, with the probability t = P(Binomial(n - 1, q) >= most_users): the user
        takes the place of another one with the mean probability p = (most_users / n) P(Binomial(n, q) > most_users) /
        t, which is a subsampled Gaussian of sensitivity 2 C; which of the others are in such a cohort does not depend
        on k. Under add-or-remove of one user; the larger of the costs of n = `num_users`, where one is removed, and
        n = `num_users` + 1, where one is added. The parts of the pair that do not depend on the user are shown, as in
        Ganesh et al., arXiv 2508.15089.
    Assumes: coins and places are drawn independently of the other rounds, of data and of losses; a fixed denominator,
        and fresh noise of stddev `noise_multiplier * C` on the sum.

    Attributes:
        noise_multiplier: stddev of the noise on the sum / clip norm, in (0, inf).
        sampling_prob: Probability with which each user is drawn in a round, before the cut, in (0, 1].
        num_users: Number of users, in [1, 1e9].
        most_users: Largest cohort, in [1, 1e9].
        rounds: Number of releases, in [1, 1e9].
    """

    noise_multiplier: float
    sampling_prob: float
    num_users: int
    most_users: int
    rounds: int

    adjacency = Adjacency.ADD_OR_REMOVE_USER

    def __post_init__(self) -> None:
        """Raises ValueError where an attribute is out of range."""
        check_noise_multiplier("noise_multiplier", self.noise_multiplier)
        check_sampling_prob("sampling_prob", self.sampling_prob)
        check_count("num_users", self.num_users)
        check_count("most_users", self.most_users)
        check_count("rounds", self.rounds)

    def event(self) -> "dp_accounting.DpEvent":
        """Returns the dp_accounting event of the whole run; its accountant gives a slightly larger bound."""
        import dp_accounting as dp

        step = dp.dp_event.TruncatedSubsampledGaussianDpEvent(
            self.num_users, self.sampling_prob, self.most_users, self.noise_multiplier
        )
        return dp.SelfComposedDpEvent(step, self.rounds)

    def pair(self, *, added: bool) -> Branches:
        """Returns the dominating pair of one release.

        Args:
            added: Whether the user is one more than `num_users`, or one of them.
        """
        cut_off, replacing = self._chances(self.num_users + added)
        usual = binomial_mixture(self.noise_multiplier, self.sampling_prob, 1)
        parts = [(1.0 - cut_off, usual)]
        if cut_off > 0.0:
            parts.append((cut_off, binomial_mixture(self.noise_multiplier / 2.0, replacing, 1)))
        return Branches(tuple((prob, mixture) for prob, mixture in parts if prob > 0.0))

    @property
    def expected_cohort_size(self) -> float:
        """Mean number of users in a round, E[min(X, m)] of X ~ Binomial(n, q) and m = `most_users`.

        With Y ~ Binomial(n - 1, q): n q P(Y <= m - 2) + m P(X >= m).
        """
        from scipy.stats import binom

        users, prob, most = self.num_users, self.sampling_prob, self.most_users
        return float(users * prob * binom.cdf(most - 2, users - 1, prob) + most * binom.sf(most - 1, users, prob))

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

    def _chances(self, num_users: int) -> tuple[float, float]:
        """Probability t that the cohort is full without the user, and then that the user takes somebody's place, p."""
        from scipy.stats import binom

        full = float(binom.sf(self.most_users - 1, num_users - 1, self.sampling_prob))
        if full <= 0.0:
            return 0.0, 0.0
        beyond = float(binom.sf(self.most_users, num_users, self.sampling_prob))
        return full, min(beyond * self.most_users / (num_users * full), 1.0)
