"""A setting that there is not is refused, whatever stands before it, with what may have been meant."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.simulations import hydras_own, names
from fedsim_userdp.simulations.arguments import complete_arguments
from fedsim_userdp.simulations.cli import run_command
from tests.simulations.corpora import small_settings, write_jsonl

MEANT = {
    "privacy.epslon=1": "privacy.epsilon",
    "+privacy.epslon=1": "privacy.epsilon",
    "++privacy.epslon=1": "privacy.epsilon",
    "epsilon=3": "privacy.epsilon",
    "delta=1e-5": "privacy.delta",
    "k=3": "mechanism.records_per_user",
    "lr=0.1": "mechanism.learning_rate",
    "outputdir=x": "output_dir",
    "--epsilon": "privacy.epsilon",
    "--k=3": "mechanism.records_per_user",
    "+lora.use_dora=true": "lora.use_rslora",
    "tokens.windows=3": "tokens.window",
    "tuned.user_wise.clip=3": "tuned.user_wise.clip_norm",
    "checkpoint.evry=3": "checkpoint.every",
}


@pytest.mark.parametrize("argument", MEANT)
def test_a_setting_that_there_is_not_is_refused_with_the_one_that_was_meant(argument: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no (setting|flag) ") as refused:
        complete_arguments("run", [argument])
    assert f"did you mean {MEANT[argument]}" in str(refused.value)


@pytest.mark.parametrize("argument", ["+x=3", "nothing.like.it=1", "--verbose"])
def test_where_nothing_is_near_nothing_is_suggested(argument: str) -> None:
    with pytest.raises(ConfigError, match="there is no") as refused:
        complete_arguments("run", [argument])
    assert "did you mean" not in str(refused.value)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("lora=null", "lora is a section of settings: set one of lora.alpha"),
        ("privacy=3", "privacy is a section of settings: set one of privacy.delta, privacy.epsilon"),
        ("tuned.user_wise=null", "tuned.user_wise is a section of settings"),
        ("~privacy.epsilon", "privacy.epsilon cannot be left out"),
    ],
)
def test_a_section_is_no_setting_and_cannot_be_left_out(argument: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        complete_arguments("run", [argument])


REFUSED = {
    "+selection.cohrt_size=3": "PoissonSelector has no setting cohrt_size (it takes sampling_prob)",
    "+mechanism.clipnorm=3": "did you mean mechanism.clip_norm?",
    "+optimizer.wd=0.1": "torch.optim.Adam has no setting wd (it takes params, lr, betas",
    "+records.windw=3": "RandomRecords has no setting windw (it takes fresh)",
    "mechanism.clipnorm=3": "there is no setting mechanism.clipnorm; did you mean mechanism.clip_norm?",
    "data.pth=x": "there is no setting data.pth; did you mean data.path?",
    "budget.num_users=3": "budget.num_users is no setting of this command",
    "evaluation.every=[1]": "evaluation.every=[1] must be a whole number",
}


@pytest.mark.parametrize("argument", REFUSED)
def test_what_a_class_does_not_take_is_refused_by_its_signature(
    argument: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = small_settings(write_jsonl(tmp_path / "corpus.jsonl"), tmp_path / "cache")
    with pytest.raises(SystemExit):
        run_command("run", [*settings, argument, "output_dir=run"])
    said = capsys.readouterr().err
    assert REFUSED[argument] in said
    assert said.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["corpus.jsonl"]


def test_a_list_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run_command("compare", ["compare.mechanisms=user_wise", "output_dir=run"])
    assert "compare.mechanisms=user_wise must be a list, such as [zero_shot, " in capsys.readouterr().err


@pytest.mark.parametrize(
    "argument",
    [
        "privacy.epsilon=3", "+selection.anything=3", "~selection.sampling_prob", "selection=cyclic", "-m", "--help",
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "data.owners_column=x", "+optimizer.weight_decay=0.1",
        "audit.canaries.direction=3", "tuned.searched=null", "tuned.searched.runs=3", "experiment=paper_enron",
        "model.cache_dir=x",
    ],
)  # fmt: skip
def test_what_there_is_goes_through(argument: str) -> None:
    complete_arguments("run", [argument])


def test_every_setting_of_every_command_is_known() -> None:
    assert {"privacy.epsilon", "data.path", "budget.sweep", "mechanism.clip_norm", "audit.epsilons"} <= names.known()


class HydraNode(dict[str, object]):
    """Hydra's own settings, as far as they are looked at."""

    def __init__(self, handlers: dict[str, Any], **others: Any) -> None:
        whole: dict[str, Any] = {"callbacks": {}, "job_logging": {"handlers": handlers}, "hydra_logging": {}, **others}
        super().__init__({key: OmegaConf.create(value) for key, value in whole.items()})


@pytest.mark.parametrize(
    "node",
    [
        HydraNode({"x": {"class": "mine.H"}}),
        HydraNode({"x": {"()": "mine.H"}}),
        HydraNode({"x": {"class": "logging.StreamHandler", "stream": "ext://mine.stream"}}),
        HydraNode({"x": {"class": "logging.StreamHandler", "formatter": "cfg://mine"}}),
        HydraNode({}, callbacks={"q": {}}),
        HydraNode({}, job={"env_set": {"PYTHONPATH": "mine"}}),
        HydraNode({}, job_logging={"formatters": {"x": {"class": "mine.F"}}}),
        HydraNode({}, job_logging={"filters": {"x": {"()": "mine.F"}}}),
        HydraNode({}, hydra_logging={"handlers": {"x": {"class": "mine.H"}}}),
        HydraNode({}, job_logging={"formatters": {"x": {"class": "logging.config.BaseConfigurator.importer"}}}),
        HydraNode({}, job_logging={"filters": {"x": {"()": "logging.config.BaseConfigurator.importer", "name": "m"}}}),
        HydraNode({"x": {"()": "logging.os.system", "command": "true"}}),
        HydraNode({"x": {"class": "logging.handlers.SocketHandler", "host": "h", "port": 1}}),
    ],
)
def test_code_below_hydras_own_settings_is_refused_wherever_they_come_from(
    node: HydraNode,
) -> None:
    with pytest.raises(ConfigError, match=r"names code that no statement would|changes which code"):
        hydras_own.check_composed(node)


def test_logging_by_the_standard_library_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "simple"}
    hydras_own.check_composed(HydraNode({"console": handler}))


@pytest.mark.parametrize(
    "arguments",
    [
        ["hydra.searchpath=[pkg://stranger]"],
        ["++hydra.searchpath=[file://stranger]"],
        ["--config-path", "pkg://stranger"],
        ["-cp=stranger"],
        ["--config-name=stranger", "--config-dir=x"],
        ["--experimental-rerun", "stranger.pickle"],
        ["+hydra.job.env_set.PYTHONPATH=stranger"],
        ["hydra.job={env_set:{LD_PRELOAD:x}}"],
        ["hydra={job:{env_copy:[PYTHONPATH]}}"],
        ["+hydra.job_logging.formatters.x.class=logging.config.BaseConfigurator.importer"],
        ["hydra={hydra_logging:{handlers:{x:{class:mine.H}}}}"],
        ["+hydra.job_logging.handlers.x.stream=ext://mine.stream"],
        ["hydra.launcher._target_=stranger.L"],
        ["hydra.sweeper={_target_:stranger.S}"],
        ["+hydra/callbacks=stranger"],
    ],
    ids=str,
)
def test_settings_of_hydras_own_that_decide_what_code_runs_are_refused_before_anything_is_composed(
    arguments: list[str],
) -> None:
    with pytest.raises(ConfigError, match=r"no statement would|which code the run's processes find"):
        complete_arguments("run", arguments)
    assert "stranger" not in sys.modules


def test_a_sweep_takes_no_folder_of_settings_that_may_change_how_it_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run_command("run", ["--multirun", "output_dir=x", "--config-dir", "."])
    assert "--config-dir is for one run" in capsys.readouterr().err
