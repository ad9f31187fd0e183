"""What a run leaves behind, as typed rows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Evaluated = Literal["heldout", "validation"]
OF_RESULTS = (
    "perplexity, train_tokens, seconds, num_failed, num_retried, untrained_perplexity, metrics: from users' data "
    "without noise"
)
OF_ROUNDS = "all but mechanism, seed, round, epsilon, clip_norm: from users' data without noise"
_PEOPLE = {"heldout": "held-out users", "validation": "validation users"}


@dataclass(frozen=True)
class ResultRow:
    """One mechanism's result, a row of `results.csv` and `results.json`.

    Attributes:
        mechanism: name of the mechanism.
        unit: privacy unit: "user", "record" or "none".
        epsilon: user-level epsilon; None where there is no user-level guarantee.
        delta: user-level delta; None likewise.
        guarantee: the guarantee in words, with its neighbouring relation and accountant.
        noise_multiplier: standard deviation of the noise on the sum, divided by `clip_norm`; 0 without noise.
        clip_norm: bound on the norm of a unit's gradient, where it adapts itself that of the first round; None without
            clipping.
        records_per_user: k, the most records of a user in a round (user_wise) or in the pool (centralized).
        rounds: rounds or steps taken.
        sampling_prob: probability with which a unit takes part in a round; None for other selections.
        learning_rate: of the server's optimizer.
        seed: the run's seed.
        perplexity: on the users of `evaluated_on`; None where it is not finite, since training diverged; not private.
        train_tokens: predicted tokens that training went through; not private.
        seconds: wall-clock time of the run, evaluation included.
        epsilon_tight: user-level epsilon of the same run by the tight ELS accountant; None where it does not apply.
        epsilon_record: record-level epsilon of the same run; None where it does not apply.
        num_failed: over the rounds, times that a user counted as zero because of a failure; not private.
        num_retried: over the rounds, times that a user's node failed and another did its work; not private.
        target_epsilon: user-level epsilon that was asked for; None where none was, or nothing is claimed.
        evaluated_on: which users the perplexity is of, "heldout" or "validation".
        untrained_perplexity: on the same users before the first round; None where it is not finite; not private.
        metrics: further figures on the same users by name, a column each in `results.csv`; None where one is not
            finite or could not be computed; not private.
        selection: who was selected: the class and its settings; empty where nothing was trained.
        expected_cohort: users expected in a round, the mean over rounds, or as many users' records; None likewise.
        not_private: which of the columns are computed from users' data without noise.
    """

    mechanism: str
    unit: str
    epsilon: float | None
    delta: float | None
    guarantee: str
    noise_multiplier: float
    clip_norm: float | None
    records_per_user: int
    rounds: int
    sampling_prob: float | None
    learning_rate: float | None
    seed: int
    perplexity: float | None
    train_tokens: int
    seconds: float
    epsilon_tight: float | None = None
    epsilon_record: float | None = None
    num_failed: int = 0
    num_retried: int = 0
    target_epsilon: float | None = None
    evaluated_on: Evaluated = "heldout"
    untrained_perplexity: float | None = None
    selection: str = ""
    expected_cohort: float | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    not_private: str = OF_RESULTS

    def to_dict(self) -> dict[str, Any]:
        """Returns the row as plain values, `metrics` as a mapping of them."""
        return asdict(self)


@dataclass(frozen=True)
class RoundRecord:
    """What one round did.  Everything but `round`, `epsilon` and `clip_norm` is computed from data without noise.

    Attributes:
        mechanism: name of the mechanism.
        seed: the run's seed.
        round: the round, 0 for the state before training.
        epsilon: user-level epsilon spent so far; None where there is no user-level guarantee.
        perplexity: on the evaluation users; None in rounds that were not evaluated, or where it is not finite.
        train_loss: mean loss of the round's units before the step, in nats; None when there were none.
        num_units: units in the round.
        num_clipped: units whose norm was above the bound.
        num_failed: units that contributed an exact zero because of a failure.
        num_nonfinite: units that contributed an exact zero because their update was not finite.
        train_tokens: predicted tokens so far.
        seconds: since the start of the run.
        num_retried: units whose node failed and which another node then did.
        clip_norm: bound on the norm of a user's update in this round; None where no users' updates are clipped.
    """

    mechanism: str
    seed: int
    round: int
    epsilon: float | None
    perplexity: float | None
    train_loss: float | None
    num_units: int
    num_clipped: int | None
    num_failed: int
    num_nonfinite: int
    train_tokens: int
    seconds: float
    num_retried: int = 0
    clip_norm: float | None = None


def people(evaluated_on: str) -> str:
    """Returns in words which users a perplexity is of."""
    return _PEOPLE[evaluated_on]


def people_of(rows: Sequence[ResultRow]) -> str:
    """Returns in words which users the perplexities of several rows are of."""
    return " or ".join(dict.fromkeys(people(row.evaluated_on) for row in rows))


ROW_FIELDS = tuple(one.name for one in fields(ResultRow) if one.name != "metrics")
ROUND_FIELDS = tuple(one.name for one in fields(RoundRecord))
