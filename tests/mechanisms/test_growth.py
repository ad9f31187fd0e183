"""Probabilities that grow do so over the rounds of the run."""

import pytest

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.user_wise import check_rounds_of_growth
from fedsim_userdp.selection import PoissonSelector
from fedsim_userdp.selectors import GrowingSelector


@pytest.mark.parametrize("rounds", [1, 2, 6])
def test_growth_over_other_rounds_than_the_run_has_is_refused(rounds: int) -> None:
    with pytest.raises(ConfigError, match=rf"selection\.rounds=5 must be the run's number of rounds, {rounds}"):
        check_rounds_of_growth(GrowingSelector(0.1, 0.4, 5), rounds)


def test_growth_over_the_rounds_of_the_run_is_taken() -> None:
    check_rounds_of_growth(GrowingSelector(0.1, 0.4, 5), 5)
    check_rounds_of_growth(PoissonSelector(0.1), 5)
