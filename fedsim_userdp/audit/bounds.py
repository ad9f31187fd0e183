"""From the number of an auditor's correct guesses to a lower bound on epsilon, with a stated confidence.

Two games about the same run.  In both, each of m canary users takes part or not by a fair coin of its own.

*In or out* (Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run", arXiv 2305.08846): each
canary's update is public, and the auditor guesses whether it took part.  Under epsilon-DP a guess is right with
probability at most e^epsilon / (1 + e^epsilon), whatever happened to the others.

*Which direction*: a canary that takes part also draws one of K public updates, and the auditor guesses which.  This is
the guessing game among k > 2 possibilities of Mahloujifar, Melis and Chaudhuri 2025, "Auditing f-Differential Privacy
in One Run", arXiv 2410.22235, bounded here for (epsilon, delta): being absent has prior odds K : 1 against each
update, DP moves them by at most e^epsilon, so a guess is right with probability at most e^epsilon / (K + e^epsilon).
A few right guesses among many possibilities therefore say much, where *in or out* of m canaries cannot say more than
about log(m).  docs/audit.md has the proof.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

_MOST_EPSILON = 500.0
_HALVINGS = 42


@dataclass(frozen=True)
class Guesses:
    """What an auditor did.

    Attributes:
        num_canaries: m, canaries with a fair coin each, at least 1.
        num_guesses: r, how many of them were guessed, fixed before the run; the others are abstentions.
        num_correct: v, right guesses, in [0, num_guesses].
    """

    num_canaries: int
    num_guesses: int
    num_correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.num_correct <= self.num_guesses <= self.num_canaries or self.num_guesses < 1:
            raise ValueError(
                f"num_correct={self.num_correct}, num_guesses={self.num_guesses} and num_canaries={self.num_canaries} "
                "must satisfy 0 <= num_correct <= num_guesses <= num_canaries and num_guesses >= 1"
            )


def in_or_out_p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Returns a bound on the probability of so many right guesses in the game *in or out* under (epsilon, delta)-DP.

    p = f(v) + 2 m delta max_{i = 1..v} (f(v - i) - f(v)) / i,  f(x) = P[Binomial(r, e^epsilon / (1 + e^epsilon)) >= x]

    Args:
        guesses: m, r and v.
        epsilon: at least 0.
        delta: in [0, 1 / (2 m)], where p grows with epsilon.

    Raises:
        ValueError: when delta is outside of that range.

    Source: Steinke et al. 2023, Theorem 5.2 and Appendix D.
    """
    excess = 2 * guesses.num_canaries * _checked_delta(delta, guesses)
    chance = float(special.expit(epsilon))
    tail = stats.binom.sf(np.arange(-1, guesses.num_correct), guesses.num_guesses, chance)  # f(0), ..., f(v)
    at_least_v = float(tail[-1])
    if guesses.num_correct == 0:
        return 1.0
    fewer = np.arange(1, guesses.num_correct + 1)
    steepest = float(((tail[-1 - fewer] - at_least_v) / fewer).max())
    return min(at_least_v + excess * steepest, 1.0)


def which_direction_p_value(guesses: Guesses, num_candidates: int, epsilon: float, delta: float) -> float:
    """Returns a bound on the probability of so many right guesses in *which direction* under (epsilon, delta)-DP.

    p = P[Binomial(r, e^epsilon / (K + e^epsilon)) >= v] + m delta / 2

    Args:
        guesses: m, r and v.
        num_candidates: K, possible updates of each canary, drawn uniformly by those that take part; at least 1.
        epsilon: at least 0.
        delta: in [0, 1 / (2 m)].

    Raises:
        ValueError: when an argument is out of range.

    Source: docs/audit.md.
    """
    if num_candidates < 1:
        raise ValueError(f"num_candidates={num_candidates} must be at least 1")
    excess = guesses.num_canaries * _checked_delta(delta, guesses) / 2
    chance = float(special.expit(epsilon - np.log(num_candidates)))
    return min(float(stats.binom.sf(guesses.num_correct - 1, guesses.num_guesses, chance)) + excess, 1.0)


def epsilon_lower_bound(p_value_of: Callable[[float], float], significance: float) -> float:
    """Returns the largest epsilon that is refuted: every smaller one would make what was seen less likely.

    Guarantee: for an (epsilon, delta)-DP run the result is above epsilon with probability at most `significance`.
    Assumes: the p-value is valid and does not fall as epsilon grows.

    Args:
        p_value_of: epsilon to p-value.
        significance: in (0, 1).

    Returns:
        Epsilon in [0, 500], rounded down by less than 1e-9; 0 where nothing is refuted.

    Raises:
        ValueError: when `significance` is out of range.
    """
    if not 0 < significance < 1:
        raise ValueError(f"significance={significance} must lie in (0, 1)")
    refuted, kept = 0.0, _MOST_EPSILON
    if p_value_of(refuted) >= significance:
        return 0.0
    for _ in range(_HALVINGS):
        middle = (refuted + kept) / 2
        refuted, kept = (middle, kept) if p_value_of(middle) < significance else (refuted, middle)
    return refuted


def largest_delta(num_canaries: int, significance: float) -> float:
    """Returns the delta above which half of `significance` or more would go to delta, and bounds would mean little."""
    return significance / num_canaries


def _checked_delta(delta: float, guesses: Guesses) -> float:
    """The delta, in the range where p-values are valid and grow with epsilon."""
    if not 0 <= delta <= 1 / (2 * guesses.num_canaries):
        raise ValueError(
            f"delta={delta:g} must lie in [0, {1 / (2 * guesses.num_canaries):g}] for {guesses.num_canaries} canaries"
        )
    return delta
