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


@pytest.mark.parametrize("num_nodes", ["null", "3"])
def test_flower_and_in_process_give_the_same_model(tmp_path: Path, num_nodes: str) -> None:
    expected = trained(tmp_path / "in_process", "engine=in_process")
    flower = trained(tmp_path / "flower", "engine=flower", f"engine.num_nodes={num_nodes}")
    assert float((flower - expected).norm()) <= 1e-5 * float(expected.norm())


def test_one_node_and_one_node_per_user_give_the_same_model(tmp_path: Path) -> None:
    expected = trained(tmp_path / "one", "engine.num_nodes=1")
    apart = trained(tmp_path / "many", "engine.num_nodes=null")
    assert float((apart - expected).norm()) <= 1e-5 * float(expected.norm())
    other_seed = trained(tmp_path / "other", "seed=1")
    assert float((other_seed - expected).norm()) > 1e-3 * float(expected.norm())
