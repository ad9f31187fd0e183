import math

import numpy as np
import pytest
import torch
from scipy import stats

from fedsim_userdp.privacy.noise import NoiseSource, OperatingSystemNoise, SeededNoise, add_noise, noise_stddev
from fedsim_userdp.privacy.streams import STREAMS, RunKey

SEEDED = SeededNoise(RunKey.seeded(0))

SIZE = 40_000
SOURCES = [SeededNoise(RunKey.seeded(3)), OperatingSystemNoise()]
# Chance that a correct source fails one of the two-sided tests below.
FAILURE_PROBABILITY = 1e-9


def is_plausible_stddev(sample: np.ndarray, stddev: float) -> bool:
    """Chi-square test of the standard deviation of N(0, stddev^2) at FAILURE_PROBABILITY."""
    statistic = float(np.square(sample / stddev).sum())
    low, high = stats.chi2.ppf([FAILURE_PROBABILITY / 2, 1 - FAILURE_PROBABILITY / 2], len(sample))
    return bool(low < statistic < high)


def drawn(source: NoiseSource, stddev: float, round: int = 1) -> np.ndarray:
    noisy = add_noise({"b": torch.zeros(SIZE // 2), "a": torch.zeros(SIZE // 4, 2)}, stddev, source, round)
    return torch.cat([noisy["a"].flatten(), noisy["b"]]).double().numpy()


@pytest.mark.parametrize("source", SOURCES)
def test_noise_has_the_stated_stddev_and_half_or_double_is_rejected(source: NoiseSource) -> None:
    sample = drawn(source, 0.7)
    assert is_plausible_stddev(sample, 0.7)
    assert not is_plausible_stddev(sample, 0.35)
    assert not is_plausible_stddev(sample, 1.4)
    assert not is_plausible_stddev(sample, 0.7 * 1.05)


@pytest.mark.parametrize("source", SOURCES)
def test_noise_is_gaussian_and_uniform_noise_is_rejected(source: NoiseSource) -> None:
    sample = drawn(source, 2.0)
    assert stats.kstest(sample / 2.0, "norm").pvalue > FAILURE_PROBABILITY
    uniform = np.random.default_rng(0).uniform(-math.sqrt(3), math.sqrt(3), SIZE)
    assert stats.kstest(uniform, "norm").pvalue < FAILURE_PROBABILITY


def test_noise_is_added_to_the_sum_once() -> None:
    total = {"a": torch.full((SIZE,), 5.0)}
    noisy = add_noise(total, 1.0, SEEDED, 1)["a"].double().numpy()
    assert abs(noisy.mean() - 5.0) < 6 / math.sqrt(SIZE)
    assert is_plausible_stddev(noisy - 5.0, 1.0)


def test_rounds_and_tensors_get_independent_noise() -> None:
    first, second = (
        drawn(SEEDED, 1.0, round=1),
        drawn(SEEDED, 1.0, round=2),
    )
    bound = 6 / math.sqrt(SIZE)
    assert abs(np.corrcoef(first, second)[0, 1]) < bound
    assert abs(np.corrcoef(first[: SIZE // 2], first[SIZE // 2 :])[0, 1]) < bound * 2
    assert np.array_equal(first, drawn(SEEDED, 1.0, round=1))


@pytest.mark.parametrize("stream", sorted(STREAMS - {"noise"}))
def test_numbers_of_another_stream_say_nothing_about_the_noise(stream: str) -> None:
    noise = SEEDED.standard_normal(SIZE, round=3)
    other = RunKey.seeded(0).generator(stream, round=3).standard_normal(SIZE)
    assert abs(np.corrcoef(noise, other)[0, 1]) < 6 / math.sqrt(SIZE)


def test_operating_system_noise_never_repeats() -> None:
    assert not np.array_equal(drawn(OperatingSystemNoise(), 1.0), drawn(OperatingSystemNoise(), 1.0))


def test_zero_stddev_returns_the_sum_itself() -> None:
    total = {"a": torch.tensor([1.0, 2.0])}
    assert torch.equal(add_noise(total, 0.0, SEEDED, 1)["a"], total["a"])


def test_stddev_is_noise_multiplier_times_clip_norm() -> None:
    assert noise_stddev(2.0, 0.3) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("noise_multiplier", "clip_norm"),
    [(-1.0, 1.0), (math.nan, 1.0), (math.inf, 1.0), (1.0, 0.0), (1.0, math.nan), (1.0, math.inf)],
)
def test_noise_that_protects_nobody_is_refused(noise_multiplier: float, clip_norm: float) -> None:
    with pytest.raises(ValueError, match=r"noise_multiplier|clip_norm"):
        noise_stddev(noise_multiplier, clip_norm)


@pytest.mark.parametrize("stddev", [-1.0, math.nan, math.inf])
def test_stddev_must_be_finite_and_not_negative(stddev: float) -> None:
    with pytest.raises(ValueError, match="stddev"):
        add_noise({"a": torch.zeros(1)}, stddev, SEEDED, 1)
