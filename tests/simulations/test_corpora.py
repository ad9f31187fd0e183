"""The configured corpus as token ids of the configured model."""

import json
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.construction import tokenised
from fedsim_userdp.models.loading import TINY_MODEL, ModelSource
from fedsim_userdp.settings import Settings
from fedsim_userdp.simulations.configured import configured_corpus, plain
from tests.simulations.benchmark_setup import small_overrides


def model_that_knows(num_tokens: int, folder: Path) -> ModelSource:
    """The bundled model's files, its configuration changed."""
    shutil.copytree(TINY_MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": num_tokens}))
    return ModelSource(path=str(folder), device="cpu")


def store_of(config: DictConfig, model: ModelSource) -> TokenStore:
    settings = Settings.of(plain(config))
    return tokenised(configured_corpus(config), model, settings.tokens, settings.cache_dir)


def test_a_tokenizer_with_more_tokens_than_its_model_knows_is_refused(tmp_path: Path) -> None:
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        config = compose("benchmark", overrides=[*small_overrides(tmp_path), f"output_dir={tmp_path}"])
    own = len(ModelSource().load_tokenizer())
    for num_tokens in (own, own + 1):
        assert store_of(config, model_that_knows(num_tokens, tmp_path / str(num_tokens))).num_users > 0
    with pytest.raises(ConfigError, match=f"its tokenizer has {own} tokens and the model knows {own - 1}"):
        store_of(config, model_that_knows(own - 1, tmp_path / "small"))
