"""Runs that have one key, in a folder or a sweep, and jobs that were moved, removed or run anew."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.folder import RunFolder
from fedsim_userdp.mechanisms.keys import RunKeys, mark_of_draw
from fedsim_userdp.mechanisms.persistence import check_saved
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import PoissonSelector
from tests.simulations.small_runs import (
    MECHANISMS,
    dies_after_release,
    os_noise,
    resumed,
    run_small,
    small_run,
    with_changes,
)
from tests.simulations.test_rounds_done_again import OTHER_KEY, FailsOnce

pytestmark = pytest.mark.usefixtures("quick_accounting")


def test_two_jobs_of_one_seed_of_which_one_lost_a_node_promise_nothing_together(
    tmp_path: Path, store: TokenStore
) -> None:
    def job(name: str, failing: int) -> float | None:
        run = small_run(tmp_path / name, store, selector=PoissonSelector(1.0), engine=FailsOnce(failing))
        outcome = run_small(with_changes(run, sweep=tmp_path), write_results=False)
        folder = RunFolder(run.place.folder, Console(file=io.StringIO()), ("small", "small"), tmp_path)
        folder.add(outcome)
        return json.loads((tmp_path / "privacy.json").read_text())["joint"]["epsilon"]

    alone = job("0", failing=0)
    assert alone is not None
    assert job("1", failing=0) == alone, "the same release again"
    assert job("2", failing=2) is None
    assert "both together promise nothing" in (tmp_path / "PRIVACY.md").read_text()


def test_what_runs_of_one_noise_have_in_common_tests_no_guess_of_the_key(tmp_path: Path) -> None:
    one, other, secret = RunKey.seeded(0, "a"), RunKey.seeded(0, "b"), RunKey.drawn()
    marks = [mark_of_draw(tmp_path / folder, key) for folder in ("x", "y") for key in (one, one, other)]
    assert [marks.index(mark) for mark in marks] == [0, 0, 2, 3, 3, 5]
    assert len({mark.partition(":")[2] for mark in marks}) == 4, "nothing of a mark follows from the key alone"
    assert mark_of_draw(tmp_path / "x", secret) == mark_of_draw(tmp_path / "y", secret), "no guess of 256 random bits"
    assert secret.secret.hex() not in mark_of_draw(tmp_path / "x", secret)
    assert len({mark.partition(":")[0] for mark in marks}) == 2, "whose marks can be compared"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(files)] == [
        "x/not_private/draws.json", "y/not_private/draws.json"
    ]  # fmt: skip
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)


def test_a_comparison_that_is_stopped_names_what_it_has_not_counted(tmp_path: Path, store: TokenStore) -> None:
    folder = RunFolder(
        tmp_path,
        Console(file=io.StringIO()),
        ("small", "small"),
        planned=["user_wise, seed 0", "b", "c"],
    )
    folder.add(run_small(small_run(tmp_path, store), write_results=False))
    assert json.loads((tmp_path / "privacy.json").read_text())["unfinished"] == ["b", "c"]
    assert "NOT counted, since they had not ended: b; c." in (tmp_path / "PRIVACY.md").read_text()


def add_job(sweep: Path, name: str, run: Run) -> dict[str, Any]:
    """Adds a finished run to a sweep; returns the sweep's joint statement."""
    folder = RunFolder(sweep / name, Console(file=io.StringIO()), ("small", "small"), sweep)
    folder.add(run_small(with_changes(run, folder=sweep / name, sweep=sweep), write_results=False))
    return dict(json.loads((sweep / "privacy.json").read_text())["joint"])


def test_a_release_that_was_copied_under_way_and_finished_twice_promises_nothing_together(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = os_noise(small_run(tmp_path / "0", store))
    dies_after_release(run, 2, monkeypatch)
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    assert add_job(tmp_path, "0", resumed(run))["epsilon"] is not None
    joint = add_job(tmp_path, "1", resumed(run))
    assert joint["epsilon"] is None
    assert "a folder was copied during the run" in joint["sentences"][0]
    assert add_job(tmp_path, "0", resumed(run))["epsilon"] is None, "its key is gone, what it was is not forgotten"


def test_where_it_cannot_be_told_any_more_whether_two_runs_have_one_noise_nothing_is_promised(
    tmp_path: Path, store: TokenStore
) -> None:
    run = small_run(tmp_path, store)
    assert add_job(tmp_path, "0", run)["epsilon"] is not None
    shutil.rmtree(tmp_path / "not_private")
    joint = add_job(tmp_path, "1", run)
    assert joint["epsilon"] is None
    assert "cannot be told any more" in joint["sentences"][0]


def test_a_job_that_is_gone_is_named_as_not_counted(tmp_path: Path, store: TokenStore) -> None:
    for name in ("0", "1"):
        add_job(tmp_path, name, small_run(tmp_path, store))
    (tmp_path / "0").rename(tmp_path.parent / f"{tmp_path.name} moved")
    add_job(tmp_path, "2", small_run(tmp_path, store))
    assert json.loads((tmp_path / "privacy.json").read_text())["unfinished"] == ["0"]
    assert "are gone: jobs 0." in (tmp_path / "PRIVACY.md").read_text()


def test_a_job_whose_folder_is_a_link_is_counted(tmp_path: Path, store: TokenStore) -> None:
    sweep, elsewhere = tmp_path / "sweep", tmp_path / "elsewhere"
    elsewhere.mkdir()
    sweep.mkdir()
    (sweep / "1").symlink_to(elsewhere)
    alone = add_job(sweep, "0", os_noise(small_run(sweep, store)))
    both = add_job(sweep, "1", os_noise(small_run(sweep, store)))
    assert both["num_runs"] == 2
    assert float(str(both["epsilon"])) > float(str(alone["epsilon"]))


def test_a_copied_release_that_ended_before_it_was_stated_is_known_all_the_same(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key is removed with the last checkpoint; killed then, it goes on with a new one."""
    run = os_noise(small_run(tmp_path / "0", store))
    dies_after_release(run, 2, monkeypatch)
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    assert add_job(tmp_path, "0", resumed(run))["epsilon"] is not None
    run_small(with_changes(resumed(run), folder=tmp_path / "1", sweep=tmp_path), write_results=False)
    again = with_changes(resumed(run), keys=RunKeys.of(RunKey.drawn()))
    assert add_job(tmp_path, "1", again)["epsilon"] is None


def test_a_job_that_went_on_under_changed_settings_is_held_to_both_of_its_keys(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_changes(small_run(tmp_path / "0", store), sweep=tmp_path)
    dies_after_release(run, 2, monkeypatch)
    changed = resumed(run, settings="others", allow_changes=True, keys=RunKeys.of(OTHER_KEY))
    run_small(changed, key=OTHER_KEY, write_results=False)
    alone = add_job(tmp_path, "0", replace(changed, keys=RunKeys.of(OTHER_KEY)))
    assert alone["epsilon"] is not None
    assert len(json.loads((tmp_path / "0" / "privacy.json").read_text())["runs"][0]["draws"]) == 2
    assert add_job(tmp_path, "1", small_run(tmp_path / "1", store))["epsilon"] is None, "rounds 1 and 2 have its noise"


@pytest.mark.parametrize("has_ended", [True, False])
def test_a_job_that_was_removed_and_run_anew_is_named_as_not_counted(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, has_ended: bool
) -> None:
    first = os_noise(small_run(tmp_path / "0", store))
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "run.json").write_text("{}")
    if has_ended:
        add_job(tmp_path, "0", first)
    else:
        dies_after_release(first, 2, monkeypatch)
    add_job(tmp_path, "1", os_noise(small_run(tmp_path / "1", store)))
    shutil.rmtree(tmp_path / "0")
    add_job(tmp_path, "0", os_noise(small_run(tmp_path / "0", store)))
    add_job(tmp_path, "2", os_noise(small_run(tmp_path / "2", store)))
    assert json.loads((tmp_path / "privacy.json").read_text())["unfinished"] == ["0 (as it was before it was run anew)"]
    assert "jobs 0 (as it was before it was run anew)." in (tmp_path / "PRIVACY.md").read_text()


def test_a_job_that_ends_or_is_stated_again_is_no_other_one(tmp_path: Path, store: TokenStore) -> None:
    run = small_run(tmp_path, store)
    for name, again in (("0", run), ("1", run), ("0", resumed(run))):
        add_job(tmp_path, name, again)
    assert json.loads((tmp_path / "privacy.json").read_text())["unfinished"] == []


def test_a_job_that_was_stopped_is_named_at_once(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_job(tmp_path, "0", small_run(tmp_path / "0", store))
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "run.json").write_text("{}")
    dies_after_release(os_noise(with_changes(small_run(tmp_path / "1", store), sweep=tmp_path)), 2, monkeypatch)
    assert json.loads((tmp_path / "privacy.json").read_text())["unfinished"] == ["1"]


@pytest.mark.parametrize("with_checkpoints", [False, True])
def test_a_run_whose_release_is_stated_and_whose_ledger_is_gone_is_not_made_anew(
    tmp_path: Path, store: TokenStore, with_checkpoints: bool
) -> None:
    """It would take the first one's place in the joint statement."""
    run = os_noise(small_run(tmp_path, store, name="user_wise"))
    run_small(run)
    promise = MECHANISMS["user_wise"](rounds=3, records_per_user=2).guarantee(run.study)
    check_saved(resumed(run), promise)
    shutil.rmtree(tmp_path / "ledger")
    if not with_checkpoints:
        shutil.rmtree(tmp_path / "not_private")
    with pytest.raises(ConfigError, match=r"states a release of user_wise, seed 0 that .* does not hold"):
        check_saved(resumed(run), promise)
