"""Whatever value a setting has, the sentence that refuses it names that setting, not another one that follows it."""

import copy
import math
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from fedsim_userdp.mechanisms.settings_tree import leaves as leaves_of
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.simulations.arguments import check_types
from fedsim_userdp.simulations.configured import checked_runs
from fedsim_userdp.simulations.sentences import MENDABLE, sentence
from tests.hostile.test_settings import remembered
from tests.simulations.corpora import small_settings, write_jsonl
from tests.simulations.small_runs import remember_accounting

CHOICES = [
    ["mechanism=user_wise"],
    ["mechanism=user_wise_adaptive", "records=random_chunk"],
    ["mechanism=group_privacy", "optimizer=sgd"],
    ["mechanism=non_private"],
    ["mechanism=zero_shot"],
    ["selection=fixed_size", "selection.cohort_size=4", "engine=flower"],
    ["selection=cyclic", "selection.cohort_size=4", "engine=deployment"],
]
VALUES = [0, -1, math.nan, "word"]
MORE_VALUES = [math.inf, 10**30, -math.inf, ""]
# Refused for what the corpus holds, in words of the corpus.
ELSEWHERE = {("tokens.min_words", 10**30): "user with fewer than"}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return ModelSource().load_tokenizer()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> list[str]:
    """Settings of a small run, the tokenizer at hand."""
    monkeypatch.setenv("FEDSIM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedsim_userdp.simulations.arguments.hydra.compose", remembered(hydra.compose))
    remember_accounting(monkeypatch)
    real = ModelSource.load_tokenizer
    monkeypatch.setattr(
        ModelSource, "load_tokenizer", lambda source: tokenizer if source.path is None else real(source)
    )
    return small_settings(write_jsonl(tmp_path / "corpus.jsonl"), tmp_path / "cache", rounds=1)


def composed(overrides: list[str]) -> DictConfig:
    """The configuration of `fedsim run`, as the running job's."""
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        config = compose("run", overrides=overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return config


@pytest.mark.parametrize("values", [VALUES, pytest.param(MORE_VALUES, marks=pytest.mark.slow)], ids=["some", "more"])
@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_what_is_refused_is_named(settings: list[str], choice: list[str], values: list[Any], tmp_path: Path) -> None:
    kept = [one for one in settings if "selection" not in choice[0] or not one.startswith("selection")]
    config, wrong = composed([*kept, *choice, "output_dir=run"]), []
    leaves = dict(leaves_of(OmegaConf.to_container(config, resolve=True)))
    keys = [key for key in leaves if not key.endswith("_") and key not in ("output_dir", "resume")]
    if choice != CHOICES[0]:  # the rest is as there
        keys = [key for key in keys if key.startswith(tuple(one.partition("=")[0].split(".")[0] for one in choice))]
    for key in keys:
        for value in values:
            changed = copy.deepcopy(config)
            OmegaConf.update(changed, key, value, merge=False)
            try:
                with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
                    check_types(changed, "run")
                checked_runs([changed], tmp_path / "run")
            except MENDABLE as error:
                if ELSEWHERE.get((key, value), key) not in sentence(error):
                    wrong.append(f"{key}={value}: {sentence(error)}")
    assert keys
    assert wrong == []
