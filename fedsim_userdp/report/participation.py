"""What the selection of users did in the runs of a folder: rounds of each user, sizes of cohorts. Not private."""

from collections.abc import Sequence
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
        found: who took part.
    """

    mechanism: str
    seed: int
    found: Participation


def write_participation(folder: Path, runs: Sequence[RunParticipation]) -> None:
    """Writes `not_private/participation.csv`, a row for each user and run, and `participation.json`, a summary each.

    Users are named by their number among the training users; public facts stand beside.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.found.facts))
    columns = ("mechanism", "seed", "user", "rounds", *names)
    rows = (
        {
            "mechanism": run.mechanism,
            "seed": run.seed,
            "user": user,
            "rounds": int(rounds),
            **{name: _cell(values[user]) for name, values in run.found.facts.items()},
        }
        for run in runs
        for user, rounds in enumerate(run.found.rounds[:_MOST_USERS])
    )
    write_csv(folder / NOT_PRIVATE / "participation.csv", columns, rows)
    write_json(
        folder / NOT_PRIVATE / "participation.json",
        {"note": NOTE, "runs": [{"mechanism": run.mechanism, "seed": run.seed, **_summary(run.found)} for run in runs]},
    )


def _summary(found: Participation) -> dict[str, object]:
    """Sizes of cohorts, how evenly users took part, and the mean of each public group."""
    return {
        "coverage": found.coverage,
        "gini": found.gini,
        "planned_cohorts": list(found.planned),
        "drawn_cohorts": list(found.drawn),
        "groups": {name: groups for name, values in found.facts.items() if (groups := _by_group(values, found.rounds))},
    }


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
