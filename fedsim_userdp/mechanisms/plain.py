"""The floor and the ceiling of a comparison: no training, and training without privacy."""

from dataclasses import dataclass

from fedsim_userdp.mechanisms.base import Training, result_row
from fedsim_userdp.mechanisms.centralized import expected_batch_size, sampling_prob, train_centrally
from fedsim_userdp.mechanisms.guarantee import NO_GUARANTEE, UNNOISED, UNTRAINED, Guarantee
from fedsim_userdp.mechanisms.history import History, Outcome
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.mechanisms.study import Study
from fedsim_userdp.report.progress import RunProgress
from fedsim_userdp.training.record_steps import PlainStep


@dataclass(frozen=True)
class ZeroShot:
    """The base model as it is: the floor."""

    name: str = "zero_shot"

    def guarantee(self, study: Study) -> Guarantee:
        """Returns no promise."""
        return NO_GUARANTEE

    def run(self, run: Run, progress: RunProgress) -> Outcome:
        """Scores the base model with an adapter that does nothing yet."""
        model = run.study.fresh_model()
        run.place.begin()  # once the model is not refused
        history = History(self.name, "users", 0, run, NO_GUARANTEE, model, progress)
        history.begin()
        return history.outcome(result_row(self.name, "none", history, UNTRAINED))


@dataclass(frozen=True, kw_only=True)
class NonPrivate(Training):
    """Plain training on the same capped pool: the ceiling."""

    name: str = "non_private"

    def guarantee(self, study: Study) -> Guarantee:
        """Returns no promise."""
        sampling_prob(study, self.rounds)
        return NO_GUARANTEE

    def run(self, run: Run, progress: RunProgress) -> Outcome:
        """Trains without clip and noise."""
        pool, prob = run.pool(self.records_per_user), sampling_prob(run.study, self.rounds)
        model = run.study.fresh_model()
        step = PlainStep(
            model,
            run.study.optimizer_fn,
            self.schedule(),
            expected_batch_size=expected_batch_size(run.study, self, prob),
            max_tokens=run.study.local.max_tokens,
            key=run.keys.run.of_nodes(),
        )
        history = History(self.name, "records", self.rounds, run, NO_GUARANTEE, model, progress)
        train_centrally(history, step, pool, prob)
        return history.outcome(result_row(self.name, "none", history, UNNOISED, self))
