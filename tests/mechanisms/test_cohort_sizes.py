"""A comparison says when its runs expect cohorts of different sizes."""

import pytest

from fedsim_userdp.mechanisms.cohort_sizes import unequal_cohorts


@pytest.mark.parametrize("sizes", [{}, {"a": 5.0}, {"a": 5.0, "b": 4.96}])
def test_nothing_is_said_of_cohorts_of_one_size(sizes: dict[str, float]) -> None:
    assert unequal_cohorts(sizes) is None


def test_cohorts_that_differ_are_named_with_their_sizes() -> None:
    said = unequal_cohorts({"user_wise_poisson": 5.0, "user_wise_growing": 4.0})
    assert said is not None
    assert said.endswith("user_wise_poisson 5, user_wise_growing 4")
