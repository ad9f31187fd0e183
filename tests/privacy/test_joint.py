"""What several runs promise together: checked against the same releases composed by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.accounting.descriptions import Run
from fedsim_userdp.privacy.joint import UNNAMED_IDS, Composition, JointStatement, StatedRun, composed
from fedsim_userdp.privacy.statement import PrivacyStatement

DELTA = 1e-4
USERS = acc.PoissonUsers(1.0, 0.1, 20)
OTHERS = acc.PoissonUsers(2.0, 0.05, 30)
RECORDS = acc.RecordLevel(3.0, 0.1, 20, 4)
MORE_RECORDS = acc.RecordLevel(4.0, 0.1, 10, 2)
SCHEDULE = acc.NoAmplification(3.0, 4)
REPLACED = acc.NoAmplification(3.0, 4, acc.Adjacency.REPLACE_RECORDS)
FIXED = acc.FixedSize(6.0, 1000, 50, 20)


def stated(release: acc.Description | None, seed: int = 0, **changes: Any) -> StatedRun:
    settings: dict[str, Any] = {
        "level": "nobody" if release is None else "user",
        "mechanism": "m",
        "num_users": 1000,
        "rounds": 20,
    }
    settings |= {"delta": None if release is None else DELTA, "release": release}
    settings |= {"records_per_user": getattr(release, "records_per_user", 4)}
    return StatedRun(PrivacyStatement(**{**settings, **changes}), seed)


def joint(*runs: StatedRun) -> JointStatement:
    return JointStatement(runs)


def test_one_run_has_its_own_epsilon_and_accountant() -> None:
    for release in (USERS, RECORDS, SCHEDULE, FIXED, acc.AdaptiveClipping(USERS, 5.0), acc.PaidSignals(USERS, 0.2)):
        one = stated(release)
        made = joint(one)
        assert (made.together.epsilon, made.together.accountant) == (one.statement.epsilon, one.statement.accountant)
        assert made.delta == DELTA


def test_runs_of_one_kind_are_one_longer_run() -> None:
    assert composed([USERS] * 3, DELTA).epsilon == acc.epsilon(acc.PoissonUsers(1.0, 0.1, 60), DELTA)
    assert composed([SCHEDULE] * 2, DELTA).epsilon == acc.epsilon(acc.NoAmplification(3.0, 8), DELTA)
    assert composed([FIXED] * 2, DELTA).epsilon == acc.epsilon(acc.FixedSize(6.0, 1000, 50, 40), DELTA)
    assert composed([acc.AdaptiveClipping(USERS, 5.0), USERS], DELTA).epsilon == composed([USERS] * 2, DELTA).epsilon


def test_groups_of_one_run_may_be_other_users_in_another_run() -> None:
    one = acc.PoissonGroups(2.0, (((0.2, 1.0, 9),), ((0.1, 1.5, 9),)))
    other = acc.PoissonGroups(1.0, (((0.05, 1.0, 4),), ((0.1, 0.3, 4),)))
    first, second = acc.PoissonUsers(2.0, 0.2, 9), acc.PoissonUsers(2.0 / 1.5, 0.1, 9)
    third, fourth = acc.PoissonUsers(1.0, 0.05, 4), acc.PoissonUsers(1.0 / 0.3, 0.1, 4)
    each = [composed([a, b, USERS], DELTA).epsilon or 0.0 for a in (first, second) for b in (third, fourth)]
    assert composed([one, other, USERS], DELTA).epsilon == max(each)
    assert composed([one, RECORDS], DELTA).epsilon == max(
        composed([a, RECORDS], DELTA).epsilon or 0.0 for a in (first, second)
    )
    assert joint(stated(one), stated(other, seed=1)).adjacency == "add or remove one user with all their records"


def test_pairs_that_programs_gave_have_no_joint_figure_across_folders() -> None:
    """One list may be by author and the other by thread: nothing written down tells."""
    one, other = (stated(USERS, seed, users=UNNAMED_IDS) for seed in (0, 1))
    assert joint(one, other).together.epsilon == composed([USERS] * 2, DELTA).epsilon  # of one study
    found = joint(replace(one, job="0"), replace(other, job="1"))
    assert found.together.epsilon is None
    assert "what an id stands for is not known" in " ".join(found.sentences())
    named = [replace(stated(USERS, seed, users="an id in column 'a'"), job=str(seed)) for seed in (0, 1)]
    assert joint(*named).together.epsilon is not None


def test_the_same_release_again_counts_once() -> None:
    one, again = (replace(stated(USERS), job=job, draws=("a",), adapter="x") for job in ("0", "1"))
    other = replace(stated(OTHERS, seed=1), draws=("b",), adapter="y")
    assert joint(one, again).together == joint(one).together
    assert joint(one, other, again).together == composed([USERS, OTHERS], DELTA)
    (said, *_) = joint(one, again).sentences()
    assert "m, seed 0 (job 0) and m, seed 0 (job 1) have the same seed, settings and data" in said
    assert "one release, counted once" in said
    assert "counted once" not in " ".join(joint(one, other).sentences())


@pytest.mark.parametrize("adapters", [("x", "y"), ("", ""), ("x", "")])
def test_one_noise_on_two_sums_leaves_no_guarantee(adapters: tuple[str, str]) -> None:
    """A node failed in one of them: their difference is a user's update without noise."""
    runs = [replace(stated(USERS), job=str(at), draws=("a",), adapter=adapter) for at, adapter in enumerate(adapters)]
    other = replace(stated(OTHERS, seed=1), draws=("b",), adapter="z")
    for made in (joint(*runs), joint(runs[0], other, runs[1])):
        assert made.together.epsilon is None
        assert made.to_json()["epsilon"] is None
        assert "both together promise nothing" in made.sentences()[0]
        assert "no finite epsilon" in made.sentences()[0]
    assert joint(runs[0], other).together.epsilon is not None


def test_whether_runs_of_one_seed_have_one_key_must_be_known_whatever_they_are_called() -> None:
    runs = [replace(stated(USERS, mechanism=name), draws=(f"{name}:1",), adapter="x") for name in ("a", "b")]
    assert joint(*runs).together.epsilon is None
    assert "cannot be told any more" in joint(*runs).sentences()[0]
    assert joint(runs[0], replace(runs[1], seed=1)).together.epsilon is not None
    assert joint(runs[0], replace(runs[1], draws=("a:2",))).together.epsilon is not None


def test_runs_with_a_key_from_the_operating_system_are_never_taken_for_one() -> None:
    runs = [replace(stated(USERS, noise_source="os"), job=job, adapter="x") for job in ("0", "1")]
    assert joint(*runs).together == composed([USERS] * 2, DELTA)


def test_record_level_runs_of_one_noise_are_looked_at_as_well() -> None:
    runs = [replace(stated(RECORDS, level="record"), job=str(at), draws=("a",), adapter=str(at)) for at in (0, 1)]
    found = joint(stated(USERS), *runs).with_record_level
    assert found is not None
    assert found.epsilon is None


def test_unlike_runs_are_not_taken_as_copies_of_one() -> None:
    releases: list[Run] = [USERS, OTHERS, RECORDS, MORE_RECORDS]
    found = composed(releases, DELTA)
    assert found.accountant == "tight"
    assert found.epsilon == acc.epsilon(acc.Composed(tuple(releases)), DELTA, "tight")
    assert found.epsilon > max(acc.epsilon(release, DELTA, acc.methods(release)[-1]) for release in (USERS, OTHERS))
    assert found.epsilon != pytest.approx(composed([USERS] * 4, DELTA).epsilon, rel=0.01)


@pytest.mark.parametrize("sampled", [USERS, RECORDS], ids=["users", "records"])
def test_a_schedule_beside_sampling_is_a_gaussian_that_the_emptied_user_is_always_in(sampled: Run) -> None:
    found = composed([sampled, SCHEDULE], DELTA)
    always = acc.Composed((sampled, acc.PoissonUsers(3.0, 1.0, 4)))
    assert found.epsilon == acc.epsilon(always, DELTA, "pld" if sampled is USERS else "tight")
    own = [composed([each], DELTA).epsilon or math.inf for each in (sampled, SCHEDULE)]
    assert max(own) < (found.epsilon or 0) < sum(own)


def test_a_schedule_beside_replacement_has_twice_the_sensitivity() -> None:
    assert composed([FIXED, SCHEDULE], DELTA) == composed([FIXED, REPLACED], DELTA)
    assert composed([SCHEDULE, REPLACED], DELTA).epsilon == acc.epsilon(acc.Composed((REPLACED, REPLACED)), DELTA)


def test_an_add_or_remove_claim_beside_replacement_is_taken_twice() -> None:
    found = composed([FIXED, USERS], DELTA)
    assert found.epsilon is not None
    replaced = acc.epsilon(FIXED, DELTA / 2)
    own = (found.epsilon - replaced) / 2
    left = acc.delta(USERS, own)
    assert (1 + math.exp(own)) * left <= DELTA / 2 * 1.001
    assert (1 + math.exp(own)) * left >= DELTA / 2 * 0.9
    assert "taken twice" in str(found.accountant)
    assert found.epsilon > replaced + 2 * acc.epsilon(USERS, DELTA / 2)


def test_runs_of_which_a_user_is_not_the_same_have_no_joint_epsilon() -> None:
    """Who writes in several threads is several users where a thread is one."""
    by_author, by_thread = stated(USERS, users="an id in column 'a'"), stated(OTHERS, 1, users="an id in column 't'")
    made = joint(by_author, by_thread, by_author)
    assert (made.together.epsilon, made.together.accountant, made.adjacency) == (None, None, None)
    assert made.to_json()["epsilon"] is None
    assert (
        "have no finite epsilon: a user is not the same in all of them (an id in column 'a'; an" in made.sentences()[0]
    )
    assert "same users" not in made.sentences()[0]
    assert joint(by_thread).together.epsilon is not None
    of_records = stated(RECORDS, 2, level="record", users="an id in column 't'")
    beside = joint(by_author, of_records)
    assert beside.together.epsilon is not None
    assert beside.with_record_level == Composition(None, None)
    searched = joint(by_author, replace(by_thread, statement=replace(by_thread.statement, num_searched=3)))
    assert searched.with_search == Composition(None, None)


def test_blanking_an_owners_records_says_nothing_of_replacing_a_user() -> None:
    """Blanked twice, only the records that one person owned differ: the other one may own others' records as well."""
    owned = stated(RECORDS, 1, ownership="declared")
    for replacing in (stated(FIXED), stated(REPLACED), stated(acc.AdaptiveClipping(FIXED, 5.0))):
        made = joint(replacing, owned)
        assert (made.together.epsilon, made.together.accountant, made.adjacency) == (None, None, None)
        assert "no relation is known that both cover" in made.sentences()[0]
        assert joint(replacing, stated(RECORDS, 1)).together.epsilon is not None
        of_records = stated(RECORDS, 2, level="record", ownership="declared")
        assert joint(replacing, of_records).with_record_level == Composition(None, None)
    for emptied in (stated(USERS), stated(SCHEDULE)):
        assert joint(emptied, owned).together.epsilon is not None


def test_a_private_search_is_added_with_its_share_of_delta() -> None:
    search = acc.HyperparameterSearch(USERS, 3.0)
    found = composed([search, OTHERS], DELTA)
    assert found.epsilon == pytest.approx(acc.epsilon(search, DELTA / 2) + acc.epsilon(OTHERS, DELTA / 2), rel=1e-9)


def test_what_has_no_finite_epsilon_is_said_to_have_none() -> None:
    hopeless = acc.PoissonUsers(1e-4, 1.0, 10)
    made = joint(stated(hopeless), stated(FIXED, 1))
    assert made.together.epsilon is None
    assert "no finite epsilon" in " ".join(made.sentences())


def test_the_delta_is_the_largest_and_said_to_be() -> None:
    made = joint(stated(USERS), stated(OTHERS, 1, delta=1e-3, num_users=500))
    assert made.delta == 1e-3
    assert made.together.epsilon == composed([USERS, OTHERS], 1e-3).epsilon
    assert "this is the largest" in made.sentences()[0]


def test_a_declared_search_is_counted_once_as_the_claim_of_which_so_many_cost_most() -> None:
    made = joint(stated(USERS, num_searched=5), stated(OTHERS, 1, num_searched=5), stated(None, 2))
    assert made.num_searched == 4
    assert made.costliest == made.claims[0]
    assert made.with_search == composed([USERS, OTHERS] + [USERS] * 4, DELTA)
    words = " ".join(made.sentences())
    assert "4 more, each counted like m, seed 0 (an assumption" in words
    assert joint(stated(USERS)).with_search is None


def test_runs_of_different_searches_are_all_counted_and_those_of_one_once() -> None:
    """41 runs behind two claims and 3 behind another: each search but the run that came of it."""
    first, again = (stated(USERS, seed, num_searched=41, searched_by="a") for seed in (0, 1))
    other = stated(OTHERS, 2, num_searched=3, searched_by="b")
    made = joint(first, again, other)
    assert made.num_searched == 42
    assert made.with_search == composed([USERS, USERS, OTHERS] + [USERS] * 42, DELTA)
    assert "42 more of 2 searches, each counted like" in " ".join(made.sentences())
    assert joint(first, again).num_searched == 40
    assert joint(first, stated(OTHERS, 2)).num_searched == 40


def test_record_level_runs_are_outside_of_the_sum_and_priced_for_users() -> None:
    protects_records = stated(RECORDS, 1, level="record", mechanism="record_level")
    made = joint(stated(USERS), protects_records)
    assert made.together.epsilon == acc.epsilon(USERS, DELTA)
    assert made.with_record_level == composed([USERS, RECORDS], DELTA)
    assert "record_level, seed 1" in " ".join(made.sentences())
    assert "Nothing here promises users anything" in joint(protects_records).sentences()[0]
    assert joint(protects_records).together.epsilon is None


def test_runs_without_noise_leave_no_guarantee_and_the_untrained_model_takes_none() -> None:
    untrained = stated(None, mechanism="zero_shot", records_per_user=None)
    made = joint(untrained, stated(None, 1, mechanism="non_private"), stated(USERS, 2))
    assert [run.name for run in made.without_noise] == ["non_private, seed 1"]
    assert "NO guarantee for users is left" in " ".join(made.sentences())


def test_seeded_runs_promise_nothing_to_whoever_may_guess_the_seed() -> None:
    safe = stated(OTHERS, 1, noise_source="os")
    words = "nothing holds towards whoever knows or guesses the seed"
    assert f"1 of them is seeded: {words}." in joint(stated(USERS), safe).sentences()
    assert f"It is seeded: {words}." in joint(stated(USERS)).sentences()
    assert words not in " ".join(joint(safe).sentences())


def test_choosing_the_best_is_said_to_be_covered_by_the_joint_figure_only() -> None:
    assert "choice by data" in " ".join(joint(stated(USERS), stated(USERS, 1)).sentences())
    assert "choice by data" not in " ".join(joint(stated(USERS)).sentences())


def test_relations_that_differ_have_a_common_one_in_words() -> None:
    assert joint(stated(USERS), stated(SCHEDULE, 1)).adjacency == "one user's records are emptied"
    assert joint(stated(USERS), stated(FIXED, 1)).adjacency == "one user with all their records replaced by another"
    kept = "one user's records replaced by others, their id and so their place in the schedule kept"
    assert joint(stated(SCHEDULE), stated(FIXED, 1)).adjacency == kept
    declared = stated(RECORDS, 1, ownership="declared")
    assert joint(stated(USERS), declared).adjacency == "one user's records are emptied"


def test_runs_of_which_each_has_marks_of_two_secrets_cannot_be_compared() -> None:
    """The first key of one may be the second of the other, marked with another secret."""
    draws = (("s:1", "t:2"), ("s:2", "t:1"))
    runs = [replace(stated(USERS), job=str(at), draws=one, adapter=str(at)) for at, one in enumerate(draws)]
    assert joint(*runs).together.epsilon is None
    assert joint(runs[0]).together.epsilon is not None


def test_cohorts_that_are_cut_off_are_added_to_other_samples_and_not_to_claims_for_an_emptied_user() -> None:
    cut = acc.TruncatedPoisson(3.0, 0.1, 200, 25, 5)
    both = joint(stated(cut), stated(USERS, seed=1))
    assert both.together.epsilon == pytest.approx(acc.epsilon(acc.Composed((cut, USERS)), DELTA))
    emptied = joint(stated(cut), stated(SCHEDULE, seed=1))
    assert emptied.together.epsilon is None
    assert emptied.adjacency is None
    assert "keeps a place in cohorts that are cut off" in " ".join(emptied.sentences())


def test_strata_are_added_to_other_replaced_users_under_the_narrower_relation() -> None:
    strata = acc.FixedSizeStrata(6.0, ((50, 5), (950, 45)), 20)
    both = joint(stated(strata), stated(FIXED, seed=1))
    assert both.adjacency == acc.Adjacency.REPLACE_USER_IN_GROUP.value
    assert both.together.epsilon == pytest.approx(acc.epsilon(acc.Composed((strata, FIXED)), DELTA))
