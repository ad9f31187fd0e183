"""The commands as a user runs them, in one process each, on a small part of the real corpus."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from hydra import compose, initialize_config_module
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.models.loading import TINY_MODEL
from fedsim_userdp.simulations.configured import configured_run
from tests.simulations.zygote import Zygote

SMALL = [
    "tuned.rounds=2", "selection.sampling_prob=0.05", "evaluation.records_per_user=1", "split.heldout_users=20",
    "split.validation_users=700",
]  # fmt: skip
MECHANISMS = [
    "zero_shot", "user_wise", "user_wise_adaptive", "group_privacy", "example_level_tight", "record_level",
    "non_private",
]  # fmt: skip


def fedsim(*arguments: str, cwd: Path, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedsim_userdp.simulations.cli", *arguments]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, "HF_HUB_OFFLINE": "1"}, text=True, capture_output=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, processes: Zygote) -> Path:
    """The run folder of one small comparison."""
    folder = tmp_path_factory.mktemp("compare") / "run folder"
    done = processes.run(
        "compare", *SMALL, "privacy.epsilon=4", "mechanism.clip_norm=0.5", f"output_dir={folder}", cwd=folder.parent
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in MECHANISMS)
    return folder


def test_every_mechanism_gives_a_row(compared: Path) -> None:
    rows = json.loads((compared / "results.json").read_text())
    assert [row["mechanism"] for row in rows] == MECHANISMS
    for row in rows:
        assert {"epsilon", "delta", "noise_multiplier", "clip_norm", "records_per_user", "seed"} <= row.keys()
        assert row["perplexity"] > 1
        assert row["seconds"] > 0
        assert (row["train_tokens"] > 0) == (row["mechanism"] != "zero_shot")
    with (compared / "results.csv").open() as file:
        assert [row["mechanism"] for row in csv.DictReader(file)] == MECHANISMS


def test_every_user_level_epsilon_keeps_the_budget_and_nearly_uses_it(compared: Path) -> None:
    rows = {row["mechanism"]: row for row in json.loads((compared / "results.json").read_text())}
    for name in ("user_wise", "user_wise_adaptive", "group_privacy", "example_level_tight"):
        assert 0.98 * 4 <= rows[name]["epsilon"] <= 4
    for name in ("zero_shot", "record_level", "non_private"):
        assert rows[name]["epsilon"] is None
    assert "NO user-level" in rows["record_level"]["guarantee"]
    assert rows["group_privacy"]["epsilon_tight"] <= rows["group_privacy"]["epsilon"]
    assert rows["example_level_tight"]["noise_multiplier"] < rows["group_privacy"]["noise_multiplier"]


def test_overrides_reach_every_mechanism_that_has_the_setting(compared: Path) -> None:
    rows = {row["mechanism"]: row for row in json.loads((compared / "results.json").read_text())}
    assert {rows[name]["clip_norm"] for name in MECHANISMS} == {0.5, None}


def test_the_folder_holds_configuration_plot_and_marked_diagnostics(compared: Path) -> None:
    assert "epsilon: 4" in (compared / "config.yaml").read_text()
    assert (compared / "comparison.png").stat().st_size > 10_000
    with (compared / "not_private" / "rounds.csv").open() as file:
        rounds = list(csv.DictReader(file))
    assert [row["round"] for row in rounds if row["mechanism"] == "user_wise"] == ["0", "1", "2"]


def test_every_release_is_in_a_ledger_and_runs_without_noise_have_none(compared: Path) -> None:
    ledgers = {path.stem.removesuffix("-seed0"): path for path in (compared / "ledger").iterdir()}
    assert set(ledgers) == set(MECHANISMS) - {"zero_shot", "non_private"}
    assert all(path.read_bytes().count(b"\n") == 2 + 1 for path in ledgers.values())


def test_every_run_states_what_it_guarantees(compared: Path) -> None:
    rows = json.loads((compared / "results.json").read_text())
    statements = json.loads((compared / "privacy.json").read_text())["runs"]
    assert [statement["mechanism"] for statement in statements] == MECHANISMS
    assert [statement["epsilon"] for statement in statements] == [row["epsilon"] for row in rows]
    assert [statement["level"] for statement in statements] == ["nobody", *["user"] * 4, "record", "nobody"]
    text = (compared / "PRIVACY.md").read_text()
    assert "NO guarantee for users" in text
    assert "towards them no claim holds at all" in text
    assert text.count("## ") == len(MECHANISMS) + 1


@pytest.fixture(scope="module")
def run(compared: Path) -> Run:
    """What the comparison was scored on."""
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        return configured_run(
            compose("compare", overrides=[*SMALL, "mechanism=zero_shot", "output_dir=none"]), compared
        )


@pytest.mark.parametrize("name", MECHANISMS[1:])
def test_each_adapter_reloads_with_peft_to_the_model_that_was_scored(compared: Path, run: Run, name: str) -> None:
    folder = compared / "adapters" / name
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(TINY_MODEL), folder)
    ids = torch.arange(10, 30).unsqueeze(0)
    with loaded.disable_adapter():
        plain = loaded(input_ids=ids).logits
    assert not torch.allclose(loaded(input_ids=ids).logits, plain, atol=1e-4)
    rows = {row["mechanism"]: row for row in json.loads((compared / "results.json").read_text())}
    assert run.study.perplexity(loaded) == pytest.approx(rows[name]["perplexity"], rel=1e-6)


@pytest.mark.parametrize("name", MECHANISMS[1:])
def test_each_adapter_has_a_card_with_its_base_model_and_its_guarantee(compared: Path, name: str) -> None:
    text = (compared / "adapters" / name / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.library_name == "peft"
    assert card.data.base_model is None  # a folder is no name that the Hub knows
    assert "tiny_gpt2" in text
    statements = {s["mechanism"]: s for s in json.loads((compared / "privacy.json").read_text())["runs"]}
    page = (compared / "PRIVACY.md").read_text()
    table = page.split(f"## {name}, seed 0\n\n")[1].split("\n\n")[0]
    assert table in text
    assert "differential-privacy" not in card.data.tags  # a seeded run is a simulation
    is_of_users = statements[name]["level"] == "user"
    assert ("simulated-differential-privacy" in card.data.tags) == is_of_users
    assert ("not-user-level-private" in card.data.tags) == (not is_of_users)


def test_an_adapters_folder_tells_nothing_of_this_machine_and_loads_on_another(compared: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(compared / "adapters" / "user_wise", tmp_path / "elsewhere"))
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny_gpt2"
    places = [str(TINY_MODEL.parent).encode(), str(compared).encode(), str(Path.home()).encode() + b"/"]
    assert not [path.name for path in folder.iterdir() if any(place in path.read_bytes() for place in places)]
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        assert all(".lora_" in name for name in file.keys())  # noqa: SIM118
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(TINY_MODEL).get_vocab()
    data = ModelCard((folder / "README.md").read_text()).data
    assert data.license is not None
    assert data.library_name == "peft"


WRONG = {
    "mechanism=nosuch": "mechanism",
    "data=nosuch": "data",
    "privacy.epsilon=0": "privacy.epsilon",
    "privacy.epsilon=-1": "privacy.epsilon",
    "privacy.epsilon=many": "privacy.epsilon",
    "privacy.delta=0": "privacy.delta",
    "privacy.delta=1": "privacy.delta",
    "privacy.delta=0.01": "1/N",
    "mechanism.records_per_user=0": "records_per_user",
    "mechanism.rounds=0": "rounds",
    "mechanism.clip_norm=-1": "clip_norm",
    "selection.sampling_prob=0": "sampling_prob",
    "selection.sampling_prob=1.5": "sampling_prob",
    "model.path=/no/such/model": "/no/such/model",
    "data.path=/no/such/data": "/no/such/data",
    "output_dir=/proc/nosuch/run": "/proc/nosuch",
    "nosuch.key=1": "nosuch",
    "seed=-1": "seed",
    "noise.source=dice": "noise.source",
    "privacy.epsilon": "privacy.epsilon",
    "lora.rank=many": "lora.rank",
    "lora.rank=0": "lora.rank",
    "lora.rank=true": "lora.rank=True must be a whole number",
    "lora.target_modules=0": "lora.target_modules=0 must be a text or a list, such as all-linear",
    "lora.target_modules=[]": "must be names of layers",
    "lora.target_modules=[1,2]": "must be names of layers",
    "model.name=[1,2]": "model.name=[1, 2] must be a text",
    "seed=null": "seed=null must be a whole number",
    "mechanism.learning_rate=1e54": "mechanism.learning_rate=1e+54 must be a number from 1e-30 to 1e+30",
    "mechanism.clip_norm=1e-44": "mechanism.clip_norm=1e-44 must be a number from 1e-30 to 1e+30",
    "seed=1.5": "seed",
    "tokens.window=1": "window",
    "split.heldout_users=100000": "heldout",
    "mechanism.name=../elsewhere": "mechanism.name",
    "split.heldout_users=0": "split.heldout_users=0 leaves nobody to evaluate on",
    "evaluation.users=everybody": "evaluation.users",
    "evaluation.users=validation": "split.validation_users=0 leaves nobody to evaluate on",
    "resume=/no/such/run": "/no/such/run",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_setting_gives_one_sentence_and_exit_code_2(
    override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsim_userdp.simulations.cli import run_command

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        sys.exit(run_command("run", [f"output_dir={tmp_path / 'run'}", override]))
    message = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert message.startswith("fedsim: ")
    assert "\n" not in message
    assert WRONG[override] in message
    assert "Traceback" not in message


def test_a_chunk_longer_than_the_window_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedsim_userdp.simulations.cli import run_command

    settings = [f"output_dir={tmp_path / 'run'}", "records=random_chunk", "tokens.window=32", "records.window=33"]
    with pytest.raises(SystemExit) as stop:
        run_command("run", settings)
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("fedsim: records.window=33 is more than tokens.window=32")
    assert "\n" not in message
    assert not list((tmp_path / "run").glob("*.json"))


def test_help_is_there_for_the_program_and_each_command(tmp_path: Path) -> None:
    shown = fedsim("--help", cwd=tmp_path)
    assert shown.returncode == 0
    for command in ("compare", "run", "pretrain"):
        assert command in shown.stdout
    details = fedsim("run", "--help", cwd=tmp_path)
    assert details.returncode == 0
    assert "privacy" in details.stdout


def test_an_unknown_command_gives_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    done = fedsim("trian", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "trian" in done.stderr
