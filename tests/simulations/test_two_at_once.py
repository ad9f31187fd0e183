"""Runs that are started at the same moment on one machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.simulations.zygote import Zygote

SMALL = ["mechanism=zero_shot", "evaluation.records_per_user=1", "split.heldout_users=20"]
LONG = [
    "mechanism=user_wise", "mechanism.rounds=500", "selection.sampling_prob=0.02", "evaluation.records_per_user=1",
    "evaluation.every=500", "threads=1",
]  # fmt: skip


def started(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fedsim_userdp.simulations.cli", "run", *arguments]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_runs_started_together_write_to_folders_of_their_own(tmp_path: Path, processes: Zygote) -> None:
    for ended in processes.run_together(*(["run", *SMALL, f"seed={seed}"] for seed in (1, 2)), cwd=tmp_path):
        assert ended.returncode == 0, ended.stderr
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    rows = [json.loads((folder / "results.json").read_text())[0] for folder in folders]
    assert {row["seed"] for row in rows} == {1, 2}


@pytest.mark.slow
def test_a_folder_in_which_a_run_is_at_work_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started(*LONG, f"output_dir={folder}", cwd=tmp_path) as first:
        try:
            ledger = folder / "ledger" / "user_wise-seed0.jsonl"
            deadline = time.monotonic() + 200
            while not ledger.exists():
                assert first.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            before = (folder / "run.json").read_bytes(), (folder / "config.yaml").read_bytes()
            second = started(*SMALL, f"output_dir={folder}", cwd=tmp_path)
            _, errors = second.communicate(timeout=200)
            assert second.returncode == 2
            assert errors.strip().count("\n") == 0
            assert "is in use by another run" in errors
            assert before == ((folder / "run.json").read_bytes(), (folder / "config.yaml").read_bytes())
            assert not (folder / "results.json").exists()
        finally:
            os.kill(first.pid, signal.SIGKILL)
    third = started(*SMALL, f"output_dir={folder}", cwd=tmp_path)
    _, errors = third.communicate(timeout=200)
    assert third.returncode == 0, errors  # the lock ends with its holder, however that ended


@pytest.mark.slow
def test_two_runs_of_flowers_runtime_started_together_do_not_meet(tmp_path: Path) -> None:
    settings = [
        "mechanism=user_wise", "mechanism.rounds=2", "selection.sampling_prob=0.3", "split.heldout_users=880",
        "evaluation.records_per_user=1", "evaluation.every=100", "engine=flower", "engine.num_nodes=1",
    ]  # fmt: skip
    pair = [started(*settings, f"seed={seed}", f"output_dir=run{seed}", cwd=tmp_path) for seed in (1, 2)]
    for seed, process in zip((1, 2), pair, strict=True):
        _, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        assert json.loads((tmp_path / f"run{seed}" / "results.json").read_text())[0]["seed"] == seed
