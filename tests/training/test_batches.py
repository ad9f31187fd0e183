import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim_userdp.training.batches import IGNORED, Unit, collate, micro_batches
from tests.conftest import ragged_units


@given(seed=st.integers(0, 10_000), max_tokens=st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_micro_batches_hold_every_unit_once_and_keep_the_bound(seed: int, max_tokens: int) -> None:
    units = ragged_units(12, seed)
    batches = list(micro_batches(units, max_tokens))
    assert sorted(index for batch in batches for index in batch.units) == list(range(12))
    for batch in batches:
        assert batch.input_ids.numel() <= max_tokens or len(batch.units) == 1


def test_targets_are_the_next_tokens_and_padding_is_ignored() -> None:
    batch = collate([Unit(0, [np.array([5, 6, 7])]), Unit(1, [np.array([8, 9]), np.array([1, 2, 3])])])
    assert batch.targets.tolist() == [[6, 7], [9, IGNORED], [2, 3]]
    assert batch.num_tokens == 5
    assert batch.rows.unit_of_row.tolist() == [0, 1, 1]
    assert not batch.rows.is_even


def test_order_of_units_does_not_matter() -> None:
    units = ragged_units(9)
    forward = [batch.units for batch in micro_batches(units, 64)]
    assert forward == [batch.units for batch in micro_batches(units[::-1], 64)]
