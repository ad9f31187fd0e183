"""What is printed of an epsilon or delta is never below it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim_userdp.privacy.figures import in_column, in_powers, rounded_up

POSITIVE = st.floats(min_value=5e-324, max_value=1.7e308)


@given(value=POSITIVE, digits=st.integers(1, 12))
def test_a_printed_figure_is_never_below_what_was_computed_and_near_it(value: float, digits: int) -> None:
    printed = float(rounded_up(value, digits))
    assert printed >= value
    assert printed <= value * (1 + 10 ** (1 - digits)) * (1 + 1e-12) or value < 1e-300


@given(value=POSITIVE)
def test_a_figure_in_a_table_is_never_below_what_was_computed(value: float) -> None:
    assert float(in_column(value)) >= value
    assert float(in_column(value, 3)) >= value
    assert float(in_powers(value)) >= value


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (rounded_up(7.99103), "7.992"),
        (rounded_up(7.9991), "8"),
        (rounded_up(8.0), "8"),
        (rounded_up(0.0237228, 3), "0.0238"),
        (rounded_up(0.0), "0"),
        (rounded_up(math.inf), "inf"),
        (in_column(7.991), "8.00"),
        (in_column(7.99), "7.99"),
        (rounded_up(1e-05, 3), "1e-05"),
        (in_column(0.003996), "0.004"),
        (in_column(0.0), "0.00"),
        (in_column(0.0004, 3), "0.0004"),
        (in_powers(0.01049), "1.1e-02"),
        (in_powers(0.0006362486), "6.4e-04"),
    ],
)
def test_figures_look_as_they_always_did_but_for_the_last_digit(printed: str, expected: str) -> None:
    assert printed == expected
