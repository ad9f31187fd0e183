"""The jobs of a sweep lie in its folder, and what they promise together is written there and nowhere else."""

import os
from pathlib import Path

import pytest

from fedsim_userdp.simulations.cli import run_command
from tests.simulations.corpora import small_settings, write_jsonl


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two short jobs, started in a folder of their own."""
    start = tmp_path / "start"
    start.mkdir()
    monkeypatch.chdir(start)
    small = small_settings(write_jsonl(tmp_path / "corpus.jsonl"), tmp_path / "cache", rounds=1)
    return ["--multirun", *small, "mechanism=zero_shot", "seed=1,2"]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("subdir", ["../s2/${hydra:job.num}", "a/../../s2", "a/..", "..", ".", "''", "/tmp/s2", "./"])
@pytest.mark.parametrize("command", ["run", "compare"])
def test_jobs_outside_the_sweeps_folder_are_refused_before_anything_is_written(
    command: str, subdir: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_command(command, [*settings, "output_dir=s1", f"hydra.sweep.subdir={subdir}"])
    assert "fedsim: hydra.sweep.subdir=" in capsys.readouterr().err
    assert files(Path()) == []


def test_a_job_that_proves_to_be_outside_is_refused_before_it_writes_anything_of_its_own(
    settings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLACE", "../s2")
    with pytest.raises(SystemExit):
        run_command("run", [*settings, "output_dir=s1", "hydra.sweep.subdir=${oc.env:PLACE}/${hydra:job.num}"])
    assert "hydra.sweep.subdir=../s2/0 must name a folder below" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_what_jobs_in_deeper_folders_promise_together_is_written_in_the_folder_of_the_sweep(
    settings: list[str], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    Path("s1").symlink_to(tmp_path / "elsewhere")
    assert run_command("run", [*settings, "output_dir=s1", "hydra.sweep.subdir=./jobs/seed${seed}"]) == 0
    stated = [name for name in files(tmp_path) if name.endswith("privacy.json")]
    assert stated == [f"elsewhere/{name}privacy.json" for name in ("jobs/seed1/", "jobs/seed2/", "")]
    assert "`../../PRIVACY.md`" in Path("s1/jobs/seed1/PRIVACY.md").read_text()


@pytest.mark.parametrize("given", ["output_dir=runs/${now:%H-%M-%S-%f}", ""], ids=["named", "default"])
def test_the_folder_of_a_sweep_may_be_named_after_the_time(given: str, settings: list[str]) -> None:
    assert run_command("run", [*settings, *([given] if given else [])]) == 0
    (sweep,) = Path("runs").iterdir()
    assert {"0", "1", "PRIVACY.md", "multirun.yaml", "privacy.json"} <= {one.name for one in sweep.iterdir()}


@pytest.mark.parametrize("name", ["multirun.yaml", ".lock", "privacy.json", "PRIVACY.md"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_sweeps_folder_with_links_or_pipes_in_it_is_refused_before_any_job_starts(
    name: str, kind: str, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("kept")
    Path("s1").mkdir()
    if kind == "link":
        Path("s1", name).symlink_to(outside)
    else:
        os.mkfifo(Path("s1", name))
    with pytest.raises(SystemExit):
        run_command("run", [*settings, "output_dir=s1"])
    assert name in capsys.readouterr().err
    assert outside.read_text() == "kept"
    assert [path.name for path in Path("s1").iterdir()] == [name]


@pytest.fixture
def swept(settings: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The settings of a sweep of two jobs, which has run in the folder s1, one of them diverged."""
    own = [one for one in settings if not one.startswith(("mechanism=", "seed="))]
    own = [*own, "mechanism=non_private", "mechanism.learning_rate=1e30,0.04", "mechanism.rounds=2", "output_dir=s1"]
    assert run_command("run", own) == 3
    assert "training diverged: non_private" in capsys.readouterr().err
    return own


def test_a_sweep_that_is_gone_on_with_says_again_what_diverged_and_forgets_no_job(
    swept: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("run", ["--multirun", "resume=s1"]) == 3
    assert "training diverged: non_private, seed 0" in capsys.readouterr().err
    before = Path("s1/multirun.yaml").read_bytes()
    with pytest.raises(SystemExit):
        run_command("run", ["--multirun", "resume=s1", "mechanism.learning_rate=1e30"])
    said = capsys.readouterr().err
    assert "s1/1 holds a job of this sweep that is not among these: go on with all of them by resume=s1" in said
    assert Path("s1/multirun.yaml").read_bytes() == before
    with pytest.raises(SystemExit):
        run_command("run", ["resume=s1"])
    assert "resume=s1 holds a sweep, not one run: add --multirun" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_command("run", [one for one in swept if one != "--multirun" and "learning_rate" not in one])
    assert "holds a sweep already: go on with it by --multirun resume=" in capsys.readouterr().err


def test_two_jobs_that_are_the_same_are_refused(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command("run", [*settings, "seed=0,0", "output_dir=s1"])
    assert "jobs 0 and 1 (seed=0) are the same" in capsys.readouterr().err
    assert list(Path().iterdir()) == []
