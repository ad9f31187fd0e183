"""What a run writes down as it goes: rounds, evaluations, progress, and at the end its row."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_type_hints

from peft import PeftModel

from fedsim_userdp.errors import PluginError
from fedsim_userdp.federation.replies import RoundReplies
from fedsim_userdp.mechanisms.guarantee import Guarantee
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.participation import Participation
from fedsim_userdp.privacy.statement import PrivacyStatement
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.report.progress import RunProgress
from fedsim_userdp.report.records import ResultRow, RoundRecord
from fedsim_userdp.training.central import StepReport
from fedsim_userdp.training.checkpoints import CheckpointError


@dataclass(frozen=True)
class Outcome:
    """A finished run: its row, what it promises, its rounds, the model with the trained adapter, and its key.

    Where the base model is from and the licence of the text are for the adapter's card.  Of a user-wise run it has who
    took part; of any, the perplexity on the evaluation users of each public group.
    """

    row: ResultRow
    statement: PrivacyStatement
    rounds: list[RoundRecord]
    model: PeftModel
    key: RunKey
    source: ModelSource
    licence: str
    participation: Participation | None = None
    by_group: Mapping[str, list[dict[str, object]]] = field(default_factory=dict)


class History:
    """Keeps the rounds of one run.  Round 0 is the state before training.

    Args:
        name: the mechanism.
        unit: what takes part in a round, "users" or "records".
        rounds: number of rounds to come.
        run: what is run.
        guarantee: the run's promise.
        model: the model that holds the current adapter whenever a round is evaluated.
        progress: where progress is shown.
    """

    def __init__(
        self,
        name: str,
        unit: str,
        rounds: int,
        run: Run,
        guarantee: Guarantee,
        model: PeftModel,
        progress: RunProgress,
    ) -> None:
        self.name, self.num_rounds, self.run, self.guarantee, self.model = name, rounds, run, guarantee, model
        self.rounds: list[RoundRecord] = []
        self.train_tokens = 0
        self._scored = -1  # the last round that was
        self.groups: tuple[str, ...] = ()  # who is in each group that is accounted for, where there are several
        self.circumstances = run.study.circumstances  # those of the rounds before a resume with them
        self._progress = progress
        self._spent = guarantee.spent_by_round(rounds)
        self._start = time.perf_counter()
        self._unit = unit

    def begin(self) -> None:
        """Writes down the state before training."""
        self._progress.start(self.name, self.num_rounds, self._unit)
        self._write(0, num_units=0, loss_sum=0.0, num_clipped=None, num_failed=0, num_nonfinite=0)

    def go_on(self, first: int, done: int, last: int) -> None:
        """Goes on with round `first`, after the last result in round `done`, up to `last`; says what was lost."""
        lost, planned = range(done + 1, first), self.num_rounds
        self.num_rounds = last
        if lost:
            rounds = f"round {lost[0]} was" if len(lost) == 1 else f"rounds {lost[0]} to {lost[-1]} were"
            self._progress.warn(f"{self.name}: {rounds} released and lost when the run was stopped: that is paid for")
        if last < planned:
            why = "no more is within its budget"
            self._progress.warn(f"{self.name}: the run ends with round {last} of {planned}: {why}")

    def note_lost(self, round: int) -> None:
        """Tells of a round whose earlier release is lost, and which cannot be released again."""
        self._progress.warn(
            f"{self.name}: round {round} was released before the run was stopped, with other users' answers: it is "
            "lost and paid for"
        )

    def resume(self, rounds: Sequence[Mapping[str, object]]) -> None:
        """Goes on after `rounds`, the earlier records as JSON values, round 0 included.

        Raises:
            CheckpointError: when they are no records.
        """
        self.rounds = [_record_from_json(values) for values in rounds]
        if not self.rounds:
            raise CheckpointError(f"the journal of {self.name} holds no rounds")
        self.train_tokens = self.rounds[-1].train_tokens
        self._start = time.perf_counter() - self.rounds[-1].seconds
        self._progress.start(self.name, self.num_rounds, self._unit, first=self.rounds[-1].round)

    def score_last(self) -> None:
        """Scores the model as it is, where the last round that has a result was not scored."""
        if self._scored != self.rounds[-1].round:
            self.rounds[-1] = replace(self.rounds[-1], perplexity=self._perplexity(self.rounds[-1].round))

    def is_due(self, round: int) -> bool:
        """Returns whether the round is evaluated."""
        return round in (0, self.num_rounds) or round % self.run.study.evaluate_every == 0

    def write_replies(self, round: int, replies: RoundReplies) -> None:
        """Writes down a round of the federation."""
        clipped = replies.update.clipped
        self.train_tokens += replies.update.num_tokens
        if replies.num_failed:
            self._progress.warn(f"{self.name}: round {round}: {replies.num_failed} users failed: {replies.errors[0]}")
        if replies.num_retried:
            done = f"{replies.num_retried} users done again by other nodes"
            self._progress.warn(f"{self.name}: round {round}: {done}: {replies.errors[0]}")
        self._write(
            round,
            num_units=clipped.num_units,
            loss_sum=replies.update.loss_sum,
            num_clipped=clipped.num_clipped,
            num_failed=replies.num_failed,
            num_nonfinite=clipped.num_nonfinite,
            num_retried=replies.num_retried,
            clip_norm=replies.clip_norm,
        )

    def write_step(self, report: StepReport) -> None:
        """Writes down a step of a centralized run."""
        self.train_tokens += report.num_tokens
        self._write(
            report.step,
            num_units=report.num_records,
            loss_sum=report.loss_sum,
            num_clipped=None,
            num_failed=0,
            num_nonfinite=report.num_nonfinite,
        )

    def outcome(self, row: ResultRow) -> Outcome:
        """Returns the outcome of the finished run."""
        run = self.run
        row = replace(row, metrics=self._metrics())
        return Outcome(
            row,
            self._statement(row),
            self.rounds,
            self.model,
            run.keys.run,
            run.study.model,
            run.study.licence,
            by_group=run.study.perplexity_by_group(self.model),
        )

    def _metrics(self) -> dict[str, float | None]:
        """The further figures of the model as it is; None where one is not finite or its class fails, which is said."""
        study = self.run.study
        try:
            found = study.metrics_of(self.model)
        except PluginError as error:  # training has ended, and its result stays
            self._progress.warn(f"{self.name}: {error}")
            return dict.fromkeys(study.metrics)
        return {name: value if math.isfinite(value) else None for name, value in found.items()}

    def _statement(self, row: ResultRow) -> PrivacyStatement:
        """What the run promises."""
        promise = self.guarantee
        target, facts = self.run.study.target.epsilon, self.circumstances
        return PrivacyStatement(
            level=promise.level,
            release=promise.release,
            mechanism=row.mechanism,
            num_users=self.run.study.num_protected if promise.ownership == "declared" else self.run.study.num_users,
            rounds=max(row.rounds, 1),
            delta=None if promise.level == "nobody" else promise.delta,
            method=promise.method if promise.level == "user" else None,
            clip_norm=row.clip_norm,
            records_per_user=row.records_per_user or None,
            target_epsilon=None if math.isinf(target) or promise.level == "nobody" else target,
            noise_source="seeded" if self.run.noise.is_seeded else "os",
            num_searched=self.run.study.num_searched,
            ownership=promise.ownership,
            foreign=facts.foreign,
            num_lost=0 if promise.release is None else max(row.rounds - (len(self.rounds) - 1), 0),
            window=facts.window,
            fresh_records=row.unit == "user" and self.run.study.records.fresh,
            public=facts.public,
            precision=facts.precision,
            evaluated_on=facts.evaluated_on,
            selector=facts.selector,
            users=facts.users,
            searched_by=facts.searched_by,
            groups=self.groups,
        )

    @property
    def seconds(self) -> float:
        """Seconds of work since the start, to the millisecond; time between a kill and a resume does not count."""
        return round(time.perf_counter() - self._start, 3)

    @property
    def final_perplexity(self) -> float | None:
        """That of the model after the last round; None where it is not finite."""
        return self.rounds[-1].perplexity

    @property
    def untrained_perplexity(self) -> float | None:
        """That before the first round; None where it is not finite."""
        return self.rounds[0].perplexity

    def _perplexity(self, round: int) -> float | None:
        """Scores the model as it is after a round; None where what comes out is not finite."""
        self._scored = round
        found = self.run.study.perplexity(self.model)
        if math.isfinite(found):
            return found
        self._progress.warn(f"{self.name}: after round {round} the perplexity is {found}: training has diverged")
        return None

    def _write(
        self,
        round: int,
        *,
        num_units: int,
        loss_sum: float,
        num_clipped: int | None,
        num_failed: int,
        num_nonfinite: int,
        num_retried: int = 0,
        clip_norm: float | None = None,
    ) -> None:
        """Evaluates when due, keeps the record and shows progress."""
        record = RoundRecord(
            mechanism=self.name,
            seed=self.run.study.seed,
            round=round,
            epsilon=None if self._spent is None else self._spent.after(round),
            perplexity=self._perplexity(round) if self.is_due(round) else None,
            train_loss=loss_sum / num_units if num_units and math.isfinite(loss_sum) else None,
            num_units=num_units,
            num_clipped=num_clipped,
            num_failed=num_failed,
            num_nonfinite=num_nonfinite,
            train_tokens=self.train_tokens,
            seconds=self.seconds,
            num_retried=num_retried,
            clip_norm=clip_norm,
        )
        self.rounds.append(record)
        self._progress.advance(round, num_units, record.epsilon, record.perplexity)


def _record_from_json(values: Mapping[str, object]) -> RoundRecord:
    """The record whose fields these are."""
    kinds = get_type_hints(RoundRecord)
    if values.keys() != kinds.keys() or not all(isinstance(values[name], kinds[name]) for name in kinds):
        raise CheckpointError(f"a journal holds something else than a round: {str(dict(values))[:80]}")
    return RoundRecord(**values)  # type: ignore[arg-type]
