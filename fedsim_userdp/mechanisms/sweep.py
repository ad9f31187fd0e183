"""The folder of a sweep (`--multirun`): what all of its jobs promise together, brought up to date by each of them."""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedsim_userdp.errors import ConfigError, LedgerError, PrivacyFileError
from fedsim_userdp.mechanisms.run_files import plain_content
from fedsim_userdp.plain_files import open_file, read_file
from fedsim_userdp.privacy.joint import StatedRun
from fedsim_userdp.privacy.ledger import entries
from fedsim_userdp.report.privacy_files import (
    JSON_FILE,
    PrivacyFile,
    SweepFile,
    digest_of,
    read_privacy,
    write_sweep_privacy,
)

_LOCK_FILE, _LIST_OF_JOBS = ".lock", "multirun.yaml"  # which Hydra writes
_DEPTH = 16  # of a job's folder in it, at most


def path_to(sweep: Path, folder: Path) -> str:
    """Returns the path from a job's folder up to its sweep's, such as `..`."""
    inner = folder if folder.is_relative_to(sweep) else folder.resolve()
    return "/".join([".."] * len(inner.relative_to(sweep).parts))


def sweep_above(folder: Path) -> Path | None:
    """Returns the folder of the sweep that a run folder lies in, which it may do by a link; None outside of one.

    Raises:
        ConfigError: it lies deeper below a sweep than jobs are looked for.
    """
    far: Path | None = None
    for parents in (folder.parents, folder.resolve().parents):
        for depth, parent in enumerate(parents, start=1):
            if (parent / _LIST_OF_JOBS).exists():
                if depth <= _DEPTH:
                    return parent
                far = far or parent
    if far is not None:
        raise ConfigError(
            f"{folder} lies more than {_DEPTH} folders below the sweep {far}, which would not count it: choose another "
            "folder"
        )
    return None


def update_sweep(sweep: Path) -> None:
    """Writes the joint statement of all jobs of a sweep that have one, once there are any; one process at a time."""
    with _alone(sweep / _LOCK_FILE):
        jobs, runs = jobs_of(sweep)
        if not runs:
            return
        now = traces_of(sweep, runs)
        ever = together(_traces_before(sweep), now)
        write_sweep_privacy(sweep, jobs, runs, not_counted(sweep, jobs, runs, now, ever), ever)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Keeps other processes that take the same file waiting for the duration of the block."""
    descriptor = open_file(file, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def jobs_of(sweep: Path) -> tuple[dict[str, str], list[StatedRun]]:
    """Returns the jobs of a sweep that have a statement, with the digest of its file, and their runs."""
    jobs: dict[str, str] = {}
    runs: list[StatedRun] = []
    for name in _folders(sweep, JSON_FILE):
        content = read_privacy(sweep / name, job=name)
        if isinstance(content, PrivacyFile):
            jobs[name] = digest_of(read_file(sweep / name / JSON_FILE))
            runs.extend(content.runs)
    return jobs, runs


def traces_of(sweep: Path, runs: Sequence[StatedRun]) -> dict[str, set[str]]:
    """Returns what each job of a sweep has released, by its folder: marks of its keys, and its adapters."""
    found: dict[str, set[str]] = {}
    for name in {*_folders(sweep, "run.json"), *_folders(sweep, JSON_FILE)}:
        marks = {mark for path in _ledgers(sweep / name) for mark in draws_in(path)}
        marks |= {run.adapter for run in runs if run.job == name and run.adapter}
        if marks:
            found[name] = marks
    return found


def draws_in(ledger: Path) -> tuple[str, ...]:
    """Returns the marks of the keys that a ledger's releases were made with; none of one that cannot be read."""
    try:
        lines = entries.decode(plain_content(ledger)).entries
    except (OSError, LedgerError):
        return ()
    return tuple(sorted({line.draw for line in lines if line.draw}))


def together(one: Mapping[str, Sequence[str]], other: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Returns what jobs have released, by their folders, according to either."""
    return {name: sorted({*one.get(name, ()), *other.get(name, ())}) for name in sorted({*one, *other})}


def not_counted(
    sweep: Path,
    jobs: Mapping[str, str],
    runs: list[StatedRun],
    now: Mapping[str, set[str]],
    ever: Mapping[str, Sequence[str]],
) -> list[str]:
    """Returns what the joint statement of a sweep does not count, in the order of job numbers.

    Args:
        sweep: The sweep's folder.
        jobs: The jobs that have a statement.
        runs: Their runs.
        now: What the jobs that are there have released.
        ever: The same with those that were there before.
    """
    gone = ever.keys() - jobs.keys()
    replaced = {f"{name} (as it was before it was run anew)" for name in now if not now[name].issuperset(ever[name])}
    return sorted({*unfinished_jobs(sweep, runs), *gone, *replaced}, key=_by_number)


def unfinished_jobs(sweep: Path, runs: list[StatedRun]) -> list[str]:
    """Returns the jobs with a ledger of a run that has no statement."""
    stated = {(run.job, f"{run.statement.mechanism}-seed{run.seed}") for run in runs}
    found = (
        name
        for name in _folders(sweep, "run.json")
        if any((name, path.stem) not in stated for path in _ledgers(sweep / name))
    )
    return list(found)


def _ledgers(folder: Path) -> Iterator[Path]:
    """The ledgers of a run folder."""
    return (folder / "ledger").glob("*.jsonl")


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


def _traces_before(sweep: Path) -> Mapping[str, Sequence[str]]:
    """What the statement of a sweep says that its jobs have released; who is gone has released all the same."""
    try:
        content = read_privacy(sweep)
    except (OSError, PrivacyFileError):
        return {}
    return content.traces if isinstance(content, SweepFile) else {}


def _by_number(name: str) -> tuple[int, str]:
    """Sorts names of jobs by their number."""
    return len(name), name
