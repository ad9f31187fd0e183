"""What somebody who knows all that a run publishes can tell of it."""

import numpy as np
import pytest

from fedsim_userdp.audit.observer import CHANCE, observe
from fedsim_userdp.privacy.noise import NoiseSource, OperatingSystemNoise, SeededNoise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import PoissonSelector, draw_cohort

USERS, ROUNDS, SIZE, PROB = 200, 12, 3000, 0.1
HASHES = np.random.default_rng(0).integers(0, 2**63, USERS).astype(np.uint64)
PUBLISHED = RunKey.seeded(0, "all digests")


def cohorts(key: RunKey) -> list[list[int]]:
    return [draw_cohort(PoissonSelector(PROB), HASHES, round, key).tolist() for round in range(1, ROUNDS + 1)]


def noise_of(source: NoiseSource) -> np.ndarray:
    return np.stack([source.standard_normal(SIZE, round) for round in range(1, ROUNDS + 1)])


def seen(key: RunKey, noise: np.ndarray):
    """The observation of a run whose sums are five times as long as its noise."""
    signal = 5.0 * np.random.default_rng(9).standard_normal(SIZE)
    return observe(cohorts(PUBLISHED), cohorts(key), PROB, noise_of(SeededNoise(PUBLISHED)), signal + noise)


def test_of_a_seeded_run_cohorts_and_noise_are_recomputed_and_its_words_say_that_nothing_was_promised() -> None:
    found = seen(PUBLISHED, noise_of(SeededNoise(PUBLISHED)))
    assert found.cohort_agreement == 1.0
    assert found.knows_cohorts
    assert found.knows_noise
    assert "promises nothing" in found.in_words(is_seeded=True)


@pytest.mark.parametrize("repetition", range(20))
def test_of_a_release_nothing_is_gained(repetition: int) -> None:
    """Each of the 40 tests fails by chance with 1e-6: 4e-5 in all."""
    found = seen(RunKey.drawn(), noise_of(OperatingSystemNoise()))
    assert not found.knows_cohorts
    assert not found.knows_noise
    assert "Nothing is gained" in found.in_words(is_seeded=False)


def test_a_release_whose_cohorts_follow_from_the_seed_is_found() -> None:
    found = seen(PUBLISHED, noise_of(OperatingSystemNoise()))
    assert found.knows_cohorts
    assert not found.knows_noise
    assert "REFUTED" in found.in_words(is_seeded=False)


def test_a_release_half_of_whose_noise_follows_from_the_seed_is_found() -> None:
    halves = (noise_of(OperatingSystemNoise()) + noise_of(SeededNoise(PUBLISHED))) / 2**0.5
    found = seen(RunKey.drawn(), halves)
    assert found.knows_noise
    assert not found.knows_cohorts


def test_noise_of_another_run_of_the_same_seed_says_nothing() -> None:
    other = RunKey.seeded(0, "another run")
    found = seen(other, noise_of(SeededNoise(other)))
    assert not found.knows_cohorts
    assert not found.knows_noise


def test_the_probabilities_are_those_of_chance() -> None:
    """By independent guesses: uniform p-values of the noise, and of the cohorts none too small too often."""
    generator = np.random.default_rng(3)
    observed = []
    for _ in range(400):
        guess, true = ([np.flatnonzero(generator.random(50) < 0.2).tolist() for _ in range(4)] for _ in range(2))
        releases = generator.standard_normal((4, 30)) + 2.0
        observed.append(observe(guess, true, 0.2, generator.standard_normal((4, 30)), releases))
    for values in ([one.noise_p for one in observed], [one.cohort_p for one in observed]):
        assert np.mean(np.array(values) < 0.1) < 0.1 + 5 * (0.09 / 400) ** 0.5
        assert min(values) > CHANCE
    assert np.mean([one.noise_p for one in observed]) == pytest.approx(0.5, abs=0.075)


def test_everybody_in_every_round_and_empty_rounds_tell_nothing() -> None:
    everybody = [list(range(5))] * 3
    nothing = observe(everybody, everybody, 1.0, np.ones((3, 4)), np.zeros((3, 4), np.float32))
    assert (nothing.cohort_p, nothing.noise_p) == (1.0, 1.0)
    assert observe([[]], [[]], 0.5, np.ones((1, 4)), np.ones((1, 4))).cohort_p == 1.0
