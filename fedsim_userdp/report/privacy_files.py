"""`privacy.json` and `PRIVACY.md`: of a run folder, with its runs, and of a sweep's folder, with its jobs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim_userdp.errors import PrivacyFileError
from fedsim_userdp.plain_files import read_file
from fedsim_userdp.privacy.joint import JointStatement, StatedRun
from fedsim_userdp.privacy.statement import PrivacyStatement
from fedsim_userdp.report.files import write_text
from fedsim_userdp.report.statement_page import page, sweep_page

FORMAT = 6
JSON_FILE, PAGE_FILE = "privacy.json", "PRIVACY.md"


@dataclass(frozen=True)
class PrivacyFile:
    """What a `privacy.json` of a run folder holds.

    Attributes:
        runs: The runs, made anew from the attributes of their statements.
        sweep: Path from the folder to that of the sweep whose job it is; None outside of one.
        unfinished: Runs of the folder that had not ended.
        stored: The file's whole content.
    """

    runs: tuple[StatedRun, ...]
    sweep: str | None
    unfinished: tuple[str, ...]
    stored: Mapping[str, object]


@dataclass(frozen=True)
class SweepFile:
    """What a `privacy.json` of a sweep's folder holds.

    Attributes:
        jobs: sha256 of each job's `privacy.json`, by the job's folder.
        unfinished: Folders of jobs that had released something and had no statement yet, or that are gone.
        traces: What each job has released so far, by the job's folder, those included that are gone or were run anew.
        stored: The file's whole content.
    """

    jobs: Mapping[str, str]
    unfinished: tuple[str, ...]
    traces: Mapping[str, tuple[str, ...]]
    stored: Mapping[str, object]


def write_privacy(
    folder: Path, runs: Sequence[StatedRun], sweep: str | None = None, unfinished: Sequence[str] = ()
) -> None:
    """Writes both files of a run folder.

    Args:
        folder: The run folder.
        runs: Its runs, at least one.
        sweep: Path from the folder to that of the sweep whose job it is; None outside of one.
        unfinished: Its runs that have not ended, and may have released something already.
    """
    text = _text(run_content(runs, sweep, unfinished))
    write_text(folder / JSON_FILE, text)
    write_text(folder / PAGE_FILE, page(runs, digest_of(text.encode()), sweep, unfinished))


def run_content(runs: Sequence[StatedRun], sweep: str | None, unfinished: Sequence[str] = ()) -> dict[str, object]:
    """Returns what `privacy.json` of a run folder holds."""
    return {
        "format": FORMAT,
        "runs": [
            {"seed": run.seed, "draws": list(run.draws), "adapter": run.adapter, **run.statement.to_json()}
            for run in runs
        ],
        "unfinished": list(unfinished),
        "joint": JointStatement(tuple(runs)).to_json(),
        "sweep": sweep,
    }


def write_sweep_privacy(
    folder: Path,
    jobs: Mapping[str, str],
    runs: Sequence[StatedRun],
    left: Sequence[str],
    traces: Mapping[str, Sequence[str]],
) -> None:
    """Writes both files of a sweep's folder.

    Args:
        folder: The sweep's folder.
        jobs: sha256 of each job's `privacy.json`, by the job's folder.
        runs: The runs of all these jobs.
        left: Folders of jobs that have released something and have no statement yet, or that are gone.
        traces: What each job has released so far, by the job's folder.
    """
    joint = JointStatement(tuple(runs))
    text = _text(sweep_content(jobs, joint, left, traces))
    write_text(folder / JSON_FILE, text)
    write_text(folder / PAGE_FILE, sweep_page(joint, left, digest_of(text.encode())))


def sweep_content(
    jobs: Mapping[str, str], joint: JointStatement, left: Sequence[str], traces: Mapping[str, Sequence[str]]
) -> dict[str, object]:
    """Returns what `privacy.json` of a sweep's folder holds."""
    released = {name: sorted(marks) for name, marks in sorted(traces.items())}
    return {
        "format": FORMAT,
        "jobs": dict(jobs),
        "unfinished": list(left),
        "released": released,
        "joint": joint.to_json(),
    }


def read_privacy(folder: Path, job: str = "") -> PrivacyFile | SweepFile:
    """Returns what a folder's `privacy.json` holds.

    Args:
        folder: A run folder, or a sweep's.
        job: What the runs are called after, in a sweep.

    Raises:
        PrivacyFileError: It is no such file, or is not of this version's format.
        OSError: It cannot be read.
    """
    path = folder / JSON_FILE
    try:
        stored = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise PrivacyFileError(f"{path} is no JSON: {error}") from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise PrivacyFileError(f"{path} is not of this version's format {FORMAT}")
    try:
        if "jobs" in stored:
            jobs = {str(name): str(digest) for name, digest in stored["jobs"].items()}
            traces = {str(name): tuple(map(str, marks)) for name, marks in stored["released"].items()}
            return SweepFile(jobs, tuple(map(str, stored["unfinished"])), traces, stored)
        runs = tuple(
            StatedRun(
                PrivacyStatement.from_json(run),
                int(run["seed"]),
                job,
                tuple(map(str, run["draws"])),
                str(run["adapter"]),
            )
            for run in stored["runs"]
        )
        return PrivacyFile(runs, stored["sweep"], tuple(map(str, stored["unfinished"])), stored)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PrivacyFileError(f"{path} holds something else than statements: {error}") from error


def digest_of(data: bytes) -> str:
    """Returns the sha256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _text(content: Mapping[str, object]) -> str:
    """The content as the text of a JSON file."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
