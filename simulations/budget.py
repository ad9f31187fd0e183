"""`fedsim budget`: what a user-level budget costs in noise, without data or model."""

import re
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.printable import printable
from fedsim_userdp.privacy.budget import AXES, COUNTS, BudgetSetting, ClipNorms, plan, sweep
from fedsim_userdp.simulations.arguments import check_types, override_key
from fedsim_userdp.simulations.job_folder import folder_of_job


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
    from fedsim_userdp.report import budget as report  # here, so that --help and refusals need not load matplotlib
    from fedsim_userdp.report.budget_plot import plot_budget
    from fedsim_userdp.report.table import result_console

    console = result_console()
    with console.status("calibrating"):
        plans = [plan(setting)] if axis is None else sweep(setting, axis, values)
    words = report.in_words(plans[0]) if axis is None else report.sweep_in_words(plans, axis)
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
