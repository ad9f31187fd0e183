import json
import math

import pytest

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.statement import PrivacyStatement

USER_WISE = acc.UserWise(1.0, 0.05, 200)
RECORD_LEVEL = acc.RecordLevel(10.0, 0.05, 200, 5)
COMMON = {"mechanism": "m", "num_users": 1000, "rounds": 200, "delta": 1e-5, "clip_norm": 0.3}


def statement(**changed: object) -> PrivacyStatement:
    return PrivacyStatement(**{"level": "user", "release": USER_WISE, **COMMON, **changed})


def test_claim_is_what_the_accountants_say() -> None:
    made = statement()
    assert made.epsilon == acc.epsilon(USER_WISE, 1e-5)
    assert made.epsilon_by_accountant == {m: acc.epsilon(USER_WISE, 1e-5, m) for m in ("pld", "rdp")}
    assert f"({made.epsilon:.4g}, 1e-05)-DP for users" in made.paragraph()
    assert "add or remove one user" in made.paragraph()


def test_json_holds_every_fact_and_no_number_that_json_lacks() -> None:
    facts = json.loads(json.dumps(statement(records_per_user=4, target_epsilon=3.0).to_json(), allow_nan=False))
    wanted = {
        "level", "adjacency", "mechanism", "selection", "num_users", "sampling_prob", "rounds", "noise_multiplier",
        "update_noise_multiplier", "clip_norm", "records_per_user", "delta", "target_epsilon", "epsilon",
        "epsilon_by_accountant", "record_level_epsilon", "search", "noise_source", "not_private", "assumptions",
        "release", "paragraph",
    }  # fmt: skip
    assert wanted <= set(facts)
    assert facts["sampling_prob"] == 0.05


def test_record_level_run_claims_nothing_for_users() -> None:
    made = statement(level="record", release=RECORD_LEVEL, records_per_user=5)
    facts = made.to_json()
    assert "NO guarantee for users" in made.paragraph()
    assert facts["epsilon"] is None
    assert facts["epsilon_by_accountant"] == {}
    assert facts["record_level_epsilon"] == acc.epsilon(RECORD_LEVEL, 1e-5, "record")
    assert made.adjacency == "add or remove one record"


@pytest.mark.parametrize("method", ["group", "tight"])
def test_same_run_is_reported_under_both_user_level_accountants(method: str) -> None:
    made = statement(release=RECORD_LEVEL, records_per_user=5, method=method)
    facts = made.to_json()
    assert facts["epsilon"] == acc.epsilon(RECORD_LEVEL, 1e-5, method)
    assert set(facts["epsilon_by_accountant"]) == {"group", "tight"}


def test_run_without_noise_claims_nothing() -> None:
    made = PrivacyStatement(level="nobody", release=None, mechanism="non_private", num_users=10, rounds=5)
    assert made.epsilon is None
    assert made.to_json()["epsilon_by_accountant"] == {}
    assert "no privacy claim for anybody" in made.paragraph()


@pytest.mark.parametrize(("source", "words"), [("seeded", "simulation"), ("os", "operating system")])
def test_source_of_the_noise_is_said(source: str, words: str) -> None:
    assert words in statement(noise_source=source).paragraph()


def test_search_by_hand_is_priced_and_not_hidden_in_epsilon() -> None:
    made = statement(num_searched=3)
    together = acc.epsilon(acc.UserWise(1.0, 0.05, 600), 1e-5)
    assert "NOT part of epsilon" in made.search
    assert f"{together:.4g}" in made.search
    assert made.epsilon == statement().epsilon


def test_private_search_is_part_of_epsilon() -> None:
    made = statement(release=acc.HyperparameterSearch(USER_WISE, 10.0))
    assert "part of epsilon" in made.search
    assert made.epsilon > acc.epsilon(USER_WISE, 1e-5, "rdp")


def test_adaptive_clipping_says_what_the_update_carries() -> None:
    split = acc.AdaptiveClipping(USER_WISE, 5.0)
    facts = statement(release=split).to_json()
    assert facts["update_noise_multiplier"] == pytest.approx(1.005038, rel=1e-6)
    assert facts["noise_multiplier"] == 1.0
    assert "with noise of standard deviation 5" in str(facts["paragraph"])
    assert "the update alone 1.005" in str(facts["paragraph"])
    assert "standard deviation" not in statement(release=USER_WISE).paragraph()


@pytest.mark.parametrize(
    ("release", "words"),
    [
        (acc.FixedSize(4.0, 1000, 50, 200), "replace-one"),
        (acc.NoAmplification(4.0, 4), "not counted as amplification"),
        (acc.Composed((USER_WISE, acc.UserWise(2.0, 0.05, 10))), "several runs"),
    ],
)
def test_selection_says_what_it_is_worth(release: acc.Description, words: str) -> None:
    assert words in str(statement(release=release).selection)


def test_a_foreign_selectors_word_is_an_assumption_where_amplification_rests_on_it() -> None:
    words = "mine.Selector, which is not part of this package, draws cohorts at random as it declares"
    for release in (USER_WISE, acc.AdaptiveClipping(USER_WISE, 5.0)):
        assert words in statement(release=release, unchecked_selector="mine.Selector").paragraph()
    schedule = statement(release=acc.NoAmplification(4.0, 4), unchecked_selector="mine.Selector")
    assert "mine.Selector" not in schedule.paragraph()
    assert "which is not part of this package" not in statement(release=USER_WISE).paragraph()


def test_what_is_not_private_is_listed() -> None:
    made = statement(not_private=("metrics.csv",))
    assert "Not covered by any claim: metrics.csv." in made.paragraph()
    assert "training metrics" in statement().paragraph()


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"level": "everyone"}, "level must be"),
        ({"level": "user", "release": None}, "release must be"),
        ({"delta": None}, "delta must be"),
        ({"delta": 1.0}, "delta must be"),
        ({"num_users": 0}, "num_users must be"),
        ({"rounds": 1.5}, "rounds must be"),
        ({"clip_norm": math.nan}, "clip_norm must be"),
        ({"target_epsilon": -1.0}, "target_epsilon must be"),
        ({"num_searched": 0}, "num_searched must be"),
        ({"records_per_user": 0}, "records_per_user must be"),
        ({"noise_source": "torch"}, "noise_source must be"),
        ({"method": "tight"}, "method must be"),
        ({"level": "record"}, "method must be"),
        ({"release": RECORD_LEVEL, "records_per_user": 5, "method": "record"}, "makes no claim at level 'user'"),
        ({"release": RECORD_LEVEL, "records_per_user": 4}, "records_per_user must be 5"),
    ],
)
def test_claim_that_does_not_fit_is_refused(changed: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        statement(**changed)
