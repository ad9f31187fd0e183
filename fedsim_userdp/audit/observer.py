"""Somebody who knows all that a run publishes: can they tell who took part, or take the noise away?

With a seeded run they can: the run key follows from the seed and from what the run depends on, and the privacy
statement promises nothing against them.  With a key from the operating system nothing that is published tells it.
Whatever the key, no run may tell the secrets of another: their joint statement takes them as independent.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedsim_userdp.participation import UserLevel
from fedsim_userdp.privacy import accounting as acc

CHANCE = 1e-6  # probability with which an observer who knows nothing is taken for one who does, for each test


@dataclass(frozen=True)
class Draws:
    """What a run draws, or a guess at it.

    Attributes:
        cohorts: user numbers of each round.
        noise: standard normal numbers, shape [rounds, size]; a round of zeros has none.
    """

    cohorts: Sequence[Sequence[int]]
    noise: NDArray[np.floating]


_OF_SAMPLING = acc.PoissonUsers | acc.TruncatedPoisson | acc.FixedSize | acc.FixedSizeStrata


@dataclass(frozen=True)
class Secrets:
    """What a run's claim takes as unknown to whoever sees its releases.

    Attributes:
        cohorts: whether it does so of cohorts.
        noise: whether it does so of noise.
    """

    cohorts: bool
    noise: bool

    @classmethod
    def of(cls, declared: UserLevel | None) -> "Secrets":
        """Returns the secrets of a run: noise, and cohorts where sampling amplifies; none where nothing is claimed."""
        return cls(cohorts=isinstance(declared, _OF_SAMPLING), noise=declared is not None)


@dataclass(frozen=True)
class Observation:
    """What an observer's guesses at cohorts and noise are worth: those of the best guess.

    Attributes:
        cohort_agreement: part of the guessed participations that are true, in [0, 1].
        cohort_p: probability of as many true ones by chance, in any of the guesses.
        noise_agreement: part of the released sums' length that lies along the guessed noise, in [-1, 1].
        noise_p: probability of as much by chance, along or against it, in any of the guesses.
    """

    cohort_agreement: float = 0.0
    cohort_p: float = 1.0
    noise_agreement: float = 0.0
    noise_p: float = 1.0

    @property
    def knows_cohorts(self) -> bool:
        """Whether the guessed cohorts are better than chance."""
        return self.cohort_p < CHANCE

    @property
    def knows_noise(self) -> bool:
        """Whether the guessed noise is better than chance."""
        return self.noise_p < CHANCE

    def finds(self, secrets: Secrets) -> bool:
        """Returns whether something is known that the claim takes as secret."""
        return (secrets.cohorts and self.knows_cohorts) or (secrets.noise and self.knows_noise)

    def in_words(self, known: str) -> str:
        """Returns what was found; `known` is the word for what is better than chance."""
        return ", ".join(
            f"{what} {known if knows else 'not better than chance'} (agreement {share:.3f}, p = {p:.1g})"
            for what, knows, share, p in (
                ("cohorts", self.knows_cohorts, self.cohort_agreement, self.cohort_p),
                ("noise", self.knows_noise, self.noise_agreement, self.noise_p),
            )
        )


@dataclass(frozen=True)
class Observed:
    """What an observer tells of one run.

    Attributes:
        secrets: what the run's claim takes as secret.
        is_seeded: whether the run's key follows from its seed.
        published: from all that is published.
        others: from what earlier runs drew; None where there is none to compare, or nothing is claimed.
    """

    secrets: Secrets
    is_seeded: bool
    published: Observation
    others: Observation | None = None

    @property
    def refutes_claim(self) -> bool:
        """Whether what is published tells a secret; a seeded run promises nothing towards whoever has its seed."""
        return self.published.finds(self.secrets) and not self.is_seeded

    @property
    def refutes_independence(self) -> bool:
        """Whether an earlier run tells a secret of this one: they do not compose, seeded or not."""
        return self.others is not None and self.others.finds(self.secrets)

    def numbers(self) -> dict[str, float]:
        """Returns what was measured, by name."""
        others = {} if self.others is None else asdict(self.others)
        return asdict(self.published) | {f"others_{name}": value for name, value in others.items()}

    def in_words(self) -> str:
        """Returns what was found and what it means."""
        found = f"Who knows all that is published: {self.published.in_words('recomputed')}. {self._meant()}"
        if self.others is None:
            return found
        meant = "REFUTED: runs share what is secret." if self.refutes_independence else "No secret is shared."
        return f"{found} Beside earlier runs: {self.others.in_words('shared')}. {meant}"

    def _meant(self) -> str:
        """What it means that so much is recomputed."""
        if not (self.published.knows_cohorts or self.published.knows_noise):
            return "Nothing is gained from it."
        if not self.published.finds(self.secrets):
            return "No claim rests on it."
        if self.is_seeded:
            return "The run is seeded, and its statement promises nothing towards whoever knows or guesses the seed."
        return "REFUTED: what is kept secret follows from what is published."


def observe(
    guesses: Iterable[Draws], cohorts: Sequence[Sequence[int]], sampling_prob: float, releases: NDArray[np.float32]
) -> Observation:
    """Returns what guesses at a run's cohorts and noise are worth.

    If a guess is independent of the run, the number of guessed participations that are true is
    Binomial(number of guesses, sampling_prob), and the sum over the rounds of <z, R> / |R|, with z the guessed noise
    N(0, I) and R the released sum, is N(0, number of rounds).  Of n guesses the least probability counts n times
    (Bonferroni).

    Args:
        guesses: taken one after the other.
        cohorts: those that took part, of each round.
        sampling_prob: of a user in a round, in (0, 1].
        releases: released noisy sums, shape [rounds, size]; the unit does not matter.
    """
    found = [(*_cohorts_told(guess, cohorts, sampling_prob), *_noise_told(guess, releases)) for guess in guesses]
    if not found:
        return Observation()
    cohort_p, cohort_agreement = min((p, share) for p, share, _, _ in found)
    noise_p, noise_agreement = min((p, share) for _, _, p, share in found)
    return Observation(
        cohort_agreement, min(cohort_p * len(found), 1.0), noise_agreement, min(noise_p * len(found), 1.0)
    )


def _cohorts_told(guess: Draws, cohorts: Sequence[Sequence[int]], sampling_prob: float) -> tuple[float, float]:
    """The probability of as many true participations by chance, and their share."""
    pairs = list(zip(guess.cohorts, cohorts, strict=True))
    guesses = sum(len(guessed) for guessed, _ in pairs)
    if not guesses:
        return 1.0, 0.0
    right = sum(len(set(guessed) & set(true)) for guessed, true in pairs)
    return float(stats.binom.sf(right - 1, guesses, sampling_prob)), right / guesses


def _noise_told(guess: Draws, releases: NDArray[np.float32]) -> tuple[float, float]:
    """The two-sided probability of so much noise by chance (turned round it is known as well), and its share."""
    norms, lengths = np.linalg.norm(releases, axis=1), np.linalg.norm(guess.noise, axis=1)
    told = (norms > 0) & (lengths > 0)
    if not told.any():
        return 1.0, 0.0
    along = np.einsum("rs,rs->r", guess.noise, releases)[told] / norms[told]
    p = 2.0 * float(stats.norm.sf(abs(along.sum()) / math.sqrt(len(along))))
    return p, float(np.mean(along / lengths[told]))
