"""What `fedsim budget` says: a table, sentences, and the files `budget.csv` and `budget.json`."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from fedsim_userdp.privacy.budget import BudgetRow, BudgetSetting
from fedsim_userdp.privacy.delta import large_delta_in_words
from fedsim_userdp.privacy.figures import in_column, rounded_up
from fedsim_userdp.privacy.statement import MET
from fedsim_userdp.report.files import write_csv, write_json

LEGEND = """\
k: records of every user.  q: sampling probability.  sigma: noise multiplier.  clip: clip norm.
batch: expected units averaged in a round.  noise: stddev of the noise on that mean, in each coordinate.
eps: user-level epsilon, recomputed.  tight: the same by the tight ELS accountant.
tie: how many times smaller the user-wise clip norm must be for equal noise."""
_HEADINGS = {"records_per_user": "k", "num_users": "users", "sampling_prob": "q"}
TIE = 0.01  # calibration meets its target within 1%, so that a smaller difference in noise says nothing


def budget_table(plans: Sequence[Sequence[BudgetRow]], axis: str | None = None) -> Table:
    """Returns the plans as a table, a section for each; a dash stands for "does not apply".

    Args:
        plans: Rows of `planning.plan`, one list for each value that was swept.
        axis: What was swept, as the first column; None for a single setting.
    """
    table = Table()
    if axis is not None:
        table.add_column(_HEADINGS.get(axis, axis), justify="right", no_wrap=True)
    table.add_column("mechanism", no_wrap=True)
    for heading in ("sigma", "clip", "batch", "noise", "eps", "tight", "tie"):
        table.add_column(heading, justify="right", no_wrap=True)
    for rows in plans:
        for position, row in enumerate(rows):
            first = [] if axis is None else [f"{axis_value(row, axis):g}" if position == 0 else ""]
            table.add_row(*first, *_cells(row))
        table.add_section()
    return table


def axis_value(row: BudgetRow, axis: str) -> float:
    """Returns the row's value on one of `planning.AXES`."""
    return float(getattr(row, "epsilon_target" if axis == "epsilon" else axis))


def setting_in_words(setting: BudgetSetting, axis: str | None = None) -> str:
    """Returns the setting as one line, without what is swept."""
    swept = {axis, "sampling_prob"} if axis == "cohort" else {axis, "cohort"} if axis == "sampling_prob" else {axis}
    delta = setting.user_level_delta
    parts = {
        "epsilon": f"epsilon {setting.epsilon:g}",
        "delta": "delta num_users^-1.1"
        if axis == "num_users" and setting.delta is None
        else f"delta {rounded_up(delta, 2)}",
        "num_users": f"{setting.num_users} users",
        "records_per_user": f"k = {setting.records_per_user}",
        "rounds": f"{setting.rounds} rounds",
        "cohort": f"cohort {setting.expected_cohort:g}",
        "sampling_prob": f"q = {setting.probability:.3g}",
    }
    if axis == "num_users":  # one of the two follows from the other and from what is swept
        swept.add("sampling_prob" if setting.sampling_prob is None else "cohort")
    return "user level: " + ", ".join(text for name, text in parts.items() if name not in swept)


def in_words(rows: Sequence[BudgetRow]) -> list[str]:
    """Returns what one plan says: who adds less noise at equal clip norm, by how much, and why clip norms differ.

    Args:
        rows: Of `planning.plan`.
    """
    sentences = [f"{row.mechanism} has no answer: {row.problem}." for row in rows if row.problem]
    sentences += [*_unmet(rows), *_large_delta([row.delta for row in rows])]
    noise = {row.mechanism: row.noise_per_clip for row in rows if row.noise_per_clip is not None}
    if len(noise) < 2:
        return sentences
    sentences.append(_least(noise))
    if rows[0].records_per_user == 1:
        why = ["With k = 1 a user is one record, and the mechanisms differ in name only."]
    else:
        why = [*(_tie(row) for row in rows if row.tie_ratio is not None), _why(rows[-1])]
    return [*sentences, *why, *_as_set(rows)]


def sweep_in_words(plans: Sequence[Sequence[BudgetRow]], axis: str) -> list[str]:
    """Returns what a sweep says: the sentences of its last value, and who adds less noise over the whole axis."""
    ratios = [(axis_value(row, axis), row) for rows in plans for row in rows if row.mechanism == "example_level_tight"]
    ties = [f"{row.tie_ratio:.2f} at {value:g}" for value, row in ratios if row.tie_ratio is not None]
    overall = f"To tie with example_level_tight, the user-wise clip norm must be smaller by a factor, over {axis}, of "
    problems = [
        f"{axis}={axis_value(row, axis):g}: {row.mechanism} has no answer: {row.problem}."
        for rows in plans[:-1]
        for row in rows
        if row.problem
    ]
    problems += [text for rows in plans[:-1] for text in _unmet(rows, f"{axis}={axis_value(rows[0], axis):g}: ")]
    if not _large_delta([plans[-1][0].delta]):  # which the last value's own sentences say
        problems += _large_delta([rows[0].delta for rows in plans])
    last = [f"At {axis}={axis_value(plans[-1][0], axis):g}:", *in_words(plans[-1])]
    return [*problems, *([overall + ", ".join(ties) + "."] if ties else []), *last]


def write_budget(
    folder: Path, setting: BudgetSetting, plans: Sequence[Sequence[BudgetRow]], axis: str | None, words: Sequence[str]
) -> None:
    """Writes `budget.csv` (the rows) and `budget.json` (setting, swept axis, rows and sentences)."""
    rows = [dataclasses.asdict(row) for rows in plans for row in rows]
    write_csv(folder / "budget.csv", [field.name for field in dataclasses.fields(BudgetRow)], rows)
    write_json(
        folder / "budget.json",
        {"setting": dataclasses.asdict(setting), "axis": axis, "in_words": list(words), "rows": rows},
    )


def _large_delta(deltas: Sequence[float]) -> list[str]:
    """What the largest of the deltas means, where it is large."""
    words = large_delta_in_words(max(deltas))
    return [] if words is None else [words]


def _unmet(rows: Sequence[BudgetRow], where: str = "") -> list[str]:
    """Which mechanisms stay below the target, since noise has a least size that can be accounted for."""
    return [
        f"{where}{row.mechanism}: epsilon {row.epsilon_target:g} was asked for and {rounded_up(row.epsilon)} holds: "
        "noise has a least size that can be accounted for, and the claim is stronger than asked."
        for row in rows
        if row.epsilon is not None and row.epsilon < MET * row.epsilon_target
    ]


def _cells(row: BudgetRow) -> list[str]:
    """The row's cells."""

    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return [
        row.mechanism,
        cell(row.noise_multiplier, ".4g"),
        f"{row.clip_norm:g}",
        f"{row.expected_units:{',.0f' if row.expected_units >= 100 else '.3g'}} {row.unit}s",
        cell(row.noise_stddev, ".3g"),
        "-" if row.epsilon is None else in_column(row.epsilon, 3),
        "-" if row.epsilon_tight is None else in_column(row.epsilon_tight, 3),
        cell(row.tie_ratio, ".3f"),
    ]


def _least(noise: dict[str, float]) -> str:
    """Who adds the least noise at equal clip norm, from the noise at clip norm 1."""
    least = min(noise.values())
    best = [name for name, value in noise.items() if value <= (1 + TIE) * least]
    others = " and ".join(f"{value:.3g} ({name})" for name, value in noise.items() if name not in best)
    if not others:
        return f"At equal clip norm all add the same noise to the mean, {least:.3g} * clip_norm."
    who = f"{best[0]} adds" if len(best) == 1 else f"{' and '.join(best)} add"
    return f"At equal clip norm {who} the least noise to the mean: {least:.3g} * clip_norm, against {others}."


def _tie(row: BudgetRow) -> str:
    """How the user-wise clip norm compares with a record-level mechanism's at equal noise."""
    ratio, name = row.tie_ratio or math.nan, row.mechanism
    if abs(ratio - 1) <= TIE:
        return f"user_wise ties with {name} at equal clip norm."
    if ratio < 1:
        return f"user_wise has less noise than {name} even at a clip norm up to {1 / ratio:.2f} times larger."
    return (
        f"user_wise ties with {name} where its clip norm is {ratio:.2f} times smaller, and has less noise below that."
    )


def _why(tight: BudgetRow) -> str:
    """Why clip norms differ, and whether that can make up for the noise of user-wise DP-SGD against tight ELS."""
    shrinkage, needed = math.sqrt(tight.records_per_user), tight.tie_ratio
    why = (
        f"Why clip norms differ: user_wise clips the mean of k = {tight.records_per_user} records, which is shorter "
        f"than one record's gradient, about sqrt(k) = {shrinkage:.2f} times where a user's records have nothing in "
        "common, not at all where they agree."
    )
    if needed is None:
        return why
    if needed <= 1 + TIE:
        return f"{why} Here any such shrinkage is a gain for user_wise."
    if needed <= shrinkage:
        return f"{why} user_wise wins only through that: where a user's mean is over {needed:.2f} times shorter."
    return f"{why} Here {needed:.2f} times are needed, more than averaging gives: example_level_tight has less noise."


def _as_set(rows: Sequence[BudgetRow]) -> list[str]:
    """Who adds the least noise with the clip norms as they are set, where these differ."""
    noise = {row.mechanism: row.noise_stddev for row in rows if row.noise_stddev is not None}
    if len({row.clip_norm for row in rows}) == 1:
        return []
    best = min(noise, key=lambda name: noise[name])
    return [f"With the clip norms as set, {best} adds the least noise: {noise[best]:.3g}."]
