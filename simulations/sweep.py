"""The folder of a sweep (`--multirun`): what all of its jobs promise together, brought up to date by each of them."""

import os
from pathlib import Path

from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from fedsim_userdp.privacy.joint import StatedRun
from fedsim_userdp.report.privacy_files import (
    JSON_FILE,
    PrivacyFile,
    PrivacyFileError,
    SweepFile,
    digest_of,
    read_privacy,
    write_sweep_privacy,
)
from simulations.arguments import check_subdir

_LOCK_FILE = ".lock"
_SWEEP_FILE = "multirun.yaml"  # Hydra's mark of a sweep's folder
_DEPTH = 16  # of a job's folder in it, at most


def sweep_of_this_job() -> Path | None:
    """Returns the folder of the sweep that the running Hydra job belongs to; None outside of one.

    A job that is resumed is no part of a sweep to Hydra: then it is the folder above that Hydra marked as a sweep's.

    Raises:
        ConfigError: the job does not lie below the sweep's folder.
    """
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    if settings.mode == RunMode.MULTIRUN:
        check_subdir(str(settings.sweep.subdir))
        return Path(os.path.abspath(Path(settings.runtime.cwd, settings.sweep.dir)))  # as Hydra itself, links kept
    return next((parent for parent in folder.parents[:_DEPTH] if (parent / _SWEEP_FILE).exists()), None)


def path_to(sweep: Path, folder: Path) -> str:
    """Returns the path from a job's folder up to its sweep's, such as `..`."""
    return "/".join([".."] * len(folder.relative_to(sweep).parts))


def update_sweep(sweep: Path) -> None:
    """Writes the joint statement of all jobs of a sweep that have one; one process at a time."""
    with FileLock(sweep / _LOCK_FILE):
        jobs, runs = jobs_of(sweep)
        left = {*unfinished_jobs(sweep, runs), *(_listed_before(sweep) - jobs.keys())}
        write_sweep_privacy(sweep, jobs, runs, sorted(left, key=_by_number))


def jobs_of(sweep: Path) -> tuple[dict[str, str], list[StatedRun]]:
    """Returns the jobs of a sweep that have a statement, with the digest of its file, and their runs."""
    jobs: dict[str, str] = {}
    runs: list[StatedRun] = []
    for name in _folders(sweep, JSON_FILE):
        content = read_privacy(sweep / name, job=name)
        if isinstance(content, PrivacyFile):
            jobs[name] = digest_of((sweep / name / JSON_FILE).read_bytes())
            runs.extend(content.runs)
    return jobs, runs


def unfinished_jobs(sweep: Path, runs: list[StatedRun]) -> list[str]:
    """Returns the jobs with a ledger of a run that has no statement."""
    stated = {(run.job, f"{run.statement.mechanism}-seed{run.seed}") for run in runs}
    found = (
        name
        for name in _folders(sweep, "run.json")
        if any((name, path.stem) not in stated for path in (sweep / name / "ledger").glob("*.jsonl"))
    )
    return list(found)


def _folders(sweep: Path, file: str) -> list[str]:
    """The folders below a sweep's that hold a file, in the order of job numbers."""
    found = []
    for place, folders, files in os.walk(sweep, followlinks=True):  # a job whose folder is a link has released as well
        inner = Path(place).relative_to(sweep)
        if len(inner.parts) >= _DEPTH:
            folders.clear()
        if file in files and Path(place) != sweep:
            found.append(inner.as_posix())
    return sorted(found, key=_by_number)


def _listed_before(sweep: Path) -> set[str]:
    """The jobs that the statement of a sweep lists, counted or not; one that is gone has released all the same."""
    try:
        content = read_privacy(sweep)
    except (OSError, PrivacyFileError):
        return set()
    return {*content.jobs, *content.unfinished} if isinstance(content, SweepFile) else set()


def _by_number(name: str) -> tuple[int, str]:
    """Sorts names of jobs by their number."""
    return len(name), name
