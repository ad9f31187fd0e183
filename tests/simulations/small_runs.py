"""Whole runs that take a fraction of a second: a model of 16 dimensions, a few users, the real mechanisms and files."""

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fedsim_userdp.data.records import RandomRecords
from fedsim_userdp.data.split import split_users
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.data.writer import StoreWriter
from fedsim_userdp.federation.engines import InProcessEngine
from fedsim_userdp.mechanisms import study as study_module
from fedsim_userdp.mechanisms.base import Mechanism
from fedsim_userdp.mechanisms.circumstances import Circumstances, is_add_or_remove
from fedsim_userdp.mechanisms.folder import RunFolder
from fedsim_userdp.mechanisms.guarantee import Target
from fedsim_userdp.mechanisms.history import Outcome
from fedsim_userdp.mechanisms.keys import RunKeys, stored_keys
from fedsim_userdp.mechanisms.plain import NonPrivate
from fedsim_userdp.mechanisms.record_level import RecordLevelDP
from fedsim_userdp.mechanisms.run import Place, Run
from fedsim_userdp.mechanisms.study import Study
from fedsim_userdp.mechanisms.user_wise import UserWise
from fedsim_userdp.mechanisms.user_wise_adaptive import UserWiseAdaptive
from fedsim_userdp.models.loading import TINY_MODEL
from fedsim_userdp.privacy.accounting import Description, accountants
from fedsim_userdp.privacy.accounting.curves import Curve
from fedsim_userdp.privacy.ledger import Ledger
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.report.progress import RunProgress
from fedsim_userdp.selection import PoissonSelector, foreign_name
from fedsim_userdp.settings import LoraSettings
from fedsim_userdp.training.batches import Unit
from fedsim_userdp.training.checkpoints import Checkpoint, CheckpointFolder
from fedsim_userdp.training.cohort import LocalTraining
from fedsim_userdp.training.users import in_order_of_ids

VOCABULARY = 40
ROUNDS = 3
SEED = 0
SMALL_KEY = RunKey.seeded(SEED, "a small run")


class SmallModel:
    """Stands for `ModelSource`: loads a random GPT-2, always the same."""

    def weights_digest(self) -> str:
        return "small"

    location = str(TINY_MODEL)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))

    def load(self) -> GPT2LMHeadModel:
        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return GPT2LMHeadModel(config).eval().requires_grad_(False)


def small_store(folder: Path, num_users: int = 12, seed: int = 0) -> TokenStore:
    """Users with three records of 6 to 12 tokens."""
    generator = np.random.default_rng(seed)
    with StoreWriter(folder, vocab_size=VOCABULARY) as writer:
        for user in range(num_users):
            for _ in range(3):
                writer.add(f"user {user}", generator.integers(0, VOCABULARY, size=generator.integers(6, 13)))
        return TokenStore(writer.finish(fingerprint=f"small {num_users} {seed}"))


def small_run(folder: Path, store: TokenStore, **changes: Any) -> Run:
    """A run on `store` in a run folder; `changes` are fields of the run, its study or its place."""
    split = split_users(store, heldout_users=2, validation_users=0, seed=0)
    selector = changes.get("selector", PoissonSelector(0.4))
    name = foreign_name(selector)
    study = Study(
        seed=SEED,
        noise_source="seeded",
        target=Target(8.0, 0.05),
        store=store,
        split=replace(split, train=in_order_of_ids(store, split.train)),
        split_seed=0,
        keep_places=not is_add_or_remove(selector, store.num_users, ROUNDS),
        model=SmallModel(),  # type: ignore[arg-type]
        lora=LoraSettings(rank=2),
        window=12,
        records=RandomRecords(),
        selector=selector,
        optimizer_fn=torch.optim.Adam,
        engine=InProcessEngine(),
        local=LocalTraining(max_tokens=256),
        central_engine="opacus",
        evaluation_units=[Unit(0, store.records(int(split.heldout[0])))],
        evaluate_every=100,
        metrics={},
        num_searched=1,
        circumstances=Circumstances(foreign=(name,) if name else (), selector=name or ""),
        corpus_name="small",
        licence="unknown",
        tree={"selection": {"_target_": type(selector).__qualname__}},
    )
    run = Run("run", study, Place(folder, every=1), "the settings", {}, RunKeys.of(SMALL_KEY), "")
    return with_changes(run, **changes)


def with_changes(run: Run, **changes: Any) -> Run:
    """The run with other fields, of its own, its study or its place."""
    own: dict[str, Any] = {}
    for name, kind in (("study", Study), ("place", Place)):
        of_part = {field.name for field in fields(kind)} & changes.keys()
        own[name] = replace(getattr(run, name), **{key: changes.pop(key) for key in of_part})
    return replace(run, **own, **changes)


MECHANISMS: dict[str, Callable[..., Mechanism]] = {
    "user_wise": partial(UserWise, name="user_wise", learning_rate=0.05, clip_norm=0.3),
    "user_wise_adaptive": partial(UserWiseAdaptive, name="user_wise_adaptive", learning_rate=0.05, clip_norm=0.3),
    "group_privacy": partial(
        RecordLevelDP, name="group_privacy", learning_rate=0.05, clip_norm=0.5, accountant="group"
    ),
    "non_private": partial(NonPrivate, name="non_private", learning_rate=0.05),
}


def run_small(
    run: Run,
    mechanism: str = "user_wise",
    rounds: int = ROUNDS,
    write_results: bool = True,
    key: RunKey = SMALL_KEY,
) -> Outcome:
    """Runs a mechanism and writes its results, all but the plot, into the run's folder; `key` is a seeded run's."""
    run = with_changes(run, name=mechanism)
    if run.place.is_resumed:
        stored = stored_keys(run.checkpoints.path, key if run.noise.is_seeded else None)
        run = with_changes(run, keys=stored or run.keys)
    console = Console(file=io.StringIO(), width=100)
    with RunProgress(console) as progress:
        outcome = MECHANISMS[mechanism](rounds=rounds, records_per_user=2).run(run, progress)
    if write_results:
        RunFolder(run.place.folder, console, ("small", "small")).add(outcome)
    return outcome


def what_a_run_left(folder: Path) -> dict[str, object]:
    """Everything that must not depend on whether a run was killed: all but times."""
    found: dict[str, object] = {}
    for file in sorted(folder.glob("adapters/*/adapter_model.safetensors")):
        found |= {f"{file.parent.name} {name}": tensor.numpy().tobytes() for name, tensor in load_file(file).items()}
    found |= {file.name: lines_without_secrets(file) for file in sorted(folder.glob("ledger/*"))}
    rows = json.loads((folder / "results.json").read_text())
    found["results"] = [{key: row[key] for key in row if key != "seconds"} for row in rows]
    lines = (folder / "not_private" / "rounds.csv").read_text().splitlines()
    column = lines[0].split(",").index("seconds")
    found["rounds"] = [[cell for at, cell in enumerate(line.split(",")) if at != column] for line in lines]
    stated = json.loads((folder / "privacy.json").read_text())
    runs = stated.pop("runs")
    found["privacy"] = [{**run, "draws": list(map(len, run["draws"]))} for run in runs]  # a folder has its own secret
    found["privacy of all"] = stated
    return found


def lines_without_secrets(ledger: Path) -> list[dict[str, object]]:
    """The lines of a ledger without what a secret of their folder makes differ: digests and the chain over them."""
    lines = [json.loads(line) for line in ledger.read_bytes().splitlines()]
    digests = ("run", "answers", "draw", "cohorts", "hash", "previous")
    return [{name: line[name] for name in line if name not in digests} for line in lines]


class Killed(BaseException):
    """The process is gone: nothing in it runs any more."""


KINDS = ("write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir")


@contextmanager
def dying_at_write(
    number: int, *, torn: bool, monkeypatch: pytest.MonkeyPatch, error_fn: Callable[[], BaseException] = Killed
) -> Iterator[list[str]]:
    """Within the block the process dies at its write number `number`, from 1, and changes no file afterwards.

    A write is whatever reaches the disk: making, renaming and removing files and folders, `os.write` and `os.fsync`.
    With `torn`, half of what was being written is on the disk.  With another `error_fn`, what that gives is raised at
    that write and at every later one but for removing files, instead of dying.

    Yields:
        What was written so far, by kind.
    """
    seen: list[str] = []

    def counted(kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **options: Any) -> Any:
            seen.append(kind)
            if len(seen) < number or (error_fn is not Killed and kind in ("unlink", "rmdir")):
                return real(*args, **options)
            if len(seen) == number and torn and kind == "write":
                real(args[0], args[1][: len(args[1]) // 2])
            if len(seen) == number and torn and kind == "fsync" and not os.path.isdir(f"/proc/self/fd/{args[0]}"):
                size = os.fstat(args[0]).st_size
                os.truncate(os.readlink(f"/proc/self/fd/{args[0]}"), size - min(size, 20))
            raise error_fn()

        return write

    with monkeypatch.context() as patch:
        for kind in KINDS:
            patch.setattr(os, kind, counted(kind, getattr(os, kind)))
        yield seen


def resumed(run: Run, **changes: Any) -> Run:
    """The run as another process would have it, to be gone on with."""
    keys = RunKeys.of(SMALL_KEY if run.noise.is_seeded else RunKey.drawn())
    return with_changes(run, is_resumed=True, **({"keys": keys} | changes))


def os_noise(run: Run) -> Run:
    """The run with a secret run key and noise of the operating system."""
    return with_changes(run, keys=RunKeys.of(RunKey.drawn()))


def remember_accounting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the accountants answer the same question once only: many runs of the same kind are to follow."""
    curve_of, answers = accountants.curve, dict[object, float]()

    def curve(description: Description, method: str) -> Curve:
        def epsilon(log_delta: float) -> float:
            question = (description, method, log_delta)
            if question not in answers:
                answers[question] = curve_of(description, method).epsilon(log_delta)
            return answers[question]

        return Curve(epsilon, lambda epsilon: curve_of(description, method).log_delta(epsilon))

    monkeypatch.setattr(accountants, "curve", curve)


def remember_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes models of one shape be tried out, and the template of their cards be read, once only."""
    answers: dict[str, str | None] = {}
    real = study_module.why_not_stacked

    def why_not_stacked(model: torch.nn.Module, window: int) -> str | None:
        if repr(model) not in answers:
            answers[repr(model)] = real(model, window)
        return answers[repr(model)]

    monkeypatch.setattr(study_module, "why_not_stacked", why_not_stacked)
    monkeypatch.setattr(jinja2.Environment, "compile", cache(jinja2.Environment.compile))


def dies_after_release(run: Run, round: int, monkeypatch: pytest.MonkeyPatch, mechanism: str = "user_wise") -> None:
    """Runs until `round` was released, and dies before its checkpoint."""
    real = CheckpointFolder.write

    def write(folder: CheckpointFolder, checkpoint: Checkpoint) -> None:
        if checkpoint.round == round:
            raise Killed
        real(folder, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "write", write)
        with pytest.raises(Killed):
            run_small(run, mechanism)


def releases_of(run: Run, mechanism: str = "user_wise") -> tuple[tuple[int, ...], float]:
    """The rounds in a run's ledger, and their epsilon."""
    with Ledger.open(
        run.place.folder / "ledger" / f"{mechanism}-seed0.jsonl", delta=0.05, run="any", noise_source="os"
    ) as ledger:
        return ledger.rounds, ledger.epsilon()


def result_of(run: Run) -> dict[str, float]:
    return dict(json.loads((run.place.folder / "results.json").read_text())[0])
