"""The commands, killed and resumed: same weights, same ledger, same epsilon as if never killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.started import RUN_FILE
from fedsim_userdp.simulations.arguments import complete_arguments, override_key
from tests.simulations.corpora import small_settings, write_jsonl
from tests.simulations.small_runs import what_a_run_left
from tests.simulations.zygote import Zygote

KILLS = 20


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small run of eight rounds."""
    folder = tmp_path_factory.mktemp("corpus")
    return small_settings(write_jsonl(folder / "corpus.jsonl"), folder / "cache")


def go_on(processes: Zygote, command: str, folder: Path, settings: list[str], **kill: float | bool) -> int:
    """Begins or resumes the run in `folder`; returns the exit code, negative when it was killed."""
    begun = (folder / RUN_FILE).exists()
    arguments = [f"resume={folder}"] if begun else [*settings, f"output_dir={folder}"]
    ended = processes.run(command, *arguments, **kill)  # type: ignore[arg-type]
    assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
    return ended.returncode


def survives_kills(
    tmp_path: Path, processes: Zygote, command: str, settings: list[str], kills: int, times: random.Random
) -> None:
    """Kills runs at random moments, resumed until they are done, over and over until there were `kills` kills."""
    start = time.monotonic()
    assert go_on(processes, command, tmp_path / "whole", settings) == 0
    whole = time.monotonic() - start
    expected = what_a_run_left(tmp_path / "whole")
    done = number = 0
    while done < kills:
        number += 1
        folder = tmp_path / f"broken {number}"
        for life in range(1, 200):
            if done >= kills:
                break
            late = min(1.0, life / 3)  # the first lives are short, the later ones reach the end
            if go_on(processes, command, folder, settings, after=times.uniform(0, late * whole)) == 0:
                break
            done += 1
        assert go_on(processes, command, folder, settings) == 0
        left = what_a_run_left(folder)
        assert [name for name in expected if left.get(name) != expected[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["user_wise", "user_wise_adaptive", "group_privacy"])
def test_a_run_killed_at_20_random_moments_ends_as_if_never_killed(
    tmp_path: Path, processes: Zygote, settings: list[str], mechanism: str
) -> None:
    chosen = [*settings, f"mechanism={mechanism}"]
    survives_kills(tmp_path, processes, "run", chosen, KILLS, random.Random(mechanism))


@pytest.mark.slow
def test_a_comparison_killed_at_random_moments_ends_as_if_never_killed(
    tmp_path: Path, processes: Zygote, settings: list[str]
) -> None:
    chosen = [*settings, "compare.mechanisms=[zero_shot,user_wise,group_privacy,non_private]", "tuned.rounds=4"]
    survives_kills(tmp_path, processes, "compare", chosen, 10, random.Random(0))


@pytest.mark.slow
def test_a_run_killed_at_20_writes_inside_checkpoints_and_ledger_ends_as_if_never_killed(
    tmp_path: Path, processes: Zygote, settings: list[str]
) -> None:
    assert go_on(processes, "run", tmp_path / "whole", settings) == 0
    expected = what_a_run_left(tmp_path / "whole")
    choose = random.Random(1)
    for number in range(KILLS):
        folder = tmp_path / f"broken {number}"
        killed = go_on(processes, "run", folder, settings, write=choose.randrange(8, 120), torn=bool(number % 2))
        assert killed == -signal.SIGKILL
        assert go_on(processes, "run", folder, settings) == 0
        left = what_a_run_left(folder)
        assert [name for name in expected if left.get(name) != expected[name]] == []


def test_a_killed_run_goes_on_and_tells_what_differs_when_it_may_not(
    tmp_path: Path, processes: Zygote, settings: list[str]
) -> None:
    settings = [*settings, "tuned.rounds=3"]
    whole, broken = tmp_path / "whole", tmp_path / "broken, 'née' 😀"
    assert go_on(processes, "run", whole, settings) == 0
    assert go_on(processes, "run", broken, settings, write=40, torn=True) == -signal.SIGKILL

    def refused(*arguments: str, command: str = "run") -> str:
        ended = processes.run(command, f"resume='{str(broken).translate({39: chr(92) + chr(39)})}'", *arguments)
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
        return ended.stderr

    assert "privacy.epsilon was 8.0 and is 3 (privacy.epsilon cannot change within a run" in refused(
        "privacy.epsilon=3"
    )
    assert "(checkpoint.allow_changes=true allows it)" in refused("mechanism.clip_norm=0.5")
    assert "privacy.epsilon was 8.0 and is 3 (privacy.epsilon cannot change" in refused(
        "privacy.epsilon=3", "checkpoint.allow_changes=true"
    )
    assert "seed was 0 and is 1" in refused("seed=1")
    assert "mechanism.clip_norm was 0.3 and is 0.5" in refused("mechanism.clip_norm=0.5")
    assert "holds a run of `fedsim run`" in refused(command="compare")
    corpus = Path(next(s for s in settings if s.startswith("data.path=")).partition("=")[2])
    text = corpus.read_text()
    corpus.write_text(text + '{"user_id": "user 1", "text": "one more record of some words"}\n')
    assert "data was" in refused()
    corpus.write_text(text)
    assert processes.run("run", f"output_dir={whole}", *settings).stderr.count("holds a run already") == 1
    assert go_on(processes, "run", broken, settings) == 0
    assert what_a_run_left(broken) == what_a_run_left(whole)


@pytest.mark.slow
def test_changed_settings_can_be_allowed_and_are_said(tmp_path: Path, processes: Zygote, settings: list[str]) -> None:
    settings = [*settings, "tuned.rounds=3"]
    assert go_on(processes, "run", tmp_path / "run", settings, write=52) == -signal.SIGKILL
    arguments = [f"resume={tmp_path / 'run'}", "mechanism.learning_rate=0.01", "checkpoint.allow_changes=true"]
    changed = processes.run("run", *arguments)
    assert changed.returncode == 0, changed.stderr
    assert "mechanism.learning_rate was 0.04 and is 0.01" in changed.stdout


@pytest.mark.slow
def test_a_run_on_flowers_runtime_killed_once_ends_as_if_never_killed(tmp_path: Path, settings: list[str]) -> None:
    chosen = [*settings, "tuned.rounds=3", "engine=flower", "engine.num_nodes=2"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(folder: Path, kill_after_round: int | None = None) -> None:
        begun = (folder / RUN_FILE).exists()
        arguments = [f"resume={folder}"] if begun else [*chosen, f"output_dir={folder}"]
        command = [sys.executable, "-m", "fedsim_userdp.simulations.cli", "run", *arguments]
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, start_new_session=True, stdout=subprocess.DEVNULL
        ) as process:
            if kill_after_round is not None:
                ledger = folder / "ledger" / "user_wise-seed0.jsonl"
                while not ledger.exists() or ledger.read_bytes().count(b"\n") < kill_after_round:
                    assert process.poll() is None, "the run ended before it could be killed"
                    time.sleep(0.01)
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == (0 if kill_after_round is None else -signal.SIGKILL)

    run(tmp_path / "whole")
    run(tmp_path / "broken", kill_after_round=2)
    run(tmp_path / "broken")
    assert what_a_run_left(tmp_path / "broken") == what_a_run_left(tmp_path / "whole")


def run_file(folder: Path, **changes: object) -> Path:
    """A folder that says what it was started with."""
    content = {"format": 1, "command": "run", "overrides": [], "config": {}, **changes}
    (folder / RUN_FILE).write_text(json.dumps(content))
    return folder


def test_resume_takes_the_folders_own_overrides(tmp_path: Path) -> None:
    run_file(tmp_path, overrides=["seed=4", "mechanism=zero_shot", "output_dir=x", "resume=y"])
    assert complete_arguments("run", [f"resume={tmp_path}", "seed=5"]) == [
        "mechanism=zero_shot", f"resume={tmp_path}", "seed=5", f"output_dir='{tmp_path}'",
    ]  # fmt: skip
    assert complete_arguments("run", ["seed=5", "--cfg", "job"]) == ["seed=5", "--cfg", "job"]
    assert complete_arguments("run", ["resume=null"]) == ["resume=null"]
    assert override_key("+a.b=c") == "a.b"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "is not of this version's format 1"),
        ({"command": "compare"}, "resume it with that"),
        ({"overrides": "seed=1"}, "not a list of texts"),
        ({"overrides": [5]}, "not a list of texts"),
        ({"overrides": ["--config-dir=/elsewhere"]}, "no setting of a run"),
        ({"overrides": ["hydra.callbacks.x._target_=os.system"]}, "no setting of a run"),
        ({"overrides": ["+hydra/launcher=evil"]}, "no setting of a run"),
        ({"overrides": ["selection._target_=os.system"]}, "give it again on the command line if you trust it"),
        ({"overrides": ["data._target_=fedsim_userdp.data.store.shutil.rmtree"]}, "give it again on the command line"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_run_file_that_holds_more_than_settings_is_refused(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        complete_arguments("run", [f"resume={run_file(tmp_path, **changes)}"])


def test_ones_own_code_is_resumed_when_it_is_given_again(tmp_path: Path) -> None:
    run_file(tmp_path, overrides=["selection._target_=my.Selector", "optimizer._target_=torch.optim.AdamW"])
    again = "selection._target_=my.Selector"
    assert complete_arguments("run", [f"resume={tmp_path}", again])[:3] == [
        "optimizer._target_=torch.optim.AdamW", f"resume={tmp_path}", again,
    ]  # fmt: skip


@pytest.mark.parametrize("content", [None, "", "a: 1\n", "[5]", "[" * 100_000])
def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / RUN_FILE).write_text(content)
    with pytest.raises(ConfigError, match=r"run\.json"):
        complete_arguments("run", [f"resume={tmp_path}"])
