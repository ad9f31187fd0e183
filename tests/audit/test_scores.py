import numpy as np
import pytest

from fedsim_userdp.audit.directions import Directions
from fedsim_userdp.audit.scores import Scorer

SIZE, ROUNDS, NOISE = 4096, 12, 0.8


def noise(seed: int = 0) -> np.ndarray:
    return (NOISE * np.random.default_rng(seed).standard_normal((ROUNDS, SIZE))).astype(np.float32)


def scores_of(releases: np.ndarray, canary: int, sampling_prob: float = 0.1) -> np.ndarray:
    directions = Directions(SIZE, 4096, seed=3)
    return Scorer.of(releases, sampling_prob).log_bayes_factors(directions.inner_products(canary, releases))


def planted(rounds: list[int], amplitude: float = 1.0, releases: np.ndarray | None = None) -> np.ndarray:
    """Releases in some of which direction 9 of canary 2 took part."""
    found = noise() if releases is None else releases
    found = found.copy()
    found[rounds] += amplitude * Directions(SIZE, 4096, seed=3).direction(2, 9)
    return found


@pytest.mark.parametrize("common", [0.0, 50.0])
def test_directions_that_nobody_used_seldom_score_high(common: float) -> None:
    """A Bayes factor of c or more has probability at most 1 / c; six standard deviations of 8192 scores are allowed."""
    shared = common * np.random.default_rng(8).standard_normal(SIZE) / SIZE**0.5
    scores = np.concatenate([scores_of((noise() + shared).astype(np.float32), canary) for canary in range(2)])
    for factor in (5, 20, 100):
        expected = len(scores) / factor
        assert (scores > np.log(factor)).sum() < expected + 6 * expected**0.5


def test_a_wrong_covariance_would_be_noticed() -> None:
    """The same with the precision of half the noise: scores are too high too often."""
    directions, releases = Directions(SIZE, 4096, seed=3), noise()
    scorer = Scorer(4 * Scorer.of(releases, 0.1).precision, 0.1)
    scores = scorer.log_bayes_factors(directions.inner_products(0, releases))
    assert (scores > np.log(20)).sum() > len(scores) / 20 + 6 * (len(scores) / 20) ** 0.5


@pytest.mark.parametrize("amplitude", [1.0, 3.0, 100.0])
def test_a_direction_that_took_part_scores_highest(amplitude: float) -> None:
    rounds = list(range(0, ROUNDS, 2)) if amplitude == 1.0 else [4, 7, 9]
    scores = scores_of(planted(rounds, 2 * amplitude), canary=2)
    assert scores.argmax() == 9
    assert scores[9] > 10


def test_a_direction_in_every_round_scores_highest_whatever_the_sampling_claims() -> None:
    assert scores_of(planted(list(range(ROUNDS)), 1.6), canary=2, sampling_prob=0.01).argmax() == 9


def test_noise_that_is_used_twice_is_seen_through() -> None:
    """A direction far below the noise: hidden by fresh noise, plain where every round has the same noise."""
    same = np.repeat(noise()[:1], ROUNDS, axis=0) + np.float32(0.02) * noise(1)
    rounds, amplitude = [3, 8], 0.5
    assert scores_of(planted(rounds, amplitude), canary=2).argmax() != 9
    assert scores_of(planted(rounds, amplitude, same), canary=2).argmax() == 9


def test_what_all_releases_have_in_common_does_not_hide_a_canary() -> None:
    common = 60 * np.random.default_rng(3).standard_normal(SIZE).astype(np.float32)
    assert scores_of(planted([1, 5, 6], 3.0, noise() + common), canary=2).argmax() == 9


@pytest.mark.parametrize("broken", [np.zeros((3, 10), np.float32), np.full((3, 10), np.nan, np.float32)])
def test_releases_that_say_nothing_are_refused(broken: np.ndarray) -> None:
    with pytest.raises(ValueError, match="releases"):
        Scorer.of(broken, 0.1)


def test_a_release_of_an_empty_round_without_noise_does_no_harm() -> None:
    releases = planted([1, 5, 6], 3.0)
    releases[0] = 0
    assert scores_of(releases, canary=2).argmax() == 9


@pytest.mark.parametrize("sampling_prob", [0.0, -0.1, 1.1])
def test_a_sampling_probability_out_of_range_is_refused(sampling_prob: float) -> None:
    with pytest.raises(ValueError, match="sampling_prob"):
        Scorer.of(noise(), sampling_prob)


def test_everybody_in_every_round_is_a_probability_that_works() -> None:
    assert scores_of(planted(list(range(ROUNDS)), 2.0), canary=2, sampling_prob=1.0).argmax() == 9
