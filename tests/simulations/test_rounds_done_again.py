"""Rounds that were released before a run died, and what the ledger and the budget make of doing them again."""

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.errors import BudgetExceeded, CheckpointError, LedgerError, ReleasedOtherwise
from fedsim_userdp.federation.engines.in_process import InProcessGrid
from fedsim_userdp.federation.messages import read_request, to_arrays, write_reply
from fedsim_userdp.federation.rounds import RetryingStrategy, Rounds, run_rounds
from fedsim_userdp.federation.worker import Worker, WorkerRecipe
from fedsim_userdp.mechanisms.circumstances import Circumstances
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.participation import draw_cohort
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.accounting import accountants
from fedsim_userdp.privacy.ledger import Ledger
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import ClientSelector, CyclicSelector, PoissonSelector
from tests.simulations.small_runs import (
    dies_after_release,
    os_noise,
    releases_of,
    result_of,
    resumed,
    run_small,
    small_run,
    what_a_run_left,
    with_changes,
)
from tests.simulations.test_foreign_selectors import SaysPoisson
from tests.test_selection import Shuffled

pytestmark = pytest.mark.usefixtures("quick_accounting")


def test_a_seeded_round_done_again_is_the_same_release_and_counted_once(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path, store)
    dies_after_release(run, 2, monkeypatch)
    assert releases_of(run)[0] == (1, 2)
    run_small(resumed(run))
    assert releases_of(run)[0] == (1, 2, 3)
    assert result_of(run)["rounds"] == 3


@pytest.mark.parametrize("mechanism", ["user_wise", "user_wise_adaptive", "group_privacy"])
def test_a_lost_round_of_a_release_is_paid_for_and_the_run_goes_on_with_the_next(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, mechanism: str
) -> None:
    """Done again, the same cohort would be in two releases: two rounds of it cost more than two of Poisson sampling."""
    run = os_noise(small_run(tmp_path, store, every=3))
    dies_after_release(run, 2, monkeypatch, mechanism)
    before, spent_before = releases_of(run, mechanism)
    outcome = run_small(resumed(run), mechanism)
    rounds, spent = releases_of(run, mechanism)
    assert before == (1, 2)
    assert rounds == (1, 2, 3)
    assert spent_before < spent <= 8.0
    assert result_of(run)["rounds"] == 3
    assert [record.round for record in outcome.rounds] == [0, 1, 3]
    assert result_of(run)["epsilon"] >= spent
    assert outcome.rounds[-1].epsilon == result_of(run)["epsilon"]
    before_again = what_a_run_left(tmp_path)
    run_small(resumed(run), mechanism)
    assert what_a_run_left(tmp_path) == before_again


@pytest.mark.parametrize("mechanism", ["user_wise", "group_privacy"])
def test_where_the_last_round_is_lost_the_adapter_that_is_kept_is_the_one_that_is_scored(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, mechanism: str
) -> None:
    run = os_noise(small_run(tmp_path, store))
    dies_after_release(run, 3, monkeypatch, mechanism)
    outcome = run_small(resumed(run), mechanism)
    assert releases_of(run, mechanism)[0] == (1, 2, 3)
    assert outcome.statement.rounds == result_of(run)["rounds"] == 3
    assert [record.round for record in outcome.rounds] == [0, 1, 2]
    assert result_of(run)["perplexity"] == pytest.approx(run.study.perplexity(outcome.model))
    assert result_of(run)["perplexity"] != outcome.rounds[0].perplexity


def test_with_the_operating_systems_noise_every_round_has_a_checkpoint(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = os_noise(small_run(tmp_path, store, every=100))
    dies_after_release(run, 3, monkeypatch)
    kept = sorted(path.name for path in (tmp_path / "not_private").glob("checkpoints/*/round-*"))
    assert kept == ["round-00000001", "round-00000002"]


def test_where_no_result_of_the_budgets_releases_is_left_nothing_more_is_released(
    tmp_path: Path, store: TokenStore
) -> None:
    run = os_noise(small_run(tmp_path, store))
    run_small(run)
    shutil.rmtree(tmp_path / "not_private" / "checkpoints")
    ledger = (tmp_path / "ledger" / "user_wise-seed0.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="3 releases and no checkpoint holds their result"):
        run_small(resumed(run))
    assert (tmp_path / "ledger" / "user_wise-seed0.jsonl").read_bytes() == ledger


def test_a_capped_participation_is_not_exceeded_by_going_on_after_a_lost_round(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = os_noise(small_run(tmp_path, store, selector=CyclicSelector(5)))
    dies_after_release(run, 2, monkeypatch)
    run_small(resumed(run))
    rounds, spent = releases_of(run)
    assert rounds == (1, 2, 3)
    assert spent <= 8.0
    assert result_of(run)["rounds"] == 3


def test_a_released_runs_secret_is_readable_by_its_owner_only_and_gone_when_the_run_has_ended(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = os_noise(small_run(tmp_path, store))
    dies_after_release(run, 2, monkeypatch)
    (secret,) = tmp_path.rglob("secret.json")
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.is_relative_to(tmp_path / "not_private")
    key = run.keys.run.secret.hex()
    assert key in secret.read_text()
    assert [file for file in tmp_path.rglob("*") if file.is_file() and key.encode() in file.read_bytes()] == [secret]
    run_small(resumed(run))
    assert not list(tmp_path.rglob("secret.json*"))


def test_a_seeded_runs_key_is_not_written_down(tmp_path: Path, store: TokenStore) -> None:
    run = small_run(tmp_path, store)
    run_small(run)
    forms = (run.keys.run.secret, run.keys.run.secret.hex().encode())
    found = [
        file for file in tmp_path.rglob("*") if file.is_file() and any(form in file.read_bytes() for form in forms)
    ]
    assert found == []


def test_a_release_whose_secret_is_lost_does_not_go_on(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = os_noise(small_run(tmp_path, store))
    dies_after_release(run, 2, monkeypatch)
    next(tmp_path.rglob("secret.json")).unlink()
    with pytest.raises(CheckpointError, match=r"secret \(secret.json beside its checkpoints\) is gone"):
        run_small(resumed(run))
    assert releases_of(run)[0] == (1, 2)


def test_two_releases_of_one_seed_have_unrelated_cohorts_and_their_ledgers_tell_no_digest_of_the_data(
    tmp_path: Path, store: TokenStore
) -> None:
    runs = [os_noise(small_run(tmp_path / name, store)) for name in ("a", "b")]
    cohorts = [
        [tuple(draw_cohort(run.study.selector, run.study.population, round, run.keys.run)) for round in range(1, 9)]
        for run in runs
    ]
    assert cohorts[0] != cohorts[1]
    for run in runs:
        run_small(run)
    lines = [
        json.loads((run.place.folder / "ledger" / "user_wise-seed0.jsonl").read_text().splitlines()[0]) for run in runs
    ]
    assert lines[0]["run"] != lines[1]["run"], "the same data and settings: a guess cannot be tested against the digest"


class FailsOnce:
    """Nodes of which the first fails in one round of one part of a run."""

    def __init__(self, round: int) -> None:
        self.round, self.num_nodes = round, 3

    def num_nodes_for(self, num_users: int) -> int:
        return self.num_nodes

    def deals_by_size(self, num_users: int) -> bool:
        return False

    def run(
        self,
        strategy: RetryingStrategy,
        recipe: WorkerRecipe,
        worker: Worker,
        state: Mapping[str, Tensor],
        rounds: Rounds,
    ) -> None:
        app, failing = ClientApp(), self.round

        @app.train()
        def train(message: Message, context: Context) -> Message:
            request = read_request(message.content)
            if request.round == failing and context.node_id == 1:
                raise RuntimeError("this node is gone")
            return Message(write_reply(worker.train(request)), reply_to=message)

        run_rounds(strategy, InProcessGrid(app, self.num_nodes), to_arrays(state), rounds)


def test_a_seeded_round_done_again_with_other_users_answers_is_lost_and_not_released_with_the_same_noise(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path, store, selector=PoissonSelector(1.0), engine=FailsOnce(2))
    dies_after_release(run, 2, monkeypatch)
    outcome = run_small(resumed(run, engine=FailsOnce(0)))
    assert releases_of(run)[0] == (1, 2, 3)
    assert [record.round for record in outcome.rounds] == [0, 1, 3]
    again = small_run(tmp_path / "again", store, selector=PoissonSelector(1.0), engine=FailsOnce(2))
    dies_after_release(again, 2, monkeypatch)
    assert [record.round for record in run_small(resumed(again)).rounds] == [0, 1, 2, 3], "the same answers"


@pytest.mark.parametrize("died_after", [1, 2])
def test_a_selector_with_a_memory_is_resumed_where_it_was(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, died_after: int
) -> None:
    def shuffled(name: str) -> Run:
        return small_run(tmp_path / name, store, selector=Shuffled(declared=2))

    whole = shuffled("whole")
    run_small(whole)
    dies_after_release(shuffled("broken"), died_after, monkeypatch)
    broken = resumed(shuffled("broken"))
    run_small(broken)
    assert what_a_run_left(broken.place.folder) == what_a_run_left(whole.place.folder)


def dies_after_checkpoint(run: Run, round: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs until the checkpoint of `round` is there, and dies before the next release."""
    dies_after_release(run, round + 1, monkeypatch)
    ledger = run.place.folder / "ledger" / "user_wise-seed0.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:round]))


OTHER_KEY = RunKey.seeded(0, "a small run with another learning rate")


@pytest.mark.parametrize("selector", [Shuffled(declared=2), SaysPoisson(0.4)], ids=lambda each: type(each).__name__)
def test_changed_settings_do_not_draw_the_rounds_that_were_done_anew_and_count_those(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, selector: ClientSelector
) -> None:
    """Another key draws others for rounds 1 and 2: who was really in them could be in twice as many as declared."""
    run = small_run(tmp_path, store, selector=selector)
    dies_after_checkpoint(run, 2, monkeypatch)
    changed = resumed(run, settings="others", allow_changes=True, selector=copy.deepcopy(selector))
    with pytest.raises(CheckpointError, match=r"selection \(\w+\) draws other users for rounds 1 to 2 than took part"):
        run_small(changed, key=OTHER_KEY)
    assert releases_of(run)[0] == (1, 2)


class Reversed(Shuffled):
    """Shuffled, with the users counted from the other end."""

    def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
        return num_users - 1 - super().select(num_users, round, generator)


def test_a_release_whose_selectors_code_has_changed_does_not_go_on(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = os_noise(small_run(tmp_path, store, selector=Shuffled(declared=2)))
    dies_after_checkpoint(run, 2, monkeypatch)
    with pytest.raises(CheckpointError, match=r"the selection \(Reversed\) draws other users"):
        run_small(resumed(run, selector=Reversed(declared=2), allow_changes=True))


def test_a_public_schedule_goes_on_with_changed_settings(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path, store, selector=CyclicSelector(5))
    dies_after_checkpoint(run, 2, monkeypatch)
    run_small(resumed(run, settings="others", allow_changes=True), key=OTHER_KEY)
    assert result_of(run)["rounds"] == 3


def test_a_capped_round_that_was_lost_under_other_settings_is_not_counted_as_what_these_would_draw(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path, store, selector=CyclicSelector(5))
    dies_after_release(run, 3, monkeypatch)
    with pytest.raises(CheckpointError, match="rounds 3 to 3 were released with other settings, data or code"):
        run_small(resumed(run, settings="others", allow_changes=True), key=OTHER_KEY)


@pytest.mark.parametrize("round", [1, 3])
def test_a_lost_round_of_a_release_is_held_to_whom_it_had(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, round: int
) -> None:
    """No checkpoint has seen the round: its ledger line has."""
    run = os_noise(small_run(tmp_path, store, selector=Shuffled(declared=2)))
    dies_after_release(run, round, monkeypatch)
    with pytest.raises(CheckpointError, match=rf"draws other users for rounds 1 to {min(round, 2)} than"):
        run_small(resumed(run, selector=Reversed(declared=2), allow_changes=True), rounds=4)
    before = releases_of(run)[0]
    assert run_small(resumed(run, selector=Shuffled(declared=2)), rounds=4).rounds
    assert releases_of(run)[0] == tuple(range(1, 5)) != before


def test_a_lost_round_of_a_release_is_held_to_whom_it_had_where_the_rounds_before_are_as_they_were(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FromFile(CyclicSelector):
        """Reads another schedule in round 3."""

        def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
            return super().select(num_users, 2 if round == 3 else round, generator)

    run = os_noise(small_run(tmp_path, store, selector=CyclicSelector(5)))
    dies_after_release(run, 3, monkeypatch)
    with pytest.raises(CheckpointError, match="draws other users for rounds 1 to 3 than"):
        run_small(resumed(run, selector=FromFile(5), allow_changes=True))


def test_a_seeded_round_that_was_lost_is_not_done_again_with_other_users(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OtherThird(Shuffled):
        def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
            chosen = super().select(num_users, round, generator)
            return num_users - 1 - chosen if round == 3 else chosen

    run = small_run(tmp_path, store, selector=Shuffled(declared=2))
    dies_after_release(run, 3, monkeypatch)
    with pytest.raises(LedgerError, match=r"round 3 was recorded before, with another .* or cohort"):
        run_small(resumed(run, selector=OtherThird(declared=2), allow_changes=True))
    assert releases_of(run)[0] == (1, 2, 3)


@pytest.mark.parametrize("allow_changes", [False, True])
def test_a_run_without_a_checkpoint_is_not_gone_on_with_as_another_one(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, allow_changes: bool
) -> None:
    run = small_run(tmp_path, store)
    dies_after_release(run, 1, monkeypatch)
    changed = resumed(run, fingerprint={"data": "others"}, allow_changes=allow_changes)
    with pytest.raises(CheckpointError, match="1 releases and no checkpoint holds their result: go back"):
        run_small(changed, key=OTHER_KEY)
    assert releases_of(run)[0] == (1,)


def test_a_run_whose_selector_exceeds_what_it_declared_stops_before_that_release(
    tmp_path: Path, store: TokenStore
) -> None:
    run = small_run(tmp_path, store, selector=Shuffled(declared=1))
    with pytest.raises(ValueError, match="Shuffled declared at most 1 rounds"):
        run_small(run)
    assert releases_of(run)[0] == (1, 2)


def test_a_capped_round_released_twice_is_one_participation_more_than_declared(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l", delta=0.05, run="c", noise_source="os") as ledger:
        for round in (1, 2, 3, 3):
            ledger.record(round, acc.NoAmplification(4.0, max_participations=2))
        assert ledger.epsilon() == acc.epsilon(acc.NoAmplification(4.0, 3), 0.05)


def test_the_operating_systems_noise_is_no_seeds(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise AssertionError("noise was drawn from a seed")

    monkeypatch.setattr("fedsim_userdp.privacy.noise.SeededNoise.standard_normal", refused)
    with pytest.raises(AssertionError):
        run_small(small_run(tmp_path / "seeded", store))
    for mechanism in ("user_wise", "user_wise_adaptive", "group_privacy"):
        left = []
        for repetition in ("a", "b"):
            run = os_noise(small_run(tmp_path / mechanism / repetition, store))
            run_small(run, mechanism)
            left.append(what_a_run_left(run.place.folder))
        weights = [name for name in left[0] if name.startswith(mechanism) and "lora_B" in name]
        assert weights
        assert all(left[0][name] != left[1][name] for name in weights)


def test_a_torn_line_of_the_ledger_is_completed_only_by_the_very_same_release(tmp_path: Path) -> None:
    release = acc.PoissonUsers(1.0, 0.4, 1)

    def opened(**changes: Any) -> Ledger:
        return Ledger.open(tmp_path / "l", **{"delta": 0.05, "run": "c", **changes})

    with opened() as ledger:
        ledger.record(1, release, "everybody")
        ledger.record(2, release, "everybody")
    whole = (tmp_path / "l").read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first + 1, len(whole) - 1):
        (tmp_path / "l").write_bytes(whole[:size])
        with opened() as ledger:
            assert (ledger.rounds, ledger.num_torn, ledger.num_unfinished) == ((1,), 1, 1)
            ledger.record(2, release, "everybody")
            assert (ledger.rounds, ledger.num_torn, ledger.num_unfinished) == ((1, 2), 0, 0)
        assert (tmp_path / "l").read_bytes() == whole
    for changes, answers in (({}, "somebody"), ({"run": "d"}, "everybody")):
        (tmp_path / "l").write_bytes(whole[:-9])
        with opened(**changes) as ledger:
            with pytest.raises(ReleasedOtherwise, match="may have been released before"):
                ledger.record(2, release, answers)
            assert (ledger.rounds, ledger.num_torn) == ((1,), 1)
            ledger.record(3, release, answers)
            assert ledger.num_releases == 3
    (tmp_path / "l").write_bytes(whole[:-9])
    with opened(noise_source="os") as ledger:
        assert (ledger.rounds, ledger.num_torn, ledger.num_unfinished) == ((1,), 1, 0)


def test_what_is_expected_to_fit_needs_no_accounting_of_its_own_and_no_more_than_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = acc.PoissonUsers(1.0, 0.4, 1)
    budget = acc.epsilon(acc.PoissonUsers(1.0, 0.4, 5), 0.05)
    with Ledger.open(tmp_path / "l", delta=0.05, run="c", budget_epsilon=budget) as ledger:
        ledger.expect(release, 6)
        ledger.expect(release, 5)
        with monkeypatch.context() as patch:
            patch.setattr(accountants, "curve", lambda *arguments: pytest.fail("accounted again"))
            for round in range(1, 6):
                ledger.record(round, release)
        with pytest.raises(BudgetExceeded):
            ledger.record(6, release)


@pytest.mark.parametrize("has_ended", [False, True])
def test_what_a_run_began_with_stays_in_its_statement(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, has_ended: bool
) -> None:
    """Changed settings change the rounds to come, not whose code and which numbers made those that are done."""
    run = with_changes(
        small_run(tmp_path, store),
        circumstances=Circumstances(foreign=("my.Own",), precision="bfloat16", selector="my.Own"),
    )
    if has_ended:
        run_small(run)
    else:
        dies_after_checkpoint(run, 2, monkeypatch)
    changed = resumed(run, settings="others", allow_changes=True, circumstances=Circumstances(foreign=("my.Other",)))
    statement = run_small(changed, key=OTHER_KEY).statement
    assert (statement.foreign, statement.precision) == (("my.Own", "my.Other"), "bfloat16")
    assert statement.selector == "my.Own"
