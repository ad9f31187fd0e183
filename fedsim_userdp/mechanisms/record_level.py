"""Record-level DP-SGD on a capped pool, accounted for at the user level: group privacy, tight ELS, or not at all."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from peft import PeftModel

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.base import Training, check_positive, result_row
from fedsim_userdp.mechanisms.centralized import expected_batch_size, sampling_prob, train_centrally
from fedsim_userdp.mechanisms.guarantee import Guarantee, calibrated, level_of
from fedsim_userdp.mechanisms.history import History, Outcome
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.mechanisms.study import Study
from fedsim_userdp.naming import settings_of
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.report.progress import RunProgress
from fedsim_userdp.training.record_steps import StackedStep

if TYPE_CHECKING:
    from fedsim_userdp.training.opacus_step import OpacusStep


_NAMES = {"group": "group_privacy", "tight": "example_level_tight", "record": "record_level"}


@dataclass(frozen=True, kw_only=True)
class RecordLevelDP(Training):
    """Centralized record-level DP-SGD with Opacus on a pool capped at k records per user.

    Attributes:
        clip_norm: bound on the norm of a record's gradient, above 0.
        accountant: "group" (black-box group conversion) or "tight" (ELS, mixture of Gaussians) reach the budget at
            the user level; "record" reaches it for a single record only, and promises users nothing.
    """

    name: str = ""
    clip_norm: float = 0.5
    accountant: Literal["group", "tight", "record"] = "group"

    def __post_init__(self) -> None:
        if self.accountant not in _NAMES:
            raise ConfigError(f"accountant={self.accountant} is unknown; expected group, tight or record")
        object.__setattr__(self, "name", self.name or _NAMES[self.accountant])
        super().__post_init__()
        check_positive("clip_norm", self.clip_norm)

    def guarantee(self, study: Study) -> Guarantee:
        """Returns the promise, its noise calibrated to the study's budget under the accountant."""
        with settings_of("mechanism", self):
            release = acc.RecordLevel(1.0, sampling_prob(study, self.rounds), self.rounds, self.records_per_user)
        return calibrated(release, study.target, self.accountant, level_of(self.accountant))

    def try_out(self, run: Run) -> None:
        """Raises ModelError where the study's engine cannot train this model."""
        guarantee = self.guarantee(run.study)
        self._step(run, run.study.fresh_model(), guarantee, self._prob(run.study, guarantee)).close()

    def run(self, run: Run, progress: RunProgress) -> Outcome:
        """Trains with that noise."""
        guarantee = self.guarantee(run.study)
        pool = run.pool(self.records_per_user)
        model = run.study.fresh_model()
        prob = self._prob(run.study, guarantee)
        step = self._step(run, model, guarantee, prob)
        history = History(self.name, "records", self.rounds, run, guarantee, model, progress)
        train_centrally(history, step, pool, prob)
        step.close()
        return history.outcome(result_row(self.name, "record", history, guarantee.in_words(), self, self.clip_norm))

    def _prob(self, study: Study, guarantee: Guarantee) -> float:
        """The sampling probability: the one that was accounted for, whatever a selector would say by now."""
        release = guarantee.release
        return release.sampling_prob if isinstance(release, acc.RecordLevel) else sampling_prob(study, self.rounds)

    def _step(self, run: Run, model: PeftModel, guarantee: Guarantee, prob: float) -> "OpacusStep | StackedStep":
        """The step of the configured engine."""
        from fedsim_userdp.training.opacus_step import OpacusStep  # here: the other mechanisms need not wait for Opacus

        step_fn = (
            partial(OpacusStep, model, window=run.study.window)
            if run.study.central_engine == "opacus"
            else partial(StackedStep, run.study.gradients(model))
        )
        return step_fn(
            run.study.optimizer_fn,
            self.schedule(),
            clip_norm=self.clip_norm,
            noise_multiplier=guarantee.noise_multiplier,
            expected_batch_size=expected_batch_size(run.study, self, prob),
            noise=run.noise,
            max_tokens=run.study.local.max_tokens,
            key=run.keys.run.of_nodes(),
        )
