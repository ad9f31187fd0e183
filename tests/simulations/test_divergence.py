"""Training that diverges is a result: the row says so, the others go on, and what is written can be read."""

import csv
import json
from pathlib import Path

import pytest

from tests.simulations.corpora import small_settings, write_jsonl
from tests.simulations.zygote import Ended, Zygote

MECHANISMS = "compare.mechanisms=[zero_shot,non_private,user_wise]"


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory, processes: Zygote) -> tuple[Path, Ended]:
    folder = tmp_path_factory.mktemp("diverged")
    settings = small_settings(write_jsonl(folder / "corpus.jsonl"), folder / "cache", rounds=4)
    kept = [one for one in settings if not one.startswith("mechanism")]
    changes = [MECHANISMS, "mechanism.learning_rate=1e30", "optimizer=sgd", f"output_dir={folder / 'run'}"]
    return folder / "run", processes.run("compare", *kept, *changes)


def no_constant(text: str) -> float:
    raise AssertionError(f"{text} is no JSON")


def test_a_comparison_goes_on_says_what_diverged_and_ends_with_3(diverged: tuple[Path, Ended]) -> None:
    folder, ended = diverged
    assert ended.returncode == 3, ended.stderr
    assert "training diverged: non_private, seed 0" in ended.stderr
    assert "Traceback" not in ended.stderr
    rows = json.loads((folder / "results.json").read_text(), parse_constant=no_constant)
    assert [row["mechanism"] for row in rows] == ["zero_shot", "non_private", "user_wise"]
    assert rows[0]["perplexity"] > 1
    assert rows[1]["perplexity"] is None
    assert "diverged" in ended.stdout
    assert (folder / "comparison.png").stat().st_size > 1000


def test_every_file_is_valid_and_no_adapter_holds_what_is_not_finite(diverged: tuple[Path, Ended]) -> None:
    from safetensors.torch import load_file

    folder, _ = diverged
    for file in folder.rglob("*.json"):
        json.loads(file.read_text(), parse_constant=no_constant)
    with (folder / "not_private" / "rounds.csv").open() as rounds:
        values = [cell for row in csv.DictReader(rounds) for cell in row.values()]
    assert not {"nan", "inf"} & {value.lower() for value in values}
    for path in folder.glob("adapters/*/adapter_model.safetensors"):
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(path).values())


def test_it_can_be_resumed_and_verified(diverged: tuple[Path, Ended], processes: Zygote) -> None:
    folder, _ = diverged
    before = (folder / "privacy.json").read_bytes()
    assert processes.run("verify", str(folder)).returncode == 0
    again = processes.run("compare", f"resume={folder}")
    assert again.returncode == 3, again.stderr
    assert (folder / "privacy.json").read_bytes() == before
    assert processes.run("verify", str(folder)).returncode == 0
