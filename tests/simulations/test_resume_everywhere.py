"""A run that dies at any write and is resumed ends as if it had never died; in this process, with a small model."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from fedsim_userdp import __version__
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.guarantee import Target
from fedsim_userdp.mechanisms.keys import RunKeys
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.mechanisms.versions import code_versions
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import PoissonSelector, drawn_cohort
from fedsim_userdp.training.checkpoints import CheckpointError
from fedsim_userdp.training.journal import Journal
from tests.simulations.small_runs import (
    KINDS,
    Killed,
    dies_after_release,
    dying_at_write,
    releases_of,
    result_of,
    resumed,
    run_small,
    small_run,
    small_store,
    what_a_run_left,
    with_changes,
)

ROUNDS = 2
pytestmark = pytest.mark.usefixtures("quick_accounting")


def undisturbed(folder: Path, store: TokenStore, mechanism: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs without a fault; returns its writes."""
    with dying_at_write(10**9, torn=False, monkeypatch=monkeypatch) as writes:
        run_small(small_run(folder, store), mechanism, ROUNDS)
    return writes


def dies_everywhere(
    tmp_path: Path, store: TokenStore, mechanism: str, monkeypatch: pytest.MonkeyPatch, kinds: Sequence[str] = KINDS
) -> None:
    """Dies at every write of these kinds in turn, before it and in the middle of it, and checks the end of each run."""
    run_small(small_run(tmp_path / "first", store), mechanism, ROUNDS)  # the accounting's answers are cached now
    writes = undisturbed(tmp_path / "whole", store, mechanism, monkeypatch)
    expected = what_a_run_left(tmp_path / "whole")
    assert {"fsync", "replace"} <= set(writes)
    for number in [number for number, kind in enumerate(writes, start=1) if kind in kinds]:
        for torn in (False, True) if writes[number - 1] in ("write", "fsync") else (False,):
            run = small_run(tmp_path / f"{number} {torn}", store)
            with dying_at_write(number, torn=torn, monkeypatch=monkeypatch), pytest.raises(Killed):
                run_small(run, mechanism, ROUNDS)
            run_small(resumed(run), mechanism, ROUNDS)
            left = what_a_run_left(run.place.folder)
            different = [name for name in expected if left.get(name) != expected[name]]
            assert not different, f"died at write {number} ({writes[number - 1]}, torn: {torn}): {different}"
            assert left.keys() == expected.keys()
            assert not list(run.place.folder.rglob(".*")), "something temporary was left behind"


def test_a_run_that_dies_at_any_write_ends_as_if_it_had_not(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies_everywhere(tmp_path, store, "user_wise", monkeypatch, ("write", "fsync", "rename", "replace"))


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["user_wise", "user_wise_adaptive", "group_privacy", "non_private"])
def test_every_mechanism_that_dies_at_any_change_of_a_file_ends_as_if_it_had_not(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, mechanism: str
) -> None:
    dies_everywhere(tmp_path, store, mechanism, monkeypatch)


def test_a_checkpoint_of_other_settings_data_or_code_is_refused_with_the_difference(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path / "run", store)
    run_small(run)
    other = small_store(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"settings was the settings and is others.*allow_changes=true"):
        run_small(resumed(run, settings="others"))
    for allow_changes in (False, True):
        changed = resumed(run, store=other, fingerprint={"data": "other"}, allow_changes=allow_changes)
        with pytest.raises(CheckpointError, match=r"data was absent and is other.*data cannot change within a run"):
            run_small(changed)
    with monkeypatch.context() as patch:
        patch.setattr("fedsim_userdp.mechanisms.run.code_versions", lambda: {**code_versions(), "fedsim_userdp": "9.9"})
        with pytest.raises(CheckpointError, match=rf"fedsim_userdp was {__version__} and is 9.9"):
            run_small(resumed(run))


def test_changes_can_be_allowed_but_not_of_the_promise(
    tmp_path: Path, store: TokenStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path, store)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", stopping_after(2, Journal.append))
        with pytest.raises(Killed):
            run_small(run)
    changed = resumed(run, settings="others", allow_changes=True)
    released = {"noise_source": "os", "keys": RunKeys.of(RunKey.drawn())}
    for wrong in ({"target": Target(4.0, 0.05)}, released, {"selector": PoissonSelector(0.5)}):
        with pytest.raises(CheckpointError, match=r"its ledger would be wrong|another noise.source"):
            run_small(with_changes(changed, **wrong))
    run_small(changed)
    assert "settings was the settings and is others" in caplog.text
    assert releases_of(run)[0] == (1, 2, 3)
    assert result_of(run)["rounds"] == 3
    assert [row["round"] for row in rounds_of(run)] == ["0", "1", "2"], "the third was released with other settings"


def rounds_of(run: Run) -> list[dict[str, str]]:
    with (run.place.folder / "not_private" / "rounds.csv").open() as file:
        return list(csv.DictReader(file))


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
    run = small_run(tmp_path, store)
    run_small(run)
    before = what_a_run_left(tmp_path)
    with pytest.raises(ConfigError, match="holds a run already: go on with it, or choose"):
        run_small(run)
    assert what_a_run_left(tmp_path) == before


@pytest.mark.parametrize("damage", ["state.safetensors", "checkpoint.json", "rounds.jsonl"])
def test_a_damaged_checkpoint_costs_a_round_and_a_damaged_journal_is_refused(
    tmp_path: Path, store: TokenStore, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = small_run(tmp_path, store)
    run_small(run)
    before = what_a_run_left(tmp_path)
    place = tmp_path / "not_private" / "checkpoints" / "user_wise-seed0"
    file = place / damage if damage == "rounds.jsonl" else place / "round-00000003" / damage
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    if damage == "rounds.jsonl":
        with pytest.raises(CheckpointError, match=r"rounds\.jsonl is missing or was changed"):
            run_small(resumed(run))
        return
    run_small(resumed(run))
    assert what_a_run_left(tmp_path) == before
    assert "round-00000003 is damaged" in caplog.text


def test_a_run_ends_with_the_same_cohorts_however_often_it_dies(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[tuple[int, tuple[int, ...]]]] = {"whole": [], "broken": []}

    def watch(name: str) -> Callable[..., np.ndarray]:
        def cohort(probabilities: np.ndarray, ids: np.ndarray, round: int, key: RunKey) -> np.ndarray:
            chosen = drawn_cohort(probabilities, ids, round, key)
            drawn[name].append((round, tuple(chosen.tolist())))
            return chosen

        return cohort

    for name in drawn:
        run = small_run(tmp_path / name, store)
        with monkeypatch.context() as patch:
            patch.setattr("fedsim_userdp.participation.drawn_cohort", watch(name))
            if name == "broken":
                dies_after_release(run, 1, monkeypatch)
                dies_after_release(resumed(run), 2, monkeypatch)
                run = resumed(run)
            run_small(run)
    assert [round for round, _ in drawn["broken"]] == [1, 1, 2, 2, 3, 1], "the first again, for who took part in all"
    assert set(drawn["broken"]) == set(drawn["whole"])
