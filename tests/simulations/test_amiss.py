"""What stands amiss on a command line is answered in this program's words, with the setting, the value and the fix."""

import os
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.simulations.arguments import complete_arguments
from fedsim_userdp.simulations.cli import run_command
from tests.simulations.corpora import small_settings, write_jsonl

AMISS = {
    "++hydra.run.dir=foo": "write output_dir=foo instead",
    "hydra.run.dir=foo": "write output_dir=foo instead",
    "hydra.sweep.dir=foo": "write output_dir=foo instead",
    "mechansim=user_wise": "there is no setting mechansim; did you mean mechanism?",
    "enigne=flower": "did you mean engine?",
    "+optimzer=sgd": "did you mean optimizer?",
    "mechansim.clip_norm=1": "did you mean mechanism.clip_norm",
    "+tuned.user_wis.clip=1": "did you mean tuned.user_wise.clip_norm?",
    "+tuned.searched.rns=1": "did you mean tuned.searched.runs",
    "--epsilon=3": "did you mean privacy.epsilon=3?",
    "epsilon": "settings are KEY=VALUE; did you mean privacy.epsilon=...?",
    "++mechanism=x": "write mechanism=x",
    "+mechanism=x": "write mechanism=x",
    "data=null": "data=null is no choice of data: it must be one of booksum, chitchat, csv",
    "mechanism=null": "mechanism=null is no choice of mechanism",
    "mechanism=[user_wise,zero_shot]": "is no choice of mechanism",
    "mechanism={a:1}": "is no choice of mechanism",
    "~mechanism": "mechanism cannot be left out; choose one of example_level_tight",
    "compare.mechanisms={a:1}": "compare.mechanisms={a:1} must be one value or a list of them, not a mapping",
    "privacy.epsilon={a:1}": "must be one value or a list of them, not a mapping",
    "output_dir=[a]": "output_dir=[a] must be the name of one folder",
    "metrics=bits": "metrics=bits names no metric's class: write +metrics.NAME._target_=CLASS",
    "metrics=[a]": "write +metrics.NAME._target_=CLASS",
    "metrics=null": "write +metrics.NAME._target_=CLASS",
    "+metrics.bits=3": "metrics.bits is a metric's name: give its class by +metrics.bits._target_=CLASS",
    "resume=": "resume= names no run folder",
    "resume=false": "resume=false names no run folder",
    "sedd=1": "did you mean seed",
    "--multi-run": "there is no flag --multi-run: settings are KEY=VALUE, without dashes; did you mean --multirun?",
    "--mutlirun": "did you mean --multirun?",
    "--config_dir=x": "did you mean --config-dir?",
    "resume={a:1}": "resume={a:1} must be the name of one folder",
}


@pytest.mark.parametrize("argument", AMISS)
def test_an_argument_amiss_is_refused_with_its_fix(argument: str) -> None:
    with pytest.raises(ConfigError) as refused:
        complete_arguments("compare", [argument, "output_dir=x"])
    assert AMISS[argument] in str(refused.value)


def test_a_flag_that_there_is_not_may_have_its_value_behind_it() -> None:
    for arguments in (["--epsilon", "3"], ["epsilon", "3"]):
        with pytest.raises(ConfigError, match=r"did you mean privacy.epsilon=3\?"):
            complete_arguments("run", arguments)


def test_several_folders_are_not_gone_on_with_at_once() -> None:
    with pytest.raises(ConfigError, match="resume=a,b names several folders: go on with one at a time"):
        complete_arguments("run", ["--multirun", "resume=a,b"])


def test_values_of_flags_are_no_settings() -> None:
    arguments = ["--cfg", "job", "seed=1"]
    assert complete_arguments("run", arguments) == arguments


def test_a_sweep_may_be_asked_for_behind_its_settings() -> None:
    assert complete_arguments("run", ["seed=1,2", "--multirun", "output_dir=x"]) == [
        *("--multirun", "seed=1,2", "output_dir=x")
    ]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Settings of a small run, started in a folder of its own."""
    (tmp_path / "start").mkdir()
    monkeypatch.chdir(tmp_path / "start")
    return small_settings(write_jsonl(tmp_path / "corpus.jsonl"), tmp_path / "cache", rounds=1)


def refusal(capsys: pytest.CaptureFixture[str], command: str, *arguments: str) -> str:
    """What a refused command says, one sentence."""
    with pytest.raises(SystemExit) as stop:
        run_command(command, [*arguments])
    said = capsys.readouterr().err
    assert (stop.value.code, said.count("\n")) == (2, 1), said
    return said


REFUSED = {
    "privacy.epsilon=1,2": "a list is privacy.epsilon=[1,2], and --multirun runs each of them",
    "privacy.epsilon=${nosuch}": "privacy.epsilon=${nosuch} refers to what is no setting",
    "compare.mechanisms=[null]": "must be a list of mechanisms, such as [user_wise,group_privacy]",
    "compare.mechanisms=-1": "compare.mechanisms=-1 must be a list",
    "compare.mechanisms=[nosuch]": "compare.mechanisms=['nosuch']: mechanism=nosuch is unknown",
    "compare.mechanisms=[]": "compare.mechanisms is empty",
    "mechanism=user_wize": "did you mean mechanism=user_wise?",
    "data=json": "did you mean data=jsonl?",
    "compare.mechanisms=[user_wize]": "did you mean mechanism=user_wise?",
    "compare.seeds=[-1]": "compare.seeds=[-1] holds -1: seeds must be at least 0",
}


@pytest.mark.parametrize("argument", REFUSED)
def test_a_comparison_amiss_is_refused_and_writes_nothing(
    small: list[str], capsys: pytest.CaptureFixture[str], argument: str
) -> None:
    assert REFUSED[argument] in refusal(capsys, "compare", *small, "output_dir=x", argument)
    assert os.listdir() == []


@pytest.mark.parametrize(
    "given", [["output_dir=a/b/c"], ["output_dir=a/${now:%H}/c"], []], ids=["named", "later", "default"]
)
@pytest.mark.parametrize("flags", [[], ["--multirun"]], ids=["run", "sweep"])
def test_no_folder_stays_where_the_run_itself_is_refused(
    small: list[str], capsys: pytest.CaptureFixture[str], given: list[str], flags: list[str]
) -> None:
    with pytest.raises(SystemExit):
        run_command("run", [*flags, *small, "seed=1,2" if flags else "seed=1", *given, "model.dtype=float8"])
    assert "model.dtype=float8 is unknown" in capsys.readouterr().err
    assert os.listdir() == []


def test_folders_that_were_there_before_stay(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    os.makedirs("a/b")
    assert "model.dtype=float8" in refusal(capsys, "run", *small, "output_dir=a/b/c/d", "model.dtype=float8")
    assert [*os.walk(".")] == [(".", ["a"], []), ("./a", ["b"], []), ("./a/b", [], [])]


def test_a_run_that_goes_on_names_one_folder(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "run", "resume=a", "output_dir=b")
    assert "resume=a goes on in that folder, and output_dir=b names another: leave one of them out" in said
    assert "holds no run" in refusal(capsys, "run", "resume=a", "output_dir=./a")
    assert os.listdir() == []


@pytest.mark.parametrize(
    "folder", ["/proc/x", "/sys/${now:%H}", "/dev/null/x", "/dev/null", "n" * 300, "../corpus.jsonl/x"]
)
@pytest.mark.parametrize("flags", [[], ["--multirun"]], ids=["run", "sweep"])
def test_a_folder_that_cannot_be_made_is_named_with_its_setting(
    small: list[str], capsys: pytest.CaptureFixture[str], folder: str, flags: list[str]
) -> None:
    said = refusal(capsys, "run", *flags, *small, "seed=1,2" if flags else "seed=1", f"output_dir={folder}")
    assert said.startswith(f"fedsim: output_dir={folder} cannot be used (")
    assert os.listdir() == []


def test_a_sweep_with_a_job_that_lacks_a_setting_is_refused_and_writes_nothing(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = ["mechanism=user_wise,zero_shot", "mechanism.rounds=2", "output_dir=sw"]
    said = refusal(capsys, "run", *small, "--multirun", *jobs)
    assert "job 1 (mechanism=zero_shot): mechanism.rounds is no setting of the mechanism that was chosen" in said
    assert os.listdir() == []


def test_too_little_noise_is_refused_before_anything_trains(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["compare.mechanisms=[zero_shot,user_wise]", "privacy.epsilon=1e6", "mechanism.rounds=3", "output_dir=x"]
    said = refusal(capsys, "compare", *small, *chosen)
    assert "user_wise: privacy.epsilon=1e+06 at privacy.delta=0.065 cannot be kept and stated" in said
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        ("budget", "budget.num_users=0"),
        ("budget", "budget.cohort=-1"),
        *(("pretrain", f"pretrain.{name}=-1") for name in ("width", "steps", "learning_rate", "seed", "weight_decay")),
        ("pretrain", "pretrain.layers=many"),
        ("pretrain", "pretrain.heads=3"),
    ],
)
def test_commands_without_a_run_name_the_setting_and_write_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    argument: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert argument.partition("=")[0] in refusal(capsys, command, argument, "output_dir=x")
    assert os.listdir() == []


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", ["1e5", "1e6"])
def test_group_privacy_states_a_budget_that_is_hardly_one(small: list[str], epsilon: str) -> None:
    chosen = ["mechanism=group_privacy", f"privacy.epsilon={epsilon}", "mechanism.rounds=3", "output_dir=x"]
    assert run_command("run", [*small, *chosen]) == 0
    assert "epsilon" in Path("x/PRIVACY.md").read_text()


def test_every_choice_can_be_made() -> None:
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        compose("run", overrides=complete_arguments("run", ["mechanism=zero_shot", "data=csv", "~experiment"]))
