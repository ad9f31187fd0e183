import pytest
import torch

from fedsim_userdp.strategies.optimizers import ServerOptimizer
from fedsim_userdp.training.schedule import LearningRate


def test_learning_rate_falls_linearly_and_never_reaches_zero() -> None:
    schedule = LearningRate(0.4, 4)
    assert [schedule(round) for round in range(1, 5)] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert LearningRate(0.4, 4, decays=False)(4) == 0.4


def test_the_server_optimizer_takes_the_rate_of_its_round() -> None:
    optimizer = ServerOptimizer({"a": torch.zeros(1)}, torch.optim.SGD, LearningRate(1.0, 4))
    assert optimizer.step({"a": torch.ones(1)}, 1)["a"].item() == -1.0
    assert optimizer.step({"a": torch.ones(1)}, 3)["a"].item() == -1.5
