"""What `fedsim verify` holds `results.json` and `results.csv` against: the statements and the configuration."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedsim_userdp.mechanisms.guarantee import UNNOISED, UNTRAINED, Guarantee, declared_probability
from fedsim_userdp.mechanisms.settings_tree import selection_in_words, target_of
from fedsim_userdp.plain_files import read_file
from fedsim_userdp.privacy.accounting.descriptions import RecordLevel
from fedsim_userdp.privacy.joint import StatedRun
from fedsim_userdp.privacy.statement import PrivacyStatement
from fedsim_userdp.report.files import results_csv
from fedsim_userdp.report.records import OF_RESULTS, ResultRow
from fedsim_userdp.selection import PoissonSelector
from fedsim_userdp.simulations.arguments import foreign_targets
from fedsim_userdp.simulations.checks import Check, difference
from fedsim_userdp.simulations.configured_claims import unit_of


def results_checks(
    folder: Path, runs: Sequence[StatedRun], configs: Mapping[tuple[str, int], DictConfig]
) -> Iterator[Check]:
    """Yields whether `results.json` and `results.csv` claim what the statements do, of runs as they were configured."""
    try:
        rows = result_rows(folder)
    except (OSError, ValueError, TypeError) as error:
        yield Check("results.json", f"it cannot be read: {error}")
        return
    yield Check("results.json: claims of every run", _row_problem(rows, runs, configs))
    try:
        text = read_file(folder / "results.csv").decode(errors="replace")
    except FileNotFoundError:
        text = ""
    same = text == results_csv(rows)
    yield Check("results.csv", "" if same else "it is not what results.json says")


def result_rows(folder: Path) -> list[ResultRow]:
    """Returns the rows of `results.json`.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds something else.
    """
    stored: Any = json.loads(read_file(folder / "results.json"))
    names = {field.name for field in fields(ResultRow)}
    for row in stored if isinstance(stored, list) else [None]:
        if not isinstance(row, dict) or row.keys() != names:
            raise ValueError("it holds something else than result rows")
        if not isinstance(row["metrics"], dict):
            raise ValueError("its metrics are no mapping")
    return [ResultRow(**row) for row in stored]


def _row_problem(
    rows: Sequence[ResultRow], runs: Sequence[StatedRun], configs: Mapping[tuple[str, int], DictConfig]
) -> str:
    """How the rows differ from the statements and the configuration; empty where they do not."""
    if len(rows) != len(runs):
        return f"it has {len(rows)} runs, {len(runs)} are stated"
    for row, run in zip(rows, runs, strict=True):
        config = configs.get((run.statement.mechanism, run.seed))
        told = _stated(row, run)
        if config is not None and unit_of(config) is not None:
            told |= _configured(run.statement, config)
        if found := difference({name: getattr(row, name) for name in told}, told):
            return f"{run.name}: {found}"
    return ""


def _stated(row: ResultRow, run: StatedRun) -> dict[str, object]:
    """What a statement says of its row."""
    statement = run.statement
    is_of_users, is_of_pool = statement.level == "user", isinstance(statement.release, RecordLevel)
    return {
        "mechanism": statement.mechanism,
        "seed": run.seed,
        "epsilon": statement.epsilon if is_of_users else None,
        "delta": statement.delta if is_of_users else None,
        "target_epsilon": statement.target_epsilon if is_of_users else None,
        "epsilon_tight": statement.epsilon_by_accountant.get("tight") if is_of_pool else None,
        "epsilon_record": statement.epsilon_by_accountant.get("record") if is_of_pool else None,
        **({} if statement.level == "nobody" else {"guarantee": _in_words(statement)}),
        "noise_multiplier": statement.update_noise_multiplier,
        "clip_norm": statement.clip_norm,
        "records_per_user": statement.records_per_user or 0,
        "rounds": row.rounds if statement.rounds == max(row.rounds, 1) else statement.rounds,
        "evaluated_on": statement.evaluated_on,
        "not_private": OF_RESULTS,
    }


def _in_words(statement: PrivacyStatement) -> str:
    """The guarantee in a result's words."""
    if statement.records_per_user is None and statement.level == "nobody":
        return UNTRAINED
    if statement.clip_norm is None and statement.level == "nobody":
        return UNNOISED
    delta = 1.0 if statement.delta is None else statement.delta
    return Guarantee(statement.release, statement.method, delta, statement.level, statement.ownership).in_words()


def _configured(statement: PrivacyStatement, config: DictConfig) -> dict[str, object]:
    """What the configuration of one of this package's mechanisms says of its run's row."""
    told = {
        "unit": unit_of(config),
        "guarantee": _in_words(statement),
        "learning_rate": config.mechanism.get("learning_rate"),
    }
    is_trained = config.mechanism.get("rounds") is not None
    is_own = not foreign_targets(config.selection, ())
    is_poisson = is_own and config.selection._target_ == target_of(PoissonSelector)
    declared = config.selection.get("sampling_prob") if is_poisson else declared_probability(statement.release)
    selection = OmegaConf.to_container(config.selection, resolve=True)
    assert isinstance(selection, dict)
    told["selection"] = selection_in_words({str(key): value for key, value in selection.items()}) if is_trained else ""
    return {**told, "sampling_prob": declared if is_trained else None}
