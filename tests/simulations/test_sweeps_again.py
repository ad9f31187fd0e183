"""A sweep that is started again, or gone on with: what has run is left alone, what would differ is refused first."""

import json
import os
from pathlib import Path

import pytest

from tests.simulations.corpora import small_settings, write_jsonl
from tests.simulations.test_folders import content
from tests.simulations.zygote import Ended, Zygote


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpus")
    small = small_settings(write_jsonl(folder / "corpus.jsonl"), folder / "cache", rounds=2)
    return [one for one in small if not one.startswith("seed")]


WRONG = ["mechanism.clip_norm=0.3,-1", "seed=0,1"]


def jobs(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.isdigit())


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, processes: Zygote, settings: list[str]) -> Path:
    """A sweep of four jobs, of which the last two are refused."""
    folder = tmp_path_factory.mktemp("swept") / "sweep"
    ended = processes.run("run", "--multirun", *settings, *WRONG, f"output_dir={folder}")
    assert (ended.returncode, ended.stdout.count("run folder:")) == (2, 2), ended.stderr
    refused = [line for line in ended.stderr.splitlines() if "must be a number from 1e-30" in line]
    assert [line.split(" of ")[0] for line in refused] == ["fedsim: job 2", "fedsim: job 3"]
    assert ended.stderr.splitlines()[-1].startswith("fedsim: 2 jobs did not run to their end: job 2 of ")
    assert jobs(folder) == ["0", "1"], "what is refused leaves no folder"
    return folder


def again(processes: Zygote, settings: list[str], folder: Path, *changes: str) -> Ended:
    return processes.run("run", "--multirun", *settings, f"output_dir={folder}", *changes)


def test_jobs_that_have_run_are_left_as_they_are_and_the_others_run(
    processes: Zygote, settings: list[str], swept: Path
) -> None:
    before = {name: content(swept / name) for name in ("0", "1")}
    ended = again(processes, settings, swept, "mechanism.clip_norm=0.3,0.2", "seed=0,1")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("it has run before, and is left as it is") == 2
    assert {name: content(swept / name) for name in ("0", "1")} == before
    assert len(json.loads((swept / "privacy.json").read_text())["jobs"]) == 4


def test_a_job_that_would_find_another_run_in_its_folder_is_refused_before_any_starts(
    processes: Zygote, settings: list[str], swept: Path
) -> None:
    before = content(swept)
    ended = again(processes, settings, swept, "mechanism.clip_norm=0.3,0.2", "seed=5,0,1")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "none was started" in ended.stderr
    assert "seed was 0 and is 5" in ended.stderr
    assert content(swept) == before


def test_a_sweep_that_was_stopped_goes_on_by_resume(processes: Zygote, settings: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    changes = ["seed=0,1,2"]
    stopped = processes.run("run", "--multirun", *settings, f"output_dir={folder}", *changes, write=150)
    assert stopped.returncode < 0
    assert jobs(folder)
    assert not all((folder / name / "results.json").exists() for name in ("0", "1", "2"))
    ended = processes.run("run", "--multirun", f"resume={folder}")
    assert ended.returncode == 0, ended.stderr
    assert len(json.loads((folder / "privacy.json").read_text())["jobs"]) == 3
    assert processes.run("verify", str(folder)).returncode == 0


@pytest.mark.parametrize("command", ["run", "compare"])
def test_what_is_no_sweep_of_the_command_is_not_resumed_as_one(
    processes: Zygote, swept: Path, tmp_path: Path, command: str
) -> None:
    wrong = swept if command == "compare" else swept / "0"
    ended = processes.run(command, "--multirun", f"resume={wrong}")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert ("holds a sweep of `fedsim run`" if command == "compare" else "holds no sweep") in ended.stderr


@pytest.mark.parametrize(
    "changes",
    [
        ["output_dir=x,y"],
        ["output_dir=x", "hydra.sweep.dir=y,z"],
        ["output_dir=x-${seed}", "seed=0,1"],
        ["output_dir=x", "hydra.sweep.dir=y/${hydra.job.num}", "seed=0,1"],
    ],
)
def test_the_jobs_of_a_sweep_lie_in_one_folder(
    processes: Zygote, settings: list[str], tmp_path: Path, changes: list[str]
) -> None:
    ended = processes.run("run", "--multirun", *settings, *changes)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "jobs of a sweep lie in one folder" in ended.stderr


def test_a_sweep_has_a_folder_that_is_no_runs(processes: Zygote, settings: list[str], tmp_path: Path) -> None:
    """Its statement would take the place of the run's, and the run's next one that of the sweep's."""
    run = tmp_path / "run"
    assert processes.run("run", *settings, f"output_dir={run}").returncode == 0
    before = content(run)
    for folder, said in ((run, "which is of a run"), (run / "more", "that would not count it")):
        ended = processes.run("run", "--multirun", *settings, "seed=1,2", f"output_dir={folder}")
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
        assert said in ended.stderr
    ended = processes.run("run", *settings, f"output_dir={run / 'second'}")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "holds a run that would not count it" in ended.stderr
    assert content(run) == before


def test_a_sweep_is_not_put_into_another_one(processes: Zygote, settings: list[str], swept: Path) -> None:
    before = content(swept)
    ended = processes.run("run", "--multirun", *settings, "seed=1,2", f"output_dir={swept / 'more'}")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "lies in" in ended.stderr
    assert content(swept) == before


def test_the_statement_of_a_sweep_is_made_again_where_a_job_was_stopped_before_it(
    processes: Zygote, settings: list[str], tmp_path: Path
) -> None:
    folder, stale = tmp_path / "sweep", '{"jobs": {}}'
    assert again(processes, settings, folder, "seed=0,1").returncode == 0
    whole = (folder / "privacy.json").read_text()
    (folder / "privacy.json").write_text(stale)
    assert again(processes, settings, folder, "seed=0,1").returncode == 0
    assert (folder / "privacy.json").read_text() == whole
    (folder / "privacy.json").write_text(stale)
    (tmp_path / "link").symlink_to(folder / "1")
    assert processes.run("run", f"resume={tmp_path / 'link'}").returncode == 0
    assert (folder / "privacy.json").read_text() == whole, "a job that is named by a link is one of the sweep"


def test_a_sweep_is_asked_for_by_its_flag(processes: Zygote, settings: list[str]) -> None:
    ended = processes.run("run", *settings, "hydra.mode=MULTIRUN", "seed=0,1")
    assert (ended.returncode, ended.stderr) == (2, "fedsim: hydra.mode=MULTIRUN: use --multirun for a sweep\n")


@pytest.mark.slow
def test_a_statement_of_another_job_that_cannot_be_read_is_said_before_anything_is_released(
    processes: Zygote, settings: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    assert again(processes, settings, folder, "seed=0").returncode == 0
    (folder / "0" / "privacy.json").write_text('{"format": 3}')
    ended = again(processes, settings, folder, "seed=1", "hydra.sweep.subdir=second")
    assert ended.returncode == 2, ended.stderr
    assert "is not of this version's format" in ended.stderr
    assert not (folder / "second" / "ledger").exists()
