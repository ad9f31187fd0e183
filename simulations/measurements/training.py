"""User-wise training in which whoever calls decides when a round is run."""

import torch
from torch import Tensor

from fedsim_userdp.federation.messages import RunDescription
from fedsim_userdp.federation.worker import Worker
from fedsim_userdp.models.adapters import trainable_state
from fedsim_userdp.privacy.noise import SeededNoise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import ClientSelector
from fedsim_userdp.simulations.measurements.watched_rounds import GridFn, StepwiseRounds, nodes_in_this_process
from fedsim_userdp.strategies.optimizers import ServerOptimizer
from fedsim_userdp.strategies.user_level_dp import UserLevelDP, UserLevelSettings
from fedsim_userdp.training.schedule import LearningRate, OptimizerFn

CLIP_NORM, NOISE_MULTIPLIER, LEARNING_RATE = 1.0, 1.0, 0.01
KEY = RunKey.seeded(0, "benchmark")


def benchmark_strategy(
    worker: Worker,
    selector: ClientSelector,
    *,
    num_nodes: int = 1,
    deals_by_size: bool = False,
    clip_norm: float = CLIP_NORM,
    noise_multiplier: float = NOISE_MULTIPLIER,
    optimizer_fn: OptimizerFn = torch.optim.Adam,
    learning_rate: float = LEARNING_RATE,
) -> UserLevelDP:
    """Returns user-wise training as a run has it, with noise, but without a ledger: nothing of it is kept or released.

    Args:
        worker: this process's model and users.
        selector: who takes part in a round.
        num_nodes: nodes that share the users.
        deals_by_size: whether users are dealt to nodes by size.
        clip_norm: bound on a user's update.
        noise_multiplier: standard deviation of the noise on the sum, divided by `clip_norm`.
        optimizer_fn: parameters and `lr` to the server's optimizer.
        learning_rate: of every round.
    """
    settings = UserLevelSettings(
        population=worker.users.population,
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        key=KEY,
        num_nodes=num_nodes,
        sizes_fn=worker.sizes if deals_by_size else None,
        run=RunDescription(worker.fingerprint),
    )
    start = trainable_state(worker.gradients.model)
    optimizer = ServerOptimizer(start, optimizer_fn, LearningRate(learning_rate, rounds=1, decays=False))
    return UserLevelDP(settings, selector, optimizer, SeededNoise(KEY), lambda *_: None, lambda *_: None)


class TrainingRounds:
    """User-wise training on some nodes, a round at each call.

    Args:
        strategy: the server's strategy.
        grid_of: returns the nodes; asked in every round.
    """

    def __init__(self, strategy: UserLevelDP, grid_of: GridFn) -> None:
        self.strategy = strategy
        self._next_round = StepwiseRounds(strategy, self.state, grid_of)

    @classmethod
    def in_process(cls, worker: Worker, strategy: UserLevelDP) -> "TrainingRounds":
        """Returns training on one node in this process, as engine=in_process runs it."""
        grid = nodes_in_this_process(worker)
        return cls(strategy, lambda: grid)

    def __call__(self) -> None:
        """Runs the next round."""
        self._next_round()

    @property
    def state(self) -> dict[str, Tensor]:
        """The adapter after the rounds so far."""
        return self.strategy.optimizer.state
