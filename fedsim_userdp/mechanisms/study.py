"""What is compared, apart from how: data, split, model, adapter, selection, records, optimizer, budget and engine."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from fedsim_userdp.data.corpus import Corpus
from fedsim_userdp.data.owners import OwnerBoundedStore, count_owners
from fedsim_userdp.data.public_facts import PublicFacts
from fedsim_userdp.data.records import RandomRecords, RecordSelector
from fedsim_userdp.data.split import UserSplit
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.data.writer import hash_id
from fedsim_userdp.errors import ConfigError, RecordChoiceError
from fedsim_userdp.federation.engines import Engine
from fedsim_userdp.federation.worker import fingerprint_of
from fedsim_userdp.mechanisms.circumstances import (
    Circumstances,
)
from fedsim_userdp.mechanisms.guarantee import Target
from fedsim_userdp.mechanisms.settings_tree import Tree
from fedsim_userdp.mechanisms.written import Written
from fedsim_userdp.models.adapters import attach_lora
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.population import Population
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import ClientSelector
from fedsim_userdp.settings import Budget, LoraSettings, Split, TokenSettings
from fedsim_userdp.surroundings import quiet_libraries
from fedsim_userdp.training.batches import Unit
from fedsim_userdp.training.central import Pool
from fedsim_userdp.training.cohort import LocalTraining
from fedsim_userdp.training.evaluation import bootstrapped, perplexity, summed_losses
from fedsim_userdp.training.gradients import OneByOneGradients, StackedGradients, UnitGradients, why_not_stacked
from fedsim_userdp.training.metrics import Metric, scored
from fedsim_userdp.training.users import TrainingUsers, check_lengths

_log = logging.getLogger(__name__)
_MOST_GROUPS = 20  # values of a public column, beyond which it is no grouping
OptimizerFn = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True)
class Parts:
    """The objects of a study: what people plug in.

    Attributes:
        corpus: whose text it is.
        model: the base model.
        records: how a user picks records.
        selection: who takes part in a round.
        optimizer: (parameters, learning rate) to a `torch.optim` optimizer, of the server.
        engine: what runs the nodes.
        metrics: further figures on the evaluation users, by name.
        public: what is public about users, for selectors; None without.
    """

    corpus: Corpus
    model: ModelSource
    records: RecordSelector
    selection: ClientSelector
    optimizer: OptimizerFn
    engine: Engine
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    public: PublicFacts | None = None


@dataclass(frozen=True)
class Study:
    """What several mechanisms are compared on; it names none of them, and no folder.

    Attributes:
        seed: of the first adapter, which is public, and where noise is seeded of all that is random.
        noise_source: "seeded" or "os".
        target: the user-level epsilon and delta.
        store: every user's records as token ids.
        split: training, held-out and validation users; the training users in the order of their ids.
        split_seed: of the split.
        keep_places: whether users without a usable record stay as places that add zero.
        model: the base model.
        lora: the adapter.
        window: the most tokens of a record.
        records: how a user picks records.
        selector: who takes part in a round.
        optimizer_fn: (parameters, learning rate) to a `torch.optim` optimizer.
        engine: what runs the nodes.
        local: local training and micro-batch size.
        central_engine: what record-level DP-SGD runs on, "opacus" or "stacked".
        evaluation_units: the users that perplexity is computed on, capped.
        evaluate_every: rounds between evaluations.
        metrics: further figures on the evaluation users, by name.
        num_searched: runs on these users, this one included, that the settings were chosen among; for the statement.
        circumstances: what the privacy statement says besides.
        corpus_name: of the corpus.
        licence: of the corpus's text.
        tree: the settings as they are written down.
        public: what is public about users, for selectors; None without.
        written: the objects, where they were made in Python.
    """

    seed: int
    noise_source: Literal["seeded", "os"]
    target: Target
    store: TokenStore
    split: UserSplit
    split_seed: int
    keep_places: bool
    model: ModelSource
    lora: LoraSettings
    window: int
    records: RecordSelector
    selector: ClientSelector
    optimizer_fn: OptimizerFn
    engine: Engine
    local: LocalTraining
    central_engine: Literal["opacus", "stacked"]
    evaluation_units: list[Unit]
    evaluate_every: int
    metrics: Mapping[str, Metric]
    num_searched: int
    circumstances: Circumstances
    corpus_name: str
    licence: str
    tree: Tree
    public: PublicFacts | None = None
    written: tuple[Written, ...] = ()

    @classmethod
    def of(
        cls,
        text: object,
        /,
        *,
        budget: Budget | float | None = None,
        model: ModelSource | str | Path | None = None,
        selection: ClientSelector | None = None,
        records: RecordSelector | None = None,
        optimizer: OptimizerFn | None = None,
        engine: Engine | None = None,
        metrics: Mapping[str, Metric] | None = None,
        public: object = None,
        heldout_users: int = Split.heldout_users,
        validation_users: int = Split.validation_users,
        min_words: int = TokenSettings.min_words,
        window: int = TokenSettings.window,
        seed: int = 0,
        **settings: object,
    ) -> "Study":
        """Returns a study of users' text.

        Every keyword is a setting of `fedsim compare`, with the same name and default (docs/settings.md); a section
        such as `lora`, `noise` or `evaluation` takes its class of `fedsim_userdp.settings`, or a mapping.

        Args:
            text: (user, text) pairs, a table with columns `user_id` and `text`, a corpus, or a file's path.
            budget: the user-level target; a number is its epsilon.
            model: the base model: a `ModelSource`, a folder, a GGUF file or a name on the Hub; the bundled tiny GPT-2.
            selection: who takes part in a round.
            records: how a user picks records.
            optimizer: of the server: a class of `torch.optim`, or a `functools.partial` of one.
            engine: what runs the nodes.
            metrics: further figures on the evaluation users, by name; not private.
            public: what is public about users, for selectors: a CSV, JSONL or Parquet file with a row for each
                `user_id`, columns by name (a data frame), or rows as mappings.
            heldout_users: users that are only scored.
            validation_users: users set aside for tuning.
            min_words: users with fewer words are left out; 0 keeps everybody.
            window: the most tokens of a record.
            seed: of everything drawn at random.
            settings: further settings of `tokens` and `split`, and the sections.

        Raises:
            ConfigError, DataError, ModelError, ValueError: one sentence on what is wrong.
        """
        from fedsim_userdp.mechanisms.construction import build_study  # here, since it makes studies
        from fedsim_userdp.mechanisms.keywords import parts_of, settings_of, tree_and_choices
        from fedsim_userdp.mechanisms.unchanged import remember

        parts = parts_of(
            text,
            model=model,
            selection=selection,
            records=records,
            optimizer=optimizer,
            engine=engine,
            metrics=metrics,
            public=public,
        )
        flat = {"heldout_users": heldout_users, "validation_users": validation_users}
        flat |= {"min_words": min_words, "window": window, "seed": seed}
        given = settings_of({**({} if budget is None else {"budget": budget}), **flat, **settings})
        tree, objects = tree_and_choices(given, parts)
        with quiet_libraries():
            return remember(replace(build_study(tree, parts), written=tuple(objects)))

    @cached_property
    def population(self) -> Population:
        """The training users as a selector may know them."""
        hashes = np.asarray(self.store.id_hashes)[self.split.train]
        return Population(hashes, {} if self.public is None else self.public.of_users(hashes))

    @property
    def num_users(self) -> int:
        """Size of the training population, public."""
        return len(self.split.train)

    @property
    def num_protected(self) -> int:
        """How many people a promise covers: the training users, and whoever is declared to own their records."""
        return num_protected(self.store, self.split)

    def fingerprint(self, settings: str) -> dict[str, str]:
        """Returns what a node's updates depend on, name to digest.

        Args:
            settings: digest of the settings that decide a release.
        """
        return fingerprint_of(self.store, self.population, self.model, settings)

    def public_fingerprint(self) -> dict[str, str]:
        """Returns a digest of what is public about the training users, by its name; empty where selectors see none."""
        return {} if self.public is None else {"public facts": self.public.digest(self.population.id_hashes)}

    def training_users(self, records_per_user: int, key: RunKey) -> TrainingUsers:
        """Returns the training users, capped at k records each, chosen with the nodes' key."""
        return TrainingUsers(self.store, self.split.train, self.records, records_per_user, self.window, key)

    def pool(self, records_per_user: int, key: RunKey) -> Pool:
        """Returns the records of a centralized run, at most k of each user, and of everybody else who owns them.

        Raises:
            ConfigError: when records have several owners and are chosen by what is in them, or the choice of records
                breaks its rules.
        """
        try:
            if not self.store.declares_owners:
                return self.training_users(records_per_user, key).pool()
            return self._owners_pool(records_per_user, key)
        except RecordChoiceError as error:
            raise ConfigError(str(error)) from error

    def _owners_pool(self, records_per_user: int, key: RunKey) -> Pool:
        """The records of which nobody owns more than k."""
        _check_chosen_without_looking(self.records)
        marks = key.mark("owners", "").encode()
        records = OwnerBoundedStore(self.store.path, records_per_user, marks, self.split.train).pool()
        check_lengths([one.tokens for one in records], self.window, "the store of records with several owners")
        return Pool(
            units=[Unit(i, [one.tokens], place=one.place) for i, one in enumerate(records)],
            id_hashes=np.zeros(len(records), dtype=np.uint64),  # the record's public place is its address
            places=np.array([one.place for one in records], dtype=np.uint64),
        )

    def fresh_model(self) -> PeftModel:
        """Returns a freshly loaded base model with the adapter that every mechanism starts from."""
        return attach_lora(self.model.load(), self.lora, self.seed)

    def gradients(self, model: PeftModel) -> UnitGradients:
        """Returns what computes each unit's gradient on the model; says so where that is slower than it could be."""
        reason = why_not_stacked(model, self.window)
        if reason is None:
            return StackedGradients(model)
        _log.warning("%s: units are trained one by one, slower, with the same results", reason)
        return OneByOneGradients(model)

    def perplexity(self, model: torch.nn.Module) -> float:
        """Returns the perplexity of `model` on the evaluation users."""
        return perplexity(model, self.evaluation_units, 2 * self.local.max_tokens)

    def perplexity_by_group(self, model: torch.nn.Module) -> dict[str, list[dict[str, object]]]:
        """Returns the perplexity of `model` on the evaluation users of each public group, by column.

        A column of numbers or texts with at most 20 values is a grouping; evaluation users without public facts are
        left out.  Each group has its value, number of users, perplexity, and a 95% interval over its users.
        """
        if self.public is None:
            return {}
        hashes = np.frombuffer(b"".join(hash_id(unit.owner.encode()) for unit in self.evaluation_units), "<u8")
        known = self.public.known(hashes)
        units = [unit for unit, is_known in zip(self.evaluation_units, known, strict=True) if is_known]
        if not units:
            return {}
        sums, counts = summed_losses(model, units, 2 * self.local.max_tokens)
        facts = self.public.of_users(hashes[known])
        return {name: found for name, values in facts.items() if (found := _by_group(values, sums, counts))}

    def metrics_of(self, model: torch.nn.Module, most: int | None = None) -> dict[str, float]:
        """Returns the further figures of `model` on the evaluation users, or on the first `most` of them.

        Raises:
            PluginError: a metric of the user's own raised, gave no number, or changed the model.
        """
        if not self.metrics:
            return {}
        return scored(self.metrics, model, self.evaluation_units[:most], self.model.load_tokenizer())


def _by_group(values: NDArray[Any], sums: NDArray[np.float64], counts: NDArray[np.int64]) -> list[dict[str, object]]:
    """The perplexity of the users of each value of a public column; empty where it is no grouping."""
    if values.ndim != 1 or len(np.unique(values)) > _MOST_GROUPS:
        return []
    found: list[dict[str, object]] = []
    for value in np.unique(values):
        is_one = values == value
        if counts[is_one].sum():
            middle, low, high = bootstrapped(sums[is_one], counts[is_one])
            of_group = {"perplexity": middle, "low": low, "high": high}
            found.append({"value": value.item(), "users": int(is_one.sum()), **of_group})
    return found


def num_protected(store: TokenStore, split: UserSplit) -> int:
    """Returns how many training users and declared owners of their records there are."""
    return count_owners(store, split.train) if store.declares_owners else len(split.train)


def _check_chosen_without_looking(records: RecordSelector) -> None:
    """Raises ConfigError unless records are chosen at random.

    With several owners a record, choosing by content would let one person's text decide which of another's are used.
    """
    if not isinstance(records, RandomRecords):
        raise ConfigError(
            f"records={type(records).__name__} chooses by what is in a user's records, which other owners of theirs "
            "must not feel: with declared owners only records=random keeps everybody within k records"
        )
