"""Every public function rejects every bad argument with its name, its value and the allowed range."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.accounting.descriptions import Adjacency
from fedsim_userdp.privacy.validation import check_count

NOT_NUMBERS = st.one_of(st.booleans(), st.text(), st.none(), st.lists(st.floats()), st.complex_numbers(), st.binary())
NOT_POSITIVE = st.one_of(st.floats(max_value=0.0), st.just(math.nan), st.just(math.inf), st.integers(max_value=0))
BAD_POSITIVE = st.one_of(NOT_NUMBERS, NOT_POSITIVE)
BAD_PROBABILITY = st.one_of(BAD_POSITIVE, st.floats(min_value=1.0, exclude_min=True))
BAD_DELTA = st.one_of(BAD_POSITIVE, st.floats(min_value=1.0))
BAD_COUNT = st.one_of(NOT_NUMBERS, st.integers(max_value=0), st.floats(), st.integers(min_value=10**9 + 1))
BAD_CAP = st.one_of(BAD_COUNT, st.integers(min_value=1001))

BAD_STEP = st.one_of(
    st.tuples(st.one_of(NOT_NUMBERS, st.floats(min_value=1.0, exclude_min=True)), st.just(1.0), st.just(1)),
    st.tuples(st.just(0.1), st.one_of(NOT_NUMBERS, st.floats(max_value=0.0, exclude_max=True)), st.just(1)),
    st.tuples(st.just(0.1), st.just(1.0), BAD_COUNT),
    st.tuples(st.just(0.1), st.just(1.0)),
    NOT_NUMBERS,
)
BAD_GROUPS = st.one_of(
    NOT_NUMBERS,
    st.just(()),
    st.just(((),)),
    st.just((((0.1, 1.0, 2),), ((0.1, 1.0, 3),))),
    BAD_STEP.map(lambda step: (((0.1, 1.0, 1), step),)),
)

USER_WISE = acc.PoissonUsers(noise_multiplier=1.0, sampling_prob=0.05, rounds=200)
CALLS: dict[str, tuple[Callable[..., object], dict[str, object], dict[str, st.SearchStrategy]]] = {
    "PoissonUsers": (
        acc.PoissonUsers,
        {"noise_multiplier": 1.0, "sampling_prob": 0.1, "rounds": 10},
        {"noise_multiplier": BAD_POSITIVE, "sampling_prob": BAD_PROBABILITY, "rounds": BAD_COUNT},
    ),
    "PoissonGroups": (
        acc.PoissonGroups,
        {"noise_multiplier": 1.0, "groups": (((0.1, 1.0, 10),),)},
        {"noise_multiplier": BAD_POSITIVE, "groups": BAD_GROUPS},
    ),
    "RecordLevel": (
        acc.RecordLevel,
        {"noise_multiplier": 1.0, "sampling_prob": 0.1, "steps": 10, "records_per_user": 4},
        {
            "noise_multiplier": BAD_POSITIVE,
            "sampling_prob": BAD_PROBABILITY,
            "steps": BAD_COUNT,
            "records_per_user": BAD_CAP,
        },
    ),
    "FixedSize": (
        acc.FixedSize,
        {"noise_multiplier": 1.0, "num_users": 100, "cohort_size": 10, "rounds": 10},
        {
            "noise_multiplier": BAD_POSITIVE,
            "num_users": BAD_COUNT,
            "cohort_size": st.one_of(BAD_COUNT, st.integers(min_value=101)),
            "rounds": BAD_COUNT,
        },
    ),
    "NoAmplification": (
        acc.NoAmplification,
        {"noise_multiplier": 1.0, "max_participations": 3},
        {
            "noise_multiplier": BAD_POSITIVE,
            "max_participations": BAD_COUNT,
            "adjacency": st.sampled_from([Adjacency.ADD_OR_REMOVE_USER, Adjacency.ADD_OR_REMOVE_RECORD, None, "user"]),
        },
    ),
    "PaidSignals": (
        acc.PaidSignals,
        {"run": USER_WISE, "share": 0.1},
        {
            "run": st.one_of(NOT_NUMBERS, st.just(acc.RecordLevel(1.0, 0.1, 10, 2))),
            "share": st.one_of(BAD_POSITIVE, st.floats(min_value=1.0)),
        },
    ),
    "AdaptiveClipping": (
        acc.AdaptiveClipping,
        {"run": USER_WISE, "count_stddev": 5.0},
        {
            "run": st.one_of(NOT_NUMBERS, st.just(acc.RecordLevel(1.0, 0.1, 10, 2))),
            "count_stddev": st.one_of(BAD_POSITIVE, st.floats(max_value=0.5)),
        },
    ),
    "HyperparameterSearch": (
        acc.HyperparameterSearch,
        {"run": USER_WISE, "mean_runs": 10.0, "shape": 1.0},
        {
            "run": NOT_NUMBERS,
            "mean_runs": st.one_of(BAD_POSITIVE, st.floats(max_value=1.0), st.floats(min_value=1e6, exclude_min=True)),
            "shape": st.one_of(NOT_NUMBERS, st.floats(max_value=0.0, exclude_max=True), st.just(math.nan)),
        },
    ),
    "Composed": (acc.Composed, {"parts": (USER_WISE,)}, {"parts": st.one_of(NOT_NUMBERS, st.just(()), st.just((1,)))}),
    "to_user_level": (
        acc.to_user_level,
        {"epsilon_record": 1.0, "delta_record": 1e-5, "records_per_user": 2},
        {"epsilon_record": BAD_POSITIVE, "delta_record": BAD_DELTA, "records_per_user": BAD_CAP},
    ),
    "to_record_level": (
        acc.to_record_level,
        {"epsilon_user": 1.0, "delta_user": 1e-5, "records_per_user": 2},
        {"epsilon_user": BAD_POSITIVE, "delta_user": BAD_DELTA, "records_per_user": BAD_CAP},
    ),
    "epsilon": (
        acc.epsilon,
        {"description": USER_WISE, "delta": 1e-5, "method": "pld"},
        {"description": NOT_NUMBERS, "delta": BAD_DELTA, "method": st.text().filter(lambda m: m not in ("pld", "rdp"))},
    ),
    "delta": (
        acc.delta,
        {"description": USER_WISE, "epsilon": 1.0, "method": "pld"},
        {"description": NOT_NUMBERS, "epsilon": BAD_POSITIVE, "method": st.sampled_from(["PLD", "group", "gdp"])},
    ),
    "calibrate": (
        acc.calibrate,
        {"description": USER_WISE, "epsilon": 1.0, "delta": 1e-5, "method": "pld"},
        {
            "description": NOT_NUMBERS,
            "epsilon": BAD_POSITIVE,
            "delta": BAD_DELTA,
            "method": st.sampled_from(["PLD", "tight", "gdp"]),
        },
    ),
    "epsilons_by_group": (
        acc.epsilons_by_group,
        {"description": acc.PoissonGroups(1.0, (((0.1, 1.0, 10),),)), "delta": 1e-5, "method": "pld"},
        {
            "description": st.one_of(NOT_NUMBERS, st.just(USER_WISE)),
            "delta": BAD_DELTA,
            "method": st.sampled_from(["PLD", "group", "gdp"]),
        },
    ),
    "epsilon_per_round": (
        acc.epsilon_per_round,
        {"description": USER_WISE, "delta": 1e-5, "rounds": 1, "method": "pld"},
        {
            "description": NOT_NUMBERS,
            "delta": BAD_DELTA,
            "rounds": st.one_of(
                st.booleans(),
                st.floats(),
                st.text(min_size=1),
                st.lists(st.integers(max_value=0), min_size=1),
                st.integers(max_value=0),
            ),
            "method": st.sampled_from(["PLD", "group", "gdp"]),
        },
    ),
}


@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_bad_argument_is_named_with_its_value(name: str, data: st.DataObject) -> None:
    function, good, bad = CALLS[name]
    argument = data.draw(st.sampled_from(sorted(bad)))
    value = data.draw(bad[argument])
    with pytest.raises(ValueError) as caught:
        function(**{**good, argument: value})
    message = str(caught.value)
    assert argument in message
    assert repr(value) in message or argument == "rounds" or isinstance(value, tuple)
    assert "must" in message


@pytest.mark.parametrize("name", CALLS)
def test_good_arguments_are_taken(name: str) -> None:
    function, good, _ = CALLS[name]
    function(**good)


def test_message_says_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"sampling_prob must be in \(0, 1\], got 1.5"):
        acc.PoissonUsers(noise_multiplier=1.0, sampling_prob=1.5, rounds=1)
    with pytest.raises(ValueError, match=r"records_per_user must be in \[1, 1000\], got 1001"):
        acc.to_user_level(1.0, 1e-5, 1001)
    with pytest.raises(ValueError, match=r"delta must be in \(0, 1\), got 0"):
        acc.epsilon(USER_WISE, 0)


def test_numbers_of_numpy_are_numbers() -> None:
    run = acc.PoissonUsers(np.float64(1.0), np.float32(0.05), np.int64(200))  # type: ignore[arg-type]
    assert acc.epsilon(run, np.float64(1e-5)) == pytest.approx(acc.epsilon(USER_WISE, 1e-5), rel=1e-3)
    assert isinstance(check_count("n", np.int64(3)), int)


def test_descriptions_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        USER_WISE.rounds = 1  # type: ignore[misc]
