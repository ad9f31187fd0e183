import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsim_userdp.audit.bounds import (
    Guesses,
    epsilon_lower_bound,
    in_or_out_p_value,
    largest_delta,
    which_direction_p_value,
)


def in_or_out(m: int, r: int, v: int, delta: float, significance: float) -> float:
    return epsilon_lower_bound(lambda e: in_or_out_p_value(Guesses(m, r, v), e, delta), significance)


def which_direction(m: int, k: int, r: int, v: int, delta: float, significance: float) -> float:
    return epsilon_lower_bound(lambda e: which_direction_p_value(Guesses(m, r, v), k, e, delta), significance)


def tail(r: int, chance: float, at_least: int) -> float:
    """P[Binomial(r, chance) >= at_least], summed term by term."""
    return sum(math.comb(r, n) * chance**n * (1 - chance) ** (r - n) for n in range(max(at_least, 0), r + 1))


@pytest.mark.parametrize("r", [1, 10, 100, 1000])
def test_all_guesses_right_gives_the_closed_form(r: int) -> None:
    chance = 0.05 ** (1 / r)  # of each guess, at which all are right with probability 5%
    expected = max(math.log(chance / (1 - chance)), 0.0)
    assert in_or_out(r, r, r, 0.0, 0.05) == pytest.approx(expected, abs=1e-6)
    assert which_direction(r, 512, r, r, 0.0, 0.05) == pytest.approx(
        max(math.log(chance / (1 - chance)) + math.log(512), 0.0), abs=1e-6
    )


@pytest.mark.parametrize(("m", "r", "v", "epsilon", "delta"), [(40, 30, 25, 1.0, 1e-3), (40, 40, 40, 2.0, 1e-2)])
def test_in_or_out_p_value_is_the_published_formula(m: int, r: int, v: int, epsilon: float, delta: float) -> None:
    chance = math.exp(epsilon) / (1 + math.exp(epsilon))
    slope = max((tail(r, chance, v - i) - tail(r, chance, v)) / i for i in range(1, v + 1))
    expected = tail(r, chance, v) + 2 * m * delta * slope
    assert in_or_out_p_value(Guesses(m, r, v), epsilon, delta) == pytest.approx(min(expected, 1.0), rel=1e-9)


def test_which_direction_p_value_is_a_binomial_tail_and_the_share_of_delta() -> None:
    chance = math.exp(2.0) / (1024 + math.exp(2.0))
    expected = tail(20, chance, 2) + 100 * 1e-4 / 2
    assert which_direction_p_value(Guesses(100, 20, 2), 1024, 2.0, 1e-4) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 5.0])
@pytest.mark.parametrize(("r", "significance"), [(20, 0.05), (150, 0.01)])
def test_randomized_response_is_refuted_no_more_often_than_promised_and_nearly_as_often(
    epsilon: float, r: int, significance: float
) -> None:
    """Exact: the mechanism that makes every guess right with e^eps / (1 + e^eps), summed over all outcomes."""
    chance = 1 / (1 + math.exp(-epsilon))
    refuted = sum(
        stats.binom.pmf(v, r, chance) for v in range(r + 1) if in_or_out(r, r, v, 0.0, significance) > epsilon
    )
    assert refuted <= significance
    if stats.binom.pmf(r, r, chance) < significance:  # otherwise not even all being right is rare enough
        assert refuted > significance / 5
        weaker = 1 / (1 + math.exp(-epsilon - 1.5))
        assert stats.binom.sf(r * weaker - 1, r, weaker) > significance
        assert in_or_out(r, r, round(r * weaker), 0.0, significance) > epsilon - 0.5


@pytest.mark.parametrize(("epsilon", "delta"), [(1.0, 1e-3), (3.0, 1e-4)])
def test_mechanisms_that_use_their_delta_are_refuted_no_more_often_than_promised(epsilon: float, delta: float) -> None:
    """Exact: delta spent on each canary alone (its coin is told with probability delta), or on all of them at once."""
    m, significance = 200, 0.05
    chance = 1 / (1 + math.exp(-epsilon))
    is_refuted = [in_or_out(m, m, v, delta, significance) > epsilon for v in range(m + 1)]
    alone = sum(stats.binom.pmf(v, m, delta + (1 - delta) * chance) for v in range(m + 1) if is_refuted[v])
    at_once = (1 - delta) * sum(stats.binom.pmf(v, m, chance) for v in range(m + 1) if is_refuted[v]) + delta
    assert max(alone, at_once) <= significance


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("k", [64, 4096])
def test_a_mechanism_that_names_directions_is_refuted_no_more_often_than_promised(epsilon: float, k: int) -> None:
    """Exact: says "k" with probability t when absent, e^eps t when it is k, e^-eps t when it is another."""
    m, significance, t = 120, 0.05, math.exp(-epsilon) / k
    joint = math.exp(epsilon) * t / (2 * k)  # takes part with k and "k" is said
    said = t / 2 + joint + (k - 1) * math.exp(-epsilon) * t / (2 * k)
    chance = joint / said
    assert chance <= math.exp(epsilon) / (k + math.exp(epsilon))
    refuted = sum(
        stats.binom.pmf(v, m, chance) for v in range(m + 1) if which_direction(m, k, m, v, 0.0, significance) > epsilon
    )
    assert refuted <= significance
    five_times = 5 * chance
    if five_times < 1 and m * chance > 1:
        many = round(m * five_times)
        assert which_direction(m, k, m, many, 0.0, significance) > epsilon


@given(
    v=st.integers(0, 30), more=st.integers(0, 20), epsilon=st.floats(0, 10), step=st.floats(0, 5), k=st.integers(1, 999)
)
@settings(max_examples=100, deadline=None)
def test_p_values_grow_with_epsilon_and_fall_with_right_guesses(
    v: int, more: int, epsilon: float, step: float, k: int
) -> None:
    def p_values(v: int, epsilon: float) -> tuple[float, float]:
        guesses = Guesses(100, 50, v)
        return in_or_out_p_value(guesses, epsilon, 1e-3), which_direction_p_value(guesses, k, epsilon, 1e-3)

    for less, larger in zip(p_values(v, epsilon), p_values(v, epsilon + step), strict=True):
        assert larger >= less - 1e-12
    for larger, less in zip(p_values(v, epsilon)[1:], p_values(v + more, epsilon)[1:], strict=True):
        assert less <= larger + 1e-12


def test_guessing_at_random_refutes_nothing() -> None:
    assert in_or_out(200, 100, 52, 1e-6, 0.05) == 0.0
    assert which_direction(200, 1024, 100, 0, 1e-6, 0.05) == 0.0


def test_a_larger_delta_gives_a_smaller_bound() -> None:
    bounds = [in_or_out(100, 50, 48, delta, 0.05) for delta in (0.0, 1e-4, 1e-3, 5e-3)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > bounds[-1]


def test_the_largest_delta_leaves_half_of_the_significance() -> None:
    m, significance = 400, 0.01
    spent = which_direction_p_value(Guesses(m, 50, 50), 4096, 0.0, largest_delta(m, significance))
    assert spent == pytest.approx(significance / 2, rel=1e-6)


@pytest.mark.parametrize("delta", [-1e-9, 0.006, math.nan])
def test_a_delta_for_which_the_p_value_need_not_be_valid_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        in_or_out_p_value(Guesses(100, 50, 50), 1.0, delta)
    with pytest.raises(ValueError, match="delta"):
        which_direction_p_value(Guesses(100, 50, 50), 10, 1.0, delta)


@pytest.mark.parametrize("wrong", [(10, 5, 6), (10, 11, 5), (10, 0, 0), (10, 5, -1)])
def test_impossible_guesses_are_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="num_correct"):
        Guesses(*wrong)


def test_the_bound_is_the_last_refuted_epsilon() -> None:
    found = in_or_out(200, 100, 95, 1e-5, 0.05)
    guesses = Guesses(200, 100, 95)
    assert in_or_out_p_value(guesses, found, 1e-5) <= 0.05
    assert in_or_out_p_value(guesses, found + 1e-6, 1e-5) > 0.05
    assert np.isfinite(found)
