"""The same run under Flower's Simulation Runtime and in this process gives the same model."""

import contextlib
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.simulations.test_commands import fedsim
from tests.simulations.zygote import Zygote

# 24 users in training: every user of the corpus but those set aside.
SMALL = [
    "mechanism=user_wise", "mechanism.rounds=2", "selection.sampling_prob=0.3", "split.heldout_users=10",
    "split.validation_users=870", "evaluation.records_per_user=1", "evaluation.every=100", "tokens.min_words=64",
]  # fmt: skip


def trained(folder: Path, *overrides: str) -> torch.Tensor:
    """The adapter of a run that starts as a user's does."""
    done = fedsim("run", *SMALL, *overrides, f"output_dir={folder}", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return adapter(folder)


def trained_here(processes: Zygote, folder: Path, *overrides: str) -> torch.Tensor:
    """The adapter of a run in one process that is soon there."""
    ended = processes.run("run", *SMALL, *overrides, f"output_dir={folder}", cwd=folder.parent)
    assert ended.returncode == 0, ended.stderr
    return adapter(folder)


def adapter(folder: Path) -> torch.Tensor:
    state = load_file(folder / "adapters" / "user_wise" / "adapter_model.safetensors")
    return torch.cat([state[name].flatten() for name in sorted(state)]).double()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, processes: Zygote) -> torch.Tensor:
    """The adapter that one node in this process trains."""
    return trained_here(processes, tmp_path_factory.mktemp("engines") / "in_process")


def assert_same_model(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.slow
def test_flower_with_one_node_per_user_gives_the_same_model(tmp_path: Path, expected: torch.Tensor) -> None:
    assert_same_model(trained(tmp_path / "flower", "engine=flower"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [("engine.num_nodes=3",), ("engine.num_nodes=2", "engine.max_retries=0")], ids=str)
def test_flower_with_a_node_per_worker_gives_the_same_model(
    tmp_path: Path, expected: torch.Tensor, settings: tuple[str, ...]
) -> None:
    assert_same_model(trained(tmp_path / "flower", "engine=flower", *settings), expected)


@pytest.mark.slow
def test_a_worker_process_killed_in_mid_round_changes_nothing_but_a_count(tmp_path: Path) -> None:
    long = [*SMALL, "mechanism.rounds=4", "selection.sampling_prob=1.0", "mechanism.records_per_user=64"]
    folder = tmp_path / "flower"
    command = [
        sys.executable,
        "-m",
        "fedsim_userdp.simulations.cli",
        "run",
        *long,
        "engine=flower",
        "engine.num_nodes=2",
    ]
    with subprocess.Popen([*command, f"output_dir={folder}"], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as run:
        kill_a_busy_worker(run.pid, folder / "ledger" / "user_wise-seed0.jsonl")
        _, errors = run.communicate(timeout=500)
    assert run.returncode == 0, errors
    with (folder / "not_private" / "rounds.csv").open() as file:
        rounds = list(csv.DictReader(file))
    assert sum(int(row["num_retried"]) for row in rounds) > 0
    assert sum(int(row["num_failed"]) for row in rounds) == 0
    (row,) = json.loads((folder / "results.json").read_text())
    assert row["num_retried"] == sum(int(round["num_retried"]) for round in rounds)
    assert_same_model(adapter(folder), trained(tmp_path / "in_process", *long))


def kill_a_busy_worker(pid: int, ledger: Path) -> None:
    """Kills one of the run's worker processes while it computes, after the first round."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if ledger.exists():
            for process in psutil.Process(pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.cmdline()[:1] == ["ray::ClientAppActor.run"]:
                        process.kill()
                        return
        time.sleep(0.01)
    raise AssertionError("no worker was ever busy")


def test_one_node_per_user_in_this_process_gives_the_same_model(
    tmp_path: Path, expected: torch.Tensor, processes: Zygote
) -> None:
    assert_same_model(trained_here(processes, tmp_path / "many", "engine.num_nodes=null"), expected)


def test_another_seed_gives_another_model(tmp_path: Path, expected: torch.Tensor, processes: Zygote) -> None:
    other = trained_here(processes, tmp_path / "other", "seed=1")
    assert float((other - expected).norm()) > 1e-3 * float(expected.norm())
