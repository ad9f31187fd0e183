"""A run that dies at any write and is resumed ends as if it had never died; in this process, with a small model."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim_userdp import __version__
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.privacy import accountants
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.errors import BudgetExceeded, LedgerError
from fedsim_userdp.privacy.ledger import Ledger
from fedsim_userdp.privacy.noise import OperatingSystemNoise
from fedsim_userdp.selection import ClientSelector, CyclicSelector, PoissonSelector, draw_cohort
from fedsim_userdp.training.checkpoints import Checkpoint, CheckpointError, CheckpointFolder
from fedsim_userdp.training.journal import Journal
from simulations.errors import ConfigError
from simulations.refusals import REFUSALS, sentence
from simulations.task import Budget, Task
from simulations.versions import code_versions
from tests.simulations.small_runs import (
    KINDS,
    Killed,
    dying_at_write,
    os_noise,
    remember_accounting,
    resumed,
    run_small,
    small_store,
    small_task,
    what_a_run_left,
)
from tests.test_selection import Shuffled

ROUNDS = 2


@pytest.fixture(scope="module", autouse=True)
def quick_accounting() -> Iterator[None]:
    """The same few questions in every run."""
    with pytest.MonkeyPatch.context() as patch:
        remember_accounting(patch)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Twelve users."""
    return small_store(tmp_path_factory.mktemp("store") / "tokens")


def undisturbed(folder: Path, store: TokenStore, mechanism: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs without a fault; returns its writes."""
    with dying_at_write(10**9, torn=False, monkeypatch=monkeypatch) as writes:
        run_small(small_task(folder, store), mechanism, ROUNDS)
    return writes


def dies_everywhere(
    tmp_path: Path, store: TokenStore, mechanism: str, monkeypatch: pytest.MonkeyPatch, kinds: Sequence[str] = KINDS
) -> None:
    """Dies at every write of these kinds in turn, before it and in the middle of it, and checks the end of each run."""
    run_small(small_task(tmp_path / "first", store), mechanism, ROUNDS)  # the accounting's answers are cached now
    writes = undisturbed(tmp_path / "whole", store, mechanism, monkeypatch)
    expected = what_a_run_left(tmp_path / "whole")
    assert {"fsync", "rename", "replace"} <= set(writes)
    for number in [number for number, kind in enumerate(writes, start=1) if kind in kinds]:
        for torn in (False, True) if writes[number - 1] in ("write", "fsync") else (False,):
            task = small_task(tmp_path / f"{number} {torn}", store)
            with dying_at_write(number, torn=torn, monkeypatch=monkeypatch), pytest.raises(Killed):
                run_small(task, mechanism, ROUNDS)
            run_small(resumed(task), mechanism, ROUNDS)
            left = what_a_run_left(task.folder)
            different = [name for name in expected if left.get(name) != expected[name]]
            assert not different, f"died at write {number} ({writes[number - 1]}, torn: {torn}): {different}"
            assert left.keys() == expected.keys()
            assert not list(task.folder.rglob(".*")), "something temporary was left behind"


def test_a_run_that_dies_at_any_write_ends_as_if_it_had_not(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies_everywhere(tmp_path, store, "user_wise", monkeypatch, ("write", "fsync", "rename", "replace"))


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["user_wise", "group_privacy", "non_private"])
def test_every_mechanism_that_dies_at_any_change_of_a_file_ends_as_if_it_had_not(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, mechanism: str
) -> None:
    dies_everywhere(tmp_path, store, mechanism, monkeypatch)


def dies_after_release(task: Task, round: int, monkeypatch: pytest.MonkeyPatch, mechanism: str = "user_wise") -> None:
    """Runs until `round` was released, and dies before its checkpoint."""
    real = CheckpointFolder.write

    def write(folder: CheckpointFolder, checkpoint: Checkpoint) -> None:
        if checkpoint.round == round:
            raise Killed
        real(folder, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "write", write)
        with pytest.raises(Killed):
            run_small(task, mechanism)


def releases_of(task: Task, mechanism: str = "user_wise") -> tuple[tuple[int, ...], float]:
    """The rounds in a run's ledger, and their epsilon."""
    with Ledger.open(task.folder / "ledger" / f"{mechanism}-seed0.jsonl", delta=0.05, config_hash="any") as ledger:
        return ledger.rounds, ledger.epsilon()


def result_of(task: Task) -> dict[str, float]:
    return dict(json.loads((task.folder / "results.json").read_text())[0])


def test_a_seeded_round_done_again_is_the_same_release_and_counted_once(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = small_task(tmp_path, store)
    dies_after_release(task, 2, monkeypatch)
    assert releases_of(task)[0] == (1, 2)
    run_small(resumed(task))
    assert releases_of(task)[0] == (1, 2, 3)
    assert result_of(task)["rounds"] == 3


@pytest.mark.parametrize("mechanism", ["user_wise", "group_privacy"])
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
    for mechanism in ("user_wise", "group_privacy"):
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


def test_a_checkpoint_of_other_settings_data_or_code_is_refused_with_the_difference(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = small_task(tmp_path / "run", store)
    run_small(task)
    other = small_store(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"settings was the settings and is others.*allow_changes=true"):
        run_small(resumed(task, config_hash="others"))
    with pytest.raises(CheckpointError, match="corpus was small 12 0 and is small 12 1"):
        run_small(resumed(task, store=other))
    with monkeypatch.context() as patch:
        patch.setattr("simulations.task.code_versions", lambda: {**code_versions(), "fedsim_userdp": "9.9"})
        with pytest.raises(CheckpointError, match=rf"fedsim_userdp was {__version__} and is 9.9"):
            run_small(resumed(task))


def test_changes_can_be_allowed_but_not_of_the_promise(
    tmp_path: Path, store: TokenStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = small_task(tmp_path, store)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", stopping_after(2, Journal.append))
        with pytest.raises(Killed):
            run_small(task)
    changed = resumed(task, config_hash="others", allow_changes=True)
    for wrong in ({"budget": Budget(4.0, 0.05)}, {"noise": OperatingSystemNoise()}, {"selector": PoissonSelector(0.5)}):
        with pytest.raises(CheckpointError, match="its ledger would be wrong"):
            run_small(dataclasses.replace(changed, **wrong))
    with pytest.raises(LedgerError, match="round 3 was recorded before, with another release, config"):
        run_small(changed)
    assert "settings was the settings and is others" in caplog.text
    run_small(resumed(task))
    run_small(changed)
    assert releases_of(task)[0] == (1, 2, 3)


def stopping_after(times: int, real: Callable[..., None]) -> Callable[..., None]:
    """A function that does what `real` does so many times, and then dies."""
    calls = []

    def called(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) > times:
            raise Killed
        real(*arguments)

    return called


def test_a_folder_that_holds_a_run_is_not_begun_anew(tmp_path: Path, store: TokenStore) -> None:
    task = small_task(tmp_path, store)
    run_small(task)
    before = what_a_run_left(tmp_path)
    with pytest.raises(ConfigError, match="holds a run already: go on with it by resume="):
        run_small(task)
    assert what_a_run_left(tmp_path) == before


@pytest.mark.parametrize("damage", ["state.safetensors", "checkpoint.json", "rounds.jsonl"])
def test_a_damaged_checkpoint_costs_a_round_and_a_damaged_journal_is_refused(
    tmp_path: Path, store: TokenStore, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    task = small_task(tmp_path, store)
    run_small(task)
    before = what_a_run_left(tmp_path)
    place = tmp_path / "not_private" / "checkpoints" / "user_wise-seed0"
    file = place / damage if damage == "rounds.jsonl" else place / "round-00000003" / damage
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    if damage == "rounds.jsonl":
        with pytest.raises(CheckpointError, match=r"rounds\.jsonl is missing or was changed"):
            run_small(resumed(task))
        return
    run_small(resumed(task))
    assert what_a_run_left(tmp_path) == before
    assert "round-00000003 is damaged" in caplog.text


def test_a_run_ends_with_the_same_cohorts_however_often_it_dies(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[tuple[int, tuple[int, ...]]]] = {"whole": [], "broken": []}

    def watch(name: str) -> Callable[..., list[int]]:
        def cohort(selector: ClientSelector, num_users: int, round: int, generator: np.random.Generator) -> list[int]:
            chosen = draw_cohort(selector, num_users, round, generator)
            drawn[name].append((round, tuple(chosen)))
            return chosen

        return cohort

    for name in drawn:
        task = small_task(tmp_path / name, store)
        with monkeypatch.context() as patch:
            patch.setattr("fedsim_userdp.selection.draw_cohort", watch(name))
            if name == "broken":
                dies_after_release(task, 1, monkeypatch)
                dies_after_release(resumed(task), 2, monkeypatch)
                task = resumed(task)
            run_small(task)
    assert [round for round, _ in drawn["broken"]] == [1, 1, 2, 2, 3]
    assert set(drawn["broken"]) == set(drawn["whole"])


def full() -> OSError:
    """What the system says of a full disk."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_gives_one_sentence_and_the_run_goes_on_once_there_is_room(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_small(small_task(tmp_path / "whole", store), "user_wise", ROUNDS)
    expected = what_a_run_left(tmp_path / "whole")
    number, said = 0, set[str]()
    while True:
        number += 4
        task = small_task(tmp_path / str(number), store)
        with dying_at_write(number, torn=True, monkeypatch=monkeypatch, error_fn=full) as writes:
            try:
                run_small(task, "user_wise", ROUNDS)
            except REFUSALS as error:
                said.add(sentence(error))
        if len(writes) < number:
            break
        run_small(resumed(task), "user_wise", ROUNDS)
        assert what_a_run_left(task.folder) == expected
    assert said
    assert all("No space left on device; make room and start again" in one for one in said)


@pytest.mark.skipif(os.geteuid() != 0, reason="making a small disk needs root")
def test_a_really_full_disk_gives_one_sentence_and_the_run_goes_on_once_there_is_room(
    tmp_path: Path, store: TokenStore
) -> None:
    run_small(small_task(tmp_path / "whole", store), "user_wise", ROUNDS)
    expected = what_a_run_left(tmp_path / "whole")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        failed_at = set[str]()
        for free in range(0, 120, 8):
            task = small_task(disk / "run", store)
            filler = disk / "filler"
            filler.write_bytes(bytes((1024 - 4 * 4 - free) * 1024))
            try:
                run_small(task, "user_wise", ROUNDS)
            except REFUSALS as error:
                said = sentence(error)
                failed_at.add(Path(said.split(":")[0]).name if "No space left on device" in said else said)
            filler.unlink()
            run_small(resumed(task), "user_wise", ROUNDS)
            assert what_a_run_left(task.folder) == expected
            shutil.rmtree(task.folder)
        assert len(failed_at) > 3, "the disk should have been full at several places"
        assert all(" " not in place for place in failed_at), "something else was said than which file found no room"
    finally:
        subprocess.run(["umount", str(disk)], check=True)
