"""User-wise DP-SGD and DP-FedAvg as a Flower strategy: select, sum clipped updates, add noise, divide, step.

Source: McMahan et al. 2018, "Learning differentially private recurrent language models", arXiv 1710.06963;
Chua et al. 2024, "Mind the Privacy Unit!", arXiv 2406.14322, Algorithm 2; for a clip norm that adapts itself, Andrew et
al. 2021, arXiv 1905.03871.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from fedsim_userdp.errors import ReleasedOtherwise
from fedsim_userdp.federation.exchange import Exchange
from fedsim_userdp.federation.hosting import Hosts, SizesFn
from fedsim_userdp.federation.messages import RunDescription, to_arrays
from fedsim_userdp.federation.replies import RoundReplies
from fedsim_userdp.federation.rounds import RetryingStrategy
from fedsim_userdp.participation import Cohorts, UserLevel
from fedsim_userdp.population import Population, Reported
from fedsim_userdp.privacy.adaptive_clipping import ClipAdaptation, next_clip_norm, unclipped_share
from fedsim_userdp.privacy.noise import NoiseSource, add_noise, noise_stddev
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import ClientSelector
from fedsim_userdp.signals import PaidSignal
from fedsim_userdp.strategies.optimizers import ServerOptimizer


@dataclass(frozen=True)
class UserLevelSettings:
    """What the mechanism is; public.

    Attributes:
        population: the training users, at least 1.
        clip_norm: bound on the norm of a user's update, above 0; infinity (with no noise) for no privacy.  Where it
            adapts itself, that of the first round to come.
        noise_multiplier: standard deviation of the noise on the sum, divided by `clip_norm`; finite, at least 0.
        key: the run's key, which cohorts and hosting derive from; secret for a release.
        num_nodes: nodes to wait for before the first round, at least 1.
        sizes_fn: the work of each user of a cohort, by which they are dealt to nodes; None where their ids decide.
        has_node_per_user: whether there are as many nodes as users, however many users there are; see `Hosts`.
        declared: what the selector declared; None where the run makes no claim.
        adaptation: how the clip norm follows the users' norms; None where it stays.
        signal: what users send besides, and with what noise it is released; None for nothing.
        run: what nodes are told of the run.
    """

    population: Population
    clip_norm: float
    noise_multiplier: float
    key: RunKey
    num_nodes: int = 1
    sizes_fn: SizesFn | None = None
    has_node_per_user: bool = False
    declared: UserLevel | None = None
    adaptation: ClipAdaptation | None = None
    signal: PaidSignal | None = None
    run: RunDescription = field(default_factory=RunDescription)


@dataclass(frozen=True)
class ServerState:
    """What a round starts from, all of it released.

    Attributes:
        adapter: name to tensor.
        clip_norm: bound on the norm of a user's update.
    """

    adapter: dict[str, Tensor]
    clip_norm: float


class UserLevelDP(RetryingStrategy):
    """Releases, round by round, (sum of clipped updates + noise) / fixed denominator, and steps along it.

    Guarantee: each round is a Gaussian mechanism of standard deviation `noise_multiplier * clip_norm` over the users
    that the selector drew.  Adding or removing a user moves the sum by at most `clip_norm`, or the user's public weight
    times that; replacing one by at most twice that, which is what a selector of fixed-size cohorts declares.  The
    denominator is public: the expected cohort size, or what the selector states.  All after the noise is
    post-processing.  Where the clip norm adapts itself, the round also releases a count of unclipped users, with noise
    of its own (`acc.AdaptiveClipping` is what both cost), and the next round's bound follows from what was released.
    Where a signal is paid for, its sums and counts by public group are released as well (`acc.PaidSignals`).
    Failed users count as zero and change neither noise, nor denominator, nor accounting.
    Assumes: nodes clip (`fedsim_userdp.training.cohort`); the sum of a node's users is checked against its bound.  A
    node that fails does so whatever its users' data are (docs/decisions/0007).

    Args:
        settings: the mechanism's numbers.
        selector: draws each round's cohort.
        optimizer: the server's optimizer, which holds the global adapter.
        noise: where noise comes from.
        before_release: called with the round, and whose answers its sum has (as text), before noise is drawn: the
            ledger writes here.  Where it raises `ReleasedOtherwise`, the round is lost: nothing is released.
        after_round: called with the round, its replies and the new state; diagnostics and progress.

    Raises:
        ValueError: when the selector's declaration contradicts itself, `noise_multiplier` or `clip_norm` is out of
            range, or noise goes with an infinite clip norm.
    """

    def __init__(
        self,
        settings: UserLevelSettings,
        selector: ClientSelector,
        optimizer: ServerOptimizer,
        noise: NoiseSource,
        before_release: Callable[[int, str], None],
        after_round: Callable[[int, RoundReplies, ServerState], None],
    ) -> None:
        self.settings = settings
        self.selector = selector
        self.optimizer = optimizer
        self.noise = noise
        self.clip_norm = settings.clip_norm
        self.noise_stddev(self.clip_norm)  # numbers that do not fit raise here, not in the first round
        self.cohorts = Cohorts(selector, settings.population, settings.key, settings.declared)
        self._before_release, self._after_round = before_release, after_round
        hosts = Hosts(settings.population, settings.key, has_node_per_user=settings.has_node_per_user)
        self._exchange = Exchange(settings.num_nodes, hosts, settings.sizes_fn, settings.run)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns one message to each node that hosts a user of this round's cohort, naming those users.

        Raises:
            ValueError: when the selector does not keep to what it declared.
            TimeoutError: when too few nodes come up.
        """
        cohort = self.cohorts.draw(server_round)
        weights = self.cohorts.weights(cohort, server_round)
        query = self.settings.signal.query(cohort) if self.settings.signal else None
        state = self.optimizer.state
        return self._exchange.begin(server_round, cohort, self.clip_norm, arrays, state, grid, weights, query)

    def configure_retry(self, server_round: int, replies: Iterable[Message], grid: Grid) -> Sequence[Message]:
        """Returns messages for the users whose node failed, to nodes that did not fail if there are any."""
        return self._exchange.ask_again(replies, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord]:
        """Returns the adapter after the round: sum, ledger, noise, fixed denominator, server optimizer.

        A round that was released before a crash, with other users' answers, is lost: no adapter is returned for it.

        Raises:
            RoundError: when users that were dealt by size have no answer, everybody failed (two users or more), or a
                node refused what it was asked.
        """
        collected = self._exchange.finish(replies)
        try:  # the ledger comes first: a crash can only over-state what was spent
            self._before_release(server_round, collected.answers())
        except ReleasedOtherwise:
            return None, MetricRecord(collected.counts())
        stddev = self.noise_stddev(collected.clip_norm)
        noisy_sum = add_noise(collected.update.clipped.total, stddev, self.noise, server_round)
        denominator = self.cohorts.denominator(server_round)
        mean_update = {name: tensor / denominator for name, tensor in noisy_sum.items()}
        if self.cohorts.follows_past:
            self.cohorts.note_released(server_round, _norm(mean_update), self._signal_of(server_round, collected))
        state = self.optimizer.step(mean_update, server_round)
        self._adapt_clip_norm(server_round, collected)
        self._after_round(server_round, collected, ServerState(state, self.clip_norm))
        return to_arrays(state), MetricRecord(collected.counts())

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns nothing: evaluation is on held-out users, at the server."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Does nothing, see `configure_evaluate`."""

    def summary(self) -> None:
        """Prints nothing: the run's own progress display says what runs."""

    def noise_stddev(self, clip_norm: float) -> float:
        """Returns the standard deviation of the noise on the sum of updates that were clipped to `clip_norm`."""
        return noise_stddev(self.settings.noise_multiplier, clip_norm)

    def _signal_of(self, round: int, collected: RoundReplies) -> Reported | None:
        """What a round tells of the signal that is paid for, noise included; None without one."""
        paid = self.settings.signal
        return None if paid is None else paid.release(collected.update.signals, self.noise, round)

    def _adapt_clip_norm(self, round: int, collected: RoundReplies) -> None:
        """Sets the next round's clip norm by a noisy count of unclipped users, where it adapts itself."""
        adaptation = self.settings.adaptation
        if adaptation is None or not self.cohorts.expected_size(round):  # where nobody can take part, nothing is told
            return
        clipped, count_stddev = collected.update.clipped, adaptation.count_stddev
        share = unclipped_share(clipped, self.cohorts.expected_size(round), count_stddev, self.noise, round)
        self.clip_norm = next_clip_norm(collected.clip_norm, share, adaptation)


def _norm(update: Mapping[str, Tensor]) -> float:
    """The L2 norm over all tensors."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in update.values()))
