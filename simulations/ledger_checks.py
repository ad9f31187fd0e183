"""What `fedsim verify` holds a run's ledger against: its own chain, the statement, the configuration, the adapter."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from fedsim_userdp.errors import LedgerError
from fedsim_userdp.mechanisms.run_files import ledger_file
from fedsim_userdp.plain_files import read_file
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.accounting.descriptions import Description, NoAmplification
from fedsim_userdp.privacy.assumptions import single_run
from fedsim_userdp.privacy.joint import StatedRun
from fedsim_userdp.privacy.ledger import entries
from fedsim_userdp.privacy.statement import PrivacyStatement
from fedsim_userdp.report.files import NOT_PRIVATE
from fedsim_userdp.simulations.adapter_checks import weights_problem
from fedsim_userdp.simulations.checks import TOLERANCE, Check


def ledger_checks(
    folder: Path, run: StatedRun, release: Description, adapter: Path, rounds: int | None
) -> Iterator[Check]:
    """Yields what was checked of a ledger: its chain, its releases, what they cost, and the adapter that closes it.

    Args:
        folder: The run folder.
        run: The run, as stated.
        release: What it states to have released.
        adapter: The folder of its adapter.
        rounds: Rounds that were configured; None where that is not known.
    """
    path = ledger_file(folder, run.statement.mechanism, run.seed)
    about = f"{run.name}: ledger"
    try:
        contents = entries.decode(read_file(path))
    except FileNotFoundError:
        yield Check(about, "there is none")
        return
    except (LedgerError, OSError) as error:
        yield Check(about, str(error))
        return
    yield Check(f"{about}: chain of {len(contents.entries)} releases")
    yield Check(f"{about}: releases as stated", _release_problem(contents, run.statement, release))
    yield Check(f"{about}: keys as stated", _keys_problem(contents, run))
    yield Check(f"{about}: epsilon recomputed from it", _cost_problem(contents, run.statement))
    yield Check(f"{about}: rounds as configured", _rounds_problem(contents, run.statement, rounds))
    yield Check(f"{about}: lost releases as stated", _lost_problem(contents, run.statement, _results_of(folder, run)))
    yield Check(f"{run.name}: adapter is the one that its ledger ends with", weights_problem(adapter, contents.sealed))


def _release_problem(contents: entries.Contents, statement: PrivacyStatement, release: Description) -> str:
    """How a ledger's releases differ from the statement; empty where they do not."""
    num = len(contents.entries) + contents.num_torn
    if num != statement.rounds:
        return f"it holds {num} releases ({contents.num_torn} of them cut off), {statement.rounds} are stated"
    is_capped = isinstance(single_run(release), NoAmplification)
    if not isinstance(release, entries.Release):
        return f"a ledger holds single runs, a {type(release).__name__} is stated"
    single = release if is_capped else release.first(1)
    for entry in contents.entries:
        if entry.release != single:
            return f"round {entry.round} released {entry.release}, stated is {single}"
        if entry.noise_source != statement.noise_source:
            return f"round {entry.round} took noise from {entry.noise_source!r}, stated is {statement.noise_source!r}"
    return ""


def _keys_problem(contents: entries.Contents, run: StatedRun) -> str:
    """How the keys that a ledger's releases were made with differ from the statement; empty where they do not."""
    found = {entry.draw for entry in contents.entries}
    return "" if found == set(run.draws) or not found else "its releases have other keys than the statement tells"


def _cost_problem(contents: entries.Contents, statement: PrivacyStatement) -> str:
    """Why the stated epsilon does not cover what a ledger holds; empty where it does."""
    counts: entries.Counts = {}
    for entry in contents.entries:
        entries.count(counts, entry)
    num_repeated = len(contents.entries) - len({entry.round for entry in contents.entries})
    released = entries.total(counts, contents.num_torn, num_repeated)
    if released is None or statement.delta is None or statement.epsilon is None:
        return "" if contents.num_torn == 0 and released is None else "what it holds has no finite epsilon"
    try:
        spent = acc.epsilon(released, statement.delta, statement.accountant)
    except acc.AccountingError as error:
        return str(error)
    if spent > statement.epsilon * (1 + TOLERANCE):
        return f"it adds up to epsilon {spent:.6g}, {statement.epsilon:.6g} is stated"
    return ""


def _rounds_problem(contents: entries.Contents, statement: PrivacyStatement, rounds: int | None) -> str:
    """Why fewer releases are stated than were configured; lines that were cut off may cost some."""
    if rounds is None or statement.rounds >= rounds or contents.num_torn:
        return ""
    return f"mechanism.rounds={rounds} and {statement.rounds} releases are stated, none of them cut off"


def _lost_problem(contents: entries.Contents, statement: PrivacyStatement, num_results: int | None) -> str:
    """How the stated number of lost releases differs from the rounds that have a result, or a line in the ledger."""
    if num_results is not None and statement.num_lost != (lost := max(statement.rounds - num_results, 0)):
        return f"{lost} rounds have no result in {NOT_PRIVATE}/rounds.csv, {statement.num_lost} lost ones are stated"
    least = statement.rounds - len({entry.round for entry in contents.entries})
    if statement.num_lost < least and not contents.num_torn:
        return f"{least} rounds have no line, {statement.num_lost} lost ones are stated"
    return ""


def _results_of(folder: Path, run: StatedRun) -> int | None:
    """The number of rounds of a run that have a result; None where the folder came without these diagnostics."""
    try:
        text = read_file(folder / NOT_PRIVATE / "rounds.csv").decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    mine = [row for row in rows if (row.get("mechanism"), row.get("seed")) == (run.statement.mechanism, str(run.seed))]
    return sum(row.get("round") != "0" for row in mine)
