import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim_userdp.errors import ClippingError, PluginError
from fedsim_userdp.privacy.clipping import clip_and_sum, clip_each_and_sum, unit_norms

NASTY = [0.0, 1.0, -1.0, 1e-30, 1e30, -3e38, math.nan, math.inf, -math.inf]
numbers = st.one_of(st.sampled_from(NASTY), st.floats(-1e3, 1e3, width=32))


def norm(total: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in total.values()))


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return norm({name: a[name].double() - b[name].double() for name in a})


@given(values=st.lists(numbers, min_size=6, max_size=6), clip_norm=st.floats(1e-3, 1e3))
@settings(max_examples=1000, deadline=None)
def test_clipped_update_norm_is_at_most_clip_norm(values: list[float], clip_norm: float) -> None:
    update = {"a": torch.tensor([values[:4]]).reshape(1, 2, 2), "b": torch.tensor([values[4:]])}
    result = clip_and_sum(update, clip_norm)
    assert norm(result.total) <= clip_norm


@given(values=st.lists(numbers, min_size=12, max_size=12), clip_norm=st.floats(1e-2, 1e2), removed=st.integers(0, 3))
@settings(max_examples=500, deadline=None)
def test_removing_a_unit_moves_the_sum_by_at_most_clip_norm(
    values: list[float], clip_norm: float, removed: int
) -> None:
    update = {"a": torch.tensor(values).reshape(4, 3)}
    rest = {"a": torch.cat([update["a"][:removed], update["a"][removed + 1 :]])}
    moved = difference(clip_and_sum(update, clip_norm).total, clip_and_sum(rest, clip_norm).total)
    assert moved <= clip_norm * (1 + 1e-5)


def test_norm_is_taken_over_all_tensors_together() -> None:
    update = {"a": torch.tensor([[3.0]]), "b": torch.tensor([[4.0]])}
    assert unit_norms(update).tolist() == [5.0]
    total = clip_and_sum(update, 1.0).total
    assert total["a"].item() == pytest.approx(0.6, rel=1e-5)
    assert total["b"].item() == pytest.approx(0.8, rel=1e-5)


def test_updates_within_the_bound_are_not_changed() -> None:
    update = {"a": torch.tensor([[0.3, 0.4], [0.0, 0.1]])}
    assert torch.equal(clip_and_sum(update, 1.0).total["a"], update["a"].sum(0))


def test_zero_update_stays_zero_and_is_not_divided_by() -> None:
    result = clip_and_sum({"a": torch.zeros(2, 3)}, 1.0)
    assert torch.equal(result.total["a"], torch.zeros(3))
    assert (result.num_nonfinite, result.num_clipped) == (0, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_update_is_an_exact_zero_and_counted(bad: float) -> None:
    update = {"a": torch.tensor([[0.1, 0.2], [bad, 0.5]]), "b": torch.tensor([1.0, 7.0])}
    result = clip_and_sum(update, 10.0)
    assert torch.equal(result.total["a"], torch.tensor([0.1, 0.2]))
    assert result.total["b"].item() == 1.0
    assert result.num_nonfinite == 1
    assert result.num_units == 2


def test_half_precision_updates_are_summed_in_single_precision() -> None:
    update = {"a": torch.full((1000, 1), 0.01, dtype=torch.bfloat16)}
    total = clip_and_sum(update, 1.0).total["a"]
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(1000 * float(torch.tensor(0.01, dtype=torch.bfloat16)), rel=1e-4)


def test_scalar_parameters_can_be_clipped() -> None:
    result = clip_and_sum({"scale": torch.tensor([3.0, -2.0])}, 1.0)
    assert result.total["scale"].shape == ()
    assert abs(result.total["scale"].item()) < 1e-6


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan])
def test_clip_norm_must_be_above_zero(clip_norm: float) -> None:
    with pytest.raises(ValueError, match="clip_norm"):
        clip_and_sum({"a": torch.zeros(1, 1)}, clip_norm)


@pytest.mark.parametrize("updates", [{}, {"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)}, {"a": torch.tensor(1.0)}])
def test_tensors_must_agree_on_the_number_of_units(updates: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="updates"):
        clip_and_sum(updates, 1.0)


def test_infinite_clip_norm_only_sums() -> None:
    update = {"a": torch.tensor([[1e6], [1.0]])}
    assert clip_and_sum(update, math.inf).total["a"].item() == 1e6 + 1


def scaled_as_a_whole(update: Mapping[str, torch.Tensor], clip_norm: float) -> dict[str, torch.Tensor]:
    """A clipping of one's own that does what is done without one."""
    length = torch.stack([tensor.double().norm() for tensor in update.values()]).norm()
    factor = min(1.0, clip_norm * (1 - 1e-6) / max(float(length), 1e-300))
    return {name: (tensor.double() * factor).float() for name, tensor in update.items()}


@given(values=st.lists(numbers, min_size=12, max_size=12), clip_norm=st.floats(1e-2, 1e2), removed=st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_with_a_clipping_of_ones_own_a_unit_moves_the_sum_by_at_most_clip_norm(
    values: list[float], clip_norm: float, removed: int
) -> None:
    update = {"a": torch.tensor(values).reshape(4, 3)}
    rest = {"a": torch.cat([update["a"][:removed], update["a"][removed + 1 :]])}
    totals = [clip_each_and_sum(each, clip_norm, scaled_as_a_whole) for each in (update, rest)]
    assert difference(totals[0].total, totals[1].total) <= clip_norm * (1 + 1e-5)
    usual = clip_and_sum(update, clip_norm)
    assert (totals[0].num_units, totals[0].num_nonfinite) == (usual.num_units, usual.num_nonfinite)
    assert totals[0].num_clipped == usual.num_clipped
    assert totals[0].norm_sum == pytest.approx(usual.norm_sum)
    assert difference(totals[0].total, usual.total) <= 1e-5 * clip_norm


LIES = {
    "too long": lambda update, bound: {name: tensor * 0 + 1.01 * bound / 2 for name, tensor in update.items()},
    "not finite": lambda update, bound: {name: tensor * math.nan for name, tensor in update.items()},
    "infinite": lambda update, bound: {name: tensor * math.inf for name, tensor in update.items()},
    "untouched": lambda update, bound: update,
    "a tensor less": lambda update, bound: {"a": update["a"] * 0},
    "a tensor more": lambda update, bound: {**update, "c": update["a"]},
    "another shape": lambda update, bound: {"a": torch.zeros(4), "b": update["b"] * 0},
    "whole numbers": lambda update, bound: {name: tensor.int() for name, tensor in update.items()},
    "no tensors": lambda update, bound: {name: tensor.tolist() for name, tensor in update.items()},
    "nothing": lambda update, bound: None,
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_clipping_of_ones_own_returns_is_held_to_its_bound(lie: str) -> None:
    update = {"a": torch.tensor([[0.0, 0.0], [3.0, 4.0]]), "b": torch.tensor([[0.0, 0.0], [5.0, 6.0]])}
    with pytest.raises(ClippingError, match="test_clipping"):
        clip_each_and_sum(update, 1.0, LIES[lie])


def test_a_clipping_of_ones_own_within_the_rounding_is_taken_and_its_sum_is_within_the_bound() -> None:
    nearly = {"a": torch.tensor([[5.0]])}
    total = clip_each_and_sum(nearly, 1.0, lambda update, bound: {"a": torch.tensor([bound * (1 + 5e-7)]).double()})
    assert norm(total.total) <= 1.0


def test_a_clipping_of_ones_own_sees_one_finite_unit_at_a_time_and_cannot_change_another() -> None:
    seen = []

    def watching(update: Mapping[str, torch.Tensor], clip_norm: float) -> Mapping[str, torch.Tensor]:
        seen.append(update["a"].tolist())
        update["a"].fill_(0.25)
        return update

    update = {"a": torch.tensor([[3.0], [math.nan], [4.0]])}
    result = clip_each_and_sum(update, 1.0, watching)
    assert seen == [[3.0], [4.0]]
    assert update["a"][0].item() == 3.0
    assert (result.total["a"].item(), result.num_units, result.num_nonfinite, result.num_clipped) == (0.5, 3, 1, 2)


def test_a_clipping_of_ones_own_that_raises_is_named() -> None:
    with pytest.raises(PluginError, match=r"mechanism=.*test_clipping.*clipping a user's update raised KeyError: 'b'"):
        clip_each_and_sum({"a": torch.ones(1, 1)}, 1.0, lambda update, bound: {"a": update["b"]})


@given(weights=st.lists(st.floats(0, 10), min_size=4, max_size=4), removed=st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_removing_a_unit_with_a_weight_moves_the_sum_by_at_most_that_many_clip_norms(
    weights: list[float], removed: int
) -> None:
    update = {"a": torch.arange(12.0).reshape(4, 3) + 1}
    rest = {"a": torch.cat([update["a"][:removed], update["a"][removed + 1 :]])}
    others = weights[:removed] + weights[removed + 1 :]
    for clipping in (
        None,
        lambda update, clip_norm: {"a": update["a"] * (clip_norm / update["a"].norm() * (1 - 1e-6))},
    ):
        whole, left = (
            (clip_and_sum(update, 0.5, weights), clip_and_sum(rest, 0.5, others))
            if clipping is None
            else (clip_each_and_sum(update, 0.5, clipping, weights), clip_each_and_sum(rest, 0.5, clipping, others))
        )
        moved = difference(whole.total, left.total)
        assert moved <= 0.5 * weights[removed] + 1e-5
        assert moved >= 0.5 * weights[removed] * (1 - 1e-4) - 1e-5, "all of these are longer than the bound"


def test_weights_of_one_change_no_bit() -> None:
    update = {"a": torch.randn(5, 7, generator=torch.Generator().manual_seed(0))}
    assert torch.equal(clip_and_sum(update, 0.5, [1.0] * 5).total["a"], clip_and_sum(update, 0.5).total["a"])


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, math.nan], [1.0, math.inf]])
def test_what_is_no_weight_is_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be 2 finite numbers of at least 0"):
        clip_and_sum({"a": torch.ones(2, 3)}, 1.0, weights)
