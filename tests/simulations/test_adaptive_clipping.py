"""Whole runs whose clip norm adapts itself: what they promise, pay for, write down and go on with."""

import csv
import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.guarantee import Target, calibrated
from fedsim_userdp.mechanisms.user_wise_adaptive import UserWiseAdaptive
from fedsim_userdp.participation import declared_release
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.ledger import Ledger
from fedsim_userdp.selection import ClientSelector, CyclicSelector, FixedSizeSelector, PoissonSelector
from fedsim_userdp.training.checkpoints import CheckpointError
from tests.simulations.small_runs import (
    MECHANISMS,
    ROUNDS,
    dies_after_release,
    resumed,
    run_small,
    small_run,
    what_a_run_left,
    with_changes,
)

pytestmark = pytest.mark.usefixtures("quick_accounting")
NAME = "user_wise_adaptive"


def clip_norms(folder: Path) -> list[float]:
    """The clip norm of each round, from the first."""
    with (folder / "not_private" / "rounds.csv").open(newline="") as file:
        return [float(row["clip_norm"]) for row in csv.DictReader(file) if row["round"] != "0"]


@pytest.mark.parametrize("selector", [PoissonSelector(0.4), FixedSizeSelector(4), CyclicSelector(5)])
def test_update_and_count_together_cost_what_the_budget_allows(
    tmp_path: Path, store: TokenStore, selector: ClientSelector
) -> None:
    run = small_run(tmp_path, store, selector=selector)
    outcome = run_small(run, NAME)
    plain = calibrated(declared_release(selector, 1.0, run.study.population, ROUNDS), run.study.target, None, "user")
    release = outcome.statement.release
    assert isinstance(release, acc.AdaptiveClipping)
    assert release.run == plain.release
    assert outcome.row.epsilon == pytest.approx(acc.epsilon(plain.release, 0.05))
    pair = (outcome.row.noise_multiplier**-2 + (2 * release.count_stddev) ** -2) ** -0.5
    assert pair == pytest.approx(plain.noise_multiplier)
    assert outcome.row.noise_multiplier > plain.noise_multiplier * 1.1
    with Ledger.open(tmp_path / "ledger" / f"{NAME}-seed0.jsonl", delta=0.05, run="any") as ledger:
        assert ledger.epsilon() == pytest.approx(outcome.row.epsilon)
        assert ledger.rounds == (1, 2, 3)
    line = json.loads((tmp_path / "ledger" / f"{NAME}-seed0.jsonl").read_text().splitlines()[0])
    assert (line["release"]["type"], line["release"]["count_stddev"]) == ("AdaptiveClipping", release.count_stddev)


def test_the_clip_norm_of_every_round_is_written_down_and_changes(tmp_path: Path, store: TokenStore) -> None:
    outcome = run_small(small_run(tmp_path, store), NAME)
    found = clip_norms(tmp_path)
    assert found[0] == outcome.row.clip_norm == 0.3
    assert len(set(found)) == ROUNDS
    run_small(small_run(tmp_path / "fixed", store), "user_wise")
    assert clip_norms(tmp_path / "fixed") == [0.3] * ROUNDS


def test_without_a_budget_the_count_is_exact(tmp_path: Path, store: TokenStore) -> None:
    run = small_run(tmp_path, store, target=Target(math.inf, 0.05), selector=PoissonSelector(1.0))
    outcome = run_small(run, NAME)
    assert (outcome.row.epsilon, outcome.row.noise_multiplier) == (None, 0.0)
    with (tmp_path / "not_private" / "rounds.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["round"] != "0"]
    for row, after in itertools.pairwise(rows):
        unclipped = 1 - int(row["num_clipped"]) / run.study.num_users
        expected = float(row["clip_norm"]) * math.exp(0.5 - unclipped)
        assert float(after["clip_norm"]) == pytest.approx(expected)


def test_a_run_that_died_goes_on_with_the_clip_norm_that_it_had(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_small(small_run(tmp_path / "whole", store), NAME)
    run = small_run(tmp_path / "broken", store)
    dies_after_release(run, 3, monkeypatch, NAME)
    run_small(resumed(run), NAME)
    assert what_a_run_left(tmp_path / "broken") == what_a_run_left(tmp_path / "whole")


@pytest.mark.parametrize("clip_norm", [None, 0.0, math.inf, "0.3"])
def test_a_checkpoint_without_a_clip_norm_is_refused(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, clip_norm: object
) -> None:
    run = small_run(tmp_path, store)
    dies_after_release(run, 3, monkeypatch, NAME)
    real = type(run.checkpoints).latest

    def latest(folder: object) -> object:
        found = real(folder)  # type: ignore[arg-type]
        assert found is not None
        return dataclasses.replace(found, notes={**found.notes, "clip_norm": clip_norm})

    monkeypatch.setattr(type(run.checkpoints), "latest", latest)
    with pytest.raises(CheckpointError, match=r"the checkpoint of round 2 in .* has no clip norm"):
        run_small(resumed(run), NAME)


def test_more_noise_on_the_count_than_the_budget_asks_for_is_a_choice_and_less_is_refused(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = small_run(tmp_path, store)
    needed = calibrated(
        declared_release(usual.study.selector, 1.0, usual.study.population, ROUNDS), usual.study.target, None, "user"
    ).noise_multiplier

    def run(count_stddev: float, folder: str) -> float:
        made = MECHANISMS[NAME]
        monkeypatch.setitem(MECHANISMS, NAME, lambda **settings: made(**settings, count_stddev=count_stddev))
        try:
            return run_small(with_changes(usual, folder=tmp_path / folder), NAME).row.noise_multiplier
        finally:
            monkeypatch.setitem(MECHANISMS, NAME, made)

    assert run(100 * needed, "much") == pytest.approx(needed, rel=1e-4)
    assert run(0.6 * needed, "little") > 1.5 * needed
    with pytest.raises(ConfigError, match=r"mechanism\.count_stddev=.* must be above .*, half of the noise multiplier"):
        run(0.5 * needed, "too little")


@pytest.mark.parametrize(
    "wrong", [{"target_quantile": 0.0}, {"target_quantile": 1.0}, {"clip_learning_rate": 0.0}, {"count_stddev": -1.0}]
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))}="):
        UserWiseAdaptive(name=NAME, rounds=1, records_per_user=1, learning_rate=0.1, clip_norm=0.3, **wrong)
