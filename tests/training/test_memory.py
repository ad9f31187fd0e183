"""How much a micro-batch may hold."""

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from fedsim_userdp.models.adapters import trainable_state
from fedsim_userdp.training import cohort, memory
from fedsim_userdp.training.batches import micro_batches
from fedsim_userdp.training.cohort import LocalTraining, clipped_update_sum
from fedsim_userdp.training.gradients import StackedGradients
from fedsim_userdp.training.memory import remembered_measurement, units_in_memory
from tests.conftest import ragged_units

CPU = torch.device("cpu")


def test_units_fit_with_their_adapters_and_there_is_always_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "device_memory", lambda device: 20 * 4000 * 100)
    monkeypatch.setattr(memory, "_ADAPTERS_SHARE", {"cpu": 0.05})
    state = {"a": torch.zeros(30, 10), "b": torch.zeros(700)}  # 4000 bytes
    assert units_in_memory(state, CPU, copies=1) == 100
    assert units_in_memory(state, CPU, copies=5) == 20
    assert units_in_memory(state, CPU, copies=1000) == 1
    assert units_in_memory({}, CPU, copies=2) > 100


@pytest.mark.parametrize("answer", [math.nan, math.inf, 0, 0.0, -1.0, 5.0, 1e300, "4.0", True, None, {}])
def test_a_measurement_that_is_not_what_was_written_is_made_anew(tmp_path: Path, answer: object) -> None:
    assert remembered_measurement("how much", tmp_path, lambda: 4.0) == 4.0
    assert remembered_measurement("how much", tmp_path, lambda: 8.0) == 4.0
    (file,) = (tmp_path / "measurements").iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "answer": answer}))
    assert remembered_measurement("how much", tmp_path, lambda: 8.0) == 8.0
    assert remembered_measurement("how much", tmp_path, lambda: 9.0) == 8.0


@pytest.mark.parametrize("content", [b"", b"[" * 1_000_000, b"\xff", b"{}", b"7", b'{"bytes_per_token": 4.0}'])
def test_a_measurement_that_cannot_be_read_is_made_anew(tmp_path: Path, content: bytes) -> None:
    remembered_measurement("how much", tmp_path, lambda: 4.0)
    (file,) = (tmp_path / "measurements").iterdir()
    file.write_bytes(content)
    assert remembered_measurement("how much", tmp_path, lambda: 8.0) == 8.0


@pytest.mark.parametrize("most", [1, 3, 100])
def test_micro_batches_hold_at_most_so_many_units(most: int) -> None:
    sizes = [len(batch.units) for batch in micro_batches(ragged_units(12), 10_000, max_units=most)]
    assert max(sizes) == min(most, 12)
    assert sum(sizes) == 12


def test_a_cohorts_adapters_are_bounded_and_the_sum_is_the_same(
    model: PeftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    units, state, local = ragged_units(7), trainable_state(model), LocalTraining()
    asked = []

    def two_units(state: object, device: torch.device, copies: int) -> int:
        asked.append(copies)
        return 2

    expected = clipped_update_sum(StackedGradients(model), state, units, local, math.inf).clipped
    monkeypatch.setattr(cohort, "units_in_memory", two_units)
    found = clipped_update_sum(StackedGradients(model), state, units, local, math.inf).clipped
    assert asked == [2]
    assert found.num_units == expected.num_units == 7
    for name, tensor in expected.total.items():
        torch.testing.assert_close(found.total[name], tensor, rtol=1e-4, atol=1e-6)
