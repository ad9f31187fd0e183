"""A clip norm that follows a quantile of the users' norms, by way of a noisy count (docs/decisions/0008).

Source: Andrew, Thakkar, McMahan and Ramaswamy 2021, "Differentially private learning with adaptive clipping",
arXiv 1905.03871, Algorithm 1; what a round costs is `descriptions.AdaptiveClipping`.
"""

import math
from dataclasses import dataclass

from fedsim_userdp.privacy.clipping import ClippedSum
from fedsim_userdp.privacy.noise import LEAST, MOST, NoiseSource


@dataclass(frozen=True)
class ClipAdaptation:
    """How the clip norm follows the norms of updates; public.

    Attributes:
        target_quantile: the share of updates that shall stay unclipped, in (0, 1).
        learning_rate: of the logarithm of the clip norm, above 0 and at most 10; 0.2 in the source.
        count_stddev: standard deviation of the noise on the count, in users; 0 for no privacy.
    """

    target_quantile: float
    learning_rate: float
    count_stddev: float

    def __post_init__(self) -> None:
        if not 0 < self.target_quantile < 1:
            raise ValueError(f"target_quantile={self.target_quantile} must lie between 0 and 1")
        if not 0 < self.learning_rate <= 10:
            raise ValueError(f"clip_learning_rate={self.learning_rate} must be above 0 and at most 10")
        if not 0 <= self.count_stddev < math.inf:
            raise ValueError(f"count_stddev={self.count_stddev} must be finite and at least 0")


def unclipped_balance(clipped: ClippedSum) -> float:
    """Returns the number of units whose norm was within the bound, minus those above it, halved.

    Guarantee: adding or removing one unit changes it by at most 1/2: a unit counts +1/2 or -1/2, and one without an
    update, or with one that is not finite, counts 0.
    """
    return (clipped.num_units - clipped.num_nonfinite) / 2 - clipped.num_clipped


def unclipped_share(
    clipped: ClippedSum, expected_cohort: float, count_stddev: float, source: NoiseSource, round: int
) -> float:
    """Returns a noisy estimate of the share of units within the bound, in [0, 1].

    Guarantee: a Gaussian mechanism of sensitivity 1/2 and standard deviation `count_stddev`, whose noise is independent
    of the update's; the denominator is public, and the rest is post-processing.

    Args:
        clipped: the round's sum with its counts.
        expected_cohort: expected number of users in a round, above 0.
        count_stddev: standard deviation of the noise, in users, at least 0.
        source: where noise comes from.
        round: the round that the noise belongs to, at least 1.
    """
    noise = float(source.standard_normal(1, round, "count")[0]) * count_stddev if count_stddev else 0.0
    share = (unclipped_balance(clipped) + noise) / expected_cohort + 0.5
    return min(max(share, 0.0), 1.0)


def next_clip_norm(clip_norm: float, share: float, adaptation: ClipAdaptation) -> float:
    """Returns the next round's clip norm: smaller when more than the target's share of updates stayed unclipped.

    Args:
        clip_norm: this round's, in [1e-30, 1e30].
        share: the noisy share of updates within it, in [0, 1].
        adaptation: target and learning rate.
    """
    factor = math.exp(-adaptation.learning_rate * (share - adaptation.target_quantile))
    return min(max(clip_norm * factor, LEAST), MOST)
