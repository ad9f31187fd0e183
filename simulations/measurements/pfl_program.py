"""The same run as a program for Apple's pfl (`pip install pfl`), in one process as its documentation has it.

A user's data are tensors in memory; users come from pfl's default sampler, which takes them in turn; one local SGD
step on all of a user's records; the Gaussian mechanism applied centrally; Adam at the server; no evaluation.
"""

import os
from dataclasses import dataclass

import torch
from peft import PeftModel
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy import CentrallyAppliedPrivacyMechanism, GaussianMechanism
from torch import Tensor, nn

from fedsim_userdp.federation.worker import Worker
from fedsim_userdp.models.adapters import trainable_state
from fedsim_userdp.simulations.measurements.training import CLIP_NORM, LEARNING_RATE, NOISE_MULTIPLIER
from fedsim_userdp.simulations.measurements.watched_rounds import Laps
from fedsim_userdp.training.schedule import OptimizerFn, trainable_parameters

_NEVER = 10**9  # rounds between evaluations; pfl evaluates the very first one all the same


@dataclass(frozen=True)
class PflSettings:
    """What the mechanism is.

    Attributes:
        clip_norm: bound on the norm of a user's gradient.
        noise_multiplier: standard deviation of the noise on the sum, divided by `clip_norm`.
        local_learning_rate: of the one local step.
        optimizer_fn: parameters and `lr` to the server's optimizer.
        learning_rate: of the server's optimizer.
    """

    clip_norm: float = CLIP_NORM
    noise_multiplier: float = NOISE_MULTIPLIER
    local_learning_rate: float = 1.0
    optimizer_fn: OptimizerFn = torch.optim.Adam
    learning_rate: float = LEARNING_RATE


class PflTraining:
    """Federated averaging with central noise by pfl.

    Args:
        worker: the model, which is trained in place, and the users, whose records all have the same length.
        cohort: users a round.
        settings: the mechanism.
    """

    def __init__(self, worker: Worker, cohort: int, settings: PflSettings | None = None) -> None:
        self._settings = settings or PflSettings()
        self._cohort, self._model = cohort, _Task(worker.gradients.model)
        device = next(self._model.parameters()).device
        os.environ["PFL_PYTORCH_DEVICE"] = str(device)
        self._backend = self._new_backend(_user_datasets(worker, device))

    def run(self, rounds: int, laps: Laps) -> None:
        """Runs that many rounds and says when each is over."""
        settings, trainable = self._settings, trainable_parameters(self._model)
        FederatedAveraging().run(
            algorithm_params=NNAlgorithmParams(
                central_num_iterations=rounds,
                evaluation_frequency=_NEVER,
                train_cohort_size=self._cohort,
                val_cohort_size=None,
            ),
            backend=self._backend,
            model=PyTorchModel(
                self._model,
                lambda parameters, lr: torch.optim.SGD(trainable, lr=lr),
                settings.optimizer_fn(trainable, lr=settings.learning_rate),
            ),
            model_train_params=NNTrainHyperParams(
                local_batch_size=None, local_num_epochs=1, local_learning_rate=settings.local_learning_rate
            ),
            callbacks=[_LapCallback(laps)],
            send_metrics_to_platform=False,
        )

    @property
    def state(self) -> dict[str, Tensor]:
        """The adapter after the rounds so far."""
        return trainable_state(self._model.model)

    def _new_backend(self, datasets: dict[str, PyTorchTensorDataset]) -> SimulatedBackend:
        """pfl's simulation on these users: clip each, add noise to the sum."""
        bound = self._settings.clip_norm * self._settings.local_learning_rate
        mechanism = CentrallyAppliedPrivacyMechanism(GaussianMechanism(bound, self._settings.noise_multiplier))
        federated = FederatedDataset(datasets.__getitem__, get_user_sampler("minimize_reuse", list(datasets)))
        return SimulatedBackend(training_data=federated, val_data=federated, postprocessors=[mechanism])


class _Task(nn.Module):
    """The model with the loss and metrics that pfl asks for."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model = model

    def loss(self, input_ids: Tensor) -> Tensor:
        """The mean loss of the next tokens, records being equally long."""
        logits = self.model(input_ids=input_ids, use_cache=False).logits[:, :-1].float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten())

    @torch.no_grad()
    def metrics(self, input_ids: Tensor) -> dict[str, Weighted]:
        """The loss as a metric."""
        return {"loss": Weighted(float(self.loss(input_ids)) * len(input_ids), len(input_ids))}


class _LapCallback(TrainingProcessCallback):
    """Passes on when rounds end."""

    def __init__(self, laps: Laps) -> None:
        self._laps = laps

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        """The first round begins."""
        self._laps.begin()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """A round is over."""
        self._laps.lap()
        return False, Metrics()


def _user_datasets(worker: Worker, device: torch.device) -> dict[str, PyTorchTensorDataset]:
    """Every user's records as one tensor, in the order of the users."""
    units = worker.users.units(range(len(worker.users)), round=0)
    return {
        str(unit.index): PyTorchTensorDataset(
            (torch.stack([torch.from_numpy(record) for record in unit.records]).to(device),), user_id=str(unit.index)
        )
        for unit in units
    }
