"""Worker processes of Flower's Simulation Runtime that are killed, hang or raise in the middle of a round."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedsim_userdp.errors import RoundError
from fedsim_userdp.federation.engines.flower_engine import FlowerEngine
from fedsim_userdp.federation.messages import TrainRequest
from fedsim_userdp.federation.replies import RoundReplies
from fedsim_userdp.federation.rounds import Rounds
from fedsim_userdp.federation.worker import WorkerRecipe
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.population import Population
from fedsim_userdp.privacy.clipping import clip_and_sum
from fedsim_userdp.privacy.noise import SeededNoise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import PoissonSelector
from fedsim_userdp.settings import LoraSettings
from fedsim_userdp.strategies.optimizers import ServerOptimizer
from fedsim_userdp.strategies.user_level_dp import ServerState, UserLevelDP, UserLevelSettings
from fedsim_userdp.training.cohort import CohortUpdate, LocalTraining
from fedsim_userdp.training.schedule import LearningRate

pytestmark = pytest.mark.slow
NUM_USERS, ROUNDS = 8, 3


@dataclass(frozen=True)
class FaultyRecipe(WorkerRecipe):
    """A worker whose users all have the update 1, and that fails in round 2 as long as `marker` does not exist.

    Attributes:
        fault: "killed", "hangs" or "raises".
        marker: written before the fault, unless it shall go on failing.
        is_lasting: whether it fails again and again.
    """

    fault: str = "raises"
    marker: Path = Path("marker")
    is_lasting: bool = False

    def is_first(self) -> bool:
        """Returns True once, to one worker."""
        try:
            self.marker.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def train(self, request: TrainRequest) -> CohortUpdate:
        """Fails as it is told, or answers."""
        if request.round == 2 and (self.is_first() or self.is_lasting):
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "raises":
                raise RuntimeError("out of memory")
            from fedsim_userdp.federation.time_limit import ending_process_after

            with ending_process_after(self.time_limit):
                time.sleep(3600)
        raw = {name: torch.ones(len(request.users), *tensor.shape) for name, tensor in request.state.items()}
        return CohortUpdate(clip_and_sum(raw, request.clip_norm), loss_sum=0.0, num_tokens=0)


class Run:
    """Three rounds of the strategy under Flower's runtime, and everything that happened."""

    def __init__(self, engine: FlowerEngine, recipe: FaultyRecipe) -> None:
        self.events: list[str] = []
        self.replies: list[RoundReplies] = []
        start = {"a": torch.zeros(50)}
        sizes_fn = equal_sizes if engine.deals_by_size(NUM_USERS) else None
        settings = UserLevelSettings(
            Population.numbered(NUM_USERS), 1.0, 0.0, RunKey.seeded(0), engine.num_nodes_for(NUM_USERS), sizes_fn
        )
        strategy = UserLevelDP(
            settings,
            PoissonSelector(1.0),
            ServerOptimizer(start, torch.optim.SGD, LearningRate(1.0, 1, decays=False)),
            SeededNoise(RunKey.seeded(0)),
            lambda round, answers: self.events.append(f"ledger {round}"),
            self.remember,
        )
        model = SimpleNamespace(parameters=lambda: iter([torch.zeros(1)]))
        worker = SimpleNamespace(users=range(NUM_USERS), gradients=SimpleNamespace(model=model))
        self.error: RoundError | None = None
        try:
            engine.run(strategy, recipe, worker, start, Rounds(1, ROUNDS))  # type: ignore[arg-type]
        except RoundError as error:
            self.error = error
        self.distance = float(strategy.optimizer.state["a"].norm())

    def remember(self, round: int, replies: RoundReplies, state: ServerState) -> None:
        self.events.append(f"done {round}")
        self.replies.append(replies)


def equal_sizes(users: Sequence[int], round: int) -> list[float]:
    return [1.0] * len(users)


def recipe(folder: Path, fault: str, *, is_lasting: bool = False) -> FaultyRecipe:
    return FaultyRecipe(
        "key", ModelSource(), LoraSettings(), None, LocalTraining(), 0,  # type: ignore[arg-type]
        fault=fault, marker=folder / "marker",
        is_lasting=is_lasting,
    )  # fmt: skip


def engine(**settings: Any) -> FlowerEngine:
    return FlowerEngine(**({"num_nodes": 2, "round_timeout": 8.0} | settings))


ALL_EVENTS = [f"{what} {round}" for round in range(1, ROUNDS + 1) for what in ("ledger", "done")]


@pytest.mark.parametrize("fault", ["killed", "raises", "hangs"])
def test_a_failed_workers_users_are_done_again_by_another_in_the_same_round(tmp_path: Path, fault: str) -> None:
    run = Run(engine(max_retries=4, round_timeout=20.0 if fault == "hangs" else None), recipe(tmp_path, fault))
    assert run.error is None
    assert run.events == ALL_EVENTS
    assert [replies.num_failed for replies in run.replies] == [0, 0, 0]
    assert [replies.num_retried for replies in run.replies] == [0, NUM_USERS // 2, 0]
    assert run.distance == pytest.approx(ROUNDS, rel=1e-4)


@pytest.mark.parametrize("fault", ["killed", "hangs"])
def test_without_retries_a_failed_workers_users_count_as_zero_in_that_round_only(tmp_path: Path, fault: str) -> None:
    run = Run(engine(max_retries=0, round_timeout=20.0 if fault == "hangs" else None), recipe(tmp_path, fault))
    assert run.events == ALL_EVENTS
    failed = [replies.num_failed for replies in run.replies]
    assert failed[:2] == [0, NUM_USERS // 2]  # on a slow machine the new worker may miss round 3 too
    assert [replies.num_retried for replies in run.replies] == [0, 0, 0]
    assert run.distance == pytest.approx(ROUNDS - sum(failed) / NUM_USERS, rel=1e-4)


@pytest.mark.parametrize("fault", ["killed", "hangs"])
def test_a_round_that_no_worker_can_do_stops_the_run_before_anything_is_released(tmp_path: Path, fault: str) -> None:
    run = Run(engine(max_retries=1, round_timeout=20.0), recipe(tmp_path, fault, is_lasting=True))
    assert run.error is not None
    assert f"round 2: {NUM_USERS} of {NUM_USERS} users have no update" in str(run.error)
    assert "\n" not in str(run.error)
    assert run.events == ["ledger 1", "done 1"]
    assert run.distance == pytest.approx(1.0, rel=1e-4)
