"""What `fedsim verify` holds against each other: statements, ledgers, adapters, cards and results of a run folder."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy import entries
from fedsim_userdp.privacy.assumptions import single_run
from fedsim_userdp.privacy.descriptions import Description, NoAmplification
from fedsim_userdp.privacy.errors import LedgerError
from fedsim_userdp.privacy.joint import StatedRun
from fedsim_userdp.privacy.statement import PrivacyStatement
from fedsim_userdp.report.files import csv_text
from fedsim_userdp.report.model_card import AdapterOrigin, model_card
from fedsim_userdp.report.privacy_files import digest_of
from fedsim_userdp.report.records import ROW_FIELDS, ResultRow
from simulations.run_files import CARD, WEIGHTS, adapter_folder, ledger_file

TOLERANCE = 1e-6  # relative: of accountants on different machines


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        about: What.
        problem: What is wrong with it; empty where it is right.
    """

    about: str
    problem: str = ""

    def line(self) -> str:
        """Returns the check as one line."""
        return f"FAILED: {self.about}: {self.problem}" if self.problem else f"ok: {self.about}"


def difference(stored: object, expected: object, where: str = "") -> str:
    """Returns where a stored JSON value first differs from what is expected, in words; empty where it does not."""
    if isinstance(stored, dict) and isinstance(expected, dict):
        if stored.keys() != expected.keys():
            return f"{where or 'it'} has the keys {sorted(stored)}, expected {sorted(expected)}"
        found = (difference(stored[key], expected[key], f"{where}.{key}".lstrip(".")) for key in expected)
    elif isinstance(stored, list) and isinstance(expected, list):
        if len(stored) != len(expected):
            return f"{where} has {len(stored)} items, expected {len(expected)}"
        found = (difference(a, b, f"{where}[{at}]") for at, (a, b) in enumerate(zip(stored, expected, strict=True)))
    else:
        return "" if is_same(stored, expected) else f"{where} is {stored!r}, expected {expected!r}"
    return next(filter(None, found), "")


def is_same(stored: object, expected: object) -> bool:
    """Returns whether two plain values are the same, numbers within what accountants differ by."""
    numbers = int | float
    if isinstance(stored, bool) or isinstance(expected, bool):
        return stored is expected
    if isinstance(stored, numbers) and isinstance(expected, numbers):
        return math.isclose(stored, expected, rel_tol=TOLERANCE)
    return type(stored) is type(expected) and stored == expected


def results_checks(folder: Path, runs: Sequence[StatedRun]) -> Iterator[Check]:
    """Yields whether `results.json` and `results.csv` claim what the statements do."""
    try:
        rows = _rows(folder)
    except (OSError, ValueError, TypeError) as error:
        yield Check("results.json", f"it cannot be read: {error}")
        return
    yield Check("results.json: epsilon of every run", _row_problem(rows, runs))
    path = folder / "results.csv"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    same = text == csv_text(ROW_FIELDS, [row.to_dict() for row in rows])
    yield Check("results.csv", "" if same else "it is not what results.json says")


def run_checks(folder: Path, runs: Sequence[StatedRun]) -> Iterator[Check]:
    """Yields what was checked of each run's ledger and adapter."""
    before: list[str] = []
    for run in runs:
        statement = run.statement
        adapter = adapter_folder(folder, statement.mechanism, run.seed, before)
        before.append(statement.mechanism)
        if statement.release is not None:
            yield from _ledger_checks(folder, run, statement.release, adapter)
        if run.adapter:
            yield Check(f"{run.name}: adapter as stated", _adapter_problem(adapter, run.adapter, "the statement"))
        if statement.release is not None or adapter.exists():
            yield Check(f"{run.name}: model card", _card_problem(folder, adapter, run))


def spare_files(folder: Path, runs: Sequence[StatedRun]) -> Check:
    """Returns whether every ledger and every adapter belongs to a run that is stated."""
    ledgers = {ledger_file(folder, run.statement.mechanism, run.seed) for run in runs if run.statement.release}
    names = [run.statement.mechanism for run in runs]
    adapters = {
        adapter_folder(folder, name, run.seed, names[:at])
        for at, (name, run) in enumerate(zip(names, runs, strict=True))
    }
    spare = [path for path in (folder / "ledger").glob("*") if path not in ledgers]
    spare += [path for path in (folder / "adapters").glob("*") if path not in adapters]
    listed = ", ".join(str(path.relative_to(folder)) for path in sorted(spare))
    return Check("ledgers and adapters: each of a stated run", listed and f"no statement covers {listed}")


def _ledger_checks(folder: Path, run: StatedRun, release: Description, adapter: Path) -> Iterator[Check]:
    """What was checked of a ledger: its chain, its releases, what they cost, and the adapter that closes it."""
    path = ledger_file(folder, run.statement.mechanism, run.seed)
    about = f"{run.name}: ledger"
    try:
        contents = entries.decode(path.read_bytes())
    except FileNotFoundError:
        yield Check(about, "there is none")
        return
    except (LedgerError, OSError) as error:
        yield Check(about, str(error))
        return
    yield Check(f"{about}: chain of {len(contents.entries)} releases")
    yield Check(f"{about}: releases as stated", _release_problem(contents, run.statement, release))
    yield Check(f"{about}: epsilon recomputed from it", _cost_problem(contents, run.statement))
    yield Check(f"{run.name}: adapter is the one that its ledger ends with", _adapter_problem(adapter, contents.sealed))


def _release_problem(contents: entries.Contents, statement: PrivacyStatement, release: Description) -> str:
    """How a ledger's releases differ from the statement; empty where they do not."""
    num = len(contents.entries) + contents.num_torn
    if num != statement.rounds:
        return f"it holds {num} releases ({contents.num_torn} of them cut off), {statement.rounds} are stated"
    is_capped = isinstance(single_run(release), NoAmplification)
    single = release if is_capped else release.first(1)  # type: ignore[union-attr]
    for entry in contents.entries:
        if entry.release != single:
            return f"round {entry.round} released {entry.release}, stated is {single}"
        if entry.noise_source != statement.noise_source:
            return f"round {entry.round} took noise from {entry.noise_source!r}, stated is {statement.noise_source!r}"
    return ""


def _cost_problem(contents: entries.Contents, statement: PrivacyStatement) -> str:
    """Why the stated epsilon does not cover what a ledger holds; empty where it does."""
    counts: dict[entries.Release, int] = {}
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


def _adapter_problem(adapter: Path, sealed: str | None, source: str = "the ledger") -> str:
    """Why an adapter is not the one that a ledger ends with, or a statement names; empty where it is."""
    if sealed is None:
        return "the ledger has no closing line"
    path = adapter / WEIGHTS
    if not path.is_file():
        return f"{path} is not there"
    found = digest_of(path.read_bytes())
    return "" if found == sealed else f"{path} has sha256 {found}, {source} says {sealed}"


def _card_problem(folder: Path, adapter: Path, run: StatedRun) -> str:
    """Why a model card is not what statement and result give; empty where it is."""
    try:
        text = (adapter / CARD).read_text(encoding="utf-8")
        base = str(json.loads((adapter / "adapter_config.json").read_bytes())["base_model_name_or_path"])
        row = next(row for row in _rows(folder) if (row.mechanism, row.seed) == (run.statement.mechanism, run.seed))
    except (OSError, ValueError, TypeError, KeyError, StopIteration) as error:
        return f"it cannot be compared: {error!r}"
    labels = re.search(r"^# LoRA adapter by `.*` on `(.*)`\n\nBase model: `(.*)` \(`", text, re.M)
    if labels is None:
        return "it does not begin like a card of this program"
    expected = model_card(row, run.statement, AdapterOrigin(base, model=labels[2], data=labels[1]))
    return "" if _without_base(text) == _without_base(expected) else "it is not what statement and results say"


def _without_base(card: str) -> str:
    """A card without the line that depends on whether the base model is a folder of this machine."""
    return re.sub(r"\A---\nbase_model: .*\n", "---\n", card)


def _rows(folder: Path) -> list[ResultRow]:
    """The rows of `results.json`."""
    stored: Any = json.loads((folder / "results.json").read_bytes())
    names = {field.name for field in fields(ResultRow)}
    if not isinstance(stored, list) or not all(isinstance(row, dict) and row.keys() == names for row in stored):
        raise ValueError("it holds something else than result rows")
    return [ResultRow(**row) for row in stored]


def _row_problem(rows: Sequence[ResultRow], runs: Sequence[StatedRun]) -> str:
    """How the rows differ from the statements; empty where they do not."""
    if len(rows) != len(runs):
        return f"it has {len(rows)} runs, {len(runs)} are stated"
    for row, run in zip(rows, runs, strict=True):
        statement = run.statement
        is_of_users = statement.level == "user"
        stated = {
            "mechanism": statement.mechanism,
            "seed": run.seed,
            "epsilon": statement.epsilon if is_of_users else None,
            "delta": statement.delta if is_of_users else None,
            "noise_multiplier": statement.update_noise_multiplier,
            "clip_norm": statement.clip_norm,
            "rounds": row.rounds if statement.release is None else statement.rounds,
        }
        if found := difference({name: getattr(row, name) for name in stated}, stated):
            return f"{run.name}: {found}"
    return ""
