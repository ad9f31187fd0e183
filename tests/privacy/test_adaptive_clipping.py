"""The noisy count of unclipped users and the clip norm that follows it (docs/decisions/0008)."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsim_userdp.privacy.adaptive_clipping import (
    LEAST,
    MOST,
    ClipAdaptation,
    next_clip_norm,
    unclipped_balance,
    unclipped_share,
)
from fedsim_userdp.privacy.clipping import ClippedSum, clip_and_sum
from fedsim_userdp.privacy.noise import NoiseSource, OperatingSystemNoise, SeededNoise
from fedsim_userdp.privacy.streams import RunKey

SEEDED = SeededNoise(RunKey.seeded(0))

NUM_ROUNDS = 20_000
FAILURE_PROBABILITY = 1e-9


def counted(norms: list[float], clip_norm: float = 1.0) -> ClippedSum:
    """What is known of users with updates of these norms after the clip."""
    return clip_and_sum({"a": torch.tensor(norms, dtype=torch.float64).unsqueeze(1)}, clip_norm)


NORMS = st.one_of(st.floats(0, 10), st.just(math.nan), st.just(math.inf))


@given(st.lists(NORMS, min_size=1, max_size=20), NORMS)
def test_one_more_user_moves_the_balance_by_at_most_a_half(norms: list[float], norm: float) -> None:
    before, after = (unclipped_balance(counted(users)) for users in (norms, [*norms, norm]))
    assert abs(after - before) <= 0.5
    assert abs(after - before) == (0.5 if math.isfinite(norm) else 0.0)


@given(st.lists(NORMS, min_size=2, max_size=20), NORMS)
def test_a_users_other_update_moves_the_balance_by_at_most_one(norms: list[float], norm: float) -> None:
    before, after = (unclipped_balance(counted(users)) for users in (norms, [norm, *norms[1:]]))
    assert abs(after - before) <= 1.0


def test_the_share_is_that_of_the_unclipped_when_the_cohort_is_as_large_as_expected() -> None:
    clipped = counted([0.5, 0.9, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert unclipped_share(clipped, 8.0, 0.0, SEEDED, 1) == pytest.approx(3 / 8)


def test_the_denominator_is_the_expected_cohort_whatever_came_back() -> None:
    assert unclipped_share(counted([0.5] * 4), 8.0, 0.0, SEEDED, 1) == pytest.approx(0.5 + 2 / 8)
    assert unclipped_share(replace(counted([0.5]), num_units=0), 8.0, 0.0, SEEDED, 1) == 0.5


def balances(source: NoiseSource, count_stddev: float) -> np.ndarray:
    """The noisy balance of an empty cohort in many rounds."""
    nobody, expected_cohort = replace(counted([0.5]), num_units=0), 1e6
    shares = [unclipped_share(nobody, expected_cohort, count_stddev, source, round) for round in range(1, NUM_ROUNDS)]
    return (np.array(shares) - 0.5) * expected_cohort


@pytest.mark.parametrize("source", [SeededNoise(RunKey.seeded(3)), OperatingSystemNoise()])
def test_noise_on_the_count_has_the_stated_stddev_and_half_or_double_is_rejected(source: NoiseSource) -> None:
    sample, stddev = balances(source, 2.5), 2.5
    low, high = stats.chi2.ppf([FAILURE_PROBABILITY / 2, 1 - FAILURE_PROBABILITY / 2], len(sample))
    assert low < float(np.square(sample / stddev).sum()) < high
    for wrong in (0.5, 2.0, 1.1):
        assert not low < float(np.square(sample / (stddev * wrong)).sum()) < high


def test_noise_on_the_count_says_nothing_about_the_noise_on_the_update() -> None:
    source = SeededNoise(RunKey.seeded(3))
    update = np.array([source.standard_normal(1, round)[0] for round in range(1, NUM_ROUNDS)])
    count = balances(source, 1.0)
    bound = 6 / math.sqrt(NUM_ROUNDS)
    assert abs(np.corrcoef(update, count)[0, 1]) < bound
    assert abs(np.corrcoef(update, update)[0, 1]) > bound  # what numbers of the same address would have shown


def test_the_share_stays_a_share_however_large_the_noise() -> None:
    shares = [unclipped_share(counted([0.5, 2.0]), 2.0, 1e6, SEEDED, round) for round in range(1, 50)]
    assert set(shares) == {0.0, 1.0}


def test_the_clip_norm_falls_when_too_many_stay_unclipped_and_rises_when_too_few() -> None:
    adaptation = ClipAdaptation(0.5, 0.2, 0.0)
    assert next_clip_norm(1.0, 0.9, adaptation) == pytest.approx(math.exp(-0.2 * 0.4))
    assert next_clip_norm(1.0, 0.1, adaptation) == pytest.approx(math.exp(0.2 * 0.4))
    assert next_clip_norm(0.7, 0.5, adaptation) == pytest.approx(0.7)


@pytest.mark.parametrize("start", [0.01, 100.0])
@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
def test_the_clip_norm_finds_the_quantile_of_the_norms(start: float, quantile: float) -> None:
    norms = np.random.default_rng(0).lognormal(sigma=0.5, size=(400, 200))
    adaptation, source, clip_norm = ClipAdaptation(quantile, 0.2, 10.0), SeededNoise(RunKey.seeded(1)), start
    kept = []
    for round, users in enumerate(norms, start=1):
        share = unclipped_share(counted(list(users), clip_norm), 200.0, adaptation.count_stddev, source, round)
        clip_norm = next_clip_norm(clip_norm, share, adaptation)
        kept.append(clip_norm)
    assert np.median(kept[200:]) == pytest.approx(np.quantile(norms, quantile), rel=0.05)


def test_the_clip_norm_stays_a_number_that_float32_can_hold() -> None:
    adaptation = ClipAdaptation(0.5, 10.0, 0.0)
    assert next_clip_norm(MOST, 0.0, adaptation) == MOST
    assert next_clip_norm(LEAST, 1.0, adaptation) == LEAST


@pytest.mark.parametrize("field", ["target_quantile", "learning_rate", "count_stddev"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_numbers_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        ClipAdaptation(**({"target_quantile": 0.5, "learning_rate": 0.2, "count_stddev": 1.0} | {field: value}))
