"""`fedsim verify`: what a run folder claims is recomputed, and whatever was changed in one place is found."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.report.privacy_files import PrivacyFile, read_privacy, write_privacy
from fedsim_userdp.simulations.cli import run_command
from fedsim_userdp.simulations.configured_runs import configured
from fedsim_userdp.simulations.run_checks import run_checks
from fedsim_userdp.simulations.verify import folder_checks
from tests.simulations.corpora import small_settings, write_jsonl
from tests.simulations.verified import change_json, change_text, configure, first_problem, problems
from tests.simulations.zygote import Ended, Zygote

pytestmark = pytest.mark.usefixtures("quick_accounting")
MECHANISMS = ["zero_shot", "user_wise", "group_privacy", "record_level", "non_private"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpus")
    return small_settings(write_jsonl(folder / "corpus.jsonl"), folder / "cache", rounds=2)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Path:
    """The folder of a comparison."""
    folder = tmp_path_factory.mktemp("compare") / "run"
    names = f"compare.mechanisms=[{','.join(MECHANISMS)}]"
    assert run_command("compare", [*settings, names, "privacy.num_searched=3", f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Path:
    """The folder of a sweep of two jobs."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    swept = ["mechanism=user_wise", "privacy.epsilon=2,8", "noise.source=os"]
    assert run_command("run", ["--multirun", *settings, *swept, f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture
def run(compared: Path, tmp_path: Path) -> Path:
    """A copy of the comparison's folder."""
    return Path(shutil.copytree(compared, tmp_path / "run"))


@pytest.fixture
def sweep(swept: Path, tmp_path: Path) -> Path:
    """A copy of the sweep's folder."""
    return Path(shutil.copytree(swept, tmp_path / "sweep"))


def leaves(node: object) -> Iterator[tuple[Any, Any]]:
    """Each container of a JSON value with the key or index of a plain value in it."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):  # type: ignore[arg-type]
        if isinstance(value, dict | list):
            yield from leaves(value)
        else:
            yield node, key


def test_what_the_commands_write_agrees_with_itself(compared: Path, swept: Path) -> None:
    for folder in (compared, swept, swept / "0"):
        assert problems(folder) == []
    checks = [check.about for check in folder_checks(compared)]
    for name in ("user_wise", "group_privacy", "record_level"):
        assert f"{name}, seed 0: adapter is the one that its ledger ends with" in checks
    assert sum("stated as configured" in about for about in checks) == len(MECHANISMS)


def test_the_joint_figure_of_a_sweep_is_that_of_all_its_jobs(swept: Path) -> None:
    stated = json.loads((swept / "privacy.json").read_text())
    assert list(stated["jobs"]) == ["0", "1"]
    runs = [run for job in ("0", "1") for run in read_privacy(swept / job).runs]  # type: ignore[union-attr]
    parts = tuple(run.statement.release for run in runs)
    delta = runs[0].statement.delta
    assert stated["joint"]["epsilon"] == pytest.approx(acc.epsilon(acc.Composed(parts), delta))  # type: ignore[arg-type]
    assert "what all of its jobs promise together is in `../PRIVACY.md`" in (swept / "0" / "PRIVACY.md").read_text()
    assert "choice by data" in (swept / "PRIVACY.md").read_text()


def test_one_changed_byte_of_a_ledger_is_found(run: Path) -> None:
    path = run / "ledger" / "user_wise-seed0.jsonl"
    data, stated = path.read_bytes(), read_privacy(run).runs[1:2]  # type: ignore[union-attr]
    found = configured(run)
    assert not any(check.problem for check in run_checks(run, stated, found))
    newlines = [at for at, byte in enumerate(data) if byte == ord("\n")]
    for at in [*range(0, len(data), len(data) // 40), *newlines]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert any(check.problem for check in run_checks(run, stated, found)), at


@pytest.mark.parametrize("num_left", [0, 1, 2])
def test_a_ledger_whose_end_was_cut_off_is_found(run: Path, num_left: int) -> None:
    path = run / "ledger" / "group_privacy-seed0.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:num_left]))
    assert any("group_privacy, seed 0" in text for text in problems(run))


def test_every_changed_figure_and_word_of_privacy_json_is_found(run: Path) -> None:
    path = run / "privacy.json"
    content = json.loads(path.read_text())
    for node, key in list(leaves(content)):
        kept = node[key]
        node[key] = kept * 1.01 + 1 if isinstance(kept, float | int) and not isinstance(kept, bool) else f"{kept}x"
        path.write_text(json.dumps(content, indent=2) + "\n")
        assert first_problem(run), (key, kept)
        node[key] = kept


def test_a_statement_that_was_written_anew_as_a_whole_is_found(run: Path) -> None:
    content = read_privacy(run)
    assert isinstance(content, PrivacyFile)
    for changes in (
        {"rounds": 1},
        {"target_epsilon": 4.0},
        {"clip_norm": 0.1},
        {"noise_source": "os"},
        {"delta": 1e-3},
    ):
        runs = [replace(one, statement=replace(one.statement, **changes)) if at == 1 else one
                for at, one in enumerate(content.runs)]  # fmt: skip
        write_privacy(run, runs)
        assert problems(run), changes
    more = acc.PoissonUsers(3.0, 0.3, 2)
    claim = replace(content.runs[1].statement, release=more)
    write_privacy(run, [content.runs[0], replace(content.runs[1], statement=claim), *content.runs[2:]])
    assert any("releases as stated" in text for text in problems(run))


@pytest.mark.parametrize("name", ["user_wise", "record_level"])
def test_another_adapter_is_found(run: Path, name: str) -> None:
    other = run / "adapters" / "non_private" / "adapter_model.safetensors"
    shutil.copy(other, run / "adapters" / name / "adapter_model.safetensors")
    ledgers, stated = problems(run)
    assert stated.startswith(f"{name}, seed 0: adapter as stated: ")
    assert ledgers.startswith(f"{name}, seed 0: adapter is the one that its ledger ends with: ")
    assert "sha256" in stated
    assert "sha256" in ledgers


@pytest.mark.parametrize("gone", ["adapters/user_wise", "ledger", "PRIVACY.md", "privacy.json", "results.json",
                                  "results.csv", "config.yaml", "run.json"])  # fmt: skip
def test_what_was_removed_is_found(run: Path, gone: str) -> None:
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert problems(run)


@pytest.mark.parametrize("at", range(1, len(MECHANISMS)))
def test_a_removed_run_is_found_even_if_all_its_files_are_gone(run: Path, at: int) -> None:
    name = MECHANISMS[at]
    content = read_privacy(run)
    assert isinstance(content, PrivacyFile)
    write_privacy(run, [one for one in content.runs if one.statement.mechanism != name])
    assert any(name in text for text in problems(run))
    shutil.rmtree(run / "adapters" / name)
    (run / "ledger" / f"{name}-seed0.jsonl").unlink(missing_ok=True)
    change_json(run / "results.json", lambda rows: rows.pop(at))
    assert any(f"{name}, seed 0 not stated" in text for text in problems(run))


def test_a_spare_adapter_and_a_spare_ledger_are_found(run: Path) -> None:
    shutil.copytree(run / "adapters" / "user_wise", run / "adapters" / "another")
    shutil.copy(run / "ledger" / "user_wise-seed0.jsonl", run / "ledger" / "user_wise-seed1.jsonl")
    (problem,) = problems(run)
    assert "adapters/another" in problem
    assert "user_wise-seed1" in problem


@pytest.mark.parametrize(
    ("old", "new"),
    [("epsilon: 8.0", "epsilon: 2.0"), ("clip_norm: 0.3", "clip_norm: 0.1"),
     ("sampling_prob: 0.3", "sampling_prob: 0.1"), ("source: seeded", "source: os")],
)  # fmt: skip
def test_a_changed_configuration_is_found(run: Path, old: str, new: str) -> None:
    change_text(run / "config.yaml", old, new)
    assert any("config.yaml" in text for text in problems(run))


@pytest.mark.parametrize(
    ("key", "value"),
    [("privacy.epsilon", 2.0), ("privacy.delta", 1e-3), ("privacy.num_searched", 9), ("noise.source", "os"),
     ("selection.sampling_prob", 0.1), ("tuned.user_wise.clip_norm", 0.1), ("tuned.rounds", 1), ("seed", 4)],
)  # fmt: skip
def test_a_configuration_that_was_changed_in_both_files_is_found(run: Path, key: str, value: object) -> None:
    configure(run, key, value)
    assert problems(run)


def test_changed_words_of_page_and_card_and_a_changed_epsilon_of_the_results_are_found(run: Path) -> None:
    for path, old, new in (
        (run / "PRIVACY.md", "NO guarantee for users", "guarantee for users"),
        (run / "adapters" / "user_wise" / "README.md", "simulated-differential-privacy", "differential-privacy"),
        (run / "results.json", '"seed": 0', '"seed": 1'),
        (run / "results.csv", "user_wise,", "user_unwise,"),
    ):
        kept = path.read_text()
        change_text(path, old, new)
        assert problems(run), path
        path.write_text(kept)
    change_json(run / "results.json", lambda rows: rows[1].update(epsilon=1.0))
    assert any("results.json" in text for text in problems(run))


@pytest.mark.parametrize("job", ["0", "1"])
def test_a_removed_job_is_found(sweep: Path, job: str) -> None:
    shutil.rmtree(sweep / job)
    assert any(f"jobs {job} are gone" in text for text in problems(sweep))


def test_a_job_that_is_not_counted_is_found(sweep: Path) -> None:
    shutil.copytree(sweep / "1", sweep / "2")
    assert any("jobs 2 are not counted" in text for text in problems(sweep))


def test_a_job_that_was_stopped_is_found_and_named(sweep: Path) -> None:
    for name in ("privacy.json", "PRIVACY.md"):
        (sweep / "1" / name).unlink()
    assert any("jobs 1 have released something that no statement counts" in text for text in problems(sweep))


def test_a_job_that_was_changed_is_found_in_the_sweep_and_in_the_job(sweep: Path) -> None:
    path = sweep / "1" / "ledger" / "user_wise-seed0.jsonl"
    kept = path.read_bytes()
    path.write_bytes(kept.replace(b'"round":1', b'"round":2', 1))
    assert any(text.startswith("job 1: user_wise, seed 0: ledger") for text in problems(sweep))
    path.write_bytes(kept)
    content = read_privacy(sweep / "1")
    assert isinstance(content, PrivacyFile)
    write_privacy(sweep / "1", content.runs)  # no job of a sweep any more
    assert any("jobs 1 have another privacy.json" in text for text in problems(sweep))


def test_a_job_that_its_sweep_does_not_count_is_found_from_the_job(sweep: Path) -> None:
    change_json(sweep / "privacy.json", lambda content: content["jobs"].pop("1"))
    assert any("does not count this job" in text for text in problems(sweep / "1"))
    assert problems(sweep / "0") == []


def test_a_changed_joint_figure_of_a_sweep_is_found(sweep: Path) -> None:
    change_json(sweep / "privacy.json", lambda content: content["joint"].update(epsilon=8.0))
    assert any("the joint figure recomputed" in text for text in problems(sweep))


def test_a_job_that_is_resumed_brings_its_sweep_up_to_date(settings: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    assert run_command("run", ["--multirun", *settings, "mechanism=user_wise", f"output_dir={folder}"]) == 0
    for name in ("privacy.json", "PRIVACY.md"):
        (folder / name).unlink()
        (folder / "0" / name).unlink()
    assert run_command("run", [f"resume={folder / '0'}"]) == 0
    assert problems(folder) == []
    assert "`../PRIVACY.md`" in (folder / "0" / "PRIVACY.md").read_text()


def test_the_command_prints_a_line_a_check_and_ends_with_0_1_or_2(run: Path, tmp_path: Path, processes: Zygote) -> None:
    def verify(*folders: Path) -> Ended:
        return processes.run("verify", *map(str, folders))

    right = verify(run, run)
    assert (right.returncode, right.stdout.splitlines()[-1]) == (0, "every check passed")
    assert right.stdout.count("ok: PRIVACY.md") == 2
    change_text(run / "PRIVACY.md", "What is guaranteed", "What is promised")
    wrong = verify(run)
    assert wrong.returncode == 1
    assert "FAILED: PRIVACY.md: it is not what privacy.json says" in wrong.stdout
    nothing = verify(run, tmp_path)
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert "is no run folder" in nothing.stderr


def test_a_claim_for_fewer_rounds_than_the_ledger_holds_is_found_by_its_cost(run: Path) -> None:
    content = read_privacy(run)
    assert isinstance(content, PrivacyFile)
    one = content.runs[1]
    release = one.statement.release
    assert isinstance(release, acc.PoissonUsers)
    claim = replace(one.statement, release=release.first(1))
    write_privacy(run, [content.runs[0], replace(one, statement=claim), *content.runs[2:]])
    assert any("epsilon recomputed from it: it adds up to epsilon" in text for text in problems(run))


@pytest.mark.parametrize("override", ["hydra.searchpath=[pkg://this]", "+hydra.callbacks.x._target_=a.B", "--info=all"])
def test_what_is_no_setting_of_a_run_is_not_composed_again(
    run: Path, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim_userdp.simulations.configured_runs.composed", lambda *_: pytest.fail("composed"))
    change_json(run / "run.json", lambda content: content["overrides"].append(override))
    assert "is no setting of a run" in str(configured(run).check.problem)
