"""`fedsim budget` as a user runs it."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.budget import MECHANISMS, BudgetSetting, ClipNorms, plan, sweep
from fedsim_userdp.privacy.figures import rounded_up
from fedsim_userdp.report.budget import in_words, sweep_in_words
from fedsim_userdp.simulations.budget import parse_sweep, quoted_sweep
from fedsim_userdp.simulations.cli import run_command
from tests.known import known

SMALL = ["budget.num_users=200", "budget.rounds=10", "budget.cohort=20", "budget.records_per_user=4"]
FRAMEWORKS = ("torch", "flwr", "transformers", "peft", "opacus", "ray")


def budget(folder: Path, *overrides: str) -> int:
    """The exit code of the command in this process."""
    return run_command("budget", [*SMALL, f"output_dir={folder}", *overrides])


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_one_setting_takes_under_10_seconds_uncached_and_imports_no_framework(tmp_path: Path) -> None:
    code = (
        "import sys; from fedsim_userdp.simulations.cli import run_command\n"
        "assert run_command('budget', ['output_dir=plan']) == 0\n"
        f"print('imported', [name for name in {FRAMEWORKS} if name in sys.modules])"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "imported []" in done.stdout
    assert time.perf_counter() - start < 10


def test_a_bare_sweep_on_the_command_line_writes_csv_json_and_plot(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedsim_userdp.simulations.cli", "budget", *SMALL, "output_dir=my plan"]
    done = subprocess.run(
        [*command, "budget.sweep=records_per_user:1,2,5"],
        cwd=tmp_path, env=os.environ, text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "my plan"
    with (folder / "budget.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["records_per_user"], row["mechanism"]) for row in rows] == [
        (k, name) for k in ("1", "2", "5") for name in MECHANISMS
    ]
    stored = json.loads((folder / "budget.json").read_text())
    assert stored["axis"] == "records_per_user"
    assert [row["noise_stddev"] for row in stored["rows"]] == [float(row["noise_stddev"]) for row in rows]
    assert (folder / "budget.png").stat().st_size > 10_000
    assert "…" not in done.stdout
    for name in MECHANISMS:
        assert name in done.stdout


def test_the_files_hold_what_planning_computes(tmp_path: Path) -> None:
    clip = ["budget.clip_norm.user_wise=0.3", "budget.clip_norm.group_privacy=0.5"]
    assert budget(tmp_path / "plan", *clip, "privacy.epsilon=2", "privacy.delta=1e-4") == 0
    clip_norms = ClipNorms(user_wise=0.3, group_privacy=0.5)
    expected = plan(BudgetSetting(200, 4, 10, 2.0, delta=1e-4, cohort=20.0, clip_norms=clip_norms))
    stored = json.loads((tmp_path / "plan" / "budget.json").read_text())
    assert [row["noise_stddev"] for row in stored["rows"]] == [row.noise_stddev for row in expected]
    assert stored["in_words"] == in_words(expected)


def test_sampling_prob_is_taken_instead_of_the_default_cohort(tmp_path: Path) -> None:
    assert run_command("budget", ["budget.rounds=5", "budget.sampling_prob=0.2", f"output_dir={tmp_path / 'p'}"]) == 0
    rows = json.loads((tmp_path / "p" / "budget.json").read_text())["rows"]
    assert {(row["sampling_prob"], row["cohort"]) for row in rows} == {(0.2, 200.0)}


def test_the_words_name_who_adds_less_noise_and_the_factor_that_ties() -> None:
    rows = plan(BudgetSetting(1000, 10, 200, 3.0, cohort=50.0))
    words = " ".join(in_words(rows))
    assert "At equal clip norm example_level_tight adds the least noise" in words
    for row in rows[1:]:
        assert f"user_wise ties with {row.mechanism} where its clip norm is {row.tie_ratio:.2f} times smaller" in words
    assert "user_wise wins only through that" in words
    assert "sqrt(k) = 3.16" in words


def test_the_words_say_when_averaging_cannot_make_up_for_the_noise() -> None:
    rows = plan(BudgetSetting(100_000, 10, 200, 3.0, cohort=50.0))
    assert known(rows[-1].tie_ratio) > 10**0.5
    assert "more than averaging gives" in " ".join(in_words(rows))


def test_the_words_do_not_favour_anyone_within_the_accuracy_of_calibration() -> None:
    rows = plan(BudgetSetting(1000, 10, 200, 3.0, sampling_prob=1.0))
    words = " ".join(in_words(rows))
    assert "user_wise and example_level_tight add the least noise" in words
    assert "user_wise has less noise than group_privacy even at" in words
    assert "user_wise ties with example_level_tight at equal clip norm" in words


def test_the_words_about_one_record_a_user_say_that_nothing_differs() -> None:
    assert "all add the same noise" in in_words(plan(BudgetSetting(1000, 1, 200, 3.0, cohort=50.0)))[0]


def test_the_words_of_a_sweep_give_the_factor_at_every_value() -> None:
    plans = sweep(BudgetSetting(1000, 10, 20, 3.0, cohort=50.0), "epsilon", [1.0, 3.0])
    overall = sweep_in_words(plans, "epsilon")[0]
    for rows, value in zip(plans, ("1", "3"), strict=True):
        assert f"{rows[-1].tie_ratio:.2f} at {value}" in overall


def test_a_target_that_nobody_can_meet_is_reported_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ["privacy.epsilon=1e-9", "privacy.delta=1e-9", "budget.rounds=1000000000", "budget.cohort=200"]
    assert budget(tmp_path / "plan", *target) == 0
    said = capsys.readouterr().out
    assert all(f"{name} has no answer" in said for name in MECHANISMS)
    assert (tmp_path / "plan" / "budget.png").is_file()


WRONG = {
    "privacy.epsilon=0": "privacy.epsilon",
    "privacy.epsilon=inf": "privacy.epsilon",
    "privacy.epsilon=many": "privacy.epsilon",
    "privacy.delta=0": "privacy.delta",
    "privacy.delta=1": "privacy.delta",
    "privacy.delta=0.01": "privacy.delta must be at most 1/num_users",
    "privacy.delta=small": "privacy.delta",
    "budget.num_users=1": "budget.num_users",
    "budget.num_users=many": "budget.num_users",
    "budget.num_users=null": "budget.num_users",
    "budget.records_per_user=0": "budget.records_per_user",
    "budget.records_per_user=2.5": "budget.records_per_user",
    "budget.rounds=0": "budget.rounds",
    "budget.cohort=0": "budget.cohort",
    "budget.cohort=201": "budget.cohort must be at most num_users = 200",
    "budget.cohort=null": "budget.cohort",
    "budget.sampling_prob=0.5": "budget.cohort and budget.sampling_prob",
    "budget.clip_norm.user_wise=0": "budget.clip_norm.user_wise",
    "budget.clip_norm.nobody=1": "nobody",
    "budget.nosuch=1": "nosuch",
    "budget.sweep=records_per_user": "budget.sweep",
    "budget.sweep=records_per_user:": "budget.sweep",
    "budget.sweep=records_per_user:1,,2": "budget.sweep",
    "budget.sweep=records_per_user:1,x": "budget.sweep",
    "budget.sweep=records_per_user:1,2.5": "budget.sweep",
    "budget.sweep=records_per_user:0,1": "budget.sweep",
    "budget.sweep=1,2,3": "budget.sweep",
    "budget.sweep=[1,2]": "budget.sweep",
    "budget.sweep=it's:1,2": "budget.sweep",
    "budget.sweep=delta:1,2": "expected one of",
    "budget.sweep=cohort:20,201": "budget.sweep",
    "budget.sweep=epsilon:1,nan": "budget.sweep",
    "output_dir=/proc/nosuch/plan": "/proc/nosuch",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_setting_gives_one_sentence_that_names_the_key_and_exit_code_2(
    override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        sys.exit(budget(tmp_path / "plan", override))
    message = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert message.startswith("fedsim: ")
    assert "\n" not in message
    assert WRONG[override] in message
    assert not (tmp_path / "plan" / "budget.csv").exists()


def test_a_sweep_is_read_as_axis_and_values() -> None:
    assert parse_sweep("records_per_user:1,2,5") == ("records_per_user", [1, 2, 5])
    assert parse_sweep("epsilon:0.5, 1e1") == ("epsilon", [0.5, 10.0])
    assert parse_sweep(None) == (None, [])
    with pytest.raises(ConfigError, match="nosuch"):
        parse_sweep("nosuch:1,2")


def test_only_a_bare_sweep_with_commas_is_put_in_quotes() -> None:
    assert quoted_sweep("budget.sweep=epsilon:1,3") == "budget.sweep='epsilon:1,3'"
    for argument in ("budget.sweep='epsilon:1,3'", "budget.sweep=epsilon:1", "privacy.epsilon=1,3", "--multirun"):
        assert quoted_sweep(argument) == argument


def test_a_large_delta_and_a_target_that_is_not_met_are_said() -> None:
    setting = BudgetSetting(num_users=7, records_per_user=1, rounds=3, epsilon=1e6, cohort=3.0)
    words = " ".join(in_words(plan(setting)))
    assert "one user in 8 could be published whole" in words
    assert "35,112 users" in words
    assert "epsilon 1e+06 was asked for and" in words
    usual = " ".join(in_words(plan(BudgetSetting(1000, 1, 3, 8.0, cohort=30.0))))
    assert "published whole" not in usual
    assert "asked for" not in usual


def test_a_sweep_says_the_largest_delta_once() -> None:
    setting = BudgetSetting(num_users=7, records_per_user=1, rounds=3, epsilon=8.0, cohort=3.0)
    words = " ".join(sweep_in_words(sweep(setting, "num_users", [7, 10_000]), "num_users"))
    assert words.count("published whole") == 1
    assert "one user in 8 could" in words


def test_a_plan_has_three_files_and_a_late_refusal_leaves_none(tmp_path: Path) -> None:
    assert budget(tmp_path / "plan") == 0
    assert sorted(path.name for path in (tmp_path / "plan").iterdir()) == ["budget.csv", "budget.json", "budget.png"]
    with pytest.raises(SystemExit):
        budget(tmp_path / "refused", "budget.sweep=nothing:1")
    assert not (tmp_path / "refused").exists()


def budget_of(folder: Path, *arguments: str) -> dict[str, Any]:
    """What `fedsim budget` plans, by its files."""
    assert run_command("budget", [*arguments, f"output_dir={folder}"]) == 0
    found: dict[str, Any] = json.loads((folder / "budget.json").read_text())
    return found


def test_a_selection_is_planned_for_with_its_noise_and_epsilon_by_group(tmp_path: Path) -> None:
    rows = "".join(f"u{user},{'a' if user < 6 else 'b' if user < 30 else 'c'}\n" for user in range(100))
    (tmp_path / "users.csv").write_text("user_id,region\n" + rows)
    found = budget_of(
        tmp_path / "plan", "selection=stratified", f"selection.public={tmp_path / 'users.csv'}",
        "selection.users_per_group=3", "budget.rounds=20", "budget.records_per_user=4",
    )  # fmt: skip
    of_users = found["rows"][0]
    groups = tuple(((3 / size, 1.0, 20),) for size in (6, 24, 70))
    release = acc.PoissonGroups(1.0, groups, acc.Adjacency.ZERO_OUT_USER)
    run = acc.calibrate(release, epsilon=8.0, delta=of_users["delta"])
    assert of_users["noise_multiplier"] == pytest.approx(run.noise_multiplier, rel=1e-6)
    assert (of_users["num_users"], of_users["cohort"]) == (100, pytest.approx(9.0))
    assert found["rows"][1]["sampling_prob"] == pytest.approx(0.09)  # records as often in the mean
    said = " ".join(found["in_words"])
    for size, epsilon in zip((6, 24, 70), acc.epsilons_by_group(run, of_users["delta"]), strict=True):
        assert f"{size} users of region" in said
        assert rounded_up(epsilon) in said


def test_growing_cohorts_need_less_noise_than_the_largest_throughout(tmp_path: Path) -> None:
    common = ["budget.rounds=200", "privacy.epsilon=3", "privacy.delta=1e-5"]
    grown = budget_of(
        tmp_path / "a", "selection=growing", "selection.first_prob=0.02", "selection.last_prob=0.2", *common
    )
    constant = budget_of(tmp_path / "b", "budget.sampling_prob=0.2", *common)
    ratio = constant["rows"][0]["noise_multiplier"] / grown["rows"][0]["noise_multiplier"]
    assert ratio == pytest.approx(1.57, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["selection=stratified"], "column"),
        (["selection=growing", "budget.cohort=5"], "budget.cohort has no effect beside a selection"),
        (["selection=growing", "budget.sweep=epsilon:1,2"], "budget.sweep cannot be combined with a selection"),
        (["selection=poisson", "selection.public=nowhere.csv"], "nowhere.csv"),
        (["selection=poisson", "selection.public_columns=[region]"], "selection.public_columns needs a corpus"),
        (["selection=nosuch"], "nosuch"),
    ],
)
def test_a_selection_that_cannot_be_planned_for_is_refused(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_command("budget", [*arguments, f"output_dir={tmp_path / 'plan'}"])
    assert words in capsys.readouterr().err
    assert not (tmp_path / "plan").exists()
