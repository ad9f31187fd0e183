"""A run of user-wise training as its auditor sees it: real strategy, nodes and clipping, with every release kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedsim_userdp.audit.directions import Floats
from fedsim_userdp.audit.training import flatten
from fedsim_userdp.audit.verdict import Trace
from fedsim_userdp.federation.client_app import TrainFn, make_client_app
from fedsim_userdp.federation.engines.in_process import InProcessGrid
from fedsim_userdp.federation.messages import to_arrays
from fedsim_userdp.federation.replies import RoundReplies
from fedsim_userdp.federation.rounds import Rounds, run_rounds
from fedsim_userdp.participation import expected_share
from fedsim_userdp.privacy.noise import NoiseSource
from fedsim_userdp.selection import ClientSelector
from fedsim_userdp.strategies.optimizers import ServerOptimizer
from fedsim_userdp.strategies.user_level_dp import ServerState, UserLevelDP, UserLevelSettings
from fedsim_userdp.training.schedule import LearningRate, OptimizerFn


class WatchedOptimizer(ServerOptimizer):
    """The server's optimizer, which keeps what it is given: that is what the mechanism releases."""

    def __init__(self, state: Mapping[str, Tensor], optimizer_fn: OptimizerFn, learning_rate: LearningRate) -> None:
        super().__init__(state, optimizer_fn, learning_rate)
        self.releases: list[Floats] = []

    def step(self, mean_update: Mapping[str, Tensor], round: int) -> dict[str, Tensor]:
        """Keeps `mean_update`, then steps."""
        self.releases.append(flatten(mean_update))
        return super().step(mean_update, round)


@dataclass(frozen=True)
class AuditedRun:
    """What is trained.

    Attributes:
        settings: the mechanism's numbers, for the whole population, canaries included.
        selector: who takes part in a round.
        noise: where noise comes from.
        train_fn: what every node answers with; it must train the canaries too.
        state: the adapter before the first round.
        optimizer_fn: the server's optimizer.
        learning_rate: of each round.
        rounds: number of rounds.
        strategy_fn: makes the server's strategy, with the arguments of `UserLevelDP`.
    """

    settings: UserLevelSettings
    selector: ClientSelector
    noise: NoiseSource
    train_fn: TrainFn
    state: Mapping[str, Tensor]
    optimizer_fn: OptimizerFn
    learning_rate: LearningRate
    rounds: int
    strategy_fn: Callable[..., UserLevelDP] = UserLevelDP

    def train(
        self,
        before_release: Callable[[int, str], None],
        after_round: Callable[[int, RoundReplies, ServerState], None],
    ) -> tuple[Trace, dict[str, Tensor]]:
        """Returns what the auditor sees of the run, and the adapter after it.

        Args:
            before_release: called with the round and its answers before noise is drawn: the ledger writes here.
            after_round: called with the round, its replies and the new state.
        """
        optimizer = WatchedOptimizer(self.state, self.optimizer_fn, self.learning_rate)
        strategy = self.strategy_fn(self.settings, self.selector, optimizer, self.noise, before_release, after_round)
        grid = InProcessGrid(make_client_app(self.train_fn), self.settings.num_nodes)
        run_rounds(strategy, grid, to_arrays(self.state), Rounds(1, self.rounds))
        in_clip_norms = self.expected_cohort / self.settings.clip_norm
        releases = np.stack(optimizer.releases) * np.float32(in_clip_norms)
        return Trace(releases, flatten(self.state) - flatten(optimizer.state)), optimizer.state

    @property
    def expected_cohort(self) -> float:
        """The denominator of the mean update."""
        population = self.settings.population
        return expected_share(self.selector, population, self.rounds) * len(population)
