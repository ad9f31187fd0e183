import json
import math
from typing import Any

import pytest

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.figures import rounded_up
from fedsim_userdp.privacy.statement import PrivacyStatement
from tests.known import known

USER_WISE = acc.PoissonUsers(1.0, 0.05, 200)
RECORD_LEVEL = acc.RecordLevel(10.0, 0.05, 200, 5)
COMMON: dict[str, Any] = {"mechanism": "m", "num_users": 1000, "rounds": 200, "delta": 1e-5, "clip_norm": 0.3}


def statement(**changed: Any) -> PrivacyStatement:
    return PrivacyStatement(**{"level": "user", "release": USER_WISE, **COMMON, **changed})


def test_claim_is_what_the_accountants_say() -> None:
    made = statement()
    assert made.epsilon == acc.epsilon(USER_WISE, 1e-5)
    assert made.epsilon_by_accountant == {m: acc.epsilon(USER_WISE, 1e-5, m) for m in ("pld", "rdp")}
    assert f"({rounded_up(made.epsilon)}, 1e-05)-DP for users" in made.paragraph()
    assert "add or remove one user" in made.paragraph()


def test_json_holds_every_fact_and_no_number_that_json_lacks() -> None:
    facts = json.loads(json.dumps(statement(records_per_user=4, target_epsilon=3.0).to_json(), allow_nan=False))
    wanted = {
        "level", "adjacency", "mechanism", "selection", "num_users", "sampling_prob", "rounds", "noise_multiplier",
        "update_noise_multiplier", "clip_norm", "records_per_user", "delta", "target_epsilon", "epsilon",
        "epsilon_by_accountant", "record_level_epsilon", "search", "noise_source", "not_private", "assumptions",
        "release", "paragraph", "foreign", "num_lost", "window", "fresh_records", "public", "precision", "evaluated_on",
        "selector", "searched_by", "users",
    }  # fmt: skip
    assert wanted <= set(facts)
    assert facts["sampling_prob"] == 0.05


GROUPS = acc.PoissonGroups(4.0, (((0.02, 1.0, 100), (0.2, 1.0, 100)), ((0.1, 2.0, 200),), ((0.1, 0.5, 200),)))


@pytest.mark.parametrize("release", [GROUPS, acc.Composed((GROUPS, USER_WISE))])
def test_epsilon_of_groups_is_said_to_be_that_of_the_costliest_one(release: acc.Description) -> None:
    made = statement(release=release)
    assert made.epsilon == acc.epsilon(release, 1e-5)
    assert "epsilon is the one of the costliest group" in made.claim
    assert "the probability and weight of every group in every round, are public" in made.paragraph()
    assert "the cohorts are kept secret" in made.assumptions
    assert PrivacyStatement.from_json(made.to_json()) == made


def test_selection_of_groups_says_from_where_to_where_probabilities_and_weights_go() -> None:
    made = statement(release=GROUPS)
    assert made.selection == (
        "Poisson sampling of users with public probabilities from 0.02 to 0.2 and weights from 0.5 to 2, by group and "
        "round (3 groups), counted as amplification"
    )
    assert made.to_json()["epsilon_by_group"] == list(acc.epsilons_by_group(GROUPS, 1e-5))
    assert "epsilon_by_group" not in statement().to_json()
    one = statement(release=acc.PoissonGroups(4.0, (((0.1, 1, 100),),)))
    assert "with public probability 0.1, by group and round (1 group)" in str(one.selection)
    assert "costliest" not in one.paragraph()


def test_record_level_run_claims_nothing_for_users() -> None:
    made = statement(level="record", release=RECORD_LEVEL, records_per_user=5)
    facts = made.to_json()
    assert "NO guarantee for users" in made.paragraph()
    assert facts["epsilon"] is None
    assert facts["epsilon_by_accountant"] == {}
    assert facts["record_level_epsilon"] == acc.epsilon(RECORD_LEVEL, 1e-5, "record")
    assert str(made.adjacency).startswith("add or remove one record of the pool")


@pytest.mark.parametrize("method", ["group", "tight"])
def test_same_run_is_reported_under_both_user_level_accountants(method: str) -> None:
    made = statement(release=RECORD_LEVEL, records_per_user=5, method=method)
    facts = made.to_json()
    assert facts["epsilon"] == acc.epsilon(RECORD_LEVEL, 1e-5, method)
    by_accountant = facts["epsilon_by_accountant"]
    assert isinstance(by_accountant, dict)
    assert set(by_accountant) == {"group", "tight"}


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
    together = acc.epsilon(acc.PoissonUsers(1.0, 0.05, 600), 1e-5)
    assert "NOT part of epsilon" in made.search
    assert f"{together:.4g}" in made.search
    assert "an assumption" in made.search
    assert made.epsilon == statement().epsilon


def test_private_search_is_part_of_epsilon() -> None:
    made = statement(release=acc.HyperparameterSearch(USER_WISE, 10.0))
    assert "part of epsilon" in made.search
    assert known(made.epsilon) > acc.epsilon(USER_WISE, 1e-5, "rdp")


def test_adaptive_clipping_says_what_the_update_carries() -> None:
    split = acc.AdaptiveClipping(USER_WISE, 5.0)
    facts = statement(release=split).to_json()
    assert facts["update_noise_multiplier"] == pytest.approx(1.005038, rel=1e-6)
    assert facts["noise_multiplier"] == 1.0
    assert "with noise of standard deviation 5" in str(facts["paragraph"])
    assert "the update alone 1.005" in str(facts["paragraph"])
    assert "standard deviation" not in statement(release=USER_WISE).paragraph()


def test_paid_signals_say_what_update_and_signal_carry() -> None:
    split = acc.PaidSignals(USER_WISE, 0.19)
    facts = statement(release=split).to_json()
    assert facts["update_noise_multiplier"] == pytest.approx(1 / 0.9)
    assert facts["noise_multiplier"] == 1.0
    assert "with noise multiplier 3.244 each" in str(facts["paragraph"])
    assert "the update alone 1.111" in str(facts["paragraph"])
    both = str(statement(release=acc.AdaptiveClipping(split, 5.0)).to_json()["paragraph"])
    assert both.count("the update alone 1.118") == 2
    assert "clipped losses" not in statement(release=USER_WISE).paragraph()


@pytest.mark.parametrize(
    ("release", "words"),
    [
        (acc.FixedSize(4.0, 1000, 50, 200), "replace-one"),
        (acc.NoAmplification(4.0, 4), "not counted as amplification"),
        (acc.Composed((USER_WISE, acc.PoissonUsers(2.0, 0.05, 10))), "several runs"),
    ],
)
def test_selection_says_what_it_is_worth(release: acc.Description, words: str) -> None:
    assert words in str(statement(release=release).selection)


@pytest.mark.parametrize(
    "release",
    [
        USER_WISE,
        acc.AdaptiveClipping(USER_WISE, 5.0),
        acc.PaidSignals(USER_WISE, 0.2),
        acc.FixedSize(4.0, 1000, 50, 200),
        acc.NoAmplification(4.0, 4),
    ],
)
def test_every_foreign_class_is_named_as_an_assumption(release: acc.Description) -> None:
    made = statement(release=release, foreign=("mine.Selector", "torch.optim.Mine"))
    for name in ("mine.Selector", "torch.optim.Mine"):
        assert (
            f"{name}, which is not part of this package, does what it declares, by its code alone" in made.assumptions
        )
    assert any("one user's records do not depend on another user's" in one for one in made.assumptions)
    for words in ("which is not part of this package", "one user's records do not depend"):
        assert words not in statement(release=release).paragraph()


@pytest.mark.parametrize(
    "words",
    [
        "base model and tokenizer were made without the data of these users",
        "nodes fail for reasons that have nothing to do with the data of their users",
        "the number of users and the sampling probabilities are public",
        "floating-point sums and noise are as good as real numbers",
        "the cohorts are kept secret",
    ],
)
@pytest.mark.parametrize("source", ["os", "seeded"])
def test_what_must_hold_is_said(source: str, words: str) -> None:
    assert any(words in text for text in statement(noise_source=source).assumptions)
    assert words in statement(noise_source=source).paragraph()


def test_a_schedule_needs_no_secret_cohorts() -> None:
    assert "the cohorts are kept secret" not in statement(release=acc.NoAmplification(4.0, 4)).assumptions


def test_a_seeded_run_gives_away_noise_and_cohorts_and_promises_nothing_to_whoever_may_guess_the_seed() -> None:
    words = statement(noise_source="seeded").paragraph()
    for part in ("noise and cohorts follow from a hash of the seed", "knows or guesses the seed", "0 where nobody set"):
        assert part in words
    assert "no claim holds at all" in words
    assert "no claim holds at all" not in statement(noise_source="os").paragraph()


def test_precision_is_part_of_what_is_assumed_of_sums() -> None:
    assert "gradients are computed in bfloat16" in statement(precision="bfloat16").paragraph()
    assert "far more than in float32" in statement(precision="bfloat16").paragraph()
    assert "far more" not in statement().paragraph()


def test_a_claim_about_records_says_what_a_record_is_and_of_which_pool() -> None:
    made = statement(level="record", release=RECORD_LEVEL, records_per_user=5, window=64)
    for part in ("at most 5 windows of at most 64 tokens", "chosen of each user", "adding a message"):
        assert part in str(made.adjacency)


def test_records_that_are_chosen_anew_are_capped_in_a_round_and_not_in_the_run() -> None:
    fresh = statement(records_per_user=4, fresh_records=True)
    assert "at most 4 records of a user in a round" in fresh.records
    assert "more are used in the run" in fresh.records
    assert "more are used" not in statement(records_per_user=4).records
    assert "in the pool" in statement(release=RECORD_LEVEL, records_per_user=5).records


def test_lost_releases_are_said_to_be_paid_for() -> None:
    assert "2 of them were lost in a crash" in statement(num_lost=2).paragraph()
    assert "One of them was lost" in statement(num_lost=1).paragraph()
    assert "lost in a crash" not in statement().paragraph()


def test_a_large_delta_is_put_into_words_and_a_small_one_is_not() -> None:
    assert "one user in 8 could be published whole" in statement(delta=0.118).paragraph()
    assert "published whole" not in statement(delta=1e-5).paragraph()


def test_a_target_that_is_not_met_is_said() -> None:
    made = statement(target_epsilon=1e6)
    assert not made.is_met
    assert f"Epsilon 1e+06 was asked for and {rounded_up(known(made.epsilon))} is what holds" in made.paragraph()
    assert statement(target_epsilon=made.epsilon).is_met
    assert "asked for" not in statement(target_epsilon=made.epsilon).paragraph()


def test_what_is_taken_as_public_is_listed() -> None:
    assert "Taken as public: N; tokens.min_words=64." in statement(public=("N", "tokens.min_words=64")).paragraph()


@pytest.mark.parametrize(
    "made",
    [
        statement(foreign=("a.B",), public=("N",), window=64, fresh_records=True, records_per_user=4, num_lost=1),
        statement(level="record", release=RECORD_LEVEL, records_per_user=5),
        statement(release=RECORD_LEVEL, records_per_user=5, method="tight", ownership="declared"),
        statement(release=acc.AdaptiveClipping(acc.NoAmplification(4.0, 4), 5.0), noise_source="os"),
        PrivacyStatement(level="nobody", release=None, mechanism="non_private", num_users=10, rounds=5),
    ],
)
def test_a_statement_is_read_back_as_it_was_written(made: PrivacyStatement) -> None:
    stored = json.loads(json.dumps(made.to_json()))
    assert PrivacyStatement.from_json(stored) == made
    assert PrivacyStatement.from_json(stored).to_json() == stored
    del stored["foreign"]
    with pytest.raises(ValueError, match="'foreign'"):
        PrivacyStatement.from_json(stored)


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
        ({"evaluated_on": "everybody"}, "evaluated_on must be"),
        ({"num_lost": -1}, "num_lost must be"),
        ({"num_lost": 201}, "num_lost must be"),
        ({"window": 0}, "window must be"),
        ({"foreign": "mine.Selector"}, "foreign must be a tuple"),
        ({"method": "tight"}, "method must be"),
        ({"level": "record"}, "method must be"),
        ({"release": RECORD_LEVEL, "records_per_user": 5, "method": "record"}, "makes no claim at level 'user'"),
        ({"release": RECORD_LEVEL, "records_per_user": 4}, "records_per_user must be 5"),
    ],
)
def test_claim_that_does_not_fit_is_refused(changed: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        statement(**changed)
