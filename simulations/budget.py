"""`fedsim budget`: what a user-level budget costs in noise, without data or model."""

import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.printable import printable
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.budget import AXES, COUNTS, BudgetRow, BudgetSetting, ClipNorms, plan, sweep
from fedsim_userdp.privacy.figures import rounded_up
from fedsim_userdp.simulations.arguments import check_types, override_key
from fedsim_userdp.simulations.job_folder import folder_of_job

_MOST_GROUPS = 12  # that are listed


def main() -> None:
    """Plans; `budget.sweep=AXIS:1,2` reaches Hydra quoted, which would take its commas for several jobs."""
    sys.argv[1:] = [quoted_sweep(argument) for argument in sys.argv[1:]]
    run_job()


@hydra.main(version_base="1.3", config_path="pkg://fedsim_userdp.conf", config_name="budget")
def run_job(config: DictConfig) -> None:
    """Prints the table and what it says, and writes `budget.csv`, `budget.json` and `budget.png`."""
    with folder_of_job() as folder:
        plan_budget(config, folder)


def plan_budget(config: DictConfig, folder: Path) -> None:
    """Plans into a folder."""
    check_types(config, "budget")
    setting = setting_of(config)
    axis, values = parse_sweep(config.budget.sweep)
    _check_sweep(setting, axis, values)
    selected = None
    if config.get("selection") is not None:
        if axis is not None:
            raise ConfigError("budget.sweep cannot be combined with a selection: plan for one value at a time")
        selected = selected_users(config, setting)
        setting = selected.setting
    from fedsim_userdp.report import budget as report  # here, so that --help and refusals need not load matplotlib
    from fedsim_userdp.report.budget_plot import plot_budget
    from fedsim_userdp.report.table import result_console

    console = result_console()
    with console.status("calibrating"):
        release = None if selected is None else selected.release
        plans = [plan(setting, release)] if axis is None else sweep(setting, axis, values)
    words = report.in_words(plans[0]) if axis is None else report.sweep_in_words(plans, axis)
    words = [*([] if selected is None else selected.in_words(plans[0][0])), *words]
    report.write_budget(folder, setting, plans, axis, words)
    plot_budget(folder / "budget.png", plans, axis)
    console.print(report.setting_in_words(setting, axis), highlight=False, markup=False)
    console.print(report.budget_table(plans, axis))
    for text in (report.LEGEND, "", *words, f"folder: {printable(str(folder))}"):
        console.print(text, highlight=False, markup=False, soft_wrap=text.startswith(("folder", "k:")))


def setting_of(config: DictConfig) -> BudgetSetting:
    """Returns the setting of a configuration.

    Raises:
        ConfigError: when a value is out of range, or cohort and sampling_prob are both given.
    """
    node = config.budget
    overridden = {override_key(override) for override in HydraConfig.get().overrides.task}
    if {"budget.cohort", "budget.sampling_prob"} <= overridden and None not in (node.cohort, node.sampling_prob):
        raise ConfigError("budget.cohort and budget.sampling_prob say the same thing: set one of them")
    try:
        return BudgetSetting(
            num_users=node.num_users,
            records_per_user=node.records_per_user,
            rounds=node.rounds,
            epsilon=config.privacy.epsilon,
            delta=config.privacy.delta,
            cohort=node.cohort if node.sampling_prob is None else None,
            sampling_prob=node.sampling_prob,
            clip_norms=ClipNorms(**node.clip_norm),
        )
    except ValueError as error:
        group = "privacy" if re.match(r"(epsilon|delta)\b", str(error)) else "budget"
        raise ConfigError(f"{group}.{error}") from error


@dataclass(frozen=True)
class Selected:
    """Users as a selection draws them.

    Attributes:
        name: the selection with its settings.
        setting: what is planned for, with the number of users and their mean share of a round.
        release: what user_wise releases, at noise multiplier 1.
        groups: who is in each group that is accounted for; empty where everybody is alike.
    """

    name: str
    setting: BudgetSetting
    release: acc.Description
    groups: tuple[str, ...]

    def in_words(self, row: BudgetRow) -> list[str]:
        """Returns what is selected, and the epsilon of each group, as sentences."""
        said = [f"{self.name}: {row.cohort:.4g} users expected in a round, the mean over rounds."]
        if row.noise_multiplier is None or not self.groups:
            return said
        run = acc.calibrate(self.release, epsilon=row.epsilon_target, delta=row.delta)
        if not isinstance(acc.inner_run(run), acc.PoissonGroups):  # type: ignore[arg-type]
            return said
        found = acc.epsilons_by_group(run, row.delta)  # type: ignore[arg-type]
        each = [f"{group}: {rounded_up(epsilon)}" for group, epsilon in zip(self.groups, found, strict=True)]
        more = f"; and {len(each) - _MOST_GROUPS} more" if len(each) > _MOST_GROUPS else ""
        return [*said, f"Epsilon by group: {'; '.join(each[:_MOST_GROUPS])}{more}."]


def selected_users(config: DictConfig, setting: BudgetSetting) -> Selected:
    """Returns what a selection draws: from so many users, or from those of its table of public facts.

    Raises:
        ConfigError, DataError, ValueError: one sentence on what is wrong with it.
    """
    from fedsim_userdp.data.public_facts import PublicFacts
    from fedsim_userdp.mechanisms.settings_tree import selection_in_words
    from fedsim_userdp.participation import declared_release, expected_share
    from fedsim_userdp.population import Population
    from fedsim_userdp.sampling_plan import SamplingPlan
    from fedsim_userdp.selection import Stating, is_plain_poisson
    from fedsim_userdp.signals import signal_of
    from fedsim_userdp.simulations.names import made, without_public

    overridden = {override_key(override) for override in HydraConfig.get().overrides.task}
    for key in ("budget.cohort", "budget.sampling_prob"):
        if key in overridden:
            raise ConfigError(f"{key} has no effect beside a selection, whose own settings say who takes part")
    if config.selection.get("public_columns"):
        raise ConfigError(
            "selection.public_columns needs a corpus, which is not read here: name a table, selection.public"
        )
    population = Population.numbered(setting.num_users)
    if (path := config.selection.get("public")) is not None:
        facts = PublicFacts.of(str(path))
        population = Population(facts.id_hashes, facts.of_users(facts.id_hashes))
        if "budget.num_users" in overridden and setting.num_users != len(population):
            raise ConfigError(
                f"budget.num_users={setting.num_users} and selection.public={path}, which has {len(population)} users"
            )
    selector = made("selection", without_public(config.selection))
    rounds, signal = setting.rounds, signal_of(selector)
    declared = declared_release(selector, 1.0, population, rounds)
    groups: tuple[str, ...] = ()
    if isinstance(selector, Stating) and not is_plain_poisson(selector):
        groups = SamplingPlan.of(selector, population, rounds).in_words(population)
    share = min(expected_share(selector, population, rounds), 1.0)
    said = OmegaConf.to_container(config.selection, resolve=True)
    assert isinstance(said, dict)
    return Selected(
        selection_in_words({str(key): value for key, value in said.items()}),
        dataclasses.replace(setting, num_users=len(population), cohort=None, sampling_prob=share),
        declared if signal is None else acc.PaidSignals(declared, signal.share),
        groups,
    )


def parse_sweep(text: object) -> tuple[str | None, list[float]]:
    """Returns axis and values of `AXIS:VALUE,VALUE,...`; None and no values where nothing is swept.

    Raises:
        ConfigError: when the text has another form, the axis is unknown, or a value is no number of its kind.
    """
    if text is None:
        return None, []
    axis, colon, listed = str(text).partition(":")
    if not colon:
        raise ConfigError(f"budget.sweep={text} must be AXIS:VALUE,VALUE,... such as records_per_user:1,2,5,10,20")
    if axis not in AXES:
        raise ConfigError(f"budget.sweep={text}: the axis {axis!r} is unknown; expected one of {', '.join(AXES)}")
    kind, wanted = (int, "whole numbers") if axis in COUNTS else (float, "numbers")
    try:
        return axis, [kind(value) for value in listed.split(",")]
    except ValueError as error:
        raise ConfigError(f"budget.sweep={text}: {axis} takes {wanted} with commas between them") from error


def quoted_sweep(argument: str) -> str:
    """Returns a command-line argument, in quotes for Hydra if it is a bare `budget.sweep` with commas."""
    key, _, value = argument.partition("=")
    if override_key(key) != "budget.sweep" or "," not in value or value[0] in "'\"[":
        return argument
    escaped = value.replace("\\", "").replace("'", "\\'")
    return f"{key}='{escaped}'"


def _check_sweep(setting: BudgetSetting, axis: str | None, values: list[float]) -> None:
    """Raises ConfigError when a swept value is out of range."""
    for value in values:
        try:
            setting.at(str(axis), value)
        except ValueError as error:
            raise ConfigError(f"budget.sweep: {axis}={value:g} is refused: {error}") from error
