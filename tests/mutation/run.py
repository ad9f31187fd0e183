"""Breaks the source one guarantee at a time in a copy of the repository, and asks whether the tests notice.

    python tests/mutation/run.py                     all of `mutations.toml`
    python tests/mutation/run.py --only ledger       those whose name holds a word
    python tests/mutation/run.py --write             all, and docs/mutations.md

A mutation is caught when a test named for it fails in the copy that passes in an unbroken one. A snippet that is not
found exactly once, a test that cannot be collected, a timeout, or a failure that only says that the code no longer fits
together (an import, a name) is an error of the list, not a catch.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("mutations.toml")
REPORT = Path("docs") / "mutations.md"
_PASSED, _FAILED = 0, 1  # exit statuses of pytest
# Beginnings of messages that say that a mutation does not fit the code, rather than that a guarantee is gone.
_MISFITS = ("ImportError", "ModuleNotFoundError", "SyntaxError", "NameError", "UnboundLocalError", "AttributeError")


class MutationError(Exception):
    """A mutation or its tests do not do what the list says."""


@dataclass(frozen=True)
class Mutation:
    """One line of the source, broken.

    Attributes:
        name: what is done.
        breaks: the guarantee that is gone.
        file: path of the source in the repository.
        snippet: text that occurs exactly once in `file`.
        replacement: what stands there instead.
        tests: paths or node ids of the tests of which one must fail.
    """

    name: str
    breaks: str
    file: str
    snippet: str
    replacement: str
    tests: tuple[str, ...]

    def applied_to(self, source: str) -> str:
        """Returns the broken source.

        Raises:
            MutationError: the snippet does not occur exactly once, or the result is not Python.
        """
        if (found := source.count(self.snippet)) != 1:
            raise MutationError(f"{self.name}: its snippet occurs {found} times in {self.file} instead of once")
        broken = source.replace(self.snippet, self.replacement)
        try:
            compile(broken, self.file, "exec")
        except SyntaxError as error:
            raise MutationError(f"{self.name}: the replacement is not Python: {error}") from error
        return broken


@dataclass(frozen=True)
class Failure:
    """A test that failed: its node id, and the first line of what it said."""

    test: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """What became of a mutation; `catch` is the first test that failed, None where it survived."""

    mutation: Mutation
    catch: Failure | None
    seconds: float


def load_mutations(path: Path = LIST) -> list[Mutation]:
    """Returns the mutations of a list."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["mutation"]
    return [Mutation(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def copy_repository(root: Path, target: Path) -> None:
    """Copies what git tracks, and what it neither tracks nor ignores, as it stands in the working tree."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True).stdout.decode().split("\0")
    for name in filter(None, listed):
        if (root / name).is_file() or (root / name).is_symlink():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name, follow_symlinks=False)


@contextmanager
def broken(mutation: Mutation, folder: Path) -> Iterator[None]:
    """The copy in `folder` with the mutation applied, for the duration of the block."""
    path = folder / mutation.file
    source = path.read_text(encoding="utf-8")
    path.write_text(mutation.applied_to(source), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(source, encoding="utf-8")


def run_tests(folder: Path, tests: Iterable[str], timeout: float) -> Failure | None:
    """Returns the first failure of the tests in `folder`, or None where all passed.

    Raises:
        MutationError: they could not be collected, did not end in time, or failed as misfits do.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        options = ["-x", "-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--junit-xml={report}"]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        try:
            done = subprocess.run(
                command, cwd=folder, env=_environment(scratch), capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired as error:
            raise MutationError(f"the tests did not end within {timeout:g} s") from error
        if done.returncode == _PASSED:
            return None
        if done.returncode != _FAILED:
            raise MutationError(
                f"pytest ended with status {done.returncode}: {done.stdout[-2000:]}{done.stderr[-500:]}"
            )
        failure = _first_failure(report)
    if failure.message.startswith(_MISFITS):
        raise MutationError(f"{failure.test} failed with a misfit: {failure.message}")
    return failure


def judge(mutation: Mutation, folder: Path, timeout: float) -> Verdict:
    """Returns what became of a mutation in a copy of the repository that passes without it."""
    start = time.perf_counter()
    try:
        with broken(mutation, folder):
            catch = run_tests(folder, mutation.tests, timeout)
    except MutationError as error:
        raise MutationError(f"{mutation.name}: {error}") from error
    return Verdict(mutation, catch, time.perf_counter() - start)


def report(verdicts: Sequence[Verdict]) -> str:
    """Returns the verdicts as a page in Markdown."""
    rows = [f"| {v.mutation.name} | {v.mutation.breaks} | `{v.mutation.file}` | {_cell(v.catch)} |" for v in verdicts]
    caught = sum(verdict.catch is not None for verdict in verdicts)
    return "\n".join(
        [
            "# Mutations of the guarantees",
            "",
            "Would a test notice if a guarantee were gone? `python tests/mutation/run.py --write` breaks a copy of the",
            "source in one place at a time (`tests/mutation/mutations.toml` has the exact lines), runs the tests named",
            "for it, which pass on the unbroken copy, and writes this page. An error of import or name is no catch.",
            "",
            f"{caught} of {len(verdicts)} were caught. The last column is the first test that failed.",
            "",
            "| what was done | what that breaks | where | caught by |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the mutations; returns 0 when all were caught, 1 when one survived, 2 for an error of the list."""
    options = _parser().parse_args(arguments)
    chosen = [mutation for mutation in load_mutations() if options.only in mutation.name]
    if not chosen:
        print(f"no mutation has {options.only!r} in its name")
        return 2
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        folder = Path(name)
        copy_repository(ROOT, folder)
        try:
            _check_unbroken(chosen, folder, options.timeout)
            verdicts = [_shown(judge(mutation, folder, options.timeout)) for mutation in chosen]
        except MutationError as error:
            print(error)
            return 2
    if options.write and not options.only:
        (ROOT / REPORT).write_text(report(verdicts), encoding="utf-8")
    return 0 if all(verdict.catch for verdict in verdicts) else 1


def _check_unbroken(mutations: Sequence[Mutation], folder: Path, timeout: float) -> None:
    """Raises MutationError where the copy is not what Python imports there, or its tests fail already."""
    question = "import fedsim_userdp; print(fedsim_userdp.__file__)"
    answer = subprocess.run([sys.executable, "-c", question], cwd=folder, check=True, capture_output=True, text=True)
    if not Path(answer.stdout.strip()).resolve().is_relative_to(folder.resolve()):
        raise MutationError(f"{answer.stdout.strip()} is imported instead of the copy in {folder}")
    for test in sorted({test for mutation in mutations for test in mutation.tests}):
        if failure := run_tests(folder, [test], 4.0 * timeout):
            raise MutationError(f"{failure.test} fails without any mutation: {failure.message}")
        print(f"passes: {test}", flush=True)


def _environment(scratch: str) -> dict[str, str]:
    """The environment of a test run: no compiled files, which may be those of another mutation, and no old answers."""
    return os.environ | {
        "PYTHONDONTWRITEBYTECODE": "1",
        "FEDSIM_CACHE_DIR": str(Path(scratch) / "cache"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(Path(scratch) / "hypothesis"),
        "HF_HUB_OFFLINE": "1",
    }


def _first_failure(report: Path) -> Failure:
    """The first failed test in pytest's report."""
    for case in ElementTree.parse(report).iter("testcase"):
        for outcome in (*case.iter("failure"), *case.iter("error")):
            name = f"{case.get('file')}::{case.get('name')}"
            return Failure(name, (outcome.get("message") or "").strip().splitlines()[0][:200])
    raise MutationError(f"pytest failed without a failed test: {report.read_text(encoding='utf-8')[:500]}")


def _shown(verdict: Verdict) -> Verdict:
    """The verdict, after printing it."""
    said = f"caught by {verdict.catch.test}" if verdict.catch else "SURVIVED"
    print(f"{said} ({verdict.seconds:.0f} s): {verdict.mutation.name}", flush=True)
    return verdict


def _cell(catch: Failure | None) -> str:
    """The test that caught a mutation, for a table."""
    return "**nobody**" if catch is None else f"`{catch.test.replace('|', ' ')}`"


def _parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description="Breaks guarantees one at a time and asks whether the tests notice.")
    parser.add_argument("--only", default="", help="run mutations whose name holds this")
    parser.add_argument("--write", action="store_true", help="write docs/mutations.md; not with --only")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for the tests of a mutation")
    return parser


if __name__ == "__main__":
    sys.exit(main())
