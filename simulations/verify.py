"""`fedsim verify FOLDER ...`: recomputes all that run folders claim, from their ledgers and configurations."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from fedsim_userdp import cache
from fedsim_userdp.errors import ConfigError, PrivacyFileError
from fedsim_userdp.mechanisms.own_folder import check_plain
from fedsim_userdp.mechanisms.started import RUN_FILE
from fedsim_userdp.mechanisms.sweep import jobs_of, not_counted, together, traces_of, unfinished_jobs
from fedsim_userdp.plain_files import kept_inside, read_file
from fedsim_userdp.printable import printable
from fedsim_userdp.privacy.joint import JointStatement, StatedRun
from fedsim_userdp.report.privacy_files import (
    JSON_FILE,
    PAGE_FILE,
    PrivacyFile,
    SweepFile,
    digest_of,
    read_privacy,
    run_content,
    sweep_content,
)
from fedsim_userdp.report.statement_page import page, sweep_page
from fedsim_userdp.simulations.checks import Check, difference
from fedsim_userdp.simulations.configured_runs import configuration_checks, configured
from fedsim_userdp.simulations.result_checks import results_checks
from fedsim_userdp.simulations.run_checks import run_checks, spare_files

DISAGREES = 1  # exit code


def main() -> None:
    """Prints one line for each check; exits with 1 if a folder disagrees with itself."""
    parser = argparse.ArgumentParser("fedsim verify", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of fedsim run, compare or --multirun")
    folders = parser.parse_args().folders
    for folder in folders:
        check_is_run_folder(folder)
    problems = 0
    with cache.unused():
        for folder in folders:
            for check in folder_checks(folder):
                print(printable(f"{folder}: {check.line()}"), flush=True)
                problems += bool(check.problem)
    print(f"{problems} checks FAILED" if problems else "every check passed")
    sys.exit(DISAGREES if problems else 0)


def check_is_run_folder(folder: Path) -> None:
    """Raises ConfigError for a path that is no folder of `fedsim run`, `fedsim compare` or a sweep of them."""
    if not any((folder / name).is_file() for name in (JSON_FILE, RUN_FILE)):
        raise ConfigError(f"{folder} is no run folder: there is neither {JSON_FILE} nor {RUN_FILE} in it")
    check_plain(folder)


def folder_checks(folder: Path, *, is_job: bool = False) -> Iterator[Check]:
    """Yields what was checked of a run folder, or of a sweep's and all its jobs.

    Args:
        folder: The folder.
        is_job: Whether the sweep that it is a job of is being checked as well.
    """
    try:
        content = read_privacy(folder)
    except FileNotFoundError:
        yield Check(JSON_FILE, "there is none: it was removed, or no run in the folder has ended")
    except (PrivacyFileError, OSError) as error:
        yield Check(JSON_FILE, str(error))
    else:
        yield from (
            _sweep_checks(folder, content) if isinstance(content, SweepFile) else _checks(folder, content, is_job)
        )


def _checks(folder: Path, content: PrivacyFile, is_job: bool) -> Iterator[Check]:
    """What was checked of a run folder."""
    with kept_inside(folder):
        yield from _checks_inside(folder, content)
    if content.sweep is not None and not is_job:
        digest = digest_of(read_file(folder / JSON_FILE))
        yield Check("the sweep that it is a job of", _not_listed(folder, folder / content.sweep, digest))


def _checks_inside(folder: Path, content: PrivacyFile) -> Iterator[Check]:
    """What was checked of a run folder by itself."""
    again = run_content(content.runs, content.sweep, content.unfinished)
    yield Check(f"{JSON_FILE}: epsilon, delta and the joint figure recomputed", difference(content.stored, again))
    digest = digest_of(read_file(folder / JSON_FILE))
    yield _page_check(folder, page(content.runs, digest, content.sweep, content.unfinished))
    found = configured(folder)
    yield from configuration_checks(content.runs, found)
    yield from results_checks(folder, content.runs, found.configs)
    yield from run_checks(folder, content.runs, found)
    yield spare_files(folder, content.runs)


def _sweep_checks(folder: Path, content: SweepFile) -> Iterator[Check]:
    """What was checked of a sweep's folder and its jobs."""
    jobs: dict[str, str] = {}
    runs: list[StatedRun] = []
    try:
        jobs, runs = jobs_of(folder)
    except PrivacyFileError as error:
        yield Check("jobs", str(error))
    left = unfinished_jobs(folder, runs)
    yield Check("jobs: each has its own statement, as the sweep's lists it", _changed_jobs(content, jobs, left))
    joint = JointStatement(tuple(runs))
    now = traces_of(folder, runs)
    ever = together(content.traces, now)
    again = sweep_content(jobs, joint, not_counted(folder, jobs, runs, now, ever), ever)
    yield Check(f"{JSON_FILE}: the joint figure recomputed", difference(content.stored, again))
    digest = digest_of(read_file(folder / JSON_FILE))
    yield _page_check(folder, sweep_page(joint, content.unfinished, digest))
    for name in sorted(jobs, key=lambda name: (len(name), name)):
        for check in folder_checks(folder / name, is_job=True):
            yield Check(f"job {name}: {check.about}", check.problem)


def _page_check(folder: Path, expected: str) -> Check:
    """Whether the page says what `privacy.json` says."""
    try:
        is_same = read_file(folder / PAGE_FILE).decode(errors="replace") == expected
    except FileNotFoundError:
        return Check(PAGE_FILE, "there is none")
    return Check(PAGE_FILE, "" if is_same else f"it is not what {JSON_FILE} says")


def _changed_jobs(content: SweepFile, jobs: dict[str, str], left: list[str]) -> str:
    """How the jobs that are there differ from those that the sweep lists; empty where they do not."""
    gone, new = sorted(content.jobs.keys() - jobs.keys()), sorted(jobs.keys() - content.jobs.keys())
    changed = sorted(name for name in content.jobs.keys() & jobs.keys() if content.jobs[name] != jobs[name])
    found = {
        "are gone or have no statement": gone,
        "are not counted": new,
        f"have another {JSON_FILE}": changed,
        "have released something that no statement counts": left,
    }
    return "; ".join(f"jobs {', '.join(names)} {what}" for what, names in found.items() if names)


def _not_listed(folder: Path, sweep: Path, digest: str) -> str:
    """Why a job is not part of its sweep's joint statement; empty where it is."""
    try:
        content = read_privacy(sweep)
    except (PrivacyFileError, OSError) as error:
        return f"its joint statement cannot be read: {error}"
    name = folder.resolve().relative_to(sweep.resolve()).as_posix()
    if not isinstance(content, SweepFile) or content.jobs.get(name) != digest:
        return f"{sweep / JSON_FILE} does not count this job as it is"
    return ""


if __name__ == "__main__":
    main()
