import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim_userdp.privacy import accounting as acc

from .conftest import REFERENCE

EPSILONS = st.floats(1e-6, 1e3)
DELTAS = st.floats(1e-12, 0.5)
CAPS = st.integers(1, 1000)


@pytest.mark.parametrize("row", REFERENCE["group_conversion"], ids=str)
def test_conversion_agrees_with_the_reference(row: dict) -> None:
    epsilon, delta = acc.to_user_level(row["epsilon_record"], row["delta_record"], row["records_per_user"])
    assert delta == pytest.approx(row["delta_user"], rel=1e-4)
    assert acc.is_vacuous(delta) == row.get("vacuous", False)
    assert epsilon == (math.inf if row.get("vacuous") else row["records_per_user"] * row["epsilon_record"])


def test_vacuous_delta_never_comes_with_a_finite_epsilon() -> None:
    epsilon, delta = acc.to_user_level(1.0, 1e-5, 1000)
    assert acc.is_vacuous(delta)
    assert math.isinf(epsilon)


@pytest.mark.parametrize(("delta", "vacuous"), [(0.999999, False), (1.0, True), (math.inf, True), (math.nan, True)])
def test_delta_of_one_or_more_is_vacuous(delta: float, vacuous: bool) -> None:
    assert acc.is_vacuous(delta) is vacuous


def test_one_record_per_user_changes_nothing() -> None:
    epsilon, delta = acc.to_user_level(1.5, 1e-6, 1)
    assert epsilon == 1.5
    assert delta == pytest.approx(1e-6, rel=1e-12)
    epsilon, delta = acc.to_record_level(1.5, 1e-6, 1)
    assert epsilon == 1.5
    assert delta == pytest.approx(1e-6, rel=1e-12)


def test_delta_of_two_records_is_delta_times_one_plus_e_to_the_epsilon() -> None:
    _, delta = acc.to_user_level(0.7, 1e-6, 2)
    assert delta == pytest.approx(1e-6 * (1.0 + math.exp(0.7)), rel=1e-12)


@settings(max_examples=1000, deadline=None)
@given(EPSILONS, DELTAS, CAPS)
def test_to_user_level_inverts_to_record_level(epsilon: float, delta: float, records: int) -> None:
    epsilon_record, delta_record = acc.to_record_level(epsilon, delta, records)
    assert epsilon_record == pytest.approx(epsilon / records)
    if delta_record > 1e-300:
        back_epsilon, back_delta = acc.to_user_level(epsilon_record, delta_record, records)
        assert back_epsilon == pytest.approx(epsilon, rel=1e-12)
        assert back_delta == pytest.approx(delta, rel=1e-9)


@settings(max_examples=1000, deadline=None)
@given(EPSILONS, DELTAS, st.integers(1, 999))
def test_more_records_per_user_never_help(epsilon: float, delta: float, records: int) -> None:
    fewer, more = (acc.to_user_level(epsilon, delta, k) for k in (records, records + 1))
    assert more[1] >= fewer[1]
    assert more[0] > fewer[0] or math.isinf(fewer[0])
    demanded_fewer, demanded_more = (acc.to_record_level(epsilon, delta, k) for k in (records, records + 1))
    assert demanded_more[0] < demanded_fewer[0]
    assert demanded_more[1] <= demanded_fewer[1] * (1 + 1e-12)


@settings(max_examples=1000, deadline=None)
@given(st.floats(5e-324, 1.7e308), st.floats(5e-324, 1.0, exclude_max=True), CAPS)
def test_no_legal_input_overflows(epsilon: float, delta: float, records: int) -> None:
    up, down = acc.to_user_level(epsilon, delta, records), acc.to_record_level(epsilon, delta, records)
    assert not any(math.isnan(value) for value in (*up, *down))
    assert up[1] > 0.0
    assert 0.0 <= down[1] <= delta
