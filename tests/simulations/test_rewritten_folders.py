"""`fedsim verify`: what was rewritten in several files at once and cannot be true is found."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fedsim_userdp import cache
from fedsim_userdp.mechanisms.run_files import tokenizer_digest
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.report.files import write_results
from fedsim_userdp.report.model_card import AdapterOrigin, model_card
from fedsim_userdp.report.privacy_files import PrivacyFile, read_privacy, write_privacy
from fedsim_userdp.simulations.cli import run_command
from fedsim_userdp.simulations.configured_claims import differences
from fedsim_userdp.simulations.configured_runs import configured
from fedsim_userdp.simulations.result_checks import result_rows
from tests.simulations.corpora import small_settings, write_jsonl
from tests.simulations.verified import change_json, change_text, configure, problems

MECHANISMS = ["zero_shot", "user_wise", "group_privacy", "record_level", "non_private"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpus")
    return small_settings(write_jsonl(folder / "corpus.jsonl"), folder / "cache", rounds=2)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Path:
    """The folder of a comparison whose settings were searched."""
    folder = tmp_path_factory.mktemp("compare") / "run"
    names = f"compare.mechanisms=[{','.join(MECHANISMS)}]"
    searched = "tuned.searched={data:jsonl,runs:41}"
    assert run_command("compare", [*settings, names, searched, f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Path:
    """The folder of one run of group privacy."""
    folder = tmp_path_factory.mktemp("run") / "run"
    assert run_command("run", [*settings, "mechanism=group_privacy", f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture
def run(compared: Path, tmp_path: Path) -> Path:
    """A copy of the comparison's folder."""
    return Path(shutil.copytree(compared, tmp_path / "run"))


@pytest.fixture
def single(grouped: Path, tmp_path: Path) -> Path:
    """A copy of the folder of one run."""
    return Path(shutil.copytree(grouped, tmp_path / "single"))


def restate(folder: Path, mechanism: str, **changes: Any) -> None:
    """Changes a statement, and writes page and card anew from it."""
    content = read_privacy(folder)
    assert isinstance(content, PrivacyFile)
    runs = [
        replace(one, statement=replace(one.statement, **changes)) if one.statement.mechanism == mechanism else one
        for one in content.runs
    ]
    write_privacy(folder, runs)
    adapter = folder / "adapters" / mechanism
    if adapter.exists():
        base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
        row, one = next(pair for pair in zip(result_rows(folder), runs, strict=True) if pair[0].mechanism == mechanism)
        tokenizer = tokenizer_digest(adapter)
        origin = AdapterOrigin(base, "tiny", "jsonl", is_on_hub=False, tokenizer=tokenizer)
        card = model_card(row, one.statement, origin)
        (adapter / "README.md").write_text(card)


def test_what_is_written_anew_without_a_change_agrees(run: Path) -> None:
    for name in MECHANISMS:
        restate(run, name)
    assert problems(run) == []


@pytest.mark.parametrize(
    ("mechanism", "changes"),
    [
        ("user_wise", {"num_searched": 1}),
        ("user_wise", {"searched_by": "another search"}),
        ("user_wise", {"not_private": ("logs",)}),
        ("user_wise", {"fresh_records": False}),
        ("group_privacy", {"fresh_records": True}),
        ("user_wise", {"window": 8}),
        ("user_wise", {"window": None}),
        ("user_wise", {"num_lost": 1}),
        ("user_wise", {"num_users": 50_000}),
        ("zero_shot", {"num_users": 50_000}),
        ("user_wise", {"precision": "float16"}),
        ("user_wise", {"public": ("the settings of the run",)}),
        ("user_wise", {"foreign": ("my.Selector, which is proven right",)}),
        ("user_wise", {"evaluated_on": "validation"}),
        ("user_wise", {"selector": "my.Selector"}),
        ("user_wise", {"users": "an id in column 'thread_id' of a table"}),
        ("user_wise", {"method": "rdp"}),
        ("user_wise", {"release": acc.HyperparameterSearch(acc.PoissonUsers(3.0, 0.3, 2), 2.0)}),
        ("group_privacy", {"release": acc.PoissonUsers(3.0, 0.3, 2), "method": None}),
        ("group_privacy", {"ownership": "declared"}),
        ("group_privacy", {"method": "tight"}),
        ("record_level", {"level": "user", "method": "tight"}),
        ("non_private", {"target_epsilon": 1.0}),
        ("non_private", {"noise_source": "os"}),
        ("non_private", {"rounds": 1}),
    ],
)
def test_a_statement_that_its_configuration_contradicts_is_found(
    run: Path, mechanism: str, changes: dict[str, Any]
) -> None:
    restate(run, mechanism, **changes)
    assert any(mechanism in text or "same users" in text for text in problems(run))


@pytest.mark.parametrize(
    ("mechanism", "key", "value"),
    [
        ("group_privacy", "epsilon_tight", 0.1),
        ("group_privacy", "epsilon_record", 0.1),
        ("user_wise", "epsilon_record", 0.1),
        ("record_level", "guarantee", "user level (neighbours: one user), accountant tight"),
        ("non_private", "guarantee", "user level"),
        ("user_wise", "target_epsilon", 1.0),
        ("record_level", "unit", "user"),
        ("non_private", "unit", "user"),
        ("user_wise", "not_private", "nothing"),
        ("user_wise", "evaluated_on", "validation"),
        ("user_wise", "records_per_user", 1),
        ("user_wise", "sampling_prob", 0.1),
        ("user_wise", "learning_rate", 1.0),
        ("non_private", "rounds", 1),
    ],
)
def test_results_that_the_statement_contradicts_are_found(run: Path, mechanism: str, key: str, value: Any) -> None:
    rows = [replace(row, **{key: value}) if row.mechanism == mechanism else row for row in result_rows(run)]
    write_results(run, rows)
    assert any(text.startswith("results.json") and key in text for text in problems(run))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tuned.rounds", 9),
        ("records.fresh", False),
        ("records._target_", "elsewhere.Records"),
        ("model.dtype", "bfloat16"),
        ("model.autocast", "bfloat16"),
        ("model.path", "gpt2"),
        ("lora.rank", 4),
        ("lora.alpha", 16),
        ("lora.target_modules", "c_attn"),
        ("lora.use_rslora", True),
        ("tokens.window", 8),
        ("tokens.min_words", 5),
        ("split.heldout_users", 3),
        ("selection._target_", "elsewhere.Selector"),
        ("mechanism._target_", "elsewhere.Mechanism"),
        ("engine._target_", "elsewhere.Engine"),
        ("model._target_", "elsewhere.Model"),
        ("tuned.user_wise.learning_rate", 0.5),
        ("privacy.num_searched", 40),
    ],
)
def test_a_configuration_that_statement_or_adapter_contradict_is_found(run: Path, key: str, value: object) -> None:
    configure(run, key, value)
    assert any("configur" in text or "results" in text for text in problems(run))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mechanism.accountant", "tight"),
        ("mechanism.accountant", "record"),
        ("mechanism.rounds", 3),
        ("mechanism._target_", "fedsim_userdp.mechanisms.user_wise.UserWise"),
        ("selection._target_", "fedsim_userdp.selection.FixedSizeSelector"),
        ("privacy.epsilon", math.inf),
    ],
)
def test_a_configuration_of_one_run_that_its_statement_contradicts_is_found(
    single: Path, key: str, value: object
) -> None:
    configure(single, key, value)
    assert any("as configured" in text for text in problems(single))


@pytest.mark.parametrize(
    ("key", "value"), [("overrides", "privacy.epsilon=2"), ("overrides", "data=enron"), ("choices", "enron")]
)
def test_overrides_and_choices_that_the_configuration_does_not_hold_are_found(
    single: Path, key: str, value: str
) -> None:
    change_json(
        single / "run.json",
        lambda content: content[key].append(value) if key == "overrides" else content[key].update(data=value),
    )
    assert any(value in text for text in problems(single))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("on `jsonl`", "on `people` is (0.1, 1e-9)-DP for users, every recipient covered, see `jsonl`"),
        ("on `jsonl`", "on `enron`"),
        ("Base model: `tiny`", "Base model: `(0.1, 1e-9)-DP`"),
        ("---\n", "---\nbase_model: openai/gpt2\n"),
    ],
)
def test_a_card_with_other_labels_is_found(run: Path, old: str, new: str) -> None:
    change_text(run / "adapters" / "user_wise" / "README.md", old, new)
    (problem,) = problems(run)
    assert problem.startswith("user_wise, seed 0: model card: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 4),
        ("lora_alpha", 64),
        ("lora_dropout", 0.5),
        ("use_rslora", True),
        ("target_modules", ["c_attn"]),
        ("target_modules", "all-linear"),
        ("base_model_name_or_path", "/elsewhere/tiny_gpt2"),
        ("rank_pattern", {"c_attn": 64}),
        ("auto_mapping", {"parent_library": "elsewhere"}),
        ("revision", "another"),
        ("bias", "all"),
        ("peft_version", "1, which is (0.1, 1e-9)-DP"),
        ("note", "(0.1, 1e-9)-DP for users"),
    ],
)
def test_changed_settings_of_an_adapter_are_found(run: Path, key: str, value: object) -> None:
    change_json(run / "adapters" / "user_wise" / "adapter_config.json", lambda content: content.update({key: value}))
    assert any("user_wise, seed 0: adapter's settings as configured" in text for text in problems(run))


def test_a_base_model_that_was_changed_in_settings_and_card_is_found(run: Path) -> None:
    change_json(
        run / "adapters" / "user_wise" / "adapter_config.json",
        lambda content: content.update(base_model_name_or_path="openai/gpt2"),
    )
    restate(run, "user_wise")
    assert any("'openai/gpt2', which was not configured" in text for text in problems(run))


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_another_tokenizer_beside_an_adapter_is_found(run: Path, name: str) -> None:
    file = run / "adapters" / "user_wise" / name
    file.write_text(file.read_text() + " " if file.exists() else "(0.1, 1e-9)-DP for users")
    (problem,) = problems(run)
    assert problem.startswith("user_wise, seed 0: model card: ")


def test_a_file_beside_an_adapter_is_named(run: Path) -> None:
    (run / "adapters" / "user_wise" / "GUARANTEE.md").write_text("(0.1, 1e-9)-DP for users")
    (problem,) = problems(run)
    assert "GUARANTEE.md" in problem


def test_a_foreign_class_that_the_statement_does_not_name_is_found(run: Path) -> None:
    found = configured(run)
    statement = read_privacy(run).runs[1].statement  # type: ignore[union-attr]
    config = found.configs["user_wise", 0].copy()
    assert differences(statement, config) == []
    OmegaConf.update(config, "records", {"_target_": "elsewhere.Records"})
    assert "elsewhere.Records is configured and not stated as foreign" in differences(statement, config)
    assert differences(replace(statement, foreign=("elsewhere.Records",)), config) == []


def test_more_results_or_fewer_than_the_statement_says_are_found(run: Path) -> None:
    path = run / "not_private" / "rounds.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("user_wise,0,2,")))
    (problem,) = problems(run)
    assert "user_wise, seed 0: ledger: lost releases as stated: 1 rounds have no result" in problem
    shutil.rmtree(run / "not_private")
    assert problems(run) == []  # it is not to be published, and no claim rests on it


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stated_and_configured_precision_are_the_same(run: Path, dtype: str, autocast: str | None) -> None:
    if autocast and dtype != "float32":
        return
    statement = read_privacy(run).runs[1].statement  # type: ignore[union-attr]
    config = configured(run).configs["user_wise", 0].copy()
    OmegaConf.update(config, "model.dtype", dtype)
    OmegaConf.update(config, "model.autocast", autocast)
    precision = ModelSource(dtype=dtype, autocast=autocast).product_dtype
    assert differences(replace(statement, precision=precision), config) == []


@pytest.mark.parametrize(
    "changes",
    [
        ["selection=cyclic", "selection.cohort_size=3"],
        ["selection=fixed_size", "selection.cohort_size=3", "records=longest", "noise.source=os"],
        ["privacy.epsilon=inf", "records=random_chunk"],
        ["mechanism=user_wise_adaptive", "lora.target_modules=[c_attn,c_fc]", "lora.rank=2", "lora.use_rslora=true"],
        ["mechanism=user_wise_adaptive", "mechanism.count_stddev=9.5", "model.autocast=bfloat16", "seed=3"],
        ["mechanism=example_level_tight", "data.owners_column=text", "data.owners_separator='#'"],
        ["selection._target_=tests.simulations.test_foreign_selectors.SaysPoisson"],
        ["mechanism=record_level", "lora.target_modules=.*c_attn", "privacy.delta=0.01"],
    ],
)
def test_runs_with_other_settings_agree_with_themselves(
    settings: list[str], tmp_path: Path, changes: list[str]
) -> None:
    changes = changes if changes[0].startswith("mechanism=") else ["mechanism=user_wise", *changes]
    of_poisson = [each for each in settings if not each.startswith("selection.")]
    given = of_poisson if changes[1].startswith("selection=") else settings
    assert run_command("run", [*given, *changes, f"output_dir={tmp_path / 'run'}"]) == 0
    assert problems(tmp_path / "run") == []


def test_answers_kept_on_disk_are_not_believed(grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE_DIR", str(tmp_path))
    (one,) = read_privacy(grouped).runs  # type: ignore[union-attr]
    release, delta = one.statement.release, one.statement.delta
    assert release is not None
    assert delta is not None
    right = acc.epsilon(release, delta, "group")
    question = ("epsilon", repr(release), "group", math.log(delta))
    shutil.rmtree(tmp_path / "accounting")
    assert cache.remembered(question, lambda: right / 2, worth=True) == right / 2
    assert acc.epsilon(release, delta, "group") == right / 2
    command = [sys.executable, "-m", "fedsim_userdp.simulations.cli", "verify", str(grouped)]
    found = subprocess.run(command, text=True, capture_output=True, timeout=120, env=os.environ, check=False)
    assert (found.returncode, found.stdout.splitlines()[-1]) == (0, "every check passed")
