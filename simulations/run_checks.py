"""What `fedsim verify` holds against each other of every run: ledger, adapter and model card."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedsim_userdp.mechanisms.own_folder import run_below
from fedsim_userdp.mechanisms.run_files import adapter_folder, ledger_file
from fedsim_userdp.privacy.joint import StatedRun
from fedsim_userdp.simulations.adapter_checks import card_problem, settings_problem, spare_problem, weights_problem
from fedsim_userdp.simulations.checks import Check
from fedsim_userdp.simulations.configured_runs import Configured
from fedsim_userdp.simulations.ledger_checks import ledger_checks


def run_checks(folder: Path, runs: Sequence[StatedRun], found: Configured) -> Iterator[Check]:
    """Yields what was checked of each run's ledger and adapter."""
    before: list[str] = []
    for run in runs:
        statement = run.statement
        adapter = adapter_folder(folder, statement.mechanism, run.seed, before)
        before.append(statement.mechanism)
        if statement.release is not None:
            yield from ledger_checks(folder, run, statement.release, adapter, found.rounds(run))
        if run.adapter or adapter.exists():
            yield from _adapter_checks(folder, run, adapter, found)


def _adapter_checks(folder: Path, run: StatedRun, adapter: Path, found: Configured) -> Iterator[Check]:
    """What was checked of an adapter's folder."""
    if not adapter.is_dir():
        yield Check(f"{run.name}: adapter", f"{adapter} is not there")
        return
    yield Check(f"{run.name}: adapter as stated", weights_problem(adapter, run.adapter, "the statement"))
    yield Check(f"{run.name}: nothing else in the adapter's folder", spare_problem(adapter))
    config = found.configs.get((run.statement.mechanism, run.seed))
    if config is not None:
        yield Check(f"{run.name}: adapter's settings as configured", settings_problem(adapter, config))
    yield Check(f"{run.name}: model card", card_problem(folder, adapter, run, found.choices, config))


def spare_files(folder: Path, runs: Sequence[StatedRun]) -> Check:
    """Returns whether every ledger, every adapter and every run further down belongs to a run that is stated."""
    ledgers = {ledger_file(folder, run.statement.mechanism, run.seed) for run in runs if run.statement.release}
    names = [run.statement.mechanism for run in runs]
    adapters = {
        adapter_folder(folder, name, run.seed, names[:at])
        for at, (name, run) in enumerate(zip(names, runs, strict=True))
    }
    spare = [path for path in (folder / "ledger").glob("*") if path not in ledgers]
    spare += [path for path in (folder / "adapters").glob("*") if path not in adapters]
    spare += [] if (below := run_below(folder)) is None else [below]
    listed = ", ".join(str(path.relative_to(folder)) for path in sorted(spare))
    return Check("ledgers and adapters: each of a stated run", listed and f"no statement covers {listed}")
