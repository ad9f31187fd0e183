import math

import dp_accounting as dp
import pytest
from dp_accounting import rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.accounting.serialization import from_json, to_json

RUN, FIXED_SIZE = acc.PoissonUsers(1.0, 0.05, 200), acc.FixedSize(2.0, 1000, 50, 200)
ALL: list[acc.Description] = [
    RUN,
    acc.RecordLevel(4.0, 0.05, 200, 10),
    FIXED_SIZE,
    acc.NoAmplification(2.0, 4),
    acc.NoAmplification(2.0, 4, acc.Adjacency.REPLACE_RECORDS),
    acc.AdaptiveClipping(acc.FixedSize(2.0, 1000, 50, 200), 5.0),
    acc.AdaptiveClipping(acc.NoAmplification(2.0, 4), 5.0),
    acc.PaidSignals(acc.PoissonUsers(2.0, 0.1, 5), 0.2),
    acc.AdaptiveClipping(acc.PaidSignals(acc.PoissonGroups(1.0, (((0.02, 1.0, 3), (0.2, 1.0, 2)),)), 0.2), 5.0),
    acc.HyperparameterSearch(acc.PaidSignals(acc.PoissonUsers(2.0, 0.1, 5), 0.2), 4.0),
    acc.TruncatedPoisson(2.0, 0.05, 1000, 60, 200),
    acc.FixedSizeStrata(2.0, ((1000, 50), (20, 3)), 200),
    acc.HyperparameterSearch(acc.RecordLevel(4.0, 0.05, 200, 10), 10.0, 0.5),
    acc.HyperparameterSearch(acc.NoAmplification(2.0, 4, acc.Adjacency.REPLACE_RECORDS), 10.0),
    acc.PoissonGroups(1.0, (((0.02, 1.0, 3), (0.2, 0.5, 2)), ((0.1, 2.0, 5),))),
    acc.AdaptiveClipping(acc.PoissonGroups(1.0, (((0.02, 1.0, 3), (0.2, 1.0, 2)),)), 5.0),
    acc.HyperparameterSearch(acc.PoissonGroups(1.0, (((0.02, 1.0, 3), (0.2, 0.5, 2)),)), 10.0),
    acc.Composed((acc.PoissonGroups(1.0, (((0.02, 1.0, 3), (0.2, 0.5, 2)),)), acc.PoissonUsers(1.0, 0.05, 200))),
    acc.Composed((acc.PoissonUsers(1.0, 0.05, 200), acc.AdaptiveClipping(acc.PoissonUsers(2.0, 0.1, 5), 5.0))),
]


@pytest.mark.parametrize("description", ALL, ids=str)
def test_json_gives_the_same_description_back(description: acc.Description) -> None:
    assert from_json(to_json(description)) == description


@pytest.mark.parametrize(
    "value", [None, 1, [], {}, {"type": []}, {"type": "Gaussian"}, {"type": "UserWise"}, {"type": "UserWise", "x": 1}]
)
def test_other_json_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"must be an object|does not describe"):
        from_json(value)  # type: ignore[arg-type]


def test_json_is_checked_like_any_argument() -> None:
    with pytest.raises(ValueError, match="noise_multiplier must be in"):
        from_json({**to_json(ALL[0]), "noise_multiplier": -1.0})


def test_event_of_the_user_wise_run_costs_the_same_elsewhere() -> None:
    theirs = rdp.RdpAccountant()
    theirs.compose(RUN.event())
    assert acc.epsilon(RUN, 1e-5, "rdp") == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-9)


def test_event_of_a_fixed_cohort_holds_sensitivity_two() -> None:
    event = FIXED_SIZE.event().event
    assert isinstance(event, dp.SampledWithoutReplacementDpEvent)
    assert event.event.noise_multiplier == 1.0


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 1000), st.floats(1e-5, 1.0))
def test_event_of_a_record_level_run_has_binomial_weights(records: int, prob: float) -> None:
    step = acc.RecordLevel(1.0, prob, 1, records).event().event
    mean = math.fsum(w * s for w, s in zip(step.sampling_probs, step.sensitivities, strict=True))
    assert math.fsum(step.sampling_probs) == pytest.approx(1.0, abs=1e-12)
    assert mean == pytest.approx(records * prob, rel=1e-9)


def test_event_of_a_search_repeats_that_of_its_run() -> None:
    event = acc.HyperparameterSearch(RUN, 10.0).event()
    assert (event.mean, event.shape, event.event) == (10.0, 1.0, RUN.event())


@pytest.mark.parametrize("description", ALL, ids=str)
def test_noise_multiplier_is_replaced_inside(description: acc.Description) -> None:
    changed = description.with_noise_multiplier(3.0)
    assert type(changed) is type(description)
    assert acc.methods(changed) == acc.methods(description)
    if not isinstance(changed, acc.Composed):
        assert changed.noise_multiplier == 3.0


def test_neighbouring_relations_are_stated() -> None:
    assert [d.adjacency.name for d in ALL[:5]] == [
        "ADD_OR_REMOVE_USER",
        "ADD_OR_REMOVE_USER",
        "REPLACE_USER",
        "ZERO_OUT_USER",
        "REPLACE_RECORDS",
    ]


def test_the_name_of_earlier_versions_still_works_in_code_and_in_files() -> None:
    with pytest.warns(DeprecationWarning, match="acc.PoissonUsers"):
        assert acc.UserWise is acc.PoissonUsers  # type: ignore[attr-defined]
    assert to_json(acc.PoissonUsers(1.0, 0.1, 2))["type"] == "UserWise"
