"""Whether a run's claim survives its audit, at one confidence for everything that is reported together."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.audit.bounds import largest_delta
from fedsim_userdp.audit.canaries import Canaries
from fedsim_userdp.audit.directions import Floats
from fedsim_userdp.audit.games import GameResult, play_in_or_out, play_which_direction, weigh
from fedsim_userdp.audit.one_shot import Estimate, final_model_estimate
from fedsim_userdp.privacy.streams import RunKey

NUM_GAMES = 2


@dataclass(frozen=True)
class Trace:
    """What the auditor sees of a run.

    Attributes:
        releases: the noisy sum of each round in units of the clip norm, shape [rounds, size], float32.
        change: the server's steps in all: the adapter before the run minus the adapter after it, shape [size].
    """

    releases: Floats
    change: Floats


@dataclass(frozen=True)
class Claim:
    """What a run says about itself.

    Attributes:
        epsilon: user-level epsilon of the whole run; infinity for a run that claims nothing.
        delta: user-level delta.
        sampling_prob: probability of a user to take part in a round.
    """

    epsilon: float
    delta: float
    sampling_prob: float


@dataclass(frozen=True)
class Findings:
    """What an audit of one run found.

    Attributes:
        claim: the run's claim.
        games: the tests; their bounds hold together at the confidence that was asked for.
        estimate: one-shot estimate of epsilon from the final model, no bound; None with too few canaries.
    """

    claim: Claim
    games: tuple[GameResult, ...]
    estimate: Estimate | None

    @property
    def lower_bound(self) -> float:
        """The largest of the bounds."""
        return max(game.lower_bound for game in self.games)

    @property
    def is_refuted(self) -> bool:
        """Whether a bound is above the claimed epsilon."""
        return self.lower_bound > self.claim.epsilon


def significance_of_each(confidence: float, num_claims: int) -> float:
    """Returns the significance of each test, so that all of them hold at `confidence` together (Bonferroni).

    Args:
        confidence: of everything together, in (0, 1).
        num_claims: runs that are audited and reported together, at least 1.

    Raises:
        ValueError: when the confidence is out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"audit.confidence={confidence} must lie in (0, 1)")
    return (1 - confidence) / (NUM_GAMES * num_claims)


def check_delta(delta: float, num_canaries: int, significance: float) -> None:
    """Raises ValueError when delta leaves so little of the significance that no bound could be above 0."""
    if delta > (largest := largest_delta(num_canaries, significance)):
        raise ValueError(
            f"privacy.delta={delta:g} is too large for an audit with {num_canaries} canaries at significance "
            f"{significance:.2g} a test: it must be at most {largest:.2g} (or audit.canaries fewer)"
        )


def judge(
    trace: Trace,
    canaries: Canaries,
    claim: Claim,
    significance: float,
    advance: Callable[[int], None] | None = None,
) -> Findings:
    """Returns what the auditor of a run finds.

    Guarantee: if the run is (claim.epsilon, claim.delta)-DP with respect to one user, each bound is above claim.epsilon
    with probability at most `significance`, over the coins of the canaries and the randomness of the run.

    Args:
        trace: what the auditor sees.
        canaries: the canaries that were planted.
        claim: the run's claim.
        significance: of each test, in (0, 1).
        advance: called with the number of canaries done, for progress.

    Raises:
        ValueError: when delta is too large for so many canaries, or the releases say nothing at all.
    """
    check_delta(claim.delta, len(canaries), significance)
    evidence = weigh(trace.releases, canaries, claim.sampling_prob, advance)
    generator = RunKey.seeded(canaries.directions.seed).generator("audit", user="one-shot bootstrap")
    return Findings(
        claim=claim,
        games=(
            play_which_direction(evidence, canaries, claim.delta, significance),
            play_in_or_out(evidence, canaries, claim.delta, significance),
        ),
        estimate=final_model_estimate(_cosines(trace, canaries), len(trace.change), claim.delta, generator),
    )


def _cosines(trace: Trace, canaries: Canaries) -> NDArray[np.float64]:
    """The cosine of the whole change with the direction of each canary that took part."""
    present = [canary for canary in range(len(canaries)) if canaries.included[canary]]
    sent = (canaries.directions.direction(canary, int(canaries.candidates[canary])) for canary in present)
    products = np.array([np.dot(trace.change, direction) for direction in sent], dtype=np.float64)
    return products / max(float(np.linalg.norm(trace.change)), np.finfo(np.float64).tiny)
