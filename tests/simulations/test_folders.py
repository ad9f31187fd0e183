"""A folder is one run: whatever is refused leaves it as it was, and the run in it goes on afterwards."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsim_userdp.mechanisms.own_folder import MARKS
from tests.simulations.corpora import small_settings, write_jsonl
from tests.simulations.zygote import Zygote, zygote


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpus")
    return [*small_settings(write_jsonl(folder / "corpus.jsonl"), folder / "cache"), "tuned.rounds=3"]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    folder = tmp_path_factory.mktemp("processes")
    with zygote(folder, FEDSIM_CACHE_DIR=str(folder / "cache")) as started:
        yield started


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, processes: Zygote, settings: list[str]) -> Path:
    """A run that was killed half way."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert processes.run("run", *settings, f"output_dir={folder}", write=60).returncode < 0
    assert (folder / "run.json").exists()
    assert not (folder / "results.json").exists()
    return folder


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its content and time of change."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


OTHER_COMMANDS = {
    "the same again": ("run", []),
    "another target": ("run", ["privacy.epsilon=2"]),
    "another seed": ("run", ["seed=1"]),
    "a comparison": ("compare", ["compare.mechanisms=[zero_shot,user_wise]"]),
    "an audit": ("audit", ["audit.real_users=5"]),
    "a description": ("data", []),
}


@pytest.mark.parametrize("name", OTHER_COMMANDS)
def test_a_folder_that_holds_a_run_takes_nothing_else(
    processes: Zygote, settings: list[str], stopped: Path, name: str
) -> None:
    command, changes = OTHER_COMMANDS[name]
    kept = [one for one in settings if command != "data" or one.startswith(("data", "tokens", "cache_dir", "split"))]
    before = content(stopped)
    ended = processes.run(command, *kept, f"output_dir={stopped}", *changes)
    assert ended.returncode == 2
    assert f"holds a run already (run.json): go on with it by resume={stopped}" in ended.stderr
    assert content(stopped) == before


TYPOS = [
    ["threads=0"], ["checkpoint.every=0"], ["checkpoint.keep=0"], ["cache_dir=/proc/nowhere"], ["engine.num_nodes=-1"],
    ["privacy.epsilon=2"], ["privacy.epsilon=2", "checkpoint.allow_changes=true"], ["seed=1"], ["evaluation.every=0"],
    ["mechanism.clip_norm=0", "checkpoint.allow_changes=true"], ["noise.source=os", "checkpoint.allow_changes=true"],
    ["lora.rank=4", "checkpoint.allow_changes=true"],
]  # fmt: skip


@pytest.mark.parametrize("typos", TYPOS, ids=" ".join)
def test_a_resume_that_is_refused_changes_nothing(processes: Zygote, stopped: Path, typos: list[str]) -> None:
    before = content(stopped)
    ended = processes.run("run", f"resume={stopped}", *typos)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert content(stopped) == before


def test_after_all_of_that_the_run_goes_on_and_keeps_what_it_was_started_with(
    processes: Zygote, stopped: Path, tmp_path: Path
) -> None:
    before = {name: (stopped / name).read_bytes() for name in ("run.json", "config.yaml")}
    ended = processes.run("run", f"resume={stopped}", "threads=1", "checkpoint.every=2")
    assert ended.returncode == 0, ended.stderr
    assert {name: (stopped / name).read_bytes() for name in before} == before
    assert processes.run("verify", str(stopped)).returncode == 0


@pytest.mark.parametrize(
    "wrong", ["threads=0", "mechanism.clip_norm=-1", "data.path=nowhere.jsonl", "split.heldout_users=999"]
)
def test_what_is_refused_at_the_start_leaves_no_folder(
    processes: Zygote, settings: list[str], tmp_path: Path, wrong: str
) -> None:
    ended = processes.run("run", *settings, f"output_dir={tmp_path / 'run'}", wrong)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert os.listdir(tmp_path) == []


def test_a_comparison_is_refused_before_anything_trains(processes: Zygote, settings: list[str], tmp_path: Path) -> None:
    little = "{mechanism: user_wise_adaptive, count_stddev: 0.001}"
    chosen = [f"compare.mechanisms=[zero_shot,user_wise,{little}]"]
    kept = [one for one in settings if not one.startswith("mechanism")]
    ended = processes.run("compare", *kept, f"output_dir={tmp_path / 'run'}", *chosen)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "count_stddev=0.001 must be above" in ended.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mark", MARKS)
def test_whatever_only_a_run_writes_marks_its_folder(
    processes: Zygote, settings: list[str], tmp_path: Path, mark: str
) -> None:
    (tmp_path / "run" / mark).mkdir(parents=True)
    ended = processes.run("run", *settings, f"output_dir={tmp_path / 'run'}")
    assert ended.returncode == 2
    assert f"holds a run already ({mark})" in ended.stderr
