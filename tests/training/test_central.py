import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from scipy import stats

from fedsim_userdp.errors import ModelError
from fedsim_userdp.models.activations import checkpoint_activations
from fedsim_userdp.models.adapters import load_trainable_state, trainable_state
from fedsim_userdp.privacy.noise import SeededNoise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.settings import LoraSettings
from fedsim_userdp.training.batches import Unit, collate
from fedsim_userdp.training.central import CentralSettings, Pool, StepReport, train_on_records
from fedsim_userdp.training.cohort import LocalTraining, clipped_update_sum
from fedsim_userdp.training.gradients import StackedGradients
from fedsim_userdp.training.opacus_step import OpacusStep
from fedsim_userdp.training.record_steps import PlainStep, StackedStep
from fedsim_userdp.training.schedule import LearningRate
from tests.conftest import ragged_units, small_gpt2

KEY = RunKey.seeded(0)
ONE = LearningRate(1.0, 1, decays=False)


def records(num: int = 6) -> list[Unit]:
    return [Unit(u.index, u.records[:1]) for u in ragged_units(num)]


def opacus_step(model: PeftModel, **changes: Any) -> OpacusStep:
    settings: dict[str, Any] = {
        "clip_norm": 0.1,
        "noise_multiplier": 0.0,
        "expected_batch_size": 4.0,
        "max_tokens": 40,
    } | changes
    return OpacusStep(model, torch.optim.SGD, ONE, noise=SeededNoise(KEY), key=KEY, window=16, **settings)


def stacked_step(model: PeftModel, **changes: Any) -> StackedStep:
    settings: dict[str, Any] = {
        "clip_norm": 0.1,
        "noise_multiplier": 0.0,
        "expected_batch_size": 4.0,
        "max_tokens": 40,
    } | changes
    return StackedStep(StackedGradients(model), torch.optim.SGD, ONE, noise=SeededNoise(KEY), key=KEY, **settings)


StepFn = Callable[..., OpacusStep | StackedStep]
BOTH_ENGINES = pytest.mark.parametrize("private_step", [opacus_step, stacked_step])


def released_update(
    model: PeftModel, step: OpacusStep | StackedStep | PlainStep, units: list[Unit]
) -> dict[str, torch.Tensor]:
    """What the server's SGD of learning rate 1 moved by."""
    before = trainable_state(model)
    step(1, units)
    return {name: before[name] - tensor for name, tensor in trainable_state(model).items()}


def flat(state: Mapping[Any, torch.Tensor]) -> torch.Tensor:
    return torch.cat([state[name].flatten() for name in sorted(state)]).double()


def test_opacus_and_stacked_record_level_gradients_agree(any_model: PeftModel) -> None:
    state = trainable_state(any_model)
    stacked = clipped_update_sum(StackedGradients(any_model), state, records(), LocalTraining(), 0.1).clipped.total
    released = released_update(any_model, opacus_step(any_model), records())
    torch.testing.assert_close(flat(released), flat(stacked) / 4.0, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("noise_multiplier", [0.0, 2.0])
def test_both_engines_release_the_same_update(any_model: PeftModel, noise_multiplier: float) -> None:
    before = trainable_state(any_model)
    by_opacus = opacus_step(any_model, noise_multiplier=noise_multiplier)
    expected = flat(released_update(any_model, by_opacus, records()))
    by_opacus.close()
    load_trainable_state(any_model, before)
    found = flat(released_update(any_model, stacked_step(any_model, noise_multiplier=noise_multiplier), records()))
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


@BOTH_ENGINES
def test_removing_any_record_moves_the_released_sum_by_at_most_clip_norm(private_step: StepFn) -> None:
    model = small_gpt2()
    everybody = flat(released_update(model, private_step(model), records()))
    for i in range(len(records())):
        other = small_gpt2()
        rest = flat(released_update(other, private_step(other), records()[:i] + records()[i + 1 :]))
        assert float((everybody - rest).norm()) * 4.0 <= 0.1 * (1 + 1e-4)


@BOTH_ENGINES
def test_the_denominator_is_the_expected_batch_size_not_the_realised_one(private_step: StepFn) -> None:
    one, two = small_gpt2(), small_gpt2()
    single = flat(released_update(one, private_step(one), records(1)))
    doubled = flat(released_update(two, private_step(two), records(1) * 2))
    torch.testing.assert_close(doubled, 2 * single, rtol=1e-4, atol=1e-7)


@BOTH_ENGINES
@pytest.mark.parametrize("units", [[], records(2)])
def test_noise_has_the_stated_stddev_even_on_an_empty_batch(units: list[Unit], private_step: StepFn) -> None:
    noisy, plain = small_gpt2(), small_gpt2()
    a = flat(released_update(noisy, private_step(noisy, noise_multiplier=50.0), units))
    b = flat(released_update(plain, private_step(plain), units))
    sample = (a - b).numpy() * 4.0 / 0.1
    statistic = float(np.square(sample / 50.0).sum())
    low, high = stats.chi2.ppf([5e-10, 1 - 5e-10], len(sample))
    assert low < statistic < high
    assert not low < statistic * 4 < high  # noise of half the stated stddev would look like this


def test_a_record_that_is_not_finite_adds_an_exact_zero() -> None:
    model = small_gpt2()
    step = opacus_step(model)
    step.optimizer.begin(1)
    step.accumulate(collate(records(2)))
    clean = flat(dict(enumerate(p.summed_grad.clone() for p in step.optimizer.params)))
    for parameter in step.optimizer.params:
        parameter.grad_sample = torch.full((3, *parameter.shape), 1e-4)
        parameter.grad_sample[1] = math.nan
    step.optimizer.clip_and_accumulate()
    added = flat(dict(enumerate(p.summed_grad for p in step.optimizer.params))) - clean
    assert torch.isfinite(added).all()
    assert float(added.norm()) <= 2 * 0.1
    assert step.optimizer.num_nonfinite == 1


def test_plain_step_is_the_mean_gradient_without_clip() -> None:
    model, other = small_gpt2(), small_gpt2()
    plain = PlainStep(model, torch.optim.SGD, ONE, expected_batch_size=4.0, max_tokens=30)
    released = released_update(model, plain, records())
    stacked = clipped_update_sum(StackedGradients(other), trainable_state(other), records(), LocalTraining(), math.inf)
    torch.testing.assert_close(flat(released), flat(stacked.clipped.total) / 4.0, rtol=1e-4, atol=1e-6)


def test_records_are_sampled_independently_at_the_stated_rate_and_a_wrong_rate_is_rejected() -> None:
    units = [Unit(i, [np.array([1, 2])]) for i in range(500)]
    pool = Pool(units, np.arange(500, dtype=np.uint64) // 5, np.arange(500, dtype=np.uint64) % 5)
    counts = np.zeros(500)
    sizes = []
    order = []

    def remember(step: int, units: list[Unit]) -> StepReport:
        order.append(f"step {step}")
        sizes.append(len(units))
        for unit in units:
            counts[unit.index] += 1
        return StepReport(step, len(units), 0, 0, 0.0)

    settings = CentralSettings(steps=200, sampling_prob=0.1, key=RunKey.seeded(5))
    list(train_on_records(remember, pool, settings, lambda step: order.append(f"ledger {step}")))  # type: ignore[arg-type]
    assert order[:4] == ["ledger 1", "step 1", "ledger 2", "step 2"]
    assert stats.binomtest(int(counts.sum()), 500 * 200, 0.1).pvalue > 1e-9
    assert stats.binomtest(int(counts.sum()), 500 * 200, 0.105).pvalue < 1e-4
    # Independent records: the spread of the counts and that of the sizes are binomial too.
    assert 0.7 < counts.var() / (200 * 0.1 * 0.9) < 1.3
    assert 0.6 < np.var(sizes) / (500 * 0.1 * 0.9) < 1.5


def test_whether_a_record_is_sampled_does_not_depend_on_the_others() -> None:
    def pool(users: list[int]) -> Pool:
        pairs = [(user, place) for user in users for place in range(3)]
        units = [Unit(i, [np.array([1, 2])], f"user {u}", p) for i, (u, p) in enumerate(pairs)]
        return Pool(units, np.array([u for u, _ in pairs], np.uint64), np.array([p for _, p in pairs], np.uint64))

    def sampled(users: list[int], step: int) -> set[tuple[str, int]]:
        return {(unit.owner, unit.place) for unit in pool(users).sample(0.4, step, RunKey.seeded(1))}

    for step in range(1, 20):
        without, more = sampled([5, 6, 7], step), sampled([9, 5, 6, 7], step)
        assert {one for one in more if one[0] != "user 9"} == without


def test_a_blank_record_is_sampled_and_adds_nothing() -> None:
    taken: list[list[Unit]] = []
    units = [Unit(0, [np.empty(0, np.int64)]), Unit(1, [np.array([1, 2])])]
    pool = Pool(units, np.arange(2, dtype=np.uint64), np.zeros(2, np.uint64))
    settings = CentralSettings(steps=1, sampling_prob=1.0, key=RunKey.seeded(0))

    def take(step: int, records: list[Unit]) -> StepReport:
        taken.append(list(records))
        return StepReport(step, len(records), 0, 0, 0.0)

    list(train_on_records(take, pool, settings, lambda step: None))  # type: ignore[arg-type]
    assert [[unit.index for unit in records] for records in taken] == [[1]]
    assert len(pool.sample(1.0, 1, settings.key)) == 2


def test_opacus_refuses_what_its_hooks_do_not_see() -> None:
    checkpointed = small_gpt2()
    checkpoint_activations(checkpointed)
    with pytest.raises(ModelError, match="activation_checkpointing"):
        opacus_step(checkpointed)
    with pytest.raises(ModelError, match=r"wte \(Embedding\)"):
        opacus_step(small_gpt2(LoraSettings(rank=2, target_modules=("wte", "c_attn")), tie_word_embeddings=False))


def test_both_engines_drop_the_same_features() -> None:
    settings = LoraSettings(rank=2, freeze_a=False, dropout=0.3)
    one, two = small_gpt2(settings), small_gpt2(settings)
    expected = flat(released_update(one, opacus_step(one), records()))
    found = flat(released_update(two, stacked_step(two), records()))
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())
    without = small_gpt2(LoraSettings(rank=2, freeze_a=False))
    assert float((flat(released_update(without, opacus_step(without), records())) - expected).norm()) > 0.01


def test_hooks_are_gone_after_close(model: PeftModel) -> None:
    step = opacus_step(model)
    step.close()
    assert not any(module._forward_hooks for module in model.modules())
