"""`fedsim audit` as a user runs it; what trains a model is marked slow."""

import csv
import json
from functools import partial
from pathlib import Path

import pytest

from fedsim_userdp.mechanisms.keys import RunKeys
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.simulations import auditor
from fedsim_userdp.simulations.cli import run_command
from tests.audit import bugs

SMALL = [
    "audit.canaries.direction=60",
    "audit.canaries.oversized=60",
    "audit.canaries.many_records=60",
    "audit.candidates=32768",
    "evaluation.records_per_user=1",
]

WRONG = {
    "audit.epsilons=8": "audit.epsilons",
    "audit.epsilons=[0]": "audit.epsilons",
    "audit.epsilons=[8,3,8.0000001]": "names epsilon 8 twice",
    "audit.confidence=1": "audit.confidence",
    "audit.candidates=1000": "audit.candidates",
    "audit.real_users=0": "audit.real_users",
    "audit.real_users=100000": "audit.real_users",
    "audit.canaries.direction=-1": "audit.canaries.direction",
    "+audit.canaries.yellow=1": "audit.canaries.yellow",
    "privacy.delta=1e-3": "privacy.delta",
    "mechanism=group_privacy": "user_wise",
    "mechanism=user_wise_adaptive": "only user_wise can be audited",
    "engine=flower": "engine=in_process",
    "split.heldout_users=0": "split.heldout_users",
    "audit.nosuch=1": "nosuch",
}


def audit(folder: Path, *arguments: str) -> int:
    try:
        return run_command("audit", [f"output_dir={folder}", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_setting_gives_one_sentence_and_exit_code_2(
    override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = audit(tmp_path / "run", override)
    message = capsys.readouterr().err.strip()
    assert code == 2
    assert message.startswith("fedsim: ")
    assert "\n" not in message
    assert WRONG[override] in message


@pytest.mark.slow
def test_the_folder_holds_the_numbers_the_figure_and_what_an_audit_cannot_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert audit(folder, *SMALL, "audit.epsilons=[8,inf]") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "It cannot confirm" in shown or "it cannot confirm" in shown
    assert "not refuted" in shown
    report = json.loads((folder / "audit.json").read_text())
    assert "cannot confirm" in report["limits"]
    assert [claim["target_epsilon"] for claim in report["claims"]] == [8.0, None]
    correct, without_noise = report["claims"]
    assert 7.9 < correct["claimed_epsilon"] <= 8
    assert without_noise["claimed_epsilon"] is None
    assert max(test["lower_bound"] for test in without_noise["tests"]) > 10
    for claim in report["claims"]:
        assert claim["num_users"] == 100 + 180
        assert 0.3 < claim["auc"] < 0.8
        assert claim["auc_interval"][0] < claim["auc"] < claim["auc_interval"][1]
        assert sum(kind["planted"] for kind in claim["canaries"].values()) == 180
        assert "cohorts recomputed" in claim["observer"]
    assert "promises nothing towards whoever knows or guesses the seed" in correct["observer"]
    assert "noise recomputed" in correct["observer"]
    assert "No claim rests on it" in without_noise["observer"]
    with (folder / "audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == ["not refuted"] * 2 + ["no claim"] * 2
    assert {row["significance"] for row in rows} == {"0.012500000000000011"}
    assert (folder / "audit.png").stat().st_size > 20_000
    assert len((folder / "ledger" / "audit-epsilon8-seed0.jsonl").read_text().splitlines()) == 18


@pytest.mark.slow
def test_of_a_release_an_observer_of_what_is_published_gains_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert audit(folder, *SMALL, "audit.epsilons=[8]", "noise.source=os") == 0
    (claim,) = json.loads((folder / "audit.json").read_text())["claims"]
    assert claim["observer"].endswith("Nothing is gained from it.")
    assert min(claim["observed"]["cohort_p"], claim["observed"]["noise_p"]) > 1e-6


@pytest.mark.slow
def test_a_release_whose_cohorts_follow_from_the_seed_is_refuted_by_the_observer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def published(one: auditor.Auditor, epsilon: float) -> RunKeys:
        return RunKeys.of(RunKey.seeded(one._run.study.seed, one._identity(epsilon)))

    monkeypatch.setattr(auditor.Auditor, "_keys", published)
    assert audit(tmp_path / "run", *SMALL, "audit.epsilons=[8]", "noise.source=os") == 1


def planted(name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Plants a mistake in the real command; returns the overrides that go with it."""
    if name in ("TenthOfTheNoise", "NoClipping", "WeightedByData"):
        run = partial(auditor.AuditedRun, strategy_fn=getattr(bugs, name))
        monkeypatch.setattr(auditor, "AuditedRun", run)
        return ["engine.num_nodes=null"] if name == "WeightedByData" else []
    if name == "ClipsEveryRecord":
        monkeypatch.setattr(auditor, "Worker", bugs.ClipsEveryRecord)
        return []
    if name == "SameNoise":
        monkeypatch.setattr("fedsim_userdp.mechanisms.run.SeededNoise", bugs.SameNoise)
        return []
    return [f"selection._target_=tests.audit.bugs.{name}"]


NAMES = ["TenthOfTheNoise", "NoClipping", "WeightedByData", "ClipsEveryRecord", "SameNoise"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_planted_mistake_in_the_real_command_is_caught_and_ends_with_exit_code_1(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = planted(name, monkeypatch)
    code = audit(tmp_path / "run", "evaluation.records_per_user=1", "audit.epsilons=[3]", *overrides)
    assert code == 1
    assert "REFUTED at 95% confidence: epsilon" in capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "audit.json").read_text())
    assert max(test["lower_bound"] for test in report["claims"][0]["tests"]) > 3


@pytest.mark.slow
def test_a_selector_that_draws_otherwise_than_it_declares_is_stopped_before_it_could_be_audited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    override = "selection._target_=tests.audit.bugs.SomeAlways"
    assert audit(tmp_path / "run", "evaluation.records_per_user=1", "audit.epsilons=[3]", override) == 2
    assert "SomeAlways declared that each user takes part with probability" in capsys.readouterr().err
