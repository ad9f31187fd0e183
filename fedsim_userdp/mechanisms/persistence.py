"""A run's state on disk: checkpoints when they are due, and the ledger before every release."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedsim_userdp.errors import ConfigError, PluginError, PrivacyFileError, ReleasedOtherwise
from fedsim_userdp.mechanisms.guarantee import Guarantee
from fedsim_userdp.mechanisms.history import History
from fedsim_userdp.mechanisms.keys import FILE, mark_of_draw, remove_keys
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.mechanisms.sweep import draws_in, update_sweep
from fedsim_userdp.models.adapters import load_trainable_state
from fedsim_userdp.naming import naming
from fedsim_userdp.participation import Cohorts
from fedsim_userdp.plain_files import make_folder
from fedsim_userdp.population import Reported
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.accounting.serialization import to_json
from fedsim_userdp.privacy.joint import StatedRun
from fedsim_userdp.privacy.ledger import Ledger, check_ledger, entries
from fedsim_userdp.privacy.ledger.entries import NoiseSource, Release
from fedsim_userdp.report.privacy_files import PrivacyFile, read_privacy
from fedsim_userdp.training.checkpoints import Checkpoint, CheckpointError, load_optimizer_tensors, tensors_to_write
from fedsim_userdp.training.journal import Journal, JournalEnd

JOURNAL = "rounds.jsonl"


class RunState:
    """Writes a run's ledger before every release, and its checkpoints: when due, and after the last round.

    With noise from the operating system every round has a checkpoint: one that was lost is paid for and cannot be had
    again.

    Args:
        history: the run's history, which may have been resumed.
        ledger: the open ledger; None where there is no noise.
        start: the checkpoint that the run goes on from; None from the beginning.
        first: the first round to come.
    """

    def __init__(self, history: History, ledger: Ledger | None, start: Checkpoint | None, first: int) -> None:
        run = history.run
        self.history, self._ledger, self._start, self.first = history, ledger, start, first
        self._folder, self._every = run.checkpoints, run.place.every if run.noise.is_seeded else 1
        self._journal, self._num_saved = Journal(self._folder.path / JOURNAL), 0
        self._cohorts: Cohorts | None = None
        self._is_told = False
        if start is not None:
            history.circumstances = history.circumstances.after(start.notes.get("circumstances"))

    @property
    def clip_norm(self) -> float | None:
        """The clip norm of the first round to come, where it adapts itself; None from the beginning.

        Raises:
            CheckpointError: when the checkpoint holds none.
        """
        if self._start is None:
            return None
        found = self._start.notes.get("clip_norm")
        if not isinstance(found, float) or not 0 < found < math.inf:
            raise CheckpointError(
                f"the checkpoint of round {self._start.round} in {self._folder.path} has no clip norm"
            )
        return found

    def begin(self) -> None:
        """Puts the checkpoint's adapter and rounds in place, or writes down the state before training."""
        keys = self.history.run.keys
        if self.first <= self.history.num_rounds and not keys.is_stored:
            keys.write(self._folder.path)
        if self._start is None:
            self.history.begin()
            return
        with _as_before("lora"):
            load_trainable_state(self.history.model, self._start.adapter)
        self.history.resume(self._journal.go_back(JournalEnd.from_json(self._start.notes.get("journal"))))
        self._num_saved = len(self.history.rounds)
        if self.history.rounds[-1].round != self._start.round:
            raise CheckpointError(f"{self._journal.path} does not end with round {self._start.round}")

    def follow(self, cohorts: Cohorts) -> None:
        """Puts the selection of users where the run left it; checkpoints and ledger mark what is drawn from now on.

        Raises:
            CheckpointError: when other users are drawn now for the rounds that were done, or lost: who was in how many
                of them would be counted wrongly.
        """
        self._cohorts = cohorts
        if self._start is not None:
            cohorts.norms.update(_norms_in(self._start.notes.get("norms")))
            cohorts.signals.update(_signals_in(self._start.notes.get("signals")))
            self._check_cohorts(self._start.round, self._start.notes.get("cohorts"))
        last = None if self._ledger is None else self._ledger.last
        if last is not None and (last.round < self.first or cohorts.is_planned):
            self._check_cohorts(last.round, last.cohorts or None)

    def _check_cohorts(self, round: int, mark: object) -> None:
        """Raises CheckpointError unless the cohorts up to a round are those that a mark was made of."""
        if self._cohorts is not None:
            self._cohorts.catch_up(round)
        if self._mark_of_cohorts() != mark:
            raise CheckpointError(
                f"{self.history.run.place.folder}: the selection{self._name_of_selector()} draws other users for "
                f"rounds 1 to {round} than took part in them, so that nobody's rounds can be counted: go back to the "
                "settings, the code, the files that it reads and the versions that the run was started with, or start "
                "a new run in another folder"
            )

    def _name_of_selector(self) -> str:
        """The selector's class, in brackets."""
        return "" if self._cohorts is None else f" ({self._cohorts.name})"

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Puts the checkpoint's optimizer state in place; nothing from the beginning."""
        if self._start is not None:
            with _as_before("optimizer"):
                load_optimizer_tensors(optimizer, self._start.optimizer, self.history.run.study.optimizer_fn)

    def save_if_due(
        self,
        round: int,
        adapter: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        clip_norm: float | None = None,
    ) -> None:
        """Writes a checkpoint of the state after `round` if one is due: the journal first, what points to it last.

        Args:
            round: the round that was done.
            adapter: the adapter after it.
            optimizer: the optimizer after it.
            clip_norm: the next round's; None where no clip norm is part of the state.
        """
        if round != self.history.num_rounds and round % self._every:
            return
        self.history.run.place.begin()
        tensors = tensors_to_write(optimizer, self.history.run.study.optimizer_fn, round)
        self._journal.append(dataclasses.asdict(record) for record in self.history.rounds[self._num_saved :])
        self._num_saved = len(self.history.rounds)
        notes: dict[str, object] = {
            "journal": self._journal.end.to_json(),
            "ledger_head": None if self._ledger is None else self._ledger.head,
            "promise": promise_in_json(self.history.run, self.history.guarantee),
            "clip_norm": clip_norm,
            "cohorts": self._mark_of_cohorts(),
            "norms": {} if self._cohorts is None else {str(key): norm for key, norm in self._cohorts.norms.items()},
            "signals": {} if self._cohorts is None else _noted(self._cohorts.signals),
            "circumstances": self.history.circumstances.to_notes(),
        }
        self._folder.write(Checkpoint(round, dict(adapter), tensors, notes))

    def record(self, round: int, answers: str = "") -> None:
        """Writes the release of `round` to the ledger, to be called before it is made.

        Args:
            round: the round.
            answers: whose updates are in the release, as text; empty where that cannot vary.

        Raises:
            ReleasedOtherwise: when the round was released before with other answers; it is lost.
        """
        self.history.run.place.begin()
        if self._ledger is None:
            return
        mark = self.history.run.keys.marks.mark("answers", repr((round, answers)))
        try:
            with naming(self._ledger.path):
                release = one_release(self.history.guarantee, round)
                self._ledger.record(round, release, mark, self._mark_of_cohorts() or "")
        except ReleasedOtherwise:
            self.history.note_lost(round)
            raise
        if not self._is_told and self.history.run.place.sweep is not None:
            update_sweep(self.history.run.place.sweep)  # a job that is stopped has released all the same
        self._is_told = True

    def _mark_of_cohorts(self) -> str | None:
        """A mark of the users of every round so far; None where they do not count."""
        history = "" if self._cohorts is None else self._cohorts.history
        return self.history.run.keys.marks.mark("cohorts", history) if history else None

    def end(self) -> None:
        """Removes the run's secret key, once its last checkpoint is there; of a seeded run there is none to hide."""
        self.history.run.place.begin()
        if not self.history.run.keys.run.is_seeded:
            remove_keys(self._folder.path)


@contextmanager
def _as_before(section: str) -> Iterator[None]:
    """Within the block, what of a checkpoint does not fit is said to follow from a section of settings."""
    try:
        yield
    except PluginError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{section}: {error}: go back to the settings that the run was started with") from error


def _norms_in(notes: object) -> dict[int, float]:
    """The norms of what each round released, by round, as a checkpoint noted them."""
    found = notes if isinstance(notes, dict) else {}
    return {int(key): float(norm) for key, norm in found.items()}


def _noted(signals: Mapping[int, Reported]) -> dict[str, object]:
    """What each round told of a signal, by round, for a checkpoint."""
    return {str(key): [one.sums.tolist(), one.counts.tolist()] for key, one in signals.items()}


def _signals_in(notes: object) -> dict[int, Reported]:
    """What each round told of a signal, by round, as a checkpoint noted it."""
    found = notes if isinstance(notes, dict) else {}
    return {int(key): Reported(np.array(sums), np.array(counts)) for key, (sums, counts) in found.items()}


def one_release(guarantee: Guarantee, round: int) -> Release:
    """Returns what a round of the run, counted from 1, releases; without amplification, its declared cap with it."""
    return _releases(guarantee, round, round)


def _releases(guarantee: Guarantee, first: int, last: int) -> Release:
    """What the rounds from `first` to `last` release; without amplification, once and with its declared cap."""
    if isinstance(guarantee.release, Release):
        return entries.between(guarantee.release, first, last)
    raise acc.AccountingError(f"a ledger cannot hold a {type(guarantee.release).__name__}")


@contextmanager
def open_run_state(history: History) -> Iterator[RunState]:
    """Begins or resumes a run, its ledger open for the duration of the block; at its end the run's secret is removed.

    Rounds that were released and lost when the run was stopped, and that cannot be had again, are paid for: the run
    goes on with the round after them.

    Raises:
        CheckpointError: when what is in the folder cannot be continued.
        ConfigError: when the folder holds another run, or nothing can be released any more.
        LedgerError: when the ledger is damaged, in use, or lacks what the checkpoint has seen.
    """
    start = _checkpoint_of(history.run, history.guarantee)
    if not history.run.place.is_resumed:
        history.run.place.begin()  # else before the first change of what is there
    done = 0 if start is None else start.round
    with _open_ledger(history, start) as ledger:
        first = done + 1 if ledger is None else _first_round(history, ledger, done)
        _check_secret(history, first, is_new=start is None and (ledger is None or not ledger.num_releases))
        state = RunState(history, ledger, start, first)
        state.begin()
        yield state
        state.end()


def check_saved(run: Run, guarantee: Guarantee, rounds: int | None = None) -> None:
    """Raises where the folder holds something that the run cannot go on from; nothing is written.

    Args:
        run: the run.
        guarantee: what it promises.
        rounds: the last round; None where that is not known.

    Raises:
        CheckpointError, ConfigError, LedgerError: see `open_run_state`; or the run has ended and would only be stated
            anew, under settings that it was not made with.
    """
    start = _checkpoint_of(run, guarantee)
    _check_left(run, start, rounds)
    path = run.place.folder / "ledger" / f"{run.run_name}.jsonl"
    if guarantee.release is not None and path.exists():
        check_ledger(path, _head(start))
    _check_stated(run, path)


def _check_left(run: Run, start: Checkpoint | None, rounds: int | None) -> None:
    """Raises ConfigError where settings changed and the run has ended: what is stated is what it was made with."""
    is_at_end = start is not None and rounds is not None and start.round >= rounds
    if run.place.is_changed and (is_at_end or _stated_releases(run)):
        raise ConfigError(
            f"{run.place.folder}: the run of {run.name}, seed {run.study.seed}, has ended: nothing is left to go on "
            "with under changed settings; take them back, or start a new run in another folder"
        )


def _stated_releases(run: Run) -> list[StatedRun]:
    """What the folder states of the run, where that is a release."""
    try:
        content = read_privacy(run.place.folder)
    except (OSError, PrivacyFileError):
        return []
    stated = content.runs if isinstance(content, PrivacyFile) else ()
    mine = [one for one in stated if (one.statement.mechanism, one.seed) == (run.name, run.study.seed)]
    return [one for one in mine if one.statement.release is not None]


def _check_stated(run: Run, ledger: Path) -> None:
    """Raises ConfigError where the folder states a release of the run that its ledger does not hold: made anew, it
    would be in its place, and the first one in no joint figure."""
    for one in _stated_releases(run):
        if not set(one.draws) <= set(draws_in(ledger)):
            raise ConfigError(
                f"{run.place.folder} states a release of {one.name} that {ledger} does not hold: made anew, it would "
                "not be counted any more; run it in another folder"
            )


def promise_in_json(run: Run, guarantee: Guarantee) -> dict[str, object]:
    """Returns what the ledger's lines stand for, as JSON values; it cannot change within a run.

    Of groups of users, which may be thousands of rounds each, it has a digest.
    """
    return {
        "release": None if guarantee.release is None else _with_digests(to_json(guarantee.release)),
        "accountant": guarantee.method,
        "delta": guarantee.delta,
        "noise.source": _noise_source(run),
    }


def _with_digests(value: object) -> object:
    """A description as JSON values, with a digest in place of its groups; one that has it stays what it is."""
    if not isinstance(value, dict):
        return [_with_digests(one) for one in value] if isinstance(value, list) else value
    found = {key: _with_digests(one) for key, one in value.items() if key != "groups"}
    if "groups" in value:
        groups = value["groups"]
        is_digest = isinstance(groups, str)
        found["groups"] = groups if is_digest else hashlib.sha256(json.dumps(groups).encode()).hexdigest()
    return found


def _checkpoint_of(run: Run, guarantee: Guarantee) -> Checkpoint | None:
    """The checkpoint to go on from; None for a run from the start."""
    if not run.place.is_resumed:
        if run.checkpoints.exist():
            raise ConfigError(f"{run.place.folder} holds a run already: go on with it, or choose another folder")
        return None
    start = run.checkpoints.latest()
    before = None if start is None else _with_digests(start.notes.get("promise"))
    if start is not None and before != (now := promise_in_json(run, guarantee)):
        before = before if isinstance(before, dict) else {}
        changes = [f"{key} was {before.get(key)} and is {now[key]}" for key in now if before.get(key) != now[key]]
        raise CheckpointError(
            f"{run.place.folder}: what the run promises changed, and its ledger would be wrong: {'; '.join(changes)}"
        )
    return start


@contextmanager
def _open_ledger(history: History, start: Checkpoint | None) -> Iterator[Ledger | None]:
    """The ledger of the run for the duration of the block; None where there is no noise."""
    guarantee, run = history.guarantee, history.run
    if guarantee.release is None:
        yield None
        return
    path = run.place.folder / "ledger" / f"{run.run_name}.jsonl"
    with naming(path):
        make_folder(path.parent)
        ledger = Ledger.open(
            path,
            delta=guarantee.delta,
            budget_epsilon=run.study.target.epsilon,
            run=run.keys.marks.mark("run", run.identity),
            noise_source=_noise_source(run),
            method=guarantee.method,
            must_contain=_head(start),
            draw=mark_of_draw(run.place.sweep or run.place.folder, run.keys.run),
        )
    with ledger:
        yield ledger


def _head(start: Checkpoint | None) -> str | None:
    """The last line of the ledger that a checkpoint has seen; None where there is none."""
    head = None if start is None else start.notes.get("ledger_head")
    return None if head is None else str(head)


def _first_round(history: History, ledger: Ledger, done: int) -> int:
    """The round that a run goes on with after the checkpoint of round `done`; lowers the history's last one if need be.

    With seeded noise a round that was lost is done again: it is the same release.  Otherwise it stays lost, and the
    next round has a cohort and noise of its own: done again, the same cohort would be in two releases, which costs more
    than two rounds.  A damaged stretch of the ledger counts as the most releases that it can have held.  The run ends
    earlier where that is more than the rounds that the stretch stands for, or where participations are capped.
    """
    recorded = max(done, *ledger.rounds, 0)
    is_of_this_run = ledger.is_of_this_run(done)
    if not is_of_this_run and (done == 0 or history.guarantee.max_participations is not None):
        raise CheckpointError(
            f"{history.run.place.folder}: rounds {done + 1} to {recorded} were released with other settings, "
            f"data or code: {ledger.num_releases} releases and no checkpoint holds their result: go back to what it "
            "was, or start a new run in another folder"
        )
    is_same_again = history.run.noise.is_seeded and is_of_this_run
    is_same_again = is_same_again and (ledger.num_torn_at_end == ledger.num_unfinished)
    first = done + 1 if is_same_again else recorded + 1 + (ledger.num_torn_at_end > 0)
    num_torn = ledger.num_torn - (ledger.num_unfinished if is_same_again else 0)
    surplus = max(0, len(ledger.rounds) + num_torn - max(recorded, first - 1))
    ends_here = history.guarantee.max_participations is not None and num_torn > 0
    history.go_on(first, done, last=first - 1 if ends_here else max(first - 1, history.num_rounds - surplus))
    if done == 0 and first > history.num_rounds:
        raise ConfigError(
            f"{ledger.path} holds {ledger.num_releases} releases and no checkpoint holds their result: the budget is "
            "spent, start a new run in another folder"
        )
    if first <= history.num_rounds:
        times = history.num_rounds - first + 1 if history.guarantee.max_participations is not None else 1
        ledger.expect(_releases(history.guarantee, first, history.num_rounds), times)
    return first


def _check_secret(history: History, first: int, *, is_new: bool) -> None:
    """Raises CheckpointError where a run whose key is a secret has lost it: its schedule could not be kept to."""
    run = history.run
    has_lost_it = not is_new and not run.keys.run.is_seeded and not run.keys.is_stored
    if run.place.is_resumed and has_lost_it and first <= history.num_rounds:
        raise CheckpointError(
            f"{run.place.folder}: the run's secret ({FILE} beside its checkpoints) is gone: it cannot be continued"
        )


def _noise_source(run: Run) -> NoiseSource:
    """The name of the study's noise source in the configuration."""
    return "seeded" if run.noise.is_seeded else "os"
