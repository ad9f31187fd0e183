import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from simulations.arguments import continued_arguments, override_key
from simulations.errors import ConfigError
from tests.simulations.test_commands import fedsim

SETTINGS = [
    "mechanism=user_wise", "mechanism.rounds=6", "selection.sampling_prob=0.05", "evaluation.records_per_user=1",
    "evaluation.every=100", "checkpoint.every=2", "threads=1",
]  # fmt: skip


def killed_after(folder: Path, num_releases: int) -> None:
    """Starts a run and kills it once its ledger holds `num_releases` lines."""
    command = [sys.executable, "-m", "simulations.cli", "run", *SETTINGS, f"output_dir={folder}"]
    with subprocess.Popen(command, cwd=folder.parent, stdout=subprocess.DEVNULL) as process:
        ledger = folder / "ledger" / "user_wise-seed0.jsonl"
        deadline = time.monotonic() + 120
        while not ledger.exists() or ledger.read_bytes().count(b"\n") < num_releases:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)


def test_a_killed_and_resumed_run_ends_as_if_never_killed(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert fedsim("run", *SETTINGS, f"output_dir={whole}", cwd=tmp_path).returncode == 0
    killed_after(broken, 4)
    resumed = fedsim("run", f"resume={broken}", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    adapters = [load_file(f / "adapters" / "user_wise" / "adapter_model.safetensors") for f in (whole, broken)]
    assert adapters[0].keys() == adapters[1].keys()
    assert all((adapters[0][name] == adapters[1][name]).all() for name in adapters[0])
    ledgers = [(f / "ledger" / "user_wise-seed0.jsonl").read_text() for f in (whole, broken)]
    assert ledgers[0] == ledgers[1]
    rows = [json.loads((f / "results.json").read_text())[0] for f in (whole, broken)]
    assert all(rows[0][key] == rows[1][key] for key in rows[0] if key != "seconds")

    changed = fedsim("run", f"resume={broken}", "privacy.epsilon=3", cwd=tmp_path)
    assert changed.returncode == 2
    assert "privacy.epsilon was 8.0 and is 3" in changed.stderr


def test_resume_takes_the_folders_own_overrides(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- seed=4\n- mechanism=zero_shot\n- output_dir=x\n")
    assert continued_arguments([f"resume={tmp_path}", "seed=5"]) == [
        "mechanism=zero_shot", f"resume={tmp_path}", "seed=5", f"output_dir={tmp_path}",
    ]  # fmt: skip
    assert continued_arguments(["seed=5"]) == ["seed=5"]
    assert override_key("+a.b=c") == "a.b"


@pytest.mark.parametrize("content", [None, "a: 1\n", "- 5\n"])
def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / ".hydra").mkdir()
        (tmp_path / ".hydra" / "overrides.yaml").write_text(content)
    with pytest.raises(ConfigError, match="overrides"):
        continued_arguments([f"resume={tmp_path}"])
