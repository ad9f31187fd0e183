"""What accounting by group and round saves, in the figures that docs/selection.md prints."""

import dataclasses

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting import pld

from fedsim_userdp.participation import ClientSelector, declared_release
from fedsim_userdp.population import Population
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.selectors import AvailabilitySelector, GrowingSelector, StratifiedSelector

DELTA = 1e-5


def users(num_users: int, **columns: np.ndarray) -> Population:
    """A population with public columns."""
    return Population(np.arange(num_users, dtype=np.uint64), columns)


REGIONS = users(30, region=np.repeat(["a", "b", "c"], [5, 7, 18]))
HOURS = users(24, available_from=np.arange(24.0), available_to=(np.arange(24.0) + 12) % 24)


def calibrated(selector: ClientSelector, population: Population, rounds: int, epsilon: float) -> acc.PoissonGroups:
    """The run of a selector with the least noise that meets a target."""
    run = declared_release(selector, 1.0, population, rounds)
    assert isinstance(run, acc.PoissonGroups)
    return acc.calibrate(run, epsilon=epsilon, delta=DELTA)


def noise_of_largest(prob: float, rounds: int, epsilon: float) -> float:
    """The noise multiplier where everybody is declared with the largest probability in every round."""
    return acc.calibrate(acc.PoissonUsers(1.0, prob, rounds), epsilon=epsilon, delta=DELTA).noise_multiplier


def test_small_groups_of_a_stratified_cohort_spend_more_than_large_ones() -> None:
    run = calibrated(StratifiedSelector("region", 3), REGIONS, 20, 8.0)
    assert sorted(acc.epsilons_by_group(run, DELTA)) == pytest.approx([2.18, 5.70, 7.99], abs=0.005)


def test_the_largest_probability_throughout_takes_57_percent_more_noise_than_a_growing_one() -> None:
    run = calibrated(GrowingSelector(0.02, 0.2, 200), users(24), 200, 3.0)
    assert noise_of_largest(0.2, 200, 3.0) / run.noise_multiplier == pytest.approx(1.57, abs=0.005)


def test_ignoring_that_users_are_there_half_the_day_takes_28_percent_more_noise() -> None:
    run = calibrated(AvailabilitySelector(0.1), HOURS, 200, 3.0)
    assert noise_of_largest(0.1, 200, 3.0) / run.noise_multiplier == pytest.approx(1.28, abs=0.005)


def test_noise_for_unequal_probabilities_and_weights_is_that_of_dp_accounting_and_never_below_it() -> None:
    """An update of weight w is a release with noise multiplier z / w."""
    run = acc.PoissonGroups(1.0, (((0.02, 2.0, 20), (0.2, 1.0, 20)), ((0.1, 1.5, 40),)))
    mine = acc.calibrate(run, epsilon=3.0, delta=DELTA).noise_multiplier
    theirs = max(_noise_elsewhere(dataclasses.replace(run, groups=(group,))) for group in run.groups)
    assert theirs <= mine <= theirs * (1 + 1e-3)


def _noise_elsewhere(run: acc.PoissonGroups) -> float:
    """The least noise multiplier of a single group by dp_accounting, by bisection."""

    def event(noise: float) -> dp.DpEvent:
        return dp.ComposedDpEvent(
            [
                dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(prob, dp.GaussianDpEvent(noise / weight)), rounds)
                for prob, weight, rounds in run.groups[0]
            ]
        )

    return float(
        dp.calibrate_dp_mechanism(
            lambda: pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-4),
            event,
            3.0,
            DELTA,
            dp.ExplicitBracketInterval(0.5, 10.0),
            tol=1e-5,
        )
    )
