"""The auditor's side of a run: scores from the releases, guesses from the scores, bounds from the guesses."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fedsim_userdp.audit.bounds import Guesses, epsilon_lower_bound, in_or_out_p_value, which_direction_p_value
from fedsim_userdp.audit.canaries import Canaries
from fedsim_userdp.audit.directions import Floats
from fedsim_userdp.audit.scores import Scorer

GUESSED_SHARE = (
    1 / 8
)  # of the canaries, the rest are abstentions: a third of the canaries may be the only revealing ones


@dataclass(frozen=True)
class Evidence:
    """What the releases say about each canary.

    Attributes:
        own: log Bayes factor of the canary's own direction, shape [canaries].
        best: the direction of its candidates that scores highest, shape [canaries].
        confidence: log posterior odds of `best` against everything else, shape [canaries].
    """

    own: NDArray[np.float64]
    best: NDArray[np.int64]
    confidence: NDArray[np.float64]


@dataclass(frozen=True)
class GameResult:
    """One game's outcome.

    Attributes:
        game: "in_or_out" or "which_direction".
        num_guesses: canaries that were guessed.
        num_correct: right guesses.
        guesses_of: by kind of canary, how many were guessed and how many of them rightly.
        lower_bound: on epsilon, at the confidence asked for.
        ceiling: the bound that all guesses being right would have given: what the game can show at most.
    """

    game: str
    num_guesses: int
    num_correct: int
    guesses_of: dict[str, tuple[int, int]]
    lower_bound: float
    ceiling: float


def weigh(
    releases: Floats, canaries: Canaries, sampling_prob: float, advance: Callable[[int], None] | None = None
) -> Evidence:
    """Returns what a run's releases say about its canaries.

    Guarantee: uses the releases, the public directions and, for `own` only, each canary's own direction; never a coin.

    Args:
        releases: noisy sums in units of the clip norm, shape [rounds, size], float32.
        canaries: the canaries.
        sampling_prob: probability of a user to take part in a round, as claimed.
        advance: called with the number of canaries done, for progress.
    """
    scorer = Scorer.of(releases, sampling_prob)
    own, best, confidence = np.empty(len(canaries)), np.empty(len(canaries), np.int64), np.empty(len(canaries))
    for canary in range(len(canaries)):
        scores = scorer.log_bayes_factors(canaries.directions.inner_products(canary, releases))
        own[canary] = scores[canaries.candidates[canary]]
        best[canary] = scores.argmax()
        confidence[canary] = _log_odds(scores)
        if advance is not None:
            advance(canary + 1)
    return Evidence(own, best, confidence)


def play_in_or_out(evidence: Evidence, canaries: Canaries, delta: float, significance: float) -> GameResult:
    """Returns the game in which the canaries with the highest scores are guessed to have taken part.

    Nobody is guessed to be absent: a canary that was never sampled looks the same.

    Args:
        evidence: of the run.
        canaries: the canaries; their coins tell which guesses are right.
        delta: of the claim.
        significance: of the bound.
    """
    guessed = _most_certain(evidence.own)
    p_value = partial(in_or_out_p_value, delta=delta)
    return _result("in_or_out", canaries, guessed, canaries.included[guessed], p_value, significance)


def play_which_direction(evidence: Evidence, canaries: Canaries, delta: float, significance: float) -> GameResult:
    """Returns the game in which the directions of the most certain canaries are guessed.

    A guess is right when the canary took part and sent that direction.

    Args:
        evidence: of the run.
        canaries: the canaries; their coins and directions tell which guesses are right.
        delta: of the claim.
        significance: of the bound.
    """
    guessed = _most_certain(evidence.confidence)
    is_correct = canaries.included[guessed] & (evidence.best[guessed] == canaries.candidates[guessed])
    num_candidates = canaries.directions.num_candidates

    def p_value(guesses: Guesses, epsilon: float) -> float:
        return which_direction_p_value(guesses, num_candidates, epsilon, delta)

    return _result("which_direction", canaries, guessed, is_correct, p_value, significance)


def num_guesses_of(num_canaries: int) -> int:
    """Returns how many canaries are guessed; fixed before the run, as the bounds ask."""
    return max(1, round(GUESSED_SHARE * num_canaries))


def _log_odds(scores: NDArray[np.float64]) -> float:
    """log P[the best direction took part] / P[another did, or none], none having half of the prior probability."""
    best = int(scores.argmax())
    others = special.logsumexp(np.delete(scores, best))
    return float(scores[best] - np.logaddexp(np.log(len(scores)), others))


def _most_certain(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """The canaries with the highest scores, earlier ones first among equals."""
    return np.argsort(-scores, kind="stable")[: num_guesses_of(len(scores))]


def _result(
    game: str,
    canaries: Canaries,
    guessed: NDArray[np.int64],
    is_correct: NDArray[np.bool_],
    p_value: Callable[[Guesses, float], float],
    significance: float,
) -> GameResult:
    """The outcome of a game with these guesses."""
    num_correct = int(is_correct.sum())
    counts: dict[str, tuple[int, int]] = {}
    for canary, correct in zip(guessed, is_correct, strict=True):
        name = canaries.kinds[int(canary)].name
        all_of, right = counts.get(name, (0, 0))
        counts[name] = (all_of + 1, right + int(correct))

    def bound(correct: int) -> float:
        guesses = Guesses(len(canaries), len(guessed), correct)
        return epsilon_lower_bound(lambda epsilon: p_value(guesses, epsilon), significance)

    return GameResult(game, len(guessed), num_correct, counts, bound(num_correct), bound(len(guessed)))
