"""User-wise DP-SGD whose clip norm follows a quantile of the users' norms (docs/decisions/0008)."""

from dataclasses import dataclass, replace

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.federation.worker import Worker
from fedsim_userdp.mechanisms.guarantee import Guarantee, default_count_stddev
from fedsim_userdp.mechanisms.persistence import RunState
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.mechanisms.study import Study
from fedsim_userdp.mechanisms.user_wise import UserWise
from fedsim_userdp.participation import UserLevel, expected_share
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.adaptive_clipping import ClipAdaptation
from fedsim_userdp.strategies.user_level_dp import UserLevelSettings


@dataclass(frozen=True, kw_only=True)
class UserWiseAdaptive(UserWise):
    """User-wise DP-SGD through Flower, its clip norm adapted by a noisy count of unclipped users (Andrew et al. 2021).

    Attributes:
        clip_norm: bound on the norm of a user's update in the first round, above 0.
        target_quantile: the share of users that shall stay unclipped, in (0, 1).
        clip_learning_rate: of the logarithm of the clip norm, above 0 and at most 10.
        count_stddev: standard deviation of the noise on the count, in users, above half of the noise multiplier; None
            for a twentieth of the expected cohort, but no less than the noise multiplier.
    """

    name: str = "user_wise_adaptive"
    clip_norm: float = 0.01
    target_quantile: float = 0.5
    clip_learning_rate: float = 1.0
    count_stddev: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            ClipAdaptation(self.target_quantile, self.clip_learning_rate, self.count_stddev or 0.0)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def guarantee(self, study: Study) -> Guarantee:
        """Returns the promise of update and count together, which cost what the update alone would."""
        promise = super().guarantee(study)
        release = promise.release
        if not isinstance(release, UserLevel | acc.PaidSignals):
            return promise  # without noise: then the count has none either
        if isinstance(promise.declared, acc.PoissonGroups) and not promise.declared.is_unweighted:
            raise ConfigError(
                f"mechanism={self.name} counts users, and selection={type(study.selector).__name__} gives them "
                "weights, which a count has none of: use mechanism=user_wise"
            )
        needed = promise.noise_multiplier  # of update and count together
        expected_cohort = expected_share(study.selector, study.population, self.rounds) * study.num_users
        default = default_count_stddev(expected_cohort, needed)
        count_stddev = default if self.count_stddev is None else self.count_stddev
        if count_stddev <= needed / 2:
            raise ConfigError(
                f"mechanism.count_stddev={count_stddev:g} must be above {needed / 2:.4g}, half of the noise multiplier "
                "that the budget asks for: the count alone would cost more than that"
            )
        return replace(promise, release=acc.AdaptiveClipping(release, count_stddev))

    def _settings(self, run: Run, guarantee: Guarantee, state: RunState, worker: Worker) -> UserLevelSettings:
        """The numbers of the strategy, with the clip norm that an earlier part of the run came to."""
        release = guarantee.release
        count_stddev = release.count_stddev if isinstance(release, acc.AdaptiveClipping) else 0.0
        return replace(
            super()._settings(run, guarantee, state, worker),
            clip_norm=state.clip_norm or self.clip_norm,
            adaptation=ClipAdaptation(self.target_quantile, self.clip_learning_rate, count_stddev),
        )
