"""A study from keyword arguments: the settings of the command, under the same names and with the same defaults."""

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim_userdp.data.corpus import Corpus
from fedsim_userdp.data.in_memory import InMemoryCorpus
from fedsim_userdp.data.public_facts import PublicFacts
from fedsim_userdp.data.records import RandomRecords
from fedsim_userdp.data.table import TableCorpus
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.federation.engines import InProcessEngine
from fedsim_userdp.mechanisms.construction import check_corpus
from fedsim_userdp.mechanisms.settings_tree import tree_of
from fedsim_userdp.mechanisms.study import Parts
from fedsim_userdp.mechanisms.written import Written, settings_overrides, tuned_tree, written
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.selection import PoissonSelector
from fedsim_userdp.settings import SECTIONS, Budget, Settings

_FORMS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_DEFAULT_PROB = 0.16  # of conf/selection/poisson.yaml
_FLAT = {one.name: name for name in ("split", "tokens") for one in fields(SECTIONS[name]) if one.name != "seed"}
_SECTION_WORDS = {"budget": "privacy"}
_WHOLE = ("heldout_users", "validation_users", "min_words", "min_tokens", "window", "seed")


def parts_of(
    text: object,
    *,
    model: object = None,
    selection: object = None,
    records: object = None,
    optimizer: object = None,
    engine: object = None,
    metrics: object = None,
    public: Any = None,
) -> Parts:
    """Returns the objects of a study, defaults for those that are None.

    Args:
        text: see `corpus_of`.
        model: a `ModelSource`; or a folder, a GGUF file or a name on the Hub.
        selection: who takes part in a round.
        records: how a user picks records.
        optimizer: a class of `torch.optim`, or a `functools.partial` of one; its learning rate is the mechanism's.
        engine: what runs the nodes.
        metrics: further figures on the evaluation users, by name.
        public: what is public about users; see `PublicFacts.of`.
    """
    if metrics is not None and not isinstance(metrics, Mapping):
        raise ConfigError(f"metrics={type(metrics).__name__} must be a mapping of names to metrics")
    source = ModelSource() if model is None else model
    if isinstance(source, str | os.PathLike):
        source = ModelSource(name=Path(source).name, path=str(source))
    if not isinstance(source, ModelSource):
        raise ConfigError(f"model={type(source).__name__} must be a ModelSource, a folder or a name on the Hub")
    chosen: Any = partial(torch.optim.Adam) if optimizer is None else optimizer
    return Parts(
        corpus=corpus_of(text),
        model=source,
        records=RandomRecords() if records is None else records,  # type: ignore[arg-type]  # checked by the study
        selection=PoissonSelector(_DEFAULT_PROB) if selection is None else selection,  # type: ignore[arg-type]
        optimizer=partial(chosen) if isinstance(chosen, type) else chosen,
        engine=InProcessEngine() if engine is None else engine,  # type: ignore[arg-type]
        metrics=dict(metrics or {}),
        public=None if public is None else PublicFacts.of(public),
    )


def corpus_of(text: object) -> Corpus:
    """Returns users' text as a corpus.

    Args:
        text: a corpus; pairs of a user's id and a text; a table with the columns `user_id` and `text`; or the path
            of a JSONL, CSV or Parquet file with these columns.

    Raises:
        ConfigError, DataError: one sentence on what is wrong with them.
    """
    if hasattr(text, "records") and hasattr(text, "fingerprint"):
        return check_corpus(text, type(text).__qualname__)  # type: ignore[arg-type]
    if isinstance(text, str | os.PathLike):
        path = Path(text)
        form = "datasets" if (path / "dataset_info.json").is_file() else _FORMS.get(path.suffix.lower())
        if form is None:
            raise ConfigError(f"{path} must be a .jsonl, .csv or .parquet file, or a folder saved by datasets")
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        return TableCorpus(path, form, delimiter=delimiter)  # type: ignore[arg-type]
    if hasattr(text, "columns") or hasattr(text, "column_names") or isinstance(text, Mapping):
        return InMemoryCorpus.of_table(text)
    if not isinstance(text, Iterable):
        raise ConfigError(
            f"{type(text).__name__} is no text of users: give (user, text) pairs, a table, a corpus or a path"
        )
    rows = list(text)
    return InMemoryCorpus.of_table(rows) if rows and isinstance(rows[0], Mapping) else InMemoryCorpus(rows)


def settings_of(keywords: Mapping[str, Any]) -> Settings:
    """Returns the settings that keywords give, defaults for all others.

    Args:
        keywords: sections as objects or mappings (`budget=Budget(epsilon=2.0)`, `lora={"rank": 4}`), and settings of
            `split` and `tokens` by themselves (`heldout_users=20`, `min_words=0`).

    Raises:
        ConfigError: there is no such keyword, or a section is of another kind.
    """
    given: dict[str, Any] = {}
    flat: dict[str, dict[str, Any]] = {}
    for name, value in keywords.items():
        value = value.item() if isinstance(value, np.generic) else value
        section = _SECTION_WORDS.get(name, name)
        if name in _SECTION_WORDS.values():
            raise ConfigError(f"Study.of() has no keyword {name}: it is budget, such as budget=Budget(epsilon=8.0)")
        if name in _WHOLE and (isinstance(value, bool) or not isinstance(value, int)):
            raise ConfigError(f"{name}={value!r} must be a whole number")
        if name in _FLAT and name not in SECTIONS:
            flat.setdefault(_FLAT[name], {})[name] = value
        elif section in SECTIONS:
            given[section] = _section(name, SECTIONS[section], value)
        elif section in ("seed", "threads", "cache_dir"):
            given[section] = None if value is None else str(value) if section == "cache_dir" else value
        else:
            raise ConfigError(_unknown(name))
    for section, values in flat.items():
        given[section] = replace(given.get(section, SECTIONS[section]()), **values)
    return Settings(**given)


def _unknown(name: str) -> str:
    """That there is no such keyword, with those that may be meant."""
    if name in {one.name for one in fields(Budget)}:
        return f"Study.of() has no keyword {name}: it is one of budget, as in budget=Budget({name}=...)"
    known = sorted({*known_keywords(), "model", "selection", "records", "optimizer", "engine", "metrics", "public"})
    if near := difflib.get_close_matches(name, known, n=2, cutoff=0.6):
        return f"Study.of() has no keyword {name}: did you mean {' or '.join(near)}?"
    return f"Study.of() has no keyword {name}: expected one of {', '.join(known)}"


def known_keywords() -> set[str]:
    """Returns the keywords of settings."""
    sections = {name for name in SECTIONS if name != "privacy"}
    return {*sections, "budget", "seed", "threads", "cache_dir", *_FLAT}


def tree_and_choices(settings: Settings, parts: Parts) -> tuple[dict[str, Any], list[Written]]:
    """Returns settings and objects as one tree, and the objects one by one."""
    objects = {
        "selection": parts.selection,
        "data": parts.corpus,
        "records": parts.records,
        "model": parts.model,
        "engine": parts.engine,
        "optimizer": parts.optimizer,
    }
    found = [written(group, value) for group, value in objects.items()]
    if parts.public is not None:
        found[0] = found[0].with_setting("public", parts.public.source)
    tree: dict[str, Any] = {**settings.to_tree(), "tuned": tuned_tree(), **{one.group: dict(one.tree) for one in found}}
    tree["metrics"] = {name: tree_of(f"metrics.{name}", metric) for name, metric in parts.metrics.items()}
    return tree, found


def overrides_of(settings: Settings, objects: Iterable[Written]) -> list[str]:
    """Returns the command line that leads to settings and objects."""
    listed = []
    for one in objects:
        listed += [f"{one.group}={one.choice}", *one.overrides]
    return [*listed, *settings_overrides(settings)]


def _section(name: str, kind: type, value: object) -> object:
    """A section that is given as an object, a mapping, or a number or text where that says enough."""
    if isinstance(value, kind):
        return value
    if isinstance(value, Mapping):
        known = {field.name for field in fields(kind)}
        if unknown := [key for key in value if key not in known]:
            raise ConfigError(f"{name} has no setting {unknown[0]}: expected one of {', '.join(sorted(known))}")
        return kind(**value)
    first = fields(kind)[0].name if is_dataclass(kind) else ""
    if name in ("budget", "noise", "central") and isinstance(value, str | int | float) and not isinstance(value, bool):
        return kind(**{first: value})
    raise ConfigError(f"{name}={value!r} must be {kind.__name__}(...), or a mapping of its settings")
