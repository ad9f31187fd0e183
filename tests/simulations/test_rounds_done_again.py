"""Rounds that were released before a run died, and what the ledger and the budget make of doing them again."""

import shutil
from pathlib import Path

import pytest

from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.privacy import accountants
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.errors import BudgetExceeded
from fedsim_userdp.privacy.ledger import Ledger
from fedsim_userdp.selection import CyclicSelector
from simulations.errors import ConfigError
from simulations.task import Task
from tests.simulations.small_runs import (
    dies_after_release,
    os_noise,
    releases_of,
    result_of,
    resumed,
    run_small,
    small_task,
    what_a_run_left,
)
from tests.test_selection import Shuffled

pytestmark = pytest.mark.usefixtures("quick_accounting")


def test_a_seeded_round_done_again_is_the_same_release_and_counted_once(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = small_task(tmp_path, store)
    dies_after_release(task, 2, monkeypatch)
    assert releases_of(task)[0] == (1, 2)
    run_small(resumed(task))
    assert releases_of(task)[0] == (1, 2, 3)
    assert result_of(task)["rounds"] == 3


@pytest.mark.parametrize("mechanism", ["user_wise", "user_wise_adaptive", "group_privacy"])
def test_a_round_of_the_operating_systems_noise_done_again_is_counted_twice_and_keeps_the_budget(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, mechanism: str
) -> None:
    task = os_noise(small_task(tmp_path, store, checkpoint_every=3))
    dies_after_release(task, 2, monkeypatch, mechanism)
    before, spent_before = releases_of(task, mechanism)
    outcome = run_small(resumed(task), mechanism)
    rounds, spent = releases_of(task, mechanism)
    assert before == (1, 2)
    assert rounds == (1, 2, 2)
    assert spent_before < spent <= 8.0
    assert result_of(task)["rounds"] == 2
    assert result_of(task)["epsilon"] >= spent
    assert outcome.rounds[-1].epsilon == result_of(task)["epsilon"]
    before_again = what_a_run_left(tmp_path)
    run_small(resumed(task), mechanism)
    assert what_a_run_left(tmp_path) == before_again


def test_with_the_operating_systems_noise_every_round_has_a_checkpoint(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = os_noise(small_task(tmp_path, store, checkpoint_every=100))
    dies_after_release(task, 3, monkeypatch)
    kept = sorted(path.name for path in (tmp_path / "not_private").glob("checkpoints/*/round-*"))
    assert kept == ["round-00000001", "round-00000002"]


def test_where_no_result_of_the_budgets_releases_is_left_nothing_more_is_released(
    tmp_path: Path, store: TokenStore
) -> None:
    task = os_noise(small_task(tmp_path, store))
    run_small(task)
    shutil.rmtree(tmp_path / "not_private" / "checkpoints")
    ledger = (tmp_path / "ledger" / "user_wise-seed0.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="3 releases and no checkpoint holds their result"):
        run_small(resumed(task))
    assert (tmp_path / "ledger" / "user_wise-seed0.jsonl").read_bytes() == ledger


def test_a_capped_participation_is_not_exceeded_by_doing_a_round_again(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = os_noise(small_task(tmp_path, store, selector=CyclicSelector(5)))
    dies_after_release(task, 2, monkeypatch)
    run_small(resumed(task))
    assert releases_of(task)[0] == (1, 2)
    assert result_of(task)["rounds"] == 1


@pytest.mark.parametrize("died_after", [1, 2])
def test_a_selector_with_a_memory_is_resumed_where_it_was(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, died_after: int
) -> None:
    def shuffled(name: str) -> Task:
        return small_task(tmp_path / name, store, selector=Shuffled(declared=2))

    whole = shuffled("whole")
    run_small(whole)
    dies_after_release(shuffled("broken"), died_after, monkeypatch)
    broken = resumed(shuffled("broken"))
    run_small(broken)
    assert what_a_run_left(broken.folder) == what_a_run_left(whole.folder)


def test_a_run_whose_selector_exceeds_what_it_declared_stops_before_that_release(
    tmp_path: Path, store: TokenStore
) -> None:
    task = small_task(tmp_path, store, selector=Shuffled(declared=1))
    with pytest.raises(ValueError, match="Shuffled declared at most 1 rounds"):
        run_small(task)
    assert releases_of(task)[0] == (1, 2)


def test_a_capped_round_released_twice_is_one_participation_more_than_declared(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l", delta=0.05, config_hash="c", noise_source="os") as ledger:
        for round in (1, 2, 3, 3):
            ledger.record(round, acc.NoAmplification(4.0, max_participations=2))
        assert ledger.epsilon() == acc.epsilon(acc.NoAmplification(4.0, 3), 0.05)


def test_the_operating_systems_noise_is_no_seeds(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise AssertionError("noise was drawn from a seed")

    monkeypatch.setattr("fedsim_userdp.privacy.noise.numpy_generator", refused)
    with pytest.raises(AssertionError):
        run_small(small_task(tmp_path / "seeded", store))
    for mechanism in ("user_wise", "user_wise_adaptive", "group_privacy"):
        left = []
        for repetition in ("a", "b"):
            task = os_noise(small_task(tmp_path / mechanism / repetition, store))
            run_small(task, mechanism)
            left.append(what_a_run_left(task.folder))
        weights = [name for name in left[0] if name.startswith(mechanism) and "lora_B" in name]
        assert weights
        assert all(left[0][name] != left[1][name] for name in weights)


def test_a_torn_line_of_the_ledger_is_completed_only_by_the_very_same_release(tmp_path: Path) -> None:
    release = acc.UserWise(1.0, 0.4, 1)

    def opened(**changes: object) -> Ledger:
        return Ledger.open(tmp_path / "l", **{"delta": 0.05, "config_hash": "c", "next_release": release} | changes)

    with opened() as ledger:
        ledger.record(1, release)
        ledger.record(2, release)
    whole = (tmp_path / "l").read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first + 1, len(whole)):
        (tmp_path / "l").write_bytes(whole[:size])
        with opened() as ledger:
            assert (ledger.rounds, ledger.num_torn) == ((1, 2), 0)
        assert (tmp_path / "l").read_bytes() == whole
    for other in ({"next_release": acc.UserWise(1.1, 0.4, 1)}, {"config_hash": "d"}, {"noise_source": "os"}):
        (tmp_path / "l").write_bytes(whole[:-9])
        with opened(**other) as ledger:
            assert (ledger.rounds, ledger.num_torn) == ((1,), 1)


def test_what_is_expected_to_fit_needs_no_accounting_of_its_own_and_no_more_than_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = acc.UserWise(1.0, 0.4, 1)
    budget = acc.epsilon(acc.UserWise(1.0, 0.4, 5), 0.05)
    with Ledger.open(tmp_path / "l", delta=0.05, config_hash="c", budget_epsilon=budget) as ledger:
        ledger.expect(release, 6)
        ledger.expect(release, 5)
        with monkeypatch.context() as patch:
            patch.setattr(accountants, "curve", lambda *arguments: pytest.fail("accounted again"))
            for round in range(1, 6):
                ledger.record(round, release)
        with pytest.raises(BudgetExceeded):
            ledger.record(6, release)
