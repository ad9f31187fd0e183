import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim_userdp.training import checkpoints as module
from fedsim_userdp.training.checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointFolder,
    load_optimizer_tensors,
    optimizer_tensors,
)
from fedsim_userdp.training.journal import Journal, JournalEnd

ORIGIN = {"settings": "h"}


def checkpoint(round: int) -> Checkpoint:
    return Checkpoint(round, {"a": torch.full((3,), float(round))}, {"0.step": torch.tensor(round)}, {"tokens": round})


def test_the_latest_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "c", ORIGIN)
    assert folder.latest() is None
    for round in (1, 2, 10):
        folder.write(checkpoint(round))
    found = folder.latest()
    assert found is not None
    assert (found.round, found.notes) == (10, {"tokens": 10})
    assert torch.equal(found.adapter["a"], torch.full((3,), 10.0))


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, ORIGIN, keep=2)
    for round in range(1, 6):
        folder.write(checkpoint(round))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-00000004", "round-00000005"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing", "notes"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, damage: str) -> None:
    folder = CheckpointFolder(tmp_path, ORIGIN)
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


def test_a_checkpoint_of_another_origin_is_refused_with_the_difference_unless_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    CheckpointFolder(tmp_path, {"code": "1", "data": "x"}).write(checkpoint(1))
    other = {"code": "2", "data": "x"}
    with pytest.raises(CheckpointError, match=r"code was 1 and is 2: .*checkpoint\.allow_changes=true") as refused:
        CheckpointFolder(tmp_path, other).latest()
    assert "data" not in str(refused.value)
    found = CheckpointFolder(tmp_path, other, allow_changes=True).latest()
    assert found is not None
    assert "code was 1 and is 2" in caplog.text


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT", 99)
        CheckpointFolder(tmp_path, ORIGIN).write(checkpoint(1))
    with pytest.raises(CheckpointError, match="format 99 instead of this version's"):
        CheckpointFolder(tmp_path, ORIGIN).latest()


def test_writing_drops_what_a_killed_process_left_and_checkpoints_of_later_rounds(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, ORIGIN, keep=2)
    for round in (7, 8):
        folder.write(checkpoint(round))
    (tmp_path / ".round-00000009.new").mkdir()
    (tmp_path / ".round-00000009.new" / "state.safetensors").write_bytes(b"half")
    folder.write(checkpoint(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-00000005"]


def test_a_link_in_the_place_of_a_leftover_is_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("text")
    place = tmp_path / "checkpoints"
    place.mkdir()
    for name in (".round-00000001.new", "round-00000001"):
        (place / name).symlink_to(outside)
    CheckpointFolder(place, ORIGIN).write(checkpoint(1))
    assert (outside / "precious").read_text() == "text"
    assert [path.name for path in outside.iterdir()] == ["precious"]
    assert not (place / "round-00000001").is_symlink()


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_optimizer_state_that_does_not_fit_is_refused(change: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones(4)
    optimizer.step()
    tensors = optimizer_tensors(optimizer)
    if change == "missing":
        del tensors["0.step"]
    elif change == "extra":
        tensors["1.step"] = torch.tensor(1.0)
    else:
        tensors["0.exp_avg"] = torch.zeros(5)
    with pytest.raises(CheckpointError, match="does not fit at"):
        load_optimizer_tensors(optimizer, tensors, torch.optim.Adam)


def test_a_journal_goes_back_to_where_it_was_and_drops_what_came_after(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append([{"a": 1}, {"a": 2}])
    end = journal.end
    journal.append([{"a": 3}])
    again = Journal(tmp_path / "journal.jsonl")
    assert again.go_back(JournalEnd.from_json(end.to_json())) == [{"a": 1}, {"a": 2}]
    again.append([{"a": 4}])
    assert (tmp_path / "journal.jsonl").read_text() == '{"a": 1}\n{"a": 2}\n{"a": 4}\n'


@pytest.mark.parametrize("damage", ["shorter", "changed", "missing"])
def test_a_damaged_journal_is_refused(tmp_path: Path, damage: str) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append([{"a": 1}])
    if damage == "missing":
        journal.path.unlink()
    else:
        journal.path.write_text('{"a": 2}\n' if damage == "changed" else '{"a"')
    with pytest.raises(CheckpointError, match="missing or was changed"):
        Journal(tmp_path / "journal.jsonl").go_back(journal.end)


@pytest.mark.parametrize("value", [None, 5, {}, {"num_bytes": -1, "sha256": ""}, {"num_bytes": "1", "sha256": ""}])
def test_an_end_of_a_journal_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(CheckpointError, match="how far its journal went"):
        JournalEnd.from_json(value)


def test_a_checkpoint_does_not_grow_with_the_rounds_before_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    sizes = []
    for round in range(1, 200):
        journal.append([{"round": round}])
        sizes.append(len(str(journal.end.to_json())))
    assert max(sizes) - min(sizes) <= 4


class Remembering(torch.optim.SGD):
    """An optimizer with an attribute of its own, which copies of it lack, and one that cannot be copied."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)
        self.beta, self.lock = 0.5, threading.Lock()

    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
            mean.mul_(self.beta).add_(parameter.grad)
            parameter.data.sub_(self.param_groups[0]["lr"] * mean)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, Remembering])
def test_an_optimizer_goes_on_as_if_never_stopped(kind: type[torch.optim.Optimizer]) -> None:
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9} if kind is torch.optim.SGD else {"lr": 0.1}

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
    load_optimizer_tensors(after, optimizer_tensors(before), partial(kind, **options))
    steps(second, after, range(3, 6))
    assert torch.equal(second.data, whole.data)


class Keeping(torch.optim.SGD):
    """An optimizer that keeps one value of each kind that a checkpoint can hold."""

    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["number"], state["rate"], state["is_late"] = state.get("number", 0) + 1, 0.1, True
            state["count"], state["exact"] = torch.tensor(2**40), torch.tensor([0.1], dtype=torch.float64)
            state["nothing"] = None


def test_what_an_optimizer_keeps_comes_back_as_the_kind_of_value_that_it_was() -> None:
    before, after = (Keeping([torch.nn.Parameter(torch.zeros(2, 2))], lr=0.1) for _ in range(2))
    before.step()
    load_optimizer_tensors(after, optimizer_tensors(before), Keeping)
    (kept,), (found,) = before.state.values(), after.state.values()
    assert {key: (type(value), value) for key, value in found.items()} == {
        key: (type(value), value) for key, value in kept.items()
    }
    assert (found["count"].dtype, found["exact"].dtype) == (torch.int64, torch.float64)
