"""The audit of whole runs: real users, store, records, worker, clipping, grid and strategy; only the model is missing.

Everything is seeded.  Before the seed was fixed, a correct run failed with probability at most 5% (the confidence of
its two bounds together), and a planted mistake escaped in none of the seeds 0 to 3 at the epsilons that are listed.
"""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from fedsim_userdp.audit.verdict import Claim, Findings, Trace, judge, significance_of_each
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.federation.messages import TrainRequest
from fedsim_userdp.federation.worker import Worker
from fedsim_userdp.selection import PoissonSelector
from fedsim_userdp.training.cohort import CohortUpdate
from tests.audit import bugs
from tests.audit.world import SAMPLING_PROB, Planted, audited, plant, trace_of

BUGS = {
    "a tenth of the noise": (Planted(strategy_fn=bugs.TenthOfTheNoise), (1.0, 3.0, 8.0)),
    "no clipping": (Planted(strategy_fn=bugs.NoClipping), (1.0, 3.0, 8.0)),
    "clips every record": (Planted(worker_fn=bugs.ClipsEveryRecord), (3.0, 8.0)),
    "weights by data": (Planted(strategy_fn=bugs.WeightedByData, one_node_each=True), (1.0, 3.0, 8.0)),
    "the same noise": (Planted(noise_fn=bugs.SameNoise), (1.0, 3.0, 8.0)),
    "some users always": (Planted(selector=bugs.SomeAlways(SAMPLING_PROB)), (1.0, 3.0)),
}
CASES = [  # those at smaller epsilons take as long, and show the same
    pytest.param(name, epsilon, id=f"{name}-{epsilon:g}", marks=[pytest.mark.slow] * (epsilon < max(all_of)))
    for name, (_, all_of) in BUGS.items()
    for epsilon in all_of
]


@cache
def findings_of(store: TokenStore, name: str, epsilon: float) -> Findings:
    """The audit of a run with a planted mistake, done once."""
    return audited(store, BUGS[name][0], epsilon)


@pytest.mark.parametrize(
    ("epsilon", "one_node_each"),
    [(1.0, False), pytest.param(3.0, False, marks=pytest.mark.slow), (8.0, False), (8.0, True)],
)
def test_a_correct_run_is_not_refuted(store: TokenStore, epsilon: float, one_node_each: bool) -> None:
    findings = audited(store, Planted(one_node_each=one_node_each), epsilon)
    assert not findings.is_refuted
    assert findings.lower_bound < epsilon


def test_a_run_without_noise_shows_all_that_the_number_of_canaries_allows(store: TokenStore) -> None:
    findings = audited(store, Planted(), math.inf)
    assert not findings.is_refuted
    for game in findings.games:
        assert game.num_correct == game.num_guesses
        assert game.lower_bound == game.ceiling
    assert findings.lower_bound > 10
    assert findings.estimate is not None
    assert findings.estimate.spread[0] > 8


@pytest.mark.parametrize(("name", "epsilon"), CASES)
def test_a_planted_mistake_is_caught(store: TokenStore, name: str, epsilon: float) -> None:
    findings = findings_of(store, name, epsilon)
    assert findings.is_refuted
    assert findings.lower_bound > epsilon


@pytest.mark.parametrize(("name", "kind"), [("no clipping", "oversized"), ("clips every record", "many_records")])
def test_the_kind_of_canary_that_is_made_for_a_mistake_shows_it(store: TokenStore, name: str, kind: str) -> None:
    right = {each: correct for each, (_, correct) in findings_of(store, name, 8.0).games[0].guesses_of.items()}
    assert right[kind] >= 0.9 * sum(right.values())


def test_every_canary_that_takes_part_adds_the_clip_norm_along_its_direction_and_the_others_nothing(
    store: TokenStore,
) -> None:
    """Without noise and with everybody in every round; few canaries, so that nobody is in another's way."""
    planted = Planted(selector=PoissonSelector(1.0))
    canaries = plant(store, seed=2, counts={"direction": 2, "oversized": 2, "many_records": 2})
    absent = replace(canaries, included=np.zeros_like(canaries.included))
    moved = (
        trace_of(store, canaries, planted, math.inf, seed=2).releases
        - trace_of(store, absent, planted, math.inf, seed=2).releases
    )
    assert 0 < canaries.included.sum() < len(canaries)
    expected = sum(canaries.update(c, 1.0) / canaries.kinds[c].norm for c in np.flatnonzero(canaries.included).tolist())
    np.testing.assert_allclose(moved, np.broadcast_to(expected, moved.shape), atol=1e-4)


def test_canaries_change_neither_who_is_drawn_nor_the_denominator(store: TokenStore) -> None:
    """Two audits that differ in the coins only: the same cohorts."""
    drawn: list[list[tuple[int, ...]]] = []

    class Watched(Worker):
        def train(self, request: TrainRequest) -> CohortUpdate:
            drawn[-1].append(request.users)
            return super().train(request)

    canaries = plant(store, seed=0)
    for coins in (canaries.included, ~canaries.included):
        drawn.append([])
        trace_of(store, replace(canaries, included=coins), Planted(worker_fn=Watched), 8.0, seed=0)
    assert drawn[0] == drawn[1]
    assert any(drawn[0])


def test_a_delta_that_leaves_no_significance_is_refused(store: TokenStore) -> None:
    canaries = plant(store, seed=0)
    trace = Trace(np.ones((2, 10), np.float32), np.ones(10, np.float32))
    with pytest.raises(ValueError, match=r"privacy\.delta=0\.001"):
        judge(trace, canaries, Claim(8.0, 1e-3, SAMPLING_PROB), significance=0.01)


def test_the_confidence_is_shared_by_all_tests_of_an_audit() -> None:
    assert significance_of_each(0.95, num_claims=4) == pytest.approx(0.05 / 8)
    for wrong in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"audit\.confidence"):
            significance_of_each(wrong, 1)
