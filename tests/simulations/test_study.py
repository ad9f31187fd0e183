"""`fedsim study`: a grid of runs, killed and gone on with, and its files."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fedsim_userdp.privacy.figures import rounded_up
from tests.simulations.corpora import small_settings, write_jsonl
from tests.simulations.zygote import Zygote

GRID = ["study.mechanisms=[zero_shot,group_privacy,user_wise,non_private]", "study.epsilon=[4,30]", "study.seeds=[0,1]"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("study")
    return small_settings(write_jsonl(folder / "corpus.jsonl"), folder / "cache", rounds=2)


def content_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "study.json").read_text())
    return found


def results_of(folder: Path) -> dict[str, float]:
    return {cell["name"]: cell["perplexity"] for cell in content_of(folder)["cells"]}


@pytest.fixture(scope="module")
def whole(settings: list[str], tmp_path_factory: pytest.TempPathFactory, processes: Zygote) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "study"
    ended = processes.run("study", *settings, *GRID, f"output_dir={folder}")
    assert ended.returncode == 0, ended.stderr
    return folder


def test_each_cell_is_run_once_and_those_without_an_axis_are_there_once(whole: Path) -> None:
    cells = content_of(whole)["cells"]
    assert {cell["status"] for cell in cells} == {"done"}
    assert sorted(cell["name"] for cell in cells) == [
        "group_privacy-epsilon30-seed0", "group_privacy-epsilon30-seed1", "group_privacy-epsilon4-seed0",
        "group_privacy-epsilon4-seed1", "non_private-seed0", "non_private-seed1", "user_wise-epsilon30-seed0",
        "user_wise-epsilon30-seed1", "user_wise-epsilon4-seed0", "user_wise-epsilon4-seed1", "zero_shot-seed0",
    ]  # fmt: skip
    for cell in cells:
        assert cell["axes"]["epsilon"] == cell["target_epsilon"]
        assert (whole / cell["folder"] / "results.json").is_file()
        assert {"delta", "seconds", "metrics", "model", "data", "records_per_user"} <= cell.keys()


def test_every_cell_can_be_verified_with_all_the_others(whole: Path, processes: Zygote) -> None:
    ended = processes.run("verify", str(whole))
    assert ended.returncode == 0, ended.stdout
    assert len(json.loads((whole / "privacy.json").read_text())["jobs"]) == 11


def test_the_table_is_there_in_three_formats_with_intervals(whole: Path) -> None:
    with (whole / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(row["mechanism"], row["epsilon_target"]): row for row in rows}
    assert found["zero_shot", ""]["seeds"] == "1"
    of_users = found["user_wise", "4"]
    figures = [
        cell["perplexity"] for cell in content_of(whole)["cells"] if cell["name"].startswith("user_wise-epsilon4-")
    ]
    assert float(of_users["perplexity"]) == pytest.approx(sum(figures) / 2)
    assert float(of_users["low"]) < min(figures)
    assert float(of_users["high"]) > max(figures)
    markdown, latex = (whole / "table.md").read_text(), (whole / "table.tex").read_text()
    assert "| user_wise | 4 |" in markdown
    assert r"user\_wise & 4 &" in latex
    assert latex.count(r"\\") == len(rows) + 1
    with (whole / "differences.csv").open() as file:
        pairs = {(row["one"], row["other"], row["epsilon_target"]) for row in csv.DictReader(file)}
    assert ("zero_shot", "non_private", "") in pairs
    assert ("group_privacy", "user_wise", "4") in pairs
    assert len(pairs) == 2 * 4 + 1 + 2


def test_the_page_is_one_file_that_asks_for_nothing_else(whole: Path) -> None:
    text = (whole / "report.html").read_text()
    assert len(text) < 3_000_000
    outside = re.findall(r"""(?:src|href)\s*=\s*["'](?!#|PRIVACY\.md)([^"']+)|url\((?!#)([^)]+)""", text)
    outside += re.findall(r"@import|fetch\(|XMLHttpRequest", text)
    assert outside == []
    names = {path.stem for path in (whole / "figures").iterdir()}
    assert names == {"perplexity-by-epsilon", "differences", "learning-curves", "noise-by-epsilon"}
    assert {path.suffix for path in (whole / "figures").iterdir()} == {".svg", ".pdf", ".png"}
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert {f"figure-{name}" for name in names} <= set(ids)
    assert set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert "Not private." in text
    assert "user_wise" in text
    assert "fedsim study" in text
    for cell in content_of(whole)["cells"]:
        if cell["epsilon"] is not None:
            assert rounded_up(cell["epsilon"]) in text


def test_the_page_says_what_the_tables_say(whole: Path) -> None:
    text = (whole / "report.html").read_text()
    for row in csv.DictReader((whole / "table.csv").read_text().splitlines()):
        assert f'data-value="{float(row["perplexity"])}"' in text


def killed(processes: Zygote, folder: Path, *arguments: str) -> None:
    """A study that is killed once some of its runs have begun, however fast the machine is."""
    for after in (4.0, 8.0, 16.0, 32.0):
        ended = processes.run("study", *arguments, f"output_dir={folder}", after=after)
        assert ended.returncode == -9, "it came to its end"
        if len(list(folder.glob("*/*/results.json"))) > 1:
            return


def test_a_study_that_was_killed_goes_on_to_the_same_results(
    whole: Path, settings: list[str], tmp_path: Path, processes: Zygote
) -> None:
    folder = tmp_path / "study"
    killed(processes, folder, *settings, *GRID)
    before = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("cells/*/results.json")}
    ended = processes.run("study", f"resume={folder}")
    assert ended.returncode == 0, ended.stderr
    assert results_of(folder) == results_of(whole)
    after = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("cells/*/results.json")}
    assert {name: after[name] for name in before} == before


def test_another_study_is_refused_where_one_is(whole: Path, settings: list[str], processes: Zygote) -> None:
    before = (whole / "study.json").read_bytes()
    for other, words in (("study.seeds=[5]", "holds another study"), ("lora.rank=2", "lora.rank differs")):
        ended = processes.run("study", *settings, *GRID, other, f"output_dir={whole}")
        assert ended.returncode == 2
        assert words in ended.stderr
    ended = processes.run("run", *settings, f"output_dir={whole}")
    assert ended.returncode == 2
    assert (whole / "study.json").read_bytes() == before


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("data.path=nowhere.jsonl", "nowhere.jsonl does not exist"),
        ("study.seeds=[0,0]", "study.seeds=[0, 0] holds a value twice"),
        ("study.seeds=[-1]", "study.seeds"),
        ("study.mechanisms=[]", "study.mechanisms must be a list of at least one value"),
        ("study.mechanisms=[user_wise,{mechanism: user_wise, clip_norm: 1}]", "names one twice"),
        ("study.grid={no.such.setting: [1, 2]}", "no.such.setting"),
        ("study.seed=[1]", "there is no setting study.seed"),
    ],
)
def test_what_is_refused_writes_nothing(
    wrong: str, words: str, settings: list[str], tmp_path: Path, processes: Zygote
) -> None:
    ended = processes.run("study", *settings, *GRID, wrong, f"output_dir={tmp_path / 'study'}")
    assert ended.returncode == 2
    assert words in ended.stderr
    assert not (tmp_path / "study").exists()


def test_a_cell_that_fails_has_a_reason_and_the_others_go_on(
    settings: list[str], tmp_path: Path, processes: Zygote
) -> None:
    grid = ["study.mechanisms=[user_wise]", "study.seeds=[0]", "study.grid={mechanism.clip_norm: [0.3, -1]}"]
    ended = processes.run("study", *settings, *grid, f"output_dir={tmp_path / 'study'}")
    assert ended.returncode == 3
    cells = {cell["name"]: cell for cell in content_of(tmp_path / "study")["cells"]}
    assert sorted(cell["status"] for cell in cells.values()) == ["done", "failed"]
    (failed,) = [cell for cell in cells.values() if cell["status"] == "failed"]
    assert "clip_norm" in failed["reason"]
    assert "clip_norm" in ended.stderr


def test_a_dry_run_prints_noise_and_trains_nothing(settings: list[str], tmp_path: Path, processes: Zygote) -> None:
    ended = processes.run("study", *settings, *GRID, "study.dry_run=true", f"output_dir={tmp_path / 'study'}")
    assert ended.returncode == 0, ended.stderr
    assert "user_wise-epsilon4-seed0: noise multiplier" in ended.stdout
    assert "zero_shot-seed0: no noise" in ended.stdout
    assert not (tmp_path / "study").exists()


TUNED = [
    "study.mechanisms=[zero_shot,user_wise,non_private]", "study.epsilon=[4,30]", "study.seeds=[0]",
    "study.tune.trials=2", "split.validation_users=3",
]  # fmt: skip


def test_each_mechanism_that_trains_gets_as_many_trials_and_the_best_on_validation_users_is_what_runs(
    settings: list[str], tmp_path: Path, processes: Zygote
) -> None:
    folder = tmp_path / "study"
    killed(processes, folder, *settings, *TUNED)
    ended = processes.run("study", f"resume={folder}")
    assert ended.returncode == 0, ended.stderr
    content = content_of(folder)
    trials = {one["name"]: one for one in content["trials"]}
    assert len(trials) == 6  # user_wise at two epsilons, non_private at none
    assert {one["evaluated_on"] for one in trials.values()} == {"validation"}
    assert {one["evaluated_on"] for one in content["cells"]} == {"heldout"}
    assert [len(search["ranked"]) for search in content["searches"]] == [2, 2, 2]
    for search in content["searches"]:
        best = min((trials[name] for name in search["ranked"]), key=lambda one: one["perplexity"])
        assert search["winner"] == best["tried"]
        for cell in content["cells"]:
            is_of_it = cell["axes"]["epsilon"] == search["axes"].get("epsilon")
            if cell["mechanism"] == search["mechanism"] and is_of_it:
                assert cell["learning_rate"] == best["tried"]["learning_rate"]
                assert cell["clip_norm"] == best["tried"].get("clip_norm")
                started = json.loads((folder / cell["folder"] / "run.json").read_text())
                assert started["config"]["privacy"]["num_searched"] == 3
    assert processes.run("verify", str(folder)).returncode == 0


def test_tuning_without_validation_users_is_refused(settings: list[str], tmp_path: Path, processes: Zygote) -> None:
    ended = processes.run("study", *settings, "study.tune.trials=2", f"output_dir={tmp_path / 'study'}")
    assert ended.returncode == 2
    assert "split.validation_users" in ended.stderr
    assert not (tmp_path / "study").exists()


def test_without_noise_an_epsilon_of_a_study_is_inf(settings: list[str], tmp_path: Path, processes: Zygote) -> None:
    grid = ["study.mechanisms=[user_wise]", "study.seeds=[0]", "study.epsilon=[8,inf]"]
    ended = processes.run("study", *settings, *grid, f"output_dir={tmp_path / 'study'}")
    assert ended.returncode == 0, ended.stderr
    assert [cell["axes"]["epsilon"] for cell in content_of(tmp_path / "study")["cells"]] == [8, "inf"]
    assert "2 of 2 runs have been made before" in processes.run("study", f"resume={tmp_path / 'study'}").stdout


def test_two_studies_at_once_in_one_folder_do_not_meet(settings: list[str], tmp_path: Path, processes: Zygote) -> None:
    command = ["study", *settings, "study.mechanisms=[user_wise]", f"output_dir={tmp_path / 'study'}"]
    one, other = sorted(processes.run_together(command, command, cwd=tmp_path), key=lambda ended: ended.returncode)
    assert (one.returncode, other.returncode) == (0, 2), other.stderr
    assert "is in use by another study" in other.stderr
    assert {cell["status"] for cell in content_of(tmp_path / "study")["cells"]} == {"done"}
