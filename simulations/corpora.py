"""The configured corpus, and the same as token ids."""

from pathlib import Path

from omegaconf import DictConfig

from fedsim_userdp.data.corpus import Corpus, DropCounts
from fedsim_userdp.data.ingestion import corpus_fingerprint
from fedsim_userdp.data.store import TokenStore, open_store
from fedsim_userdp.data.tokens import TokenSettings
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.plugins import calling
from fedsim_userdp.simulations.errors import ConfigError
from fedsim_userdp.simulations.names import made, without_unused_path

_CORPUS_MEMBERS = ("name", "license", "source", "dropped", "records", "fingerprint")


def configured_corpus(config: DictConfig) -> Corpus:
    """Returns the corpus that `data` names.

    Raises:
        ConfigError: when the class is no corpus.
        DataError: when one of its settings is wrong.
    """
    corpus: Corpus = made("data", without_unused_path(config.data))
    with calling("data", corpus, "what a corpus has"):
        lacking = [name for name in _CORPUS_MEMBERS if not hasattr(corpus, name)]
    if lacking:
        raise ConfigError(f"data={config.data._target_} has no `{lacking[0]}`: see fedsim_userdp.data.corpus.Corpus")
    for name, kind in (("name", str), ("license", str), ("source", str), ("dropped", DropCounts)):
        if not isinstance(found := getattr(corpus, name), kind):
            raise ConfigError(
                f"data={config.data._target_}: `{name}` must be a {kind.__name__}, got {type(found).__name__}: see "
                "fedsim_userdp.data.corpus.Corpus"
            )
    return corpus


def configured_store(config: DictConfig, model: ModelSource) -> TokenStore:
    """Returns the configuration's corpus as token ids of `model`, from the cache or built there first.

    Raises:
        ConfigError, DataError, ModelError: one sentence on what is wrong with it; missing data before a missing model.
    """
    corpus = configured_corpus(config)
    corpus_fingerprint(corpus)
    settings = TokenSettings(**{str(key): config.tokens[key] for key in config.tokens})
    tokenizer = model.load_tokenizer()
    most = min(tokenizer.model_max_length, model.context_length() or tokenizer.model_max_length)
    if settings.window > most:
        raise ConfigError(
            f"tokens.window={settings.window} is longer than the {most} tokens that {model.name} can read"
        )
    known = model.vocabulary_size()
    if known is not None and len(tokenizer) > known:  # a GPU does not survive a token that its model does not know
        raise ConfigError(
            f"model.path={model.location}: its tokenizer has {len(tokenizer)} tokens and the model knows {known}: "
            "resize the model's embeddings, or give the tokenizer that belongs to it"
        )
    cache_dir = None if config.cache_dir is None else Path(config.cache_dir).expanduser()
    return open_store(corpus, tokenizer, settings, cache_dir)
