"""Hydra's launchers for sweeps over several processes or machines: `pip install -e ".[clusters]"`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

SLURM = ["hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=240", "hydra.launcher.gres=gpu:1"]
PACKAGES = {"joblib": "hydra_plugins.hydra_joblib_launcher", "submitit_slurm": "hydra_plugins.hydra_submitit_launcher"}


@pytest.mark.parametrize("command", ["run", "compare"])
@pytest.mark.parametrize(
    ("launcher", "settings"), [("joblib", ["hydra.launcher.n_jobs=2"]), ("submitit_slurm", SLURM)], ids=str
)
def test_a_cluster_launcher_composes_with_its_settings(command: str, launcher: str, settings: list[str]) -> None:
    pytest.importorskip(PACKAGES[launcher])
    overrides = [f"hydra/launcher={launcher}", *settings, "output_dir=/scratch/sweep"]
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        config = compose(command, overrides=overrides, return_hydra_config=True)
    assert config.hydra.launcher._target_.startswith(PACKAGES[launcher])
    assert config.hydra.sweep.dir == "/scratch/sweep"
    for setting in settings:
        key, value = setting.removeprefix("hydra.launcher.").split("=")
        assert str(config.hydra.launcher[key]) == value


@pytest.mark.parametrize(
    ("command", "settings", "file"),
    [
        ("budget", ["budget.rounds=3,4", "budget.num_users=100"], "budget.json"),
        pytest.param(
            "run",
            ["seed=3,4", "mechanism=zero_shot", "evaluation.records_per_user=1", "split.heldout_users=20"],
            "results.json",
            marks=pytest.mark.slow,  # each worker process imports torch and what rests on it
        ),
    ],
)
def test_jobs_of_a_joblib_sweep_run_side_by_side_in_folders_of_their_own(
    tmp_path: Path, command: str, settings: list[str], file: str
) -> None:
    pytest.importorskip(PACKAGES["joblib"])
    done = subprocess.run(
        [
            sys.executable, "-m", "fedsim_userdp.simulations.cli", command, "--multirun", "hydra/launcher=joblib",
            "hydra.launcher.n_jobs=2", *settings, f"output_dir={tmp_path / 'sweep'}",
        ],
        cwd=tmp_path, text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stored = [json.loads((tmp_path / "sweep" / job / file).read_text()) for job in ("0", "1")]
    rows = [content["rows"][0] if command == "budget" else content[0] for content in stored]
    swept = "rounds" if command == "budget" else "seed"
    assert [row[swept] for row in rows] == [3, 4]
