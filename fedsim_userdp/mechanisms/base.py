"""What every mechanism has: what is called of it, the settings of training, and the row of a finished run."""

import re
from dataclasses import dataclass
from typing import Protocol

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.guarantee import Guarantee, declared_probability
from fedsim_userdp.mechanisms.history import History, Outcome
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.mechanisms.settings_tree import selection_in_words
from fedsim_userdp.mechanisms.study import Study
from fedsim_userdp.participation import expected_share
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.noise import LEAST, MOST
from fedsim_userdp.privacy.validation import MAX_COUNT
from fedsim_userdp.report.progress import RunProgress
from fedsim_userdp.report.records import ResultRow
from fedsim_userdp.selection import ClientSelector, PoissonSelector
from fedsim_userdp.training.schedule import LearningRate


class Mechanism(Protocol):
    """What `compare` calls."""

    @property
    def name(self) -> str:
        """Returns the label in tables and files."""
        ...

    def guarantee(self, study: Study) -> Guarantee:
        """Returns what the mechanism guarantees on the study; raises where it cannot be run on it."""
        ...

    def run(self, run: Run, progress: RunProgress) -> Outcome:
        """Returns the outcome of the mechanism's run."""
        ...


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every mechanism with training has.

    Attributes:
        name: label in tables and files.
        rounds: rounds or steps, at least 1.
        records_per_user: k, at least 1.
        learning_rate: of the server's optimizer in the first round, above 0.
        learning_rate_decays: whether it falls linearly towards 0 over the rounds.
    """

    name: str
    rounds: int = 18
    records_per_user: int = 4
    learning_rate: float = 0.04
    learning_rate_decays: bool = True

    def schedule(self) -> LearningRate:
        """Returns the learning rate of each round."""
        return LearningRate(self.learning_rate, self.rounds, self.learning_rate_decays)

    def __post_init__(self) -> None:
        for field, value in (("rounds", self.rounds), ("records_per_user", self.records_per_user)):
            if not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
                raise ConfigError(f"{field}={value} must be a whole number of at least 1 and at most 1e9")
        if not isinstance(self.name, str) or not re.fullmatch(r"\w[\w-]{0,99}", self.name):
            raise ConfigError(
                f"name={self.name!r} must be letters, digits, '_' and '-', and no number: it names a folder"
            )
        if re.search(r"-seed\d+$", self.name):
            raise ConfigError(f"name={self.name} must not end in -seed and a number: folders of other seeds do")
        check_positive("learning_rate", self.learning_rate)


def check_positive(field: str, value: float) -> None:
    """Raises ConfigError unless the setting, a learning rate or a clip norm, is above 0 and float32 holds it well."""
    if not isinstance(value, int | float) or not LEAST <= value <= MOST:
        raise ConfigError(f"{field}={value} must be a number from {LEAST:g} to {MOST:g}")


def result_row(
    name: str,
    unit: str,
    history: History,
    guarantee: str,
    training: Training | None = None,
    clip_norm: float | None = None,
) -> ResultRow:
    """Returns the result of a finished run."""
    promise, run = history.guarantee, history.run
    is_capped_pool = isinstance(promise.release, acc.RecordLevel)
    return ResultRow(
        mechanism=name,
        unit=unit,
        epsilon=promise.epsilon,
        delta=None if promise.epsilon is None else promise.delta,
        guarantee=guarantee,
        noise_multiplier=promise.noise_multiplier,
        clip_norm=clip_norm,
        records_per_user=0 if training is None else training.records_per_user,
        rounds=history.num_rounds,
        sampling_prob=None if training is None else _sampling_prob(run.study.selector, promise),
        learning_rate=None if training is None else training.learning_rate,
        seed=run.study.seed,
        perplexity=history.final_perplexity,
        train_tokens=history.train_tokens,
        seconds=history.seconds,
        epsilon_tight=promise.epsilon_by("tight") if is_capped_pool else None,
        epsilon_record=promise.epsilon_by("record") if is_capped_pool else None,
        num_failed=sum(record.num_failed for record in history.rounds),
        num_retried=sum(record.num_retried for record in history.rounds),
        target_epsilon=None if promise.epsilon is None else run.study.target.epsilon,
        evaluated_on=run.study.circumstances.evaluated_on,
        untrained_perplexity=history.untrained_perplexity,
        selection="" if training is None else selection_in_words(run.study.tree["selection"]),
        expected_cohort=None if training is None else _expected_cohort(run.study, history.num_rounds),
    )


def _expected_cohort(study: Study, rounds: int) -> float:
    """Users expected in a round, the mean over the rounds."""
    return expected_share(study.selector, study.population, max(rounds, 1)) * study.num_users


def _sampling_prob(selector: ClientSelector, promise: Guarantee) -> float | None:
    """The probability with which a unit takes part in a round; of a class of the user's own, as it declared it."""
    if type(selector) is PoissonSelector:
        return selector.sampling_prob
    return declared_probability(promise.release)
