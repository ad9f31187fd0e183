"""What a node holds: the model and the users' records, built once in a process and kept over rounds."""

import hashlib
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fedsim_userdp import __version__
from fedsim_userdp.data.perplexity import PerplexityRecords
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.errors import ClippingError, DataError, ModelError, NodeRefusal, PluginError, RecordChoiceError
from fedsim_userdp.federation.messages import TrainRequest
from fedsim_userdp.federation.time_limit import ending_process_after
from fedsim_userdp.models.adapters import attach_lora
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.plugins import reason_of
from fedsim_userdp.population import Population
from fedsim_userdp.privacy.clipping import Clipping
from fedsim_userdp.settings import LoraSettings
from fedsim_userdp.training.cohort import CohortUpdate, LocalTraining, add, clipped_update_sum, in_float32, zero_update
from fedsim_userdp.training.gradients import UnitGradients, unit_gradients
from fedsim_userdp.training.users import TrainingUsers, TrainingUsersRecipe

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worker:
    """A node's model and users.

    Attributes:
        gradients: computes each user's gradient, with its model.
        users: the training users.
        local: local training.
        fingerprint: what this node's updates depend on, see `node_fingerprint`.
        clipping: what shrinks a user's update; None for scaling it as a whole.
    """

    gradients: UnitGradients
    users: TrainingUsers
    local: LocalTraining
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    clipping: Clipping | None = None

    def train(self, request: TrainRequest) -> CohortUpdate:
        """Returns the sum of the requested users' clipped updates; users without records add an exact zero.

        Guarantee: a user whose update cannot be computed adds an exact zero, is counted, and changes nothing for the
        users beside it.  Where that is everybody, the node itself is at fault and what it raises goes on.

        Raises:
            NodeRefusal: when the request is of a run on other data, another model or other settings, or the choice of
                records or a clipping of the user's own breaks its rules.
        """
        request.run.check(self.fingerprint)
        try:
            return self._train(request)
        except (RecordChoiceError, ClippingError) as error:
            raise NodeRefusal(f"round {request.round}: {error}") from error

    def _train(self, request: TrainRequest) -> CohortUpdate:
        """See `train`."""
        try:
            return self._sum_of(request, request.users, self.local)
        except _USERS_FAULTS as error:
            fault = error.with_traceback(None)  # which would keep what the failed attempt holds of the memory
        return self._one_by_one(request, fault)

    def sizes(self, users: Sequence[int], round: int) -> list[float]:
        """Returns how many tokens an update of each of `users` takes in the round, after the cap of k records."""
        return [self._size(user, round) for user in users]

    def _size(self, user: int, round: int) -> float:
        """The tokens of the chosen records; k of average length where choosing would run a model, or fails."""
        if not isinstance(self.users.selector, PerplexityRecords):
            with suppress(*_USERS_FAULTS, RecordChoiceError):  # said by the node that trains the user
                return float(sum(map(len, self.users.chosen_records(user, round))))
        number = int(self.users.users[user])
        share = self.users.records_per_user / max(1, self.users.store.num_records(number))
        return self.users.store.num_tokens(number) * min(1.0, share)

    def _one_by_one(self, request: TrainRequest, error: Exception) -> CohortUpdate:
        """The users' sum without those who fail by themselves; `error` is what all of them together raised."""
        total = zero_update(request.state, torch.float64)
        for user in request.users:
            try:
                total = add(total, self._sum_of(request, [user], self.local))
            except _USERS_FAULTS as fault:
                reason = str(fault) if isinstance(fault, PluginError) else reason_of(fault)
                total = replace(total, failed=(*total.failed, user), reason=total.reason or reason)
        if total.num_failed == len(request.users):
            raise error
        return in_float32(total)

    def _sum_of(self, request: TrainRequest, users: Sequence[int], local: LocalTraining) -> CohortUpdate:
        """The sum of clipped updates of some users, in smaller micro-batches where a GPU has too little memory."""
        weights = dict(zip(request.users, request.weights, strict=True)) if request.weights else None
        units = self.users.units(users, request.round, weights)
        try:
            return clipped_update_sum(
                self.gradients,
                request.state,
                units,
                local,
                request.clip_norm,
                round=request.round,
                key=self.users.key,
                clipping=self.clipping,
                query=request.query,
            )
        except torch.OutOfMemoryError:
            if len(users) == 1 or local.max_tokens == 1:  # micro-batches of one user each
                raise
        torch.cuda.empty_cache()  # out here, where nothing of the failed attempt is held any more
        fewer = local.max_tokens // 2
        _log.warning("out of GPU memory: trying micro-batches of %d tokens (local.max_tokens)", fewer)
        return self._sum_of(request, users, replace(local, max_tokens=fewer))


# What a user's records or their choice can raise in numpy and torch (out of memory included), as opposed to a bug.
_USERS_FAULTS = (RuntimeError, ValueError, IndexError, ArithmeticError, MemoryError)


@dataclass(frozen=True)
class WorkerRecipe:
    """All that a process needs to build its worker; small and picklable.

    Attributes:
        settings: digest of the settings that decide updates; names the recipe in a process's cache.
        model: the base model.
        lora: the adapter.
        users: the training users.
        local: local training.
        seed: of the first adapter.
        threads: CPU threads of torch in the process, at least 1; None for torch's default.
        time_limit: seconds, above 0, after which a request ends the process, so that a hung one is started anew; None
            for no limit; loading the model does not count.  For processes that do nothing else only.
        clipping: what shrinks a user's update; None for scaling it as a whole.
    """

    settings: str
    model: ModelSource
    lora: LoraSettings
    users: TrainingUsersRecipe
    local: LocalTraining
    seed: int
    threads: int | None = None
    time_limit: float | None = None
    clipping: Clipping | None = None

    def build(self) -> Worker:
        """Returns a worker with the model loaded."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        source = replace(self.model)  # a copy without what the other process found out, such as its device
        model = attach_lora(source.load(), self.lora, self.seed)
        users = self.users.open()
        fingerprint = node_fingerprint(users, source, self.settings)
        return Worker(unit_gradients(model, users.window), users, self.local, fingerprint, self.clipping)

    def train(self, request: TrainRequest) -> CohortUpdate:
        """Answers with this process's worker for the recipe, built at the first request.

        Raises:
            NodeRefusal: when this process has no such data or model, or see `Worker.train`.
        """
        worker = _LAST.worker((self.settings, self.users.key), self._build_or_refuse)
        with ending_process_after(self.time_limit), _LAST.forgotten_when_it_refuses():
            return worker.train(request)

    def _build_or_refuse(self) -> Worker:
        """`build`, where data or model that are not there are no failure of the node but a setting to be mended."""
        try:
            return self.build()
        except (DataError, ModelError) as error:
            raise NodeRefusal(f"a node cannot have what the server has: {error}") from error


def node_fingerprint(users: TrainingUsers, model: ModelSource, settings: str) -> dict[str, str]:
    """Returns what a node's updates depend on, name to digest: equal on two nodes that train the same thing.

    Args:
        users: the training users.
        model: the base model.
        settings: digest of the settings that decide updates.
    """
    return fingerprint_of(users.store, users.population, model, settings)


def fingerprint_of(store: TokenStore, population: Population, model: ModelSource, settings: str) -> dict[str, str]:
    """Returns the fingerprint of nodes that train these users on this model, see `node_fingerprint`."""
    hashes = np.ascontiguousarray(population.id_hashes, dtype="<u8")
    return {
        "data": store.content_digest,
        "training split": hashlib.sha256(hashes.tobytes()).hexdigest(),
        "base model": model.weights_digest(),
        "settings": settings,
        "version of fedsim_userdp": __version__,
    }


class LastWorker:
    """The worker that a process built last, so that not every request loads a model.

    Guarantee: what is built for one name is never used for another; a name has everything that a worker's choices of
        records and dropout masks follow from: the settings and the nodes' key.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, Worker] = {}

    def worker(self, name: Hashable, build_fn: Callable[[], Worker]) -> Worker:
        """Returns the worker of that name, built now unless it was the last one."""
        if name not in self._kept:
            self._kept.clear()  # before another model is loaded beside it
            self._kept[name] = build_fn()
        return self._kept[name]

    @contextmanager
    def forgotten_when_it_refuses(self) -> Iterator[None]:
        """Within the block a refusal ends what was kept: what it was built from may be mended before the next one."""
        try:
            yield
        except NodeRefusal:
            self._kept.clear()
            raise


_LAST = LastWorker()
