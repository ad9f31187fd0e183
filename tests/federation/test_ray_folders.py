"""What a killed run leaves of its Ray cluster is ended and removed by the next start; a live run's is left alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fedsim_userdp.federation.engines.ray_folders import PREFIX, remove_leftovers, temporary_folder
from tests.simulations.corpora import small_settings, write_jsonl


def started_in(folder: Path, name: str) -> "subprocess.Popen[bytes]":
    """A process called `name` with a file of the folder open."""
    code = "import sys, time; sys.stdout.write('ready'); sys.stdout.flush(); time.sleep(600)"
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", code, name], stdout=log)
    while (folder / "log").stat().st_size == 0:
        time.sleep(0.01)
    return process


@contextmanager
def process_in(folder: Path, name: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with a file of the folder open, for the duration of the block."""
    with started_in(folder, name) as process:
        yield process
        process.kill()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The parent of temporary folders."""
    monkeypatch.setattr("fedsim_userdp.federation.engines.ray_folders._parent", lambda: tmp_path)
    return tmp_path


def test_what_a_run_that_is_gone_left_is_ended_and_removed(here: Path) -> None:
    with process_in(here / f"{PREFIX}left", "ray::DashboardAgent") as left:
        with temporary_folder() as folder:
            assert os.listdir(here) == [folder.name]
            assert left.wait(10) == -signal.SIGKILL
        assert os.listdir(here) == []


def test_a_live_runs_folder_and_processes_are_left_alone(here: Path) -> None:
    with temporary_folder() as live, process_in(live, "ray::ClientAppActor") as working:
        with temporary_folder() as other:
            assert {live.name, other.name} == set(os.listdir(here))
        remove_leftovers(here)
        assert working.poll() is None
        assert os.listdir(here) == [live.name]


def test_processes_that_are_not_rays_and_what_links_lead_to_are_left_alone(here: Path) -> None:
    (elsewhere := here / "elsewhere").mkdir()
    (elsewhere / "file").touch()
    (here / f"{PREFIX}link").symlink_to(elsewhere)
    with process_in(here / f"{PREFIX}left", "tail") as reader:
        remove_leftovers(here)
        assert reader.poll() is None
    assert (elsewhere / "file").exists()
    assert not (here / f"{PREFIX}left").exists()


def test_what_ray_leaves_running_is_ended_with_the_run(here: Path) -> None:
    with temporary_folder() as folder:
        left = started_in(folder, "ray::RuntimeEnvAgent")
    assert left.wait(10) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_flower_run_that_is_told_to_stop_says_one_line_and_leaves_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    settings = small_settings(write_jsonl(tmp_path / "corpus.jsonl"), tmp_path / "cache", rounds=500)
    engine = ["engine=flower", "engine.num_nodes=1", "output_dir=run"]
    program = [sys.executable, "-m", "fedsim_userdp.simulations.cli", "run", *settings, *engine]
    (temporary := Path("/tmp", f"f{os.getpid()}-{number}")).mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.Popen(program, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 240
        while not list((tmp_path / "run").glob("not_private/checkpoints/*/rounds.jsonl")):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        started = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(number)
        _, said = run.communicate(timeout=60)
        if number == signal.SIGKILL:
            assert run.returncode == -number
            remove_leftovers(temporary)
        else:
            assert run.returncode == 128 + number
            assert said == f"fedsim: stopped by {number.name}; a run that had begun goes on with resume=PATH\n"
        _, alive = psutil.wait_procs(started, timeout=10)
        assert [process.pid for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
        assert os.listdir(temporary) == []
    finally:
        run.kill()
        run.wait()
        remove_leftovers(temporary)
        temporary.rmdir()
