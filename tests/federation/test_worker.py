from collections.abc import Iterable, Mapping

import numpy as np
import pytest
import torch
from peft import PeftModel

from fedsim_userdp.federation.messages import TrainRequest
from fedsim_userdp.federation.worker import Worker
from fedsim_userdp.models.adapters import trainable_state
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.training.batches import MicroBatch, StepAddress, Unit, collate
from fedsim_userdp.training.cohort import CohortUpdate, LocalTraining
from fedsim_userdp.training.gradients import StackedGradients
from tests.conftest import VOCABULARY, ragged_units


class Users:
    """Training users of whom some have records that cannot be used, or cannot even be chosen."""

    def __init__(self, *, broken: Iterable[int] = (), unreadable: Iterable[int] = ()) -> None:
        self._units = {unit.index: unit for unit in ragged_units(6)}
        self._units |= {user: Unit(user, [np.array([1, 10 * VOCABULARY])]) for user in broken}
        self._unreadable = set(unreadable)
        self.key = RunKey.seeded(0)

    def units(self, users: Iterable[int], round: int, weights: object = None) -> list[Unit]:
        chosen = list(users)
        if self._unreadable.intersection(chosen):
            raise ValueError("this user's records cannot be read")
        return [self._units[user] for user in chosen]


def worker_of(gradients: StackedGradients, users: Users, max_tokens: int = 1000) -> Worker:
    return Worker(gradients, users, LocalTraining(max_tokens=max_tokens))  # type: ignore[arg-type]


def answer(model: PeftModel, users: Users, asked: Iterable[int]) -> CohortUpdate:
    worker = worker_of(StackedGradients(model), users, max_tokens=100)
    return worker.train(TrainRequest(trainable_state(model), 1, tuple(asked), 0.05))


def total(update: CohortUpdate) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in update.clipped.total.values()]).double()


@pytest.mark.parametrize("users", [Users(broken=[2, 4]), Users(unreadable=[2, 4]), Users(broken=[2], unreadable=[4])])
def test_a_user_whose_update_cannot_be_computed_adds_zero_and_changes_nothing_for_the_others(
    model: PeftModel, users: Users
) -> None:
    found = answer(model, users, range(6))
    expected = answer(model, Users(), [0, 1, 3, 5])
    assert (found.num_failed, found.clipped.num_units) == (2, 4)
    assert (expected.num_failed, expected.clipped.num_units) == (0, 4)
    torch.testing.assert_close(total(found), total(expected), rtol=1e-5, atol=1e-8)
    assert found.num_tokens == expected.num_tokens


def test_a_node_all_of_whose_users_fail_has_failed_itself(model: PeftModel) -> None:
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        answer(model, Users(broken=range(3)), range(3))


def test_an_empty_request_is_answered_with_an_exact_zero(model: PeftModel) -> None:
    assert float(total(answer(model, Users(), [])).abs().max()) == 0.0


class SmallGpu(StackedGradients):
    """Gradients on a device that has memory for so many padded tokens."""

    def __init__(self, model: PeftModel, memory: int) -> None:
        super().__init__(model)
        self.memory = memory
        self.tried: list[int] = []

    def __call__(
        self, stacked: Mapping[str, torch.Tensor], batch: MicroBatch, at: StepAddress
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        self.tried.append(batch.input_ids.numel())
        if batch.input_ids.numel() > self.memory:
            raise torch.OutOfMemoryError("no room")
        return super().__call__(stacked, batch, at)


def test_a_gpu_that_is_too_small_gets_smaller_micro_batches_until_they_fit(model: PeftModel) -> None:
    gradients = SmallGpu(model, memory=70)
    worker = worker_of(gradients, Users())
    found = worker.train(TrainRequest(trainable_state(model), 1, tuple(range(6)), 0.05))
    assert max(gradients.tried) > 70
    assert (found.num_failed, found.clipped.num_units) == (0, 6)
    torch.testing.assert_close(total(found), total(answer(model, Users(), range(6))), rtol=1e-5, atol=1e-8)


def test_users_too_large_for_the_gpu_add_zero_and_the_others_count(model: PeftModel) -> None:
    sizes = {unit.index: collate([unit]).input_ids.numel() for unit in ragged_units(6)}
    gradients = SmallGpu(model, memory=max(sizes.values()) - 1)
    worker = worker_of(gradients, Users())
    found = worker.train(TrainRequest(trainable_state(model), 1, tuple(range(6)), 0.05))
    others = [user for user in range(6) if sizes[user] <= gradients.memory]
    assert (found.num_failed, found.clipped.num_units) == (6 - len(others), len(others))
    torch.testing.assert_close(total(found), total(answer(model, Users(), others)), rtol=1e-5, atol=1e-8)


def test_a_gpu_too_small_for_anybody_fails_the_node(model: PeftModel) -> None:
    worker = worker_of(SmallGpu(model, memory=0), Users())
    with pytest.raises(torch.OutOfMemoryError):
        worker.train(TrainRequest(trainable_state(model), 1, tuple(range(6)), 0.05))
