"""A long run holds no more at its end than at its beginning: memory, open files, threads."""

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.simulations.corpora import small_settings, write_jsonl

ROUNDS, SETTLED = 2000, 100


@dataclass(frozen=True)
class Held:
    """What a process held after some round."""

    round: int
    resident: int
    files: int
    threads: int


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["user_wise", "user_wise_adaptive", "group_privacy"])
def test_2000_rounds_hold_no_more_memory_files_or_threads_than_100(tmp_path: Path, mechanism: str) -> None:
    settings = [
        *small_settings(write_jsonl(tmp_path / "corpus.jsonl"), tmp_path / "cache", rounds=ROUNDS),
        f"mechanism={mechanism}",
        "evaluation.every=100",
        "checkpoint.every=20",
        f"output_dir={tmp_path / 'run'}",
    ]
    held = watched(settings, tmp_path / "run" / "ledger" / f"{mechanism}-seed0.jsonl")
    early = [moment for moment in held if SETTLED <= moment.round < 2 * SETTLED]
    late = [moment for moment in held if moment.round > ROUNDS - 2 * SETTLED]
    assert len(early) > 10
    assert len(late) > 10
    assert median(late, "resident") <= 1.05 * median(early, "resident")
    assert median(late, "files") <= median(early, "files")
    assert median(late, "threads") <= median(early, "threads")


def watched(settings: list[str], ledger: Path) -> list[Held]:
    """Runs `fedsim run` and returns what it held, moment by moment, with the lines of its ledger as the round."""
    command = [sys.executable, "-m", "fedsim_userdp.simulations.cli", "run", *settings]
    held = []
    with subprocess.Popen(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stderr=subprocess.PIPE, text=True) as run:
        process = psutil.Process(run.pid)
        while run.poll() is None:
            time.sleep(0.05)
            if ledger.exists():
                held.append(moment_of(process, ledger))
        assert run.stderr is not None
        assert run.returncode == 0, run.stderr.read()
    assert len(ledger.read_bytes().splitlines()) == ROUNDS
    return [moment for moment in held if moment is not None]


def moment_of(process: psutil.Process, ledger: Path) -> Held | None:
    """What the process holds now; None when it is ending."""
    try:
        round = ledger.read_bytes().count(b"\n")
        return Held(round, process.memory_info().rss, process.num_fds(), process.num_threads())
    except psutil.Error:
        return None


def median(moments: list[Held], what: str) -> float:
    """The median of one figure."""
    return statistics.median(getattr(moment, what) for moment in moments)
