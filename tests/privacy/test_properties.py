"""Over the whole range that the accounting promises: no crash, and more exposure never costs less.

Numerical answers lie within about 0.1% above the exact ones, so monotonicity is asked up to twice that. The default
suite samples the costly functions; `-m slow` tries 1,000 inputs of each, in at most some minutes for one function.
"""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim_userdp.privacy import accounting as acc

SLACK = 2e-3


def spread(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers spread evenly on a log scale, the ends included."""
    return st.floats(math.log(low), math.log(high)).map(lambda x: min(max(math.exp(x), low), high))


SIGMAS, PROBS, DELTAS = spread(0.3, 100.0), spread(1e-5, 1.0), spread(1e-10, 1e-2)
ROUNDS = spread(1, 100_000).map(int)
EPSILONS = spread(0.05, 50.0)
USER_WISE = st.builds(acc.PoissonUsers, SIGMAS, PROBS, ROUNDS)
STEPS = st.tuples(spread(1e-3, 1.0), spread(0.1, 3.0), spread(1, 100).map(int))
GROUPS = st.builds(
    lambda sigma, steps, others: acc.PoissonGroups(
        sigma, tuple(tuple((q, w, n) for (q, w, _), (_, _, n) in zip(each, steps, strict=True)) for each in others)
    ),
    SIGMAS,
    st.lists(STEPS, min_size=3, max_size=3),
    st.lists(st.lists(STEPS, min_size=3, max_size=3), min_size=1, max_size=4),
)
RECORD_LEVEL = st.builds(acc.RecordLevel, SIGMAS, PROBS, spread(1, 10_000).map(int), spread(1, 64).map(int))
UNAMPLIFIED = st.builds(acc.NoAmplification, SIGMAS, spread(1, 1000).map(int))


def fixed_size(shares: st.SearchStrategy[float]) -> st.SearchStrategy[acc.FixedSize]:
    """Fixed cohorts of a share of the users; at 1 an answer takes a hundredth of the time of the others."""
    return st.builds(
        lambda sigma, users, share, rounds: acc.FixedSize(sigma, users, max(1, int(share * users)), rounds),
        spread(1.0, 100.0),
        st.integers(1, 10**6),
        shares,
        spread(1, 1000).map(int),
    )


FIXED_SIZE = fixed_size(spread(1e-4, 1.0))
MOSTLY_WHOLE = fixed_size(st.one_of(st.just(1.0), st.just(1.0), spread(1e-4, 1.0)))
SPLIT = st.builds(
    lambda run, more: acc.AdaptiveClipping(run, 0.51 * run.noise_multiplier * more), USER_WISE, spread(1, 9)
)
SEARCH = st.builds(
    acc.HyperparameterSearch,
    st.builds(acc.PoissonUsers, spread(0.5, 100), spread(1e-4, 0.5), spread(1, 1000).map(int)),
    spread(1.01, 1000),
    st.sampled_from([0.0, 0.5, 1.0, 2.0, math.inf]),
)
WORSE = {
    acc.PoissonUsers: ("noise_multiplier", "sampling_prob", "rounds"),
    acc.PoissonGroups: ("noise_multiplier", "groups"),
    acc.RecordLevel: ("noise_multiplier", "sampling_prob", "steps", "records_per_user"),
    acc.NoAmplification: ("noise_multiplier", "max_participations"),
    acc.FixedSize: ("noise_multiplier", "cohort_size", "rounds"),
    acc.HyperparameterSearch: ("mean_runs",),
}
CASES: dict[str, tuple[st.SearchStrategy[Any], str, int]] = {
    "user_wise pld": (USER_WISE, "pld", 20),
    "user_wise rdp": (USER_WISE, "rdp", 10),
    "poisson_groups pld": (GROUPS, "pld", 10),
    "poisson_groups rdp": (GROUPS, "rdp", 3),
    "record_level tight": (RECORD_LEVEL, "tight", 20),
    "record_level group": (RECORD_LEVEL, "group", 4),
    "record_level record": (RECORD_LEVEL, "record", 10),
    "no_amplification pld": (UNAMPLIFIED, "pld", 300),
    "fixed_size rdp": (FIXED_SIZE, "rdp", 3),
    "search rdp": (SEARCH, "rdp", 6),
    "adaptive_clipping pld": (SPLIT, "pld", 6),
}


def examples(number: int, *, fixed: bool = True) -> settings:
    """Settings for so many examples, the same ones each time if `fixed`, without a limit on the time of one."""
    return settings(
        max_examples=number, deadline=None, derandomize=fixed, database=None, suppress_health_check=list(HealthCheck)
    )


def worsened(description: acc.Description, attribute: str) -> acc.Description:
    """The description with less noise, or more of something else."""
    value = getattr(description, attribute)
    if attribute == "noise_multiplier":
        return description.with_noise_multiplier(value / 1.3)
    if isinstance(description, acc.PoissonGroups):
        more_often = tuple(tuple((min(1.3 * q, 1.0), 1.3 * w, n) for q, w, n in group) for group in description.groups)
        return dataclasses.replace(description, groups=more_often)
    caps = {"sampling_prob": 1.0, "records_per_user": 1000, "mean_runs": 1e6}
    caps["cohort_size"] = getattr(description, "num_users", 1)
    more = min(value * 1.3 if isinstance(value, float) else value + max(1, value // 3), caps.get(attribute, 10**9))
    changes: dict[str, Any] = {attribute: more}
    return dataclasses.replace(description, **changes)


def check_monotone(case: str, data: st.DataObject, *, wide: bool) -> None:
    """Epsilon does not fall when the run gets worse or delta smaller."""
    descriptions, method, _ = CASES[case]
    run, delta = data.draw(descriptions), data.draw(DELTAS)
    spent = acc.epsilon(run, delta, method)
    assert 0.0 <= spent < math.inf
    attribute = data.draw(st.sampled_from((*WORSE.get(type(run), ()), "delta")))
    worse = acc.epsilon(run, delta / 1.3, method) if attribute == "delta" else None
    worse = acc.epsilon(worsened(run, attribute), delta, method) if worse is None else worse
    assert worse >= spent * (1.0 - SLACK) - 1e-9


def check_delta(case: str, data: st.DataObject, *, wide: bool) -> None:
    """Delta is a probability that does not rise with epsilon, and fits the epsilon that belongs to it."""
    descriptions, method, _ = CASES[case]
    run, epsilon = data.draw(descriptions), data.draw(EPSILONS)
    delta = acc.delta(run, epsilon, method)
    assert 0.0 < delta <= 1.0
    assert acc.delta(run, 1.3 * epsilon, method) <= max(delta * (1.0 + 2 * SLACK), 1e-13)  # below, any bound will do
    if 1e-10 < delta < 1e-2:
        assert acc.epsilon(run, delta * 1.01, method) <= epsilon * (1.0 + SLACK) + 1e-9


def check_calibration(case: str, data: st.DataObject, *, wide: bool) -> None:
    """The calibrated epsilon is between 99% and 100% of the target, or a little less noise already exceeds it.

    Rare sampling makes calibration slow: it is tried if `wide`.
    """
    descriptions, method, _ = CASES[case]
    descriptions = MOSTLY_WHOLE if case.startswith("fixed_size") else descriptions
    run, epsilon, delta = data.draw(descriptions), data.draw(EPSILONS), data.draw(spread(1e-8, 1e-4))
    if not wide and isinstance(run, acc.PoissonUsers | acc.RecordLevel):
        run = dataclasses.replace(run.first(min(run.num_releases, 1000)), sampling_prob=max(run.sampling_prob, 0.01))
    if isinstance(run, acc.AdaptiveClipping):
        run = dataclasses.replace(run, count_stddev=1e6)  # enough for whatever noise the calibration ends with
    try:
        found = acc.calibrate(run, epsilon=epsilon, delta=delta, method=method)
    except acc.AccountingError:
        assert acc.epsilon(run.with_noise_multiplier(1.01e-3), delta, method) < epsilon
        return
    spent = acc.epsilon(found, delta, method)
    assert spent <= epsilon
    if spent < 0.99 * epsilon:
        less = found.with_noise_multiplier(0.999 * found.noise_multiplier)
        assert acc.epsilon(less, delta, method) > epsilon


CHECKS = {"monotone": check_monotone, "delta": check_delta, "calibration": check_calibration}
SHARES = {"monotone": 1.0, "delta": 0.3, "calibration": 0.1}
PAIRS = [(check, case) for check in CHECKS for case in CASES]


@pytest.mark.parametrize(("check", "case"), PAIRS)
def test_sampled_inputs(check: str, case: str) -> None:
    number = max(2, int(SHARES[check] * CASES[case][2]))

    @examples(number)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        CHECKS[check](case, data, wide=False)

    run()


@pytest.mark.slow
@pytest.mark.parametrize(("check", "case"), PAIRS)
def test_a_thousand_inputs(check: str, case: str) -> None:
    @examples(1000, fixed=False)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        CHECKS[check](case, data, wide=True)

    run()


@examples(5)
@given(RECORD_LEVEL, DELTAS)
def test_tight_is_never_above_group(run: acc.RecordLevel, delta: float) -> None:
    assert acc.epsilon(run, delta, "tight") <= acc.epsilon(run, delta, "group") * (1.0 + SLACK) + 1e-9


@examples(10)
@given(USER_WISE, DELTAS)
def test_pld_is_never_above_rdp(run: acc.PoissonUsers, delta: float) -> None:
    assert acc.epsilon(run, delta, "pld") <= acc.epsilon(run, delta, "rdp") * (1.0 + SLACK) + 1e-9
