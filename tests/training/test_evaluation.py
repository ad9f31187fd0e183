"""Losses of single users add up to the perplexity of all, and intervals over users cover the truth."""

import math

import numpy as np
import pytest
from peft import PeftModel

from fedsim_userdp.training.batches import Unit
from fedsim_userdp.training.evaluation import bootstrapped, perplexity, summed_losses
from tests.conftest import VOCABULARY, small_gpt2


@pytest.fixture(scope="module")
def model() -> PeftModel:
    return small_gpt2()


def users(num: int) -> list[Unit]:
    generator = np.random.default_rng(0)
    return [
        Unit(
            10 + number, [generator.integers(0, VOCABULARY, size=generator.integers(2, 16)) for _ in range(1 + number)]
        )
        for number in range(num)
    ]


@pytest.mark.parametrize("max_tokens", [16, 40, 8192])
def test_users_losses_are_their_own_and_add_up_to_the_perplexity(model: PeftModel, max_tokens: int) -> None:
    units = users(5)
    sums, counts = summed_losses(model, units, max_tokens)
    assert math.exp(sums.sum() / counts.sum()) == pytest.approx(perplexity(model, units), rel=1e-6)
    for number, unit in enumerate(units):
        assert counts[number] == sum(len(record) - 1 for record in unit.records)
        alone = math.log(perplexity(model, [unit]))
        assert sums[number] / counts[number] == pytest.approx(alone, rel=1e-5)


def test_an_interval_over_users_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = []
    for number in range(200):
        counts = generator.integers(5, 50, size=60)
        sums = counts * generator.normal(3.0, 0.5, size=60)
        _, low, high = bootstrapped(sums, counts, seed=number)
        covered.append(low <= math.exp(3.0) <= high)
    assert 0.88 <= np.mean(covered) <= 0.99
