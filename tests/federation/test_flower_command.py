"""The same training under Flower's own command: in its simulation, and on the SuperNodes of a real SuperLink."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.federation.test_other_nodes import write_corpus
from tests.simulations.test_commands import fedsim

ROOT = Path(__file__).parents[2]
# 24 users in training: every user of the corpus but those set aside.
SMALL = [
    "mechanism=user_wise", "mechanism.rounds=2", "seed=1", "selection.sampling_prob=0.3", "split.heldout_users=880",
    "evaluation.records_per_user=1", "evaluation.every=100",
]  # fmt: skip
BIN = Path(sys.executable).parent


class Programs:
    """Programs of Flower, on loopback, with a home of their own; none of them outlives the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = os.environ | {
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_OFFLINE": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
        }
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *arguments: str) -> None:
        """Starts a program in the background, its output in a log."""
        with (self.folder / f"{len(self._running)}-{name}.log").open("wb") as log:
            command = [str(BIN / name), *arguments]
            process = subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=log, stderr=log)
        self._running.append(process)

    def start_superlink(self, *arguments: str) -> int:
        """Starts a SuperLink, names it in Flower's configuration and returns its port once it listens."""
        port = free_port()
        home = self.folder / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        settings = [
            "--insecure",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--disable-runtime-dependency-installation",
        ]
        self.start("flower-superlink", *settings, *arguments)
        deadline = time.monotonic() + 120
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)
        return port

    def flwr(self, *arguments: str) -> str:
        """Returns what the `flwr` command prints."""
        command = [str(BIN / "flwr"), *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self.env, text=True, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done.stdout

    def run_app(self, *overrides: str) -> str:
        """Submits the app with `flwr run` and returns the run's id."""
        run_config = f'overrides="{" ".join(overrides)}"'
        return str(json.loads(self.flwr("run", str(ROOT), "--run-config", run_config, "--format", "json"))["run-id"])

    def wait_for(self, path: Path, seconds: float = 570.0) -> None:
        """Waits until a file is there."""
        deadline = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < deadline, self.logs()
            assert all(process.poll() is None for process in self._running), self.logs()
            time.sleep(0.5)

    def wait_for_log(self, run_id: str, text: str, seconds: float = 300.0) -> None:
        """Waits until a text is in a run's log."""
        deadline = time.monotonic() + seconds
        while text not in (log := self.flwr("log", run_id, "--show")):
            assert time.monotonic() < deadline, log + self.logs()
            time.sleep(2.0)

    def logs(self) -> str:
        """Returns the end of every program's output."""
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-3000:]}" for log in self.folder.glob("*.log"))

    def stop(self) -> None:
        """Ends every program and whatever it has started, in sessions of their own too."""
        found = []
        for process in self._running:
            if process.poll() is None:
                found += [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for process in found:
            if process.is_running():
                process.kill()
        psutil.wait_procs(found, timeout=20)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def trained(folder: Path) -> torch.Tensor:
    state = load_file(folder / "adapters" / "user_wise" / "adapter_model.safetensors")
    return torch.cat([state[name].flatten() for name in sorted(state)]).double()


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Flower's programs, ended whatever happens."""
    started = Programs(tmp_path)
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """The adapter that one node in this process trains."""
    folder = tmp_path_factory.mktemp("flower") / "in_process"
    done = fedsim("run", *SMALL, f"output_dir={folder}", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return trained(folder)


def assert_trained_as_expected(folder: Path, expected: torch.Tensor) -> None:
    found = trained(folder)
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())
    (row,) = json.loads((folder / "results.json").read_text())
    assert (row["mechanism"], row["rounds"], row["seed"], row["num_failed"]) == ("user_wise", 2, 1, 0)
    assert (folder / "PRIVACY.md").exists()
    assert "engine=deployment" in json.loads((folder / "run.json").read_text())["overrides"]


@pytest.mark.slow
def test_flwr_run_in_simulation_trains_the_same_model_into_a_normal_run_folder(
    programs: Programs, expected: torch.Tensor
) -> None:
    programs.start_superlink("--simulation")
    folder = programs.folder / "run"
    programs.run_app(*SMALL, f"output_dir={folder}")
    programs.wait_for(folder / "comparison.png")
    assert_trained_as_expected(folder, expected)


@pytest.mark.slow
def test_two_supernodes_of_a_superlink_train_the_same_model(programs: Programs, expected: torch.Tensor) -> None:
    port = programs.start_superlink()
    for _ in range(2):
        own = str(free_port())
        programs.start("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", own)
    folder = programs.folder / "run"
    programs.run_app(*SMALL, "engine.num_nodes=2", f"output_dir={folder}")
    programs.wait_for(folder / "comparison.png")
    assert_trained_as_expected(folder, expected)
    answered = [log for log in programs.folder.glob("*-flower-supernode.log") if "flwr-clientapp" in log.read_text()]
    assert len(answered) == 2, programs.logs()


@pytest.mark.slow
def test_a_stopped_run_that_flwr_run_goes_on_with_trains_its_own_corpus(programs: Programs) -> None:
    write_corpus(programs.folder / "std.jsonl")
    small = [
        "mechanism=user_wise", "mechanism.rounds=2", "selection.sampling_prob=0.5", "split.heldout_users=10",
        "data=jsonl", f"data.path={programs.folder / 'std.jsonl'}", "tokens.min_words=0", "checkpoint.every=1",
        "evaluation.records_per_user=1", "evaluation.every=100",
    ]  # fmt: skip
    done = fedsim("run", *small, f"output_dir={programs.folder / 'whole'}", cwd=programs.folder)
    assert done.returncode == 0, done.stderr
    programs.start_superlink("--simulation")
    folder = programs.folder / "run"
    no_time = ["engine.max_retries=0", "engine.round_timeout=0.001"]  # but for the first round
    run_id = programs.run_app(*small, *no_time, f"output_dir={folder}")
    programs.wait_for_log(run_id, "nothing of the round was released")
    assert not (folder / "adapters").exists()
    programs.run_app(f"resume={folder}", "engine.round_timeout=null")
    programs.wait_for(folder / "comparison.png")
    found, expected = trained(folder), trained(programs.folder / "whole")
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())
    assert len((folder / "ledger" / "user_wise-seed0.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_refused_setting_is_said_in_flowers_log_and_leaves_no_results(programs: Programs) -> None:
    programs.start_superlink("--simulation")
    folder = programs.folder / "run"
    run_id = programs.run_app("privacy.epsilon=-1", f"output_dir={folder}")
    programs.wait_for_log(run_id, "privacy.epsilon=-1 must be above 0")
    assert not (folder / "results.json").exists()


def test_the_app_that_flower_ships_names_components_that_exist() -> None:
    import tomllib

    app = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    from flwr.supercore.object_ref import validate

    for reference in app["components"].values():
        assert validate(reference, project_dir=ROOT) == (True, None)
    assert app["config"] == {"overrides": ""}
    assert shutil.which("flwr", path=str(BIN)) is not None
