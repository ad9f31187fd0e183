"""Whether the runs of a comparison expect cohorts of one size."""

from collections.abc import Sequence

from fedsim_userdp.mechanisms.compare import CheckedRun
from fedsim_userdp.participation import expected_share

_TOLERANCE = 0.01  # of the largest


def expected_cohorts(runs: Sequence[CheckedRun]) -> dict[str, float]:
    """Returns the users expected in a round, the mean over rounds, by the name of a run; without those of no rounds."""
    return {
        one.run.name: expected_share(one.run.study.selector, one.run.study.population, rounds) * one.run.study.num_users
        for one in runs
        if isinstance(rounds := getattr(one.mechanism, "rounds", None), int) and rounds > 0
    }


def unequal_cohorts(sizes: dict[str, float]) -> str | None:
    """Returns one sentence that names expected cohorts which differ by more than 1%; None where they do not.

    Args:
        sizes: users expected in a round, by the name of a run.
    """
    if not sizes or min(sizes.values()) >= (1 - _TOLERANCE) * max(sizes.values()):
        return None
    said = ", ".join(f"{name} {size:.4g}" for name, size in sizes.items())
    return f"the runs expect cohorts of different sizes, so that they differ in more than who is chosen: {said}"
