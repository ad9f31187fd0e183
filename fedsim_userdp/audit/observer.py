"""Somebody who knows all that a run publishes: can they tell who took part, or take the noise away?

With a seeded run they can: the run key follows from the seed and from what the run depends on, and the privacy
statement promises nothing against them.  With a key from the operating system nothing that is published tells it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CHANCE = 1e-6  # probability with which an observer who knows nothing is taken for one who does, for each of both tests


@dataclass(frozen=True)
class Observation:
    """What an observer's guesses at cohorts and noise are worth.

    Attributes:
        cohort_agreement: part of the guessed participations that are true, in [0, 1].
        cohort_p: probability of as many true ones by chance.
        noise_agreement: part of the released sums' length that lies along the guessed noise, in [-1, 1].
        noise_p: probability of as much by chance.
    """

    cohort_agreement: float
    cohort_p: float
    noise_agreement: float
    noise_p: float

    @property
    def knows_cohorts(self) -> bool:
        """Whether the guessed cohorts are better than chance."""
        return self.cohort_p < CHANCE

    @property
    def knows_noise(self) -> bool:
        """Whether the guessed noise is better than chance."""
        return self.noise_p < CHANCE

    def in_words(self, *, is_seeded: bool) -> str:
        """Returns what was found and what it means, in two sentences."""
        found = ", ".join(
            f"{what} {'recomputed' if knows else 'not better than chance'} (agreement {share:.3f}, p = {p:.1g})"
            for what, knows, share, p in (
                ("cohorts", self.knows_cohorts, self.cohort_agreement, self.cohort_p),
                ("noise", self.knows_noise, self.noise_agreement, self.noise_p),
            )
        )
        if not (self.knows_cohorts or self.knows_noise):
            return f"Who knows all that is published: {found}. Nothing is gained from it."
        meant = (
            "The run is seeded, and its statement promises nothing towards whoever knows or guesses the seed."
            if is_seeded
            else "REFUTED: what is kept secret follows from what is published."
        )
        return f"Who knows all that is published: {found}. {meant}"


def observe(
    guessed_cohorts: Sequence[Sequence[int]],
    cohorts: Sequence[Sequence[int]],
    sampling_prob: float,
    guessed_noise: NDArray[np.float64],
    releases: NDArray[np.float32],
) -> Observation:
    """Returns what guesses at a run's cohorts and noise are worth.

    If the guesses are independent of the run, the number of guessed participations that are true is
    Binomial(number of guesses, sampling_prob), and the sum over the rounds of <z, R> / |R|, with z the guessed noise
    N(0, I) and R the released sum, is N(0, number of rounds).

    Args:
        guessed_cohorts: user numbers of each round.
        cohorts: those that took part.
        sampling_prob: of a user in a round, in (0, 1].
        guessed_noise: standard normal numbers, shape [rounds, size].
        releases: released noisy sums, shape [rounds, size]; the unit does not matter.
    """
    pairs = list(zip(guessed_cohorts, cohorts, strict=True))
    guesses = sum(len(guess) for guess, _ in pairs)
    right = sum(len(set(guess) & set(true)) for guess, true in pairs)
    norms = np.linalg.norm(releases, axis=1)
    along = np.einsum("rs,rs->r", guessed_noise, releases)[norms > 0] / norms[norms > 0]
    lengths = np.linalg.norm(guessed_noise, axis=1)[norms > 0]
    return Observation(
        cohort_agreement=right / guesses if guesses else 0.0,
        cohort_p=float(stats.binom.sf(right - 1, guesses, sampling_prob)) if guesses else 1.0,
        noise_agreement=float(np.mean(along / lengths)) if len(along) else 0.0,
        noise_p=float(stats.norm.sf(along.sum() / math.sqrt(len(along)))) if len(along) else 1.0,
    )
