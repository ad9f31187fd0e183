"""What a node holds: the model and the users' records, built once in a process and kept over rounds."""

from dataclasses import dataclass

from fedsim_userdp.federation.messages import TrainRequest
from fedsim_userdp.models.adapters import LoraSettings, attach_lora
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.models.stacked import StackedAdapters
from fedsim_userdp.training.cohort import CohortUpdate, LocalTraining, clipped_update_sum
from fedsim_userdp.training.users import TrainingUsers, TrainingUsersRecipe


@dataclass(frozen=True)
class Worker:
    """A node's model and users."""

    adapters: StackedAdapters
    users: TrainingUsers
    local: LocalTraining

    def train(self, request: TrainRequest) -> CohortUpdate:
        """Returns the sum of the requested users' clipped updates; users without records add an exact zero."""
        units = self.users.units(request.users, request.round)
        return clipped_update_sum(self.adapters, request.state, units, self.local, request.clip_norm)


@dataclass(frozen=True)
class WorkerRecipe:
    """All that a process needs to build its worker; small and picklable.

    Attributes:
        key: names the recipe in a process's cache, the same for equal settings (a hash of the config).
        model: the base model.
        lora: the adapter.
        users: the training users.
        local: local training.
        seed: the run's seed.
    """

    key: str
    model: ModelSource
    lora: LoraSettings
    users: TrainingUsersRecipe
    local: LocalTraining
    seed: int

    def build(self) -> Worker:
        """Returns a worker with the model loaded."""
        model = attach_lora(self.model.load(), self.lora, self.seed)
        return Worker(StackedAdapters(model), self.users.open(), self.local)

    def train(self, request: TrainRequest) -> CohortUpdate:
        """Answers with this process's worker for the recipe, built at the first request."""
        if self.key not in _WORKERS:
            _WORKERS.clear()
            _WORKERS[self.key] = self.build()
        return _WORKERS[self.key].train(request)


_WORKERS: dict[str, Worker] = {}
