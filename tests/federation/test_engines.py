"""The same run under Flower's Simulation Runtime and in this process gives the same model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.simulations.test_commands import fedsim

# 24 users in training: every user of the corpus but those set aside.
SMALL = [
    "mechanism=user_wise", "mechanism.rounds=2", "selection.sampling_prob=0.3", "split.heldout_users=880",
    "evaluation.records_per_user=1", "evaluation.every=100", "tokens.min_words=64",
]  # fmt: skip


def trained(folder: Path, *overrides: str) -> torch.Tensor:
    done = fedsim("run", *SMALL, *overrides, f"output_dir={folder}", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    state = load_file(folder / "adapters" / "user_wise" / "adapter_model.safetensors")
    return torch.cat([state[name].flatten() for name in sorted(state)]).double()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """The adapter that one node in this process trains."""
    return trained(tmp_path_factory.mktemp("engines") / "in_process")


def assert_same_model(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


def test_flower_with_one_node_per_user_gives_the_same_model(tmp_path: Path, expected: torch.Tensor) -> None:
    assert_same_model(trained(tmp_path / "flower", "engine=flower"), expected)


@pytest.mark.slow
def test_flower_with_three_nodes_gives_the_same_model(tmp_path: Path, expected: torch.Tensor) -> None:
    assert_same_model(trained(tmp_path / "flower", "engine=flower", "engine.num_nodes=3"), expected)


def test_one_node_per_user_in_this_process_gives_the_same_model(tmp_path: Path, expected: torch.Tensor) -> None:
    assert_same_model(trained(tmp_path / "many", "engine.num_nodes=null"), expected)


def test_another_seed_gives_another_model(tmp_path: Path, expected: torch.Tensor) -> None:
    other = trained(tmp_path / "other", "seed=1")
    assert float((other - expected).norm()) > 1e-3 * float(expected.norm())
