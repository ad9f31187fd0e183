"""`fedsim benchmark` as a user runs it."""

import csv
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml

from fedsim_userdp.conf import __file__ as conf_file
from fedsim_userdp.simulations.cli import run_command
from fedsim_userdp.simulations.measurements.parts import MEASURE
from fedsim_userdp.simulations.measurements.results import GOALS, PARTS
from tests.simulations.benchmark_setup import small_overrides

RATIOS = [
    "cohort_vs_plain", "cohort_vs_one_by_one", "cohort_vs_flower", "cohort_vs_pfl", "record_vs_opacus",
    "population_1e6_vs_1e3", "memory_512_vs_64", "overhead_share", "two_workers_vs_one",
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def benchmark(folder: Path, *overrides: str) -> int:
    """The exit code of the command in this process."""
    return run_command("benchmark", [*small_overrides(folder), f"output_dir={folder / 'out'}", *overrides])


def test_the_ratios_that_others_rely_on_are_all_there_and_null_where_not_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "pfl" else find_spec(name, *a))
    assert benchmark(tmp_path, "benchmark.parts=[cohort_vs_plain,cohort_vs_pfl]") == 0
    stored = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert list(stored["ratios"]) == RATIOS
    assert stored["ratios"]["cohort_vs_plain"] > 0
    assert [name for name, ratio in stored["ratios"].items() if ratio is not None] == ["cohort_vs_plain"]
    assert {"cohort", "plain"} <= stored["seconds"]["cohort_vs_plain"].keys()
    assert all(len(values) == 2 for values in stored["seconds"]["cohort_vs_plain"].values())
    assert "not installed" in stored["absent"]["cohort_vs_pfl"]
    said = capsys.readouterr().out
    assert ">= 0.95" in said
    assert "not installed" in said


def test_the_csv_has_a_row_for_each_part_that_was_asked_for(tmp_path: Path) -> None:
    assert benchmark(tmp_path, "benchmark.parts=record_vs_opacus", "benchmark.repeats=1") == 0
    with (tmp_path / "out" / "benchmark.csv").open() as file:
        (row,) = csv.DictReader(file)
    stored = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert row["part"] == "record_vs_opacus"
    assert float(row["ratio"]) == stored["ratios"]["record_vs_opacus"]
    assert row["over"] == "opacus"
    assert stored["notes"]["record_vs_opacus"]["relative_distance"] <= 1e-5


def test_every_part_is_measured_by_its_name_and_asked_for_by_default() -> None:
    assert list(GOALS) == RATIOS
    assert tuple(MEASURE) == PARTS
    config = yaml.safe_load((Path(str(conf_file)).parent / "benchmark.yaml").read_text(encoding="utf-8"))
    assert config["benchmark"]["parts"] == list(PARTS)
    assert config["benchmark"]["repeats"] >= 5


WRONG = {
    "benchmark.parts=[nosuch]": "'nosuch' is unknown; expected some of cohort_vs_plain",
    "benchmark.parts=[cohort_vs_plain,cohort_vs_nothing]": "'cohort_vs_nothing' is unknown",
    "benchmark.parts=[]": "benchmark.parts",
    "benchmark.parts=null": "benchmark.parts",
    "benchmark.repeats=0": "benchmark.repeats",
    "benchmark.repeats=2.5": "benchmark.repeats",
    "benchmark.repeats=null": "benchmark.repeats",
    "benchmark.seconds=0": "benchmark.seconds",
    "benchmark.seconds=inf": "benchmark.seconds",
    "benchmark.seconds=many": "benchmark.seconds",
    "benchmark.nosuch=1": "nosuch",
    "mechanism=zero_shot": "mechanism",
    "model=nosuch": "model",
    "output_dir=/proc/nosuch/run": "/proc/nosuch",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_setting_gives_one_sentence_that_names_the_key_and_exit_code_2(
    override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        sys.exit(benchmark(tmp_path, "benchmark.parts=[cohort_vs_pfl]", override))
    message = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert message.startswith("fedsim: ")
    assert "\n" not in message
    assert WRONG[override] in message
    assert not (tmp_path / "out" / "benchmark.json").exists()


def test_a_benchmark_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "benchmark.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        run_command("benchmark", [f"resume={tmp_path / 'out'}"])
    assert stop.value.code == 2
    assert "resume" in capsys.readouterr().err
