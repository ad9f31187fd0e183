"""How a study is made of its objects and settings: every check that needs no mechanism, and the defaults."""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fedsim_userdp.cache import default_cache_dir, folder_of
from fedsim_userdp.data.corpus import Corpus, DropCounts
from fedsim_userdp.data.ingestion import corpus_fingerprint
from fedsim_userdp.data.perplexity import CachedScores, PerplexityRecords
from fedsim_userdp.data.records import RandomChunks, RandomRecords, RecordSelector
from fedsim_userdp.data.split import UserSplit, split_users
from fedsim_userdp.data.store import TokenStore, open_store
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.federation.engines import Engine
from fedsim_userdp.mechanisms.circumstances import (
    Circumstances,
    foreign_classes,
    is_add_or_remove,
    licence_of,
    taken_as_public,
)
from fedsim_userdp.mechanisms.guarantee import Target
from fedsim_userdp.mechanisms.micro_batches import local_training
from fedsim_userdp.mechanisms.searches import search_in_words, searched_runs
from fedsim_userdp.mechanisms.settings_tree import Tree, target_of
from fedsim_userdp.mechanisms.study import Parts, Study, num_protected
from fedsim_userdp.mechanisms.units import user_in_words
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.plugins import calling, class_name, refuse_replaced_method
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.sealed import seal
from fedsim_userdp.selection import Choosing, ClientSelector, Scheduling, Stating, foreign_name, refuse_two_ways
from fedsim_userdp.settings import Settings, Split, TokenSettings
from fedsim_userdp.training.batches import Unit
from fedsim_userdp.training.metrics import Metric
from fedsim_userdp.training.scoring import BaseModelScorer
from fedsim_userdp.training.users import TrainingUsers, in_order_of_ids

_log = logging.getLogger(__name__)
_CORPUS_MEMBERS = ("name", "license", "source", "dropped", "records", "fingerprint")


def build_study(tree: Tree, parts: Parts, rounds: int = 1) -> Study:
    """Returns the study of some objects and of the settings in a tree.

    Args:
        tree: the settings as they are written down, the objects' among them.
        parts: the objects.
        rounds: of the run, as far as they are known; a selection may declare another claim for another number.

    Raises:
        ConfigError, DataError, ModelError, ValueError: one sentence on what is wrong with it.
    """
    settings = Settings.of(tree)
    for group in ("corpus", "model", "records", "engine"):
        refuse_replaced_method("data" if group == "corpus" else group, getattr(parts, group))
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    model, selector = parts.model, parts.selection
    store = tokenised(parts.corpus, model, settings.tokens, settings.cache_dir)
    seal(store.path)
    if isinstance(text := tree["data"].get("path"), str):
        seal(text)
    _check_selector(selector)
    check_engine(parts.engine)
    if _asks_for_owners(tree["data"]) and not store.declares_owners:
        _log.warning("the records name no owner besides their user: the promise is to these users only")
    keep_places = store.declares_owners or not is_add_or_remove(selector, store.num_users, rounds)
    split = _split(settings.split, store, keep_places=keep_places)
    ownership: Literal["assigned", "declared"] = "declared" if store.declares_owners else "assigned"
    records = _record_selector(settings, parts.records, model, store)
    if not callable(parts.optimizer):
        raise ConfigError(f"optimizer={tree['optimizer']} is no optimizer: it needs a _target_, and _partial_=true")
    if "lr" in tree["optimizer"]:
        raise ConfigError("optimizer.lr has no effect: the learning rate is the mechanism's, mechanism.learning_rate")
    momentum = tree["optimizer"].get("momentum")
    if isinstance(momentum, int | float) and not 0 <= momentum < 1:
        raise ConfigError(f"optimizer.momentum={momentum} must be a number in [0, 1)")
    cache_dir = _path(settings.cache_dir) or default_cache_dir()
    return Study(
        seed=_seed(settings.seed),
        noise_source=settings.noise.source,
        target=_target(settings, num_protected(store, split), ownership),
        store=store,
        split=split,
        split_seed=settings.split.seed,
        keep_places=keep_places,
        model=model,
        lora=settings.lora,
        window=settings.tokens.window,
        records=records,
        selector=selector,
        optimizer_fn=parts.optimizer,
        engine=parts.engine,
        local=local_training(settings, model, cache_dir),
        central_engine=_central_engine(settings.central.engine),
        evaluation_units=_evaluation_units(settings, store, split),
        evaluate_every=at_least_one("evaluation.every", settings.evaluation.every),
        metrics=_metrics(parts.metrics),
        num_searched=searched_runs(tree, parts.corpus.name),
        circumstances=Circumstances(
            foreign=foreign_classes(tree, selector, records, parts.optimizer, parts.engine, model),
            window=settings.tokens.window,
            public=taken_as_public(tree, keep_places=keep_places),
            precision=model.product_dtype,
            evaluated_on=settings.evaluation.users,
            selector=foreign_name(selector) or "",
            users=user_in_words(tree["data"]),
            searched_by=search_in_words(tree, parts.corpus.name),
        ),
        corpus_name=parts.corpus.name,
        licence=licence_of(tree["data"], type(parts.corpus)),
        tree=tree,
        public=parts.public,
    )


def check_corpus(corpus: Corpus, target: str) -> Corpus:
    """Returns a corpus, after checking that it has what one has; `target` names its class.

    Raises:
        ConfigError: it is no corpus.
    """
    with calling("data", corpus, "what a corpus has"):
        lacking = [name for name in _CORPUS_MEMBERS if not hasattr(corpus, name)]
    if lacking:
        raise ConfigError(f"data={target} has no `{lacking[0]}`: see fedsim_userdp.data.corpus.Corpus")
    for name in ("name", "license"):
        if isinstance(given := getattr(corpus, name), int | float):
            raise ConfigError(f"data.{name}={given} must be a text, in quotes within quotes where it is a number")
    for name, kind in (("name", str), ("license", str), ("source", str), ("dropped", DropCounts)):
        if not isinstance(found := getattr(corpus, name), kind):
            raise ConfigError(
                f"data={target}: `{name}` must be a {kind.__name__}, got {type(found).__name__}: see "
                "fedsim_userdp.data.corpus.Corpus"
            )
    return corpus


def at_least_one(key: str, value: int) -> int:
    """Returns the setting, a whole number of at least 1; raises ConfigError otherwise."""
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key}={value} must be a whole number of at least 1")
    return value


def tokenised(corpus: Corpus, model: ModelSource, settings: TokenSettings, cache_dir: str | None) -> TokenStore:
    """Returns the corpus as token ids of `model`, from the cache or built there first.

    Raises:
        ConfigError, DataError, ModelError: one sentence on what is wrong with it; missing data before a missing model.
    """
    corpus_fingerprint(corpus)
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
    return open_store(corpus, tokenizer, settings, _path(cache_dir))


def _split(settings: Split, store: TokenStore, *, keep_places: bool) -> UserSplit:
    """The split, the training users in the order of their ids."""
    _seed(settings.seed, "split.seed")
    found = split_users(
        store,
        heldout_users=settings.heldout_users,
        validation_users=settings.validation_users,
        seed=settings.seed,
        keep_places=keep_places,
    )
    return replace(found, train=in_order_of_ids(store, found.train))


def _path(value: str | None) -> Path | None:
    """A path, a tilde at its beginning expanded, or None."""
    return None if value is None else folder_of(value, "cache_dir")


def _seed(value: int, key: str = "seed") -> int:
    """The seed, at least 0."""
    if value < 0:
        raise ConfigError(f"{key}={value} must be at least 0")
    return value


def _asks_for_owners(data: Tree) -> bool:
    """Whether records are to belong to everybody whom they name."""
    return data.get("owners_column") is not None or data.get("owners", "sender") != "sender"


def _target(settings: Settings, num_users: int, ownership: Literal["assigned", "declared"]) -> Target:
    """The target, delta = N^-1.1 unless given; a delta above 1/N would let one user's data be published."""
    epsilon = float(settings.privacy.epsilon)
    if not epsilon > 0:
        raise ConfigError(f"privacy.epsilon={epsilon:g} must be above 0 (inf for no noise)")
    if num_users < 2:
        raise ConfigError(f"{num_users} user is left to train on: a promise to users needs at least 2")
    delta = num_users**-1.1 if settings.privacy.delta is None else float(settings.privacy.delta)
    if not 0 < delta < 1:
        raise ConfigError(f"privacy.delta={delta:g} must lie in (0, 1)")
    if delta > 1 / num_users:
        raise ConfigError(
            f"privacy.delta={delta:g} is above 1/N = {1 / num_users:.3g} for {num_users} training users"
            f"{' and others who own their records' if ownership == 'declared' else ''}, "
            "which would allow publishing somebody's data; leave it null for N^-1.1"
        )
    return Target(epsilon, delta, ownership)


def _check_selector(selector: ClientSelector) -> None:
    """Raises ConfigError unless it is a selector of users."""
    refuse_two_ways(selector)
    if not isinstance(selector, Choosing | Scheduling | Stating):
        raise ConfigError(
            f"selection={target_of(type(selector))} has no `probabilities`, nor `select` or `cohort`, "
            "`expected_cohort_size` and `release`: see fedsim_userdp.selection"
        )


_OF_ENGINE = ("num_nodes_for", "deals_by_size", "run")


def check_engine(engine: Engine) -> None:
    """Raises ConfigError unless an engine has what one has."""
    with calling("engine", engine, "what an engine has"):
        lacking = [name for name in _OF_ENGINE if not callable(getattr(engine, name, None))]
    if lacking:
        raise ConfigError(
            f"engine={class_name(type(engine))} has no {lacking[0]}: see fedsim_userdp.federation.engines.Engine"
        )


def _record_selector(
    settings: Settings, selector: RecordSelector, model: ModelSource, store: TokenStore
) -> RecordSelector:
    """The record selector; one that ranks by perplexity is given the base model's scores, kept on disk."""
    if isinstance(selector, PerplexityRecords):
        scorer = BaseModelScorer(model)
        folder = _path(settings.cache_dir) or default_cache_dir()
        scores = CachedScores(scorer, folder, corpus=store.fingerprint, model=scorer.fingerprint())
        return selector.bind(scores)
    if isinstance(selector, RandomChunks) and selector.window > settings.tokens.window:
        raise ConfigError(
            f"records.window={selector.window} is more than tokens.window={settings.tokens.window}: a chunk is a "
            "record, and none is longer than that; leave records.window out"
        )
    _check_fresh(selector)
    return selector


def _check_fresh(selector: RecordSelector) -> None:
    """Raises unless it is a record selector, whose `fresh` says whether it chooses anew."""
    with calling("records", selector, "fresh"):
        is_one, fresh = isinstance(selector, RecordSelector), getattr(selector, "fresh", None)
    if not is_one:
        raise ConfigError(f"records={target_of(type(selector))} has no `fresh` and `select`: see RecordSelector")
    if not isinstance(fresh, bool | np.bool_):
        raise ConfigError(
            f"records={target_of(type(selector))}: fresh must be True or False, got a value of class "
            f"{type(fresh).__name__}"
        )


def _evaluation_units(settings: Settings, store: TokenStore, split: UserSplit) -> list[Unit]:
    """The users to evaluate on; `validation` is for tuning, so that held-out users are never tuned on."""
    groups = {"heldout": split.heldout, "validation": split.validation}
    evaluation = settings.evaluation
    records_per_user = at_least_one("evaluation.records_per_user", evaluation.records_per_user)
    if evaluation.users not in groups:
        raise ConfigError(f"evaluation.users={evaluation.users} is unknown; expected heldout or validation")
    users = groups[evaluation.users]
    if not len(users):
        raise ConfigError(
            f"split.{evaluation.users}_users=0 leaves nobody to evaluate on (evaluation.users={evaluation.users})"
        )
    key = RunKey.seeded(settings.split.seed, "evaluation")  # public: the same records for every mechanism
    window = settings.tokens.window
    chosen = TrainingUsers(store, users, RandomRecords(fresh=False), records_per_user, window, key)
    if not (units := chosen.units(range(len(users)), round=0)):
        raise ConfigError(f"none of the {len(users)} {evaluation.users} users has a usable record: set aside more")
    return units


def _metrics(metrics: Mapping[str, Metric]) -> Mapping[str, Metric]:
    """The metrics, each with a name that a column can have, and a score()."""
    for name, metric in metrics.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w{0,39}", name):
            raise ConfigError(f"metrics.{name}: a metric's name must be a letter, then letters, digits and '_'")
        refuse_replaced_method(f"metrics.{name}", metric)
        if isinstance(metric, type) or not callable(getattr(metric, "score", None)):
            raise ConfigError(f"metrics.{name}={class_name(metric)} has no score(): see fedsim_userdp.training.metrics")
    return metrics


def _central_engine(name: str) -> Literal["opacus", "stacked"]:
    """What record-level DP-SGD runs on."""
    if name == "opacus":
        return "opacus"
    if name == "stacked":
        return "stacked"
    raise ConfigError(f"central.engine={name} is unknown; expected opacus or stacked")
