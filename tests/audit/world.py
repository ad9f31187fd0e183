"""A federation that an audit can afford in a test: real users, store, worker, grid and strategy, no language model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedsim_userdp.audit.canaries import Canaries, canary_kinds, draw_canaries, kinds_of
from fedsim_userdp.audit.directions import Directions
from fedsim_userdp.audit.training import GradientsWithCanaries, UsersWithCanaries
from fedsim_userdp.audit.verdict import Claim, Findings, Trace, judge, significance_of_each
from fedsim_userdp.data.corpus import Record
from fedsim_userdp.data.records import RandomRecords
from fedsim_userdp.data.store import TokenStore, open_store
from fedsim_userdp.federation.worker import Worker
from fedsim_userdp.population import Population
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.noise import NoiseSource, SeededNoise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import ClientSelector, PoissonSelector
from fedsim_userdp.settings import TokenSettings
from fedsim_userdp.simulations.audited_run import AuditedRun
from fedsim_userdp.strategies.user_level_dp import UserLevelDP, UserLevelSettings
from fedsim_userdp.training.batches import MicroBatch, StepAddress
from fedsim_userdp.training.cohort import LocalTraining
from fedsim_userdp.training.schedule import LearningRate
from tests.data.sources import MemoryCorpus, WordTokenizer

SIZE, ROUNDS, SAMPLING_PROB, DELTA, CLIP_NORM, RECORDS, WINDOW = 2048, 18, 0.05, 1e-6, 0.3, 4, 16
CANARIES = {"direction": 60, "oversized": 60, "many_records": 60}
CANDIDATES = 8192
STATE = {"a": torch.zeros(64, 30), "b": torch.zeros(128)}


class FakeGradients:
    """Gradients of users who agree a little: a common direction and one of their own, twice the clip norm long."""

    model = nn.Linear(1, 1)

    def __call__(
        self, stacked: Mapping[str, Tensor], batch: MicroBatch, at: StepAddress
    ) -> tuple[dict[str, Tensor], Tensor]:
        common = torch.from_numpy(np.random.default_rng(0).standard_normal(SIZE))
        own = torch.from_numpy(
            np.stack([np.random.default_rng(unit + 1).standard_normal(SIZE) for unit in batch.units])
        )
        flat = ((0.2 * common + own) * 2 * CLIP_NORM / SIZE**0.5).float()
        parts = flat.split([tensor[0].numel() for tensor in stacked.values()], dim=1)
        gradients = {name: part.view(stacked[name].shape) for name, part in zip(stacked, parts, strict=True)}
        return gradients, torch.zeros(len(batch.units))


@dataclass(frozen=True)
class Planted:
    """What differs from the correct run."""

    strategy_fn: Callable[..., UserLevelDP] = UserLevelDP
    worker_fn: Callable[..., Worker] = Worker
    selector: ClientSelector = field(default_factory=lambda: PoissonSelector(SAMPLING_PROB))
    noise_fn: Callable[[RunKey], NoiseSource] = SeededNoise
    one_node_each: bool = False


def small_store(folder: Path, num_users: int = 60) -> TokenStore:
    texts = [Record(f"user {user}", "some words here again") for user in range(num_users)]
    return open_store(
        MemoryCorpus(texts, key="audit"),
        WordTokenizer(),
        TokenSettings(window=WINDOW, min_words=0, min_tokens=2),
        folder,
    )


@cache
def noise_multiplier(epsilon: float) -> float:
    """The noise of the claim, 0 for infinity."""
    if epsilon == float("inf"):
        return 0.0
    release = acc.PoissonUsers(1.0, sampling_prob=SAMPLING_PROB, rounds=ROUNDS)
    return acc.calibrate(release, epsilon=epsilon, delta=DELTA).noise_multiplier


def plant(store: TokenStore, seed: int, counts: Mapping[str, int] = CANARIES) -> Canaries:
    kinds = kinds_of(counts, canary_kinds(RECORDS, WINDOW))
    return draw_canaries(kinds, store.num_users, Directions(SIZE, CANDIDATES, seed), seed)


def trace_of(store: TokenStore, canaries: Canaries, planted: Planted, epsilon: float, seed: int) -> Trace:
    users = UsersWithCanaries(
        store, np.arange(store.num_users), RandomRecords(), RECORDS, WINDOW, RunKey.seeded(seed), canaries
    )
    worker = planted.worker_fn(
        GradientsWithCanaries(FakeGradients(), canaries, CLIP_NORM), users, LocalTraining(max_tokens=512)
    )
    settings = UserLevelSettings(
        population=Population.numbered(canaries.num_users),
        clip_norm=CLIP_NORM,
        noise_multiplier=noise_multiplier(epsilon),
        key=RunKey.seeded(seed),
        num_nodes=canaries.num_users if planted.one_node_each else 1,
    )
    run = AuditedRun(
        settings, planted.selector, planted.noise_fn(RunKey.seeded(seed)), worker.train, STATE, torch.optim.SGD,
        LearningRate(1.0, ROUNDS), ROUNDS, planted.strategy_fn,
    )  # fmt: skip
    return run.train(lambda round, answers: None, lambda round, replies, state: None)[0]


def audited(store: TokenStore, planted: Planted, epsilon: float, seed: int = 0) -> Findings:
    """The audit of one run, at 95% confidence for its tests together."""
    canaries = plant(store, seed)
    trace = trace_of(store, canaries, planted, epsilon, seed)
    claim = Claim(epsilon, DELTA, SAMPLING_PROB)
    return judge(trace, canaries, claim, significance_of_each(0.95, num_claims=1))
