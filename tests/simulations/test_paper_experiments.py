"""The paper's experiments: they compose, say what they need, and run on fixtures in the true formats."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from fedsim_userdp.models.loading import TINY_MODEL
from fedsim_userdp.simulations.cli import run_command

from ..data.sources import texts_of_real_authors, write_booksum, write_booksum_csv, write_enron

EXPERIMENTS = ["paper_enron", "paper_booksum"]
SELECTIONS = ["random", "longest", "shortest", "highest_perplexity", "lowest_perplexity", "random_chunk"]
SMALL = ["tokens.window=64", "tuned.rounds=1", "evaluation.records_per_user=1", "split.heldout_users=15"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A maildir and BookSum files, each of 120 real authors, and a small random GPT-2 saved to a folder."""
    pytest.importorskip("chitchat_dataset")
    folder = tmp_path_factory.mktemp("paper")
    texts = {f"author-{number}": own for number, own in enumerate(texts_of_real_authors(most=4).values())}
    for name, write in {"paper_enron": write_enron, "paper_booksum": write_booksum_csv, "jsonl": write_booksum}.items():
        (folder / name).mkdir()
        write(folder / name, texts)
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    shape = GPT2Config(
        vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(shape).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for the module's runs, apart from the user's."""
    monkeypatch.setenv("FEDSIM_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "paper-cache"))


def run(places: dict[str, Path], experiment: str, folder: Path, *overrides: str) -> int:
    """The exit code of `fedsim run` on the fixture and the small GPT-2, in this process."""
    mine = [f"data.path={places[experiment]}", f"model.path={places['gpt2']}", f"output_dir={folder}"]
    return run_command("run", [*overrides, f"experiment={experiment}", *mine, *SMALL])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_sweep_is_over_epsilon_k_and_every_record_selection(experiment: str) -> None:
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        config = compose("run", [f"experiment={experiment}", "output_dir=x"], return_hydra_config=True)
    assert OmegaConf.to_container(config.hydra.sweeper.params) == {
        "privacy.epsilon": "1,3,8",
        "tuned.records_per_user": "2,5,10,20",
        "records": ",".join(SELECTIONS),
    }
    assert (config.model.path, list(config.lora.target_modules)) == ("gpt2", ["c_attn"])
    assert config.data._target_.lower().endswith(f"{experiment.removeprefix('paper_')}corpus")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("command", ["run", "compare", "data"])
def test_without_a_path_the_corpus_is_asked_for_before_the_model(
    experiment: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(command, [f"experiment={experiment}", f"output_dir={tmp_path}"])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert "needs local files: download" in said
    assert said.endswith("then set data.path=PATH")
    assert "\n" not in said


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_without_network_the_message_names_model_path(
    experiment: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command("run", [f"experiment={experiment}", f"data.path={places[experiment]}", f"output_dir={tmp_path}"])
    assert stop.value.code == 2
    assert "model.path=gpt2 is no folder or file here" in capsys.readouterr().err


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_it_runs_on_its_format_with_a_gpt2_from_a_folder(
    experiment: str, places: dict[str, Path], tmp_path: Path
) -> None:
    assert run(places, experiment, tmp_path / "run") == 0
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (row["records_per_user"], row["mechanism"]) == (10, "user_wise")
    assert 7.5 < row["epsilon"] <= 8
    adapter = json.loads((tmp_path / "run" / "adapters" / "user_wise" / "adapter_config.json").read_text())
    assert adapter["target_modules"] == ["c_attn"]
    described = json.loads((tmp_path / "run" / "not_private" / "data.json").read_text())
    assert described["num_users"] > 100
    assert any("repeated" in reason for reason in described["dropped"])


def test_a_value_on_the_command_line_replaces_a_list_of_the_sweep(places: dict[str, Path], tmp_path: Path) -> None:
    narrowed = ["privacy.epsilon=3", "tuned.records_per_user=2", "records=longest,highest_perplexity"]
    assert run(places, "paper_enron", tmp_path, "--multirun", *narrowed) == 0
    rows = [json.loads((tmp_path / str(job) / "results.json").read_text())[0] for job in range(2)]
    assert [round(row["epsilon"]) for row in rows] == [3, 3]
    assert not (tmp_path / "2").exists()
    chosen = [OmegaConf.load(tmp_path / str(job) / "config.yaml").records for job in range(2)]
    assert [choice._target_.rpartition(".")[2] for choice in chosen] == ["LongestRecords", "PerplexityRecords"]


def test_booksum_in_jsonl_gives_the_same_books_as_in_csv(places: dict[str, Path], tmp_path: Path) -> None:
    for name, place in {"csv": places["paper_booksum"], "jsonl": places["jsonl"]}.items():
        overrides = [f"data.path={place}", "model=tiny", "tokens.window=64", f"output_dir={tmp_path / name}"]
        assert run_command("data", ["experiment=paper_booksum", *overrides]) == 0
    csv, jsonl = (json.loads((tmp_path / name / "not_private" / "data.json").read_text()) for name in ("csv", "jsonl"))
    assert csv == jsonl


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["user_wise", "group_privacy"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_whole_sweep_runs(experiment: str, mechanism: str, places: dict[str, Path], tmp_path: Path) -> None:
    assert run(places, experiment, tmp_path, "--multirun", f"mechanism={mechanism}") == 0
    rows = [json.loads((tmp_path / str(job) / "results.json").read_text())[0] for job in range(72)]
    targets = [1] * 24 + [3] * 24 + [8] * 24
    assert all(0.9 * target < row["epsilon"] <= target for row, target in zip(rows, targets, strict=True))
    assert {row["records_per_user"] for row in rows} == {2, 5, 10, 20}
    assert all(row["perplexity"] > 1 for row in rows)
