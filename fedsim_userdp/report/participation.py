"""What the selection of users did in the runs of a folder: rounds of each user, sizes of cohorts. Not private."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsim_userdp.participation import Participation
from fedsim_userdp.report.files import NOT_PRIVATE, write_csv, write_json

NOTE = "who took part in how many rounds: NOT private, do not publish"
_MOST_GROUPS = 50  # values of a public column, beyond which it is no grouping
_MOST_USERS = 1_000_000  # in one file


@dataclass(frozen=True)
class RunParticipation:
    """What selection did in one run.

    Attributes:
        mechanism: the run's name.
        seed: its seed.
        found: who took part; None where users are not drawn.
        by_group: perplexity on the evaluation users of each public group, by column.
    """

    mechanism: str
    seed: int
    found: Participation | None
    by_group: Mapping[str, list[dict[str, object]]]


def write_participation(folder: Path, runs: Sequence[RunParticipation]) -> None:
    """Writes `not_private/participation.csv`, a row for each user and run, and `participation.json`, a summary each.

    Users are named by their number among the training users; public facts stand beside.  Each row has the mark that it
    is not private.  Of a run the first 1,000,000 users have rows; the summary is of all.
    """
    drawn = [(run, run.found) for run in runs if run.found is not None]
    names = list(dict.fromkeys(name for _, found in drawn for name in found.facts))
    columns = ("mechanism", "seed", "user", "rounds", *(f"public.{name}" for name in names), "not_private")
    rows = (
        {
            "mechanism": run.mechanism,
            "seed": run.seed,
            "user": user,
            "rounds": int(rounds),
            **{f"public.{name}": _cell(values[user]) for name, values in found.facts.items()},
            "not_private": NOTE,
        }
        for run, found in drawn
        for user, rounds in enumerate(found.rounds[:_MOST_USERS])
    )
    write_csv(folder / NOT_PRIVATE / "participation.csv", columns, rows)
    write_json(
        folder / NOT_PRIVATE / "participation.json",
        {"note": NOTE, "runs": [_summary(run) for run in runs]},
    )


def _summary(run: RunParticipation) -> dict[str, object]:
    """Sizes of cohorts, how evenly users took part, the mean of each public group, and perplexity by group."""
    named: dict[str, object] = {"mechanism": run.mechanism, "seed": run.seed}
    if run.by_group:
        named["perplexity_by_group"] = {name: _finite(groups) for name, groups in run.by_group.items()}
    found = run.found
    if found is None:
        return named
    return named | {
        "coverage": found.coverage,
        "gini": found.gini,
        "planned_cohorts": list(found.planned),
        "drawn_cohorts": list(found.drawn),
        "groups": {name: groups for name, values in found.facts.items() if (groups := _by_group(values, found.rounds))},
    }


def _finite(groups: list[dict[str, object]]) -> list[dict[str, object]]:
    """The same with None for what JSON cannot say."""
    return [
        {key: None if isinstance(one, float) and not math.isfinite(one) else one for key, one in group.items()}
        for group in groups
    ]


def _by_group(values: np.ndarray, rounds: np.ndarray) -> list[dict[str, object]]:
    """Users, mean number of rounds and coverage of each value of a public column; empty where it is no grouping."""
    if values.ndim != 1:
        return []
    kinds, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    if len(kinds) > _MOST_GROUPS:
        return []
    total = np.bincount(group, weights=rounds)
    reached = np.bincount(group, weights=rounds > 0)
    return [
        {"value": _cell(kind), "users": int(size), "mean_rounds": float(sum_ / size), "coverage": float(some / size)}
        for kind, size, sum_, some in zip(kinds, sizes, total, reached, strict=True)
    ]


def _cell(value: object) -> object:
    """A public fact as JSON and CSV have it."""
    found = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return int(found) if isinstance(found, float) and found.is_integer() else found
