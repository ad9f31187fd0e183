from pathlib import Path

import pytest
import torch

from fedsim_userdp.training.checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointFolder,
    load_optimizer_tensors,
    optimizer_tensors,
)


def checkpoint(round: int) -> Checkpoint:
    return Checkpoint(round, {"a": torch.full((3,), float(round))}, {"0.step": torch.tensor(round)}, {"tokens": round})


def test_the_latest_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "c", "h")
    assert folder.latest() is None
    for round in (1, 2, 10):
        folder.write(checkpoint(round))
    found = folder.latest()
    assert found is not None
    assert (found.round, found.notes) == (10, {"tokens": 10})
    assert torch.equal(found.adapter["a"], torch.full((3,), 10.0))


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, "h", keep=2)
    for round in range(1, 6):
        folder.write(checkpoint(round))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-00000004", "round-00000005"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing", "notes"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, damage: str) -> None:
    folder = CheckpointFolder(tmp_path, "h")
    folder.write(checkpoint(1))
    folder.write(checkpoint(2))
    state = tmp_path / "round-00000002" / "state.safetensors"
    data = bytearray(state.read_bytes())
    if damage == "truncate":
        state.write_bytes(data[:-3])
    elif damage == "flip":
        data[-1] ^= 1
        state.write_bytes(data)
    elif damage == "missing":
        state.unlink()
    else:
        (tmp_path / "round-00000002" / "checkpoint.json").write_text("{")
    found = folder.latest()
    assert found is not None
    assert found.round == 1


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path, "h").write(checkpoint(1))
    with pytest.raises(CheckpointError, match="another configuration"):
        CheckpointFolder(tmp_path, "other").latest()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_an_optimizer_goes_on_as_if_never_stopped(kind: type[torch.optim.Optimizer]) -> None:
    options = {"lr": 0.1, "momentum": 0.9} if kind is torch.optim.SGD else {"lr": 0.1}

    def steps(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, rounds: range) -> None:
        for round in rounds:
            parameter.grad = torch.full((4,), float(round))
            optimizer.step()

    whole, first, second = (torch.nn.Parameter(torch.zeros(4)) for _ in range(3))
    steps(whole, kind([whole], **options), range(6))
    before = kind([first], **options)
    steps(first, before, range(3))
    after = kind([second], **options)
    second.data.copy_(first.data)
    load_optimizer_tensors(after, optimizer_tensors(before))
    steps(second, after, range(3, 6))
    assert torch.equal(second.data, whole.data)
