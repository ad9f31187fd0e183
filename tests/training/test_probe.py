"""Models whose code lets records see each other are found before training, whatever they are called."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn

from fedsim_userdp.errors import ModelError
from fedsim_userdp.models.adapters import trainable_state
from fedsim_userdp.models.special_tokens import special_ids
from fedsim_userdp.settings import LoraSettings
from fedsim_userdp.training.batches import StepAddress, Unit, collate
from fedsim_userdp.training.cohort import LocalTraining, clipped_update_sum
from fedsim_userdp.training.gradients import OneByOneGradients, unit_gradients, why_not_stacked
from fedsim_userdp.training.probe import probe_for
from tests.conftest import small_gpt2, small_llama
from tests.models.families import flat, small_model
from tests.training.test_central import opacus_step, records
from tests.training.test_gradients import _Flattening

ENGINES = (partial(unit_gradients, window=16), opacus_step)


class Changed(nn.Module):
    """A layer with something done to its output."""

    def __init__(self, inner: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.change = inner, change
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.change(self.inner(x))


def changed_gpt2(change: Callable[[torch.Tensor], torch.Tensor], lora: LoraSettings | None = None) -> PeftModel:
    model = small_gpt2(lora)
    block = model.get_base_model().transformer.h[1]
    block.mlp = Changed(block.mlp, change)
    return model


MIXING = {
    "a thousandth of the mean of the rows": lambda x: x + 1e-3 * x.mean(0, keepdim=True),
    "the largest row": lambda x: x + x.amax(0, keepdim=True),
    "a mean that takes no gradient": lambda x: x + x.detach().mean(0, keepdim=True),
    "the number of rows": lambda x: x * (1 + 0.1 * len(x)),
    "the length of the batch": lambda x: x * (1 + 0.1 * x.shape[1]),
    "the next row": lambda x: x + x.roll(1, 0),
    "a batch of more than ten tokens": lambda x: x * (1 + 0.1 * (x.shape[1] > 10)),
}
mixing = pytest.mark.parametrize("change", MIXING.values(), ids=MIXING.keys())


@mixing
def test_units_of_a_model_that_mixes_rows_are_trained_one_by_one_with_their_own_gradients(change: Callable) -> None:
    model = changed_gpt2(change)
    assert why_not_stacked(model, 16) is not None
    gradients = unit_gradients(model, 16)
    assert isinstance(gradients, OneByOneGradients)
    probe = probe_for(model, 16)
    both, _ = gradients(probe.adapters(2), collate(probe.units), StepAddress())
    alone, _ = gradients(probe.adapters(1), collate(probe.units[:1]), StepAddress())
    assert all(torch.equal(both[name][0], alone[name][0]) for name in alone)


@mixing
def test_opacus_refuses_a_model_that_mixes_rows_and_leaves_no_trace(change: Callable) -> None:
    model = changed_gpt2(change)
    with pytest.raises(ModelError, match=r"central\.engine=opacus: .*: set central.engine=stacked"):
        opacus_step(model)
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert not any(hasattr(parameter, "grad_sample") for parameter in model.parameters())


def test_the_layer_that_mixes_rows_is_named() -> None:
    model = changed_gpt2(MIXING["a thousandth of the mean of the rows"])
    assert "mix the rows of a batch, first transformer.h.1.mlp" in str(why_not_stacked(model, 16))
    with pytest.raises(ModelError, match=r"first transformer\.h\.1\.mlp"):
        opacus_step(model)


@pytest.mark.parametrize(
    "change", [lambda x: x + x.mean(1, keepdim=True), lambda x: x + 1e-3 * x.roll(-1, 1)], ids=["mean", "next"]
)
def test_a_model_that_looks_ahead_is_refused_by_every_engine_naming_the_layer(change: Callable) -> None:
    for engine in (partial(why_not_stacked, window=16), *ENGINES):
        with pytest.raises(ModelError, match=r"is not causal: transformer\.h\.1\.mlp looks at tokens after"):
            engine(changed_gpt2(change))


class Remembering:
    """Adds what the layer gave to the record before."""

    last = torch.zeros(())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        before, self.last = self.last, x.detach().mean((0, 1))
        return x + before


def test_a_model_that_remembers_the_record_before_is_refused_by_every_engine() -> None:
    for engine in ENGINES:
        with pytest.raises(ModelError, match="keeps something between forward passes"):
            engine(changed_gpt2(Remembering()))


def test_a_model_whose_buffers_change_is_refused_by_name_and_gets_them_back() -> None:
    for engine in ENGINES:
        model = small_gpt2()
        block = model.get_base_model().transformer.h[1]

        def count(x: torch.Tensor, block: Any = block) -> torch.Tensor:
            block.mlp.seen = block.mlp.seen + x.shape[0]
            return x

        block.mlp = Changed(block.mlp, count)
        with pytest.raises(ModelError, match=r"changes transformer\.h\.1\.mlp\.seen in a forward pass"):
            engine(model)
        assert float(block.mlp.seen) == 0


def test_what_only_a_long_record_changes_and_a_short_one_undoes_is_refused_by_name() -> None:
    for engine in ENGINES:
        model = small_gpt2()
        block = model.get_base_model().transformer.h[1]

        def grow(x: torch.Tensor, block: Any = block) -> torch.Tensor:
            block.mlp.seen = torch.ones(()) * (x.shape[1] > 10)
            return x

        block.mlp = Changed(block.mlp, grow)
        with pytest.raises(ModelError, match=r"changes transformer\.h\.1\.mlp\.seen in a forward pass"):
            engine(model)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_a_long_record_changes_for_the_others_are_refused_by_name(kind: str) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 12}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, **(factors if kind == "longrope" else {})}
    for engine in ENGINES:
        model = small_llama(max_position_embeddings=12 if kind == "dynamic" else 48, rope_parameters=rope)
        with pytest.raises(ModelError, match=r"changes model\.rotary_emb\.inv_freq in a forward pass"):
            engine(model)


def test_a_model_is_tried_on_records_as_long_as_the_window_and_no_longer() -> None:
    model = changed_gpt2(MIXING["a batch of more than ten tokens"])
    assert why_not_stacked(model, 10) is None
    assert "gradients of a batch are not those of its records alone" in str(why_not_stacked(model, 13))


PAD = 7


def reads_as_many_tokens_as_are_not_padding(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """What XLM does: others' filling, which is another token, adds to the count where a text holds the token itself."""
    count = (ids != PAD).sum(1, keepdim=True)
    return x * (torch.arange(ids.shape[1]) < count).unsqueeze(-1)


class Counting(nn.Module):
    """An embedding that shows as many of a row's tokens as are not padding."""

    def __init__(self, inner: nn.Embedding, **named: int) -> None:
        super().__init__()
        self.inner, self.weight = inner, inner.weight
        vars(self).update(named)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return reads_as_many_tokens_as_are_not_padding(self.inner(ids), ids)


def causal_xlm() -> PeftModel:
    return small_model("xlm", "attention", causal=True)


def counting_gpt2(**named: int) -> PeftModel:
    model = small_gpt2(pad_token_id=None if named else PAD, n_positions=32)
    transformer = model.get_base_model().transformer
    transformer.wte = Counting(transformer.wte, **named)
    return model


COUNTING = {
    "XLM": causal_xlm,
    "in the configuration": counting_gpt2,
    "in a layer": lambda: counting_gpt2(padding_idx=PAD),
}
counting = pytest.mark.parametrize("model_fn", COUNTING.values(), ids=COUNTING.keys())


@counting
def test_a_model_that_takes_a_users_own_tokens_for_padding_gives_each_user_a_part_of_its_own(
    model_fn: Callable[[], PeftModel],
) -> None:
    model, clip_norm = model_fn(), 1e-4
    generator = np.random.default_rng(3)
    records = [generator.integers(8, 40, length) for length in (8, 8, 9, 16)]
    for record in records:
        record[[0, 3, 5]] = PAD
    gradients = unit_gradients(model, 16)

    def total(units: list[Unit]) -> torch.Tensor:
        found = clipped_update_sum(gradients, trainable_state(model), units, LocalTraining(max_tokens=1000), clip_norm)
        return flat(found.clipped.total)

    units = [Unit(i, [record]) for i, record in enumerate(records)]
    moved = total(units) - total(units[:-1])
    assert float(moved.norm()) <= clip_norm * (1 + 1e-5)
    assert float((moved - total(units[-1:])).norm()) <= 1e-4 * clip_norm  # what is the others' stays as it was


@counting
def test_opacus_refuses_a_model_that_takes_own_tokens_for_padding(model_fn: Callable[[], PeftModel]) -> None:
    with pytest.raises(ModelError, match=r"central\.engine=opacus: .*: set central.engine=stacked"):
        opacus_step(model_fn())


def test_a_record_of_half_the_window_is_compared_beside_the_longest_one_too() -> None:
    """What only longer records than the shortest show, such as positions that the longest row decides."""

    def later_ones(x: torch.Tensor) -> torch.Tensor:
        scale = torch.ones(x.shape[1])
        scale[6:] += 0.1 * (x.shape[1] > 12)
        return x * scale[:, None]

    model = changed_gpt2(later_ones)
    assert why_not_stacked(model, 12) is None
    assert "gradients of a batch are not those of its records alone" in str(why_not_stacked(model, 16))
    with pytest.raises(ModelError, match="not those of its records alone"):
        opacus_step(model)


def test_special_tokens_are_at_both_ends_and_inside_of_every_record_and_all_in_the_longest() -> None:
    model = small_gpt2(bos_token_id=3, eos_token_id=[4, 5], pad_token_id=PAD, n_positions=32)
    assert special_ids(model) == (PAD, 3, 4, 5)
    probe = probe_for(model, 24)
    for unit in (*probe.records, *probe.changed, *probe.beside_longest):
        (record,) = unit.records
        assert {record[0], record[-2]} <= {3, 4, 5, PAD}
    for unit in probe.beside_longest[1:]:
        assert {3, 4, 5, PAD} < set(unit.records[0].tolist())
    assert len(special_ids(small_gpt2(pad_token_id=PAD, bos_token_id=None, eos_token_id=99))) == 1


def test_a_model_that_draws_random_numbers_is_refused_and_draws_none_of_the_programs() -> None:
    model = changed_gpt2(lambda x: nn.functional.dropout(x, 0.1, training=True))
    before = torch.random.get_rng_state()
    for engine in ENGINES:
        with pytest.raises(ModelError, match="draws random numbers"):
            engine(model)
        assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_that_are_not_finite_are_refused() -> None:
    for engine in ENGINES:
        with pytest.raises(ModelError, match="not finite"):
            engine(changed_gpt2(lambda x: x * float("nan")))


@pytest.mark.parametrize("part", ["attention", "feed-forward"])
def test_a_token_for_padding_that_has_no_gradient_is_refused_as_such(part: str) -> None:
    model = small_model("dory", part)
    assert why_not_stacked(model, 16) is None
    model.get_input_embeddings().weight.data[PAD] = 0
    with pytest.raises(ModelError, match=r"gradients that are not finite: .*special tokens in a text \(ids 7, 5, 6\)"):
        why_not_stacked(model, 16)


@pytest.mark.parametrize("settings", [LoraSettings(rank=2), LoraSettings(rank=2, freeze_a=False, dropout=0.2)])
def test_the_model_is_exactly_as_it_was_after_the_probe(settings: LoraSettings) -> None:
    model = small_gpt2(settings)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    random, numbers = torch.random.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002

    def everything() -> dict[str, tuple[object, torch.Tensor]]:
        return {
            **{f"{n} data": (p.data_ptr(), p.detach().clone()) for n, p in model.named_parameters()},
            **{f"{n} grad": (0, p.grad) for n, p in model.named_parameters() if p.grad is not None},
            **{f"{n} buffer": (0, b.clone()) for n, b in model.named_buffers()},
            **{f"{n} mode": (m.training, torch.zeros(())) for n, m in model.named_modules()},
            **{f"{n} attributes": (sorted(vars(m)), torch.zeros(())) for n, m in model.named_modules()},
            **{f"{n} marks": (sorted(vars(p)), torch.zeros(())) for n, p in model.named_parameters()},
            **{f"{n} hooks": (len(m._forward_hooks), torch.zeros(())) for n, m in model.named_modules()},
        }

    before = everything()
    assert why_not_stacked(model, 16) is None
    opacus_step(model).close()
    after = everything()
    assert before.keys() == after.keys()
    for name, (mark, tensor) in before.items():
        assert mark == after[name][0], name
        assert torch.equal(tensor, after[name][1]), name
    assert torch.equal(torch.random.get_rng_state(), random)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], numbers)  # noqa: NPY002


def test_the_probe_hides_nothing_behind_a_factor_of_zero(model: PeftModel) -> None:
    assert all(bool((tensor != 0).all()) for tensor in probe_for(model, 16).stacked.values())
    assert probe_for(model, 16).stacked.keys() == trainable_state(model).keys()


def test_every_micro_batch_has_one_gradient_a_record_and_layer_or_the_run_stops() -> None:
    model = small_gpt2(LoraSettings(rank=2, freeze_a=False, target_modules=("c_fc",)))
    step = opacus_step(model)
    block = model.get_base_model().transformer.h[0]
    block.mlp = _Flattening(block.mlp)  # after the probe: what it could not know
    step.optimizer.begin(1)
    with pytest.raises(ModelError, match=r"h\.0\.mlp\S*c_fc has \d+ gradients for 3 records in Opacus.*target_modules"):
        step.accumulate(collate(records(3)))


def test_a_layer_that_some_records_do_not_reach_stops_opacus_and_is_zero_one_by_one() -> None:
    model = small_gpt2(LoraSettings(rank=2, freeze_a=False, target_modules=("c_fc",)))
    del model.get_base_model().transformer.h[1].mlp.c_proj  # whatever is never called
    block = model.get_base_model().transformer.h[1]
    unused, block.mlp = block.mlp, nn.Identity()
    block.spare = unused
    assert "takes no part" in str(why_not_stacked(model, 16))
    found, _ = unit_gradients(model, 16)(
        probe_for(model, 16).adapters(2), collate(probe_for(model, 16).units), StepAddress()
    )
    assert {bool(gradient.any()) for name, gradient in found.items() if "spare" in name} == {False}
    with pytest.raises(ModelError, match=r"h\.1\.spare\.c_fc has 0 gradients for 3 records"):
        opacus_step(model)


def test_a_failure_of_opacus_own_is_a_sentence() -> None:
    model = small_gpt2(LoraSettings(rank=2, freeze_a=False, target_modules=("c_fc",)))
    block = model.get_base_model().transformer.h[0]
    for module in block.mlp.modules():
        module.eval()  # Opacus keeps no activations of such layers
    with pytest.raises(ModelError, match=r"lora\.target_modules: .*central\.engine=stacked"):
        opacus_step(model)
