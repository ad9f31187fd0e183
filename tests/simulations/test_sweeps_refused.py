"""A sweep that is refused, or in which nothing is left to run, is gone on with afterwards as before."""

import json
from pathlib import Path

import pytest

from tests.simulations.corpora import small_settings, write_jsonl
from tests.simulations.test_folders import content
from tests.simulations.zygote import Ended, Zygote


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpus")
    return small_settings(write_jsonl(folder / "corpus.jsonl"), folder / "cache", rounds=1)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, processes: Zygote, settings: list[str]) -> Path:
    """A sweep of three jobs, of which the second diverged and the last was refused."""
    folder = tmp_path_factory.mktemp("swept") / "sweep"
    jobs = ["mechanism.learning_rate=0.1,1e12,-1", f"output_dir={folder}"]
    ended = processes.run("run", "--multirun", *settings, *jobs)
    assert ended.returncode == 2
    diverged, failed = ended.stderr.splitlines()[-2:]
    assert diverged == "fedsim: training diverged: user_wise, seed 0; try a smaller learning rate"
    assert failed == f"fedsim: 1 job did not run to its end: job 2 of {folder}, in 2"
    return folder


def gone_on(processes: Zygote, folder: Path, *changes: str) -> Ended:
    return processes.run("run", "--multirun", f"resume={folder}", *changes)


REFUSED = {
    "threads=0": "threads=0 must be a whole number from 1 to 1024",
    "threads=many": "threads=many must be a whole number",
    "checkpoint.every=0": "checkpoint.every=0 must be a whole number of at least 1",
    "checkpoint.allow_changes=perhaps": "must be true or false",
    "cache_dir=/proc/nowhere": "cache folder /proc/nowhere cannot be written",
    "cache_dir=''": "cache_dir= names no folder",
    "cache_dir=/dev/null/x": "cannot be written",
    "engine._target_=nope.Engine": "nope",
    "engine._target_=json.JSONDecoder engine.num_nodes=1": "has no setting num_nodes",
    "engine.num_nodes=0": "num_nodes=0 must be a whole number of at least 1",
}


@pytest.mark.parametrize("changes", REFUSED)
def test_settings_that_may_differ_are_refused_before_any_job_starts(
    processes: Zygote, swept: Path, changes: str
) -> None:
    before = content(swept)
    ended = gone_on(processes, swept, *changes.split())
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert REFUSED[changes] in ended.stderr
    assert content(swept) == before


@pytest.mark.parametrize("changes", ["threads=2", "engine.num_nodes=2", "mechanism.learning_rate=0.1,1e12,-2"])
def test_what_nothing_ran_with_is_not_kept(processes: Zygote, swept: Path, changes: str) -> None:
    before = (swept / "multirun.yaml").read_bytes()
    assert gone_on(processes, swept, changes).returncode == 2
    assert (swept / "multirun.yaml").read_bytes() == before


def test_a_sweep_of_which_no_job_began_leaves_no_list_of_them(
    processes: Zygote, settings: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("mine")
    jobs = ["mechanism.learning_rate=-1,-2", f"output_dir={tmp_path}"]
    assert processes.run("run", "--multirun", *settings, *jobs).returncode == 2
    assert [*content(tmp_path)] == ["mine"]


def test_a_sweep_goes_on_past_a_run_that_was_put_into_its_folder_and_counts_it(
    processes: Zygote, settings: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    assert processes.run("run", "--multirun", *settings, "seed=0,1", f"output_dir={folder}").returncode == 0
    assert processes.run("run", *settings, "seed=7", f"output_dir={folder / 'new'}").returncode == 0
    for changes in ([], ["seed=0,1,2"]):
        ended = gone_on(processes, folder, *changes)
        assert ended.returncode == 0, ended.stderr
    assert [*json.loads((folder / "privacy.json").read_text())["jobs"]] == ["0", "1", "2", "new"]
    ended = gone_on(processes, folder, "seed=0,1")
    assert f"{folder / '2'} holds a job of this sweep that is not among these" in ended.stderr
