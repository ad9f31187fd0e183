"""What somebody who knows all that a run publishes can tell of it."""

import numpy as np
import pytest

from fedsim_userdp.audit.observer import CHANCE, Draws, Observation, Observed, Secrets, observe
from fedsim_userdp.participation import draw_cohort
from fedsim_userdp.population import Population
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.noise import NoiseSource, OperatingSystemNoise, SeededNoise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import PoissonSelector

USERS, ROUNDS, SIZE, PROB = 200, 12, 3000, 0.1
HASHES = np.random.default_rng(0).integers(0, 2**63, USERS).astype(np.uint64)
PUBLISHED = RunKey.seeded(0, "all digests")
SAMPLED = Secrets.of(acc.PoissonUsers(1.0, PROB, ROUNDS))


def cohorts(key: RunKey) -> list[list[int]]:
    return [
        draw_cohort(PoissonSelector(PROB), Population(HASHES), round, key).tolist() for round in range(1, ROUNDS + 1)
    ]


def noise_of(source: NoiseSource) -> np.ndarray:
    return np.stack([source.standard_normal(SIZE, round) for round in range(1, ROUNDS + 1)])


def draws(key: RunKey) -> Draws:
    return Draws(cohorts(key), noise_of(SeededNoise(key)))


def seen(key: RunKey, noise: np.ndarray, *guessed: RunKey) -> Observation:
    """The observation of a run whose sums are five times as long as its noise."""
    signal = 5.0 * np.random.default_rng(9).standard_normal(SIZE)
    return observe([draws(guess) for guess in guessed or (PUBLISHED,)], cohorts(key), PROB, signal + noise)


def test_of_a_seeded_run_cohorts_and_noise_are_recomputed_and_its_words_say_that_nothing_was_promised() -> None:
    found = seen(PUBLISHED, noise_of(SeededNoise(PUBLISHED)))
    assert found.cohort_agreement == 1.0
    assert found.knows_cohorts
    assert found.knows_noise
    observed = Observed(SAMPLED, True, found)
    assert not observed.refutes_claim
    assert "promises nothing" in observed.in_words()


@pytest.mark.parametrize("repetition", range(20))
def test_of_a_release_nothing_is_gained(repetition: int) -> None:
    """Each of the 40 tests fails by chance with 1e-6: 4e-5 in all."""
    found = seen(RunKey.drawn(), noise_of(OperatingSystemNoise()))
    assert not found.knows_cohorts
    assert not found.knows_noise
    assert "Nothing is gained" in Observed(SAMPLED, False, found).in_words()


def test_a_release_whose_cohorts_follow_from_the_seed_is_found() -> None:
    found = seen(PUBLISHED, noise_of(OperatingSystemNoise()))
    assert found.knows_cohorts
    assert not found.knows_noise
    observed = Observed(SAMPLED, False, found)
    assert observed.refutes_claim
    assert "REFUTED" in observed.in_words()


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
        releases = generator.standard_normal((4, 30)).astype(np.float32) + 2.0
        observed.append(observe([Draws(guess, generator.standard_normal((4, 30)))], true, 0.2, releases))
    for values in ([one.noise_p for one in observed], [one.cohort_p for one in observed]):
        assert np.mean(np.array(values) < 0.1) < 0.1 + 5 * (0.09 / 400) ** 0.5
        assert min(values) > CHANCE
    assert np.mean([one.noise_p for one in observed]) == pytest.approx(0.5, abs=0.075)


def test_everybody_in_every_round_and_empty_rounds_tell_nothing() -> None:
    everybody = [list(range(5))] * 3
    nothing = observe([Draws(everybody, np.ones((3, 4)))], everybody, 1.0, np.zeros((3, 4), np.float32))
    assert (nothing.cohort_p, nothing.noise_p) == (1.0, 1.0)
    nothing = observe([Draws([[]], np.zeros((1, 4)))], [[]], 0.5, np.ones((1, 4), np.float32))
    assert (nothing.cohort_p, nothing.noise_p) == (1.0, 1.0)


def test_noise_with_its_sign_turned_is_known_as_well() -> None:
    found = seen(RunKey.drawn(), -noise_of(SeededNoise(PUBLISHED)))
    assert found.knows_noise
    assert found.noise_agreement < 0


def test_of_several_guesses_the_best_counts_and_the_number_tried_is_paid_for() -> None:
    """Noise by the last guess, cohorts by the first; each probability is that of the guess alone, times three."""
    others = RunKey.seeded(1), RunKey.seeded(2)
    noise = noise_of(SeededNoise(others[1])) / 20
    alone = seen(PUBLISHED, noise, others[1])
    found = seen(PUBLISHED, noise, PUBLISHED, *others)
    assert found.cohort_agreement == 1.0
    assert found.noise_agreement == alone.noise_agreement
    assert 0 < alone.noise_p < 0.1
    assert found.noise_p == pytest.approx(3 * alone.noise_p)
    assert found.cohort_p / seen(PUBLISHED, noise, PUBLISHED).cohort_p == pytest.approx(3)
    assert seen(RunKey.drawn(), noise, *others).cohort_p <= 1.0


@pytest.mark.parametrize("repetition", range(5))
def test_several_wrong_guesses_gain_nothing(repetition: int) -> None:
    found = seen(RunKey.drawn(), noise_of(OperatingSystemNoise()), *(RunKey.seeded(seed) for seed in range(8)))
    assert not found.finds(SAMPLED)


@pytest.mark.parametrize(
    ("declared", "hides_cohorts", "hides_noise"),
    [
        (acc.PoissonUsers(1.0, 0.1, 5), True, True),
        (acc.FixedSize(1.0, 20, 2, 5), True, True),
        (acc.Unamplified(1.0, 5), False, True),
        (None, False, False),
    ],
    ids=["poisson", "fixed size", "no amplification", "no claim"],
)
@pytest.mark.parametrize("is_seeded", [False, True])
def test_only_what_the_claim_rests_on_refutes_it_and_a_seeded_one_only_beside_other_runs(
    declared: acc.PoissonUsers | acc.FixedSize | acc.NoAmplification | None,
    hides_cohorts: bool,
    hides_noise: bool,
    is_seeded: bool,
) -> None:
    secrets, nothing = Secrets.of(declared), Observation()
    for known, is_hidden in (
        (Observation(cohort_p=0.0), hides_cohorts),
        (Observation(noise_p=0.0), hides_noise),
        (nothing, False),
    ):
        published = Observed(secrets, is_seeded, known)
        assert published.refutes_claim == (is_hidden and not is_seeded)
        assert ("REFUTED" in published.in_words()) == published.refutes_claim
        assert not published.refutes_independence
        shared = Observed(secrets, is_seeded, nothing, known)
        assert not shared.refutes_claim
        assert shared.refutes_independence == is_hidden
        assert ("REFUTED" in shared.in_words()) == is_hidden
        assert shared.numbers()["others_noise_p"] == known.noise_p
