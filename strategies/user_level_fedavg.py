"""FedAvg under user-level privacy for a Flower app of one's own: `UserLevelDP`, calibrated, with its ledger.

The client half is `fedsim_userdp.federation.user_level`; docs/extending.md shows both in an ordinary app.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedsim_userdp.errors import LedgerError
from fedsim_userdp.federation.hosting import wait_for_nodes
from fedsim_userdp.federation.messages import from_arrays, to_arrays
from fedsim_userdp.federation.replies import RoundReplies
from fedsim_userdp.federation.user_level import REQUEST, check_weights
from fedsim_userdp.population import Population
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.delta import default_delta
from fedsim_userdp.privacy.figures import rounded_up
from fedsim_userdp.privacy.ledger import Ledger
from fedsim_userdp.privacy.noise import LEAST, MOST, OperatingSystemNoise
from fedsim_userdp.privacy.statement import PrivacyStatement
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.privacy.validation import check_count, check_delta, check_epsilon, check_real
from fedsim_userdp.selection import PoissonSelector
from fedsim_userdp.strategies.optimizers import ServerOptimizer
from fedsim_userdp.strategies.user_level_dp import ServerState, UserLevelDP, UserLevelSettings
from fedsim_userdp.training.schedule import LearningRate, OptimizerFn

_log = logging.getLogger("flwr")  # Flower shows it with the rest of the run


class UserLevelFedAvg(Strategy):
    """FedAvg that an ordinary server app starts in the place of Flower's own; every node is a user.

    Guarantee: that of `UserLevelDP`, calibrated to (`epsilon`, `delta`) over all rounds that `start` is asked for:
        users are drawn by Poisson sampling, their clipped updates summed up, noise from the operating system added
        before the server's optimizer, and the sum divided by `sampling_prob * num_users`.  Each round is in the ledger
        before it is released.  A node that fails counts as zero.  Clients are not asked to evaluate: what they would
        answer has no noise.
    Assumes: `clipped_update` is the first mod of the client app; the server checks the norm of what comes back.  A node
        holds all records of one user, and which nodes take part in a round stays secret.

    Attributes:
        statement: what was promised, to whom and under which assumptions; None before `start`.

    Args:
        clip_norm: bound on the L2 norm of a user's update (model before minus model after local training), from
            1e-30 to 1e30.
        epsilon: the user-level target, above 0.
        num_users: the number of nodes, public, at least 2.
        sampling_prob: probability with which a user takes part in a round, in (0, 1].
        ledger: file of the run's releases, in a folder that exists; it may hold none yet.
        delta: in (0, 1); None for `num_users` ** -1.1.
        optimizer_fn: the server's optimizer, which takes the noisy mean as gradient; SGD of rate 1 is FedAvg.
        learning_rate: of the server's optimizer, above 0.

    Raises:
        ValueError: when one of them is out of range.
    """

    def __init__(
        self,
        *,
        clip_norm: float,
        epsilon: float,
        num_users: int,
        sampling_prob: float,
        ledger: str | os.PathLike[str],
        delta: float | None = None,
        optimizer_fn: OptimizerFn = torch.optim.SGD,
        learning_rate: float = 1.0,
    ) -> None:
        self.clip_norm = check_real("clip_norm", clip_norm, LEAST, MOST, open_low=False, open_high=False)
        self.target_epsilon = check_epsilon("epsilon", epsilon)
        self.num_users = check_count("num_users", num_users, 2)
        self.selector = PoissonSelector(check_real("sampling_prob", sampling_prob, 0.0, 1.0, open_high=False))
        self.ledger_path = Path(ledger).absolute()
        self.delta = default_delta(num_users) if delta is None else check_delta("delta", delta)
        self.optimizer_fn = optimizer_fn
        self.learning_rate = check_real("learning_rate", learning_rate, 0.0, math.inf)
        self.statement: PrivacyStatement | None = None
        self._running: tuple[UserLevelDP, Ledger] | None = None

    @property
    def epsilon(self) -> float | None:
        """Epsilon of all rounds that `start` was asked for, by the accountant; None before."""
        return None if self.statement is None else self.statement.epsilon

    def calibrated(self, num_rounds: int) -> acc.PoissonUsers:
        """Returns what `num_rounds` rounds release, with the least noise that meets the target.

        Raises:
            AccountingError: a ValueError, when no noise meets it.
        """
        release = acc.PoissonUsers(1.0, self.selector.sampling_prob, check_count("num_rounds", num_rounds))
        try:
            return acc.calibrate(release, epsilon=self.target_epsilon, delta=self.delta)
        except acc.AccountingError as error:
            raise acc.AccountingError(
                f"epsilon={self.target_epsilon:g} at delta={self.delta:.3g} over {num_rounds} rounds: {error}"
            ) from error

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Calibrates the noise, trains for `num_rounds` rounds and logs the privacy statement.

        Args:
            grid: the nodes, one for each user.
            initial_arrays: the model's weights, made without the users' data.
            num_rounds: rounds to release; their noise follows from it.
            timeout: seconds to wait for the nodes to come up, and for the answers of each round.
            train_config: for the clients, beside `server-round`.
            evaluate_config: not used: clients are not asked to evaluate.
            evaluate_fn: evaluates the released model at the server, on data of nobody who is in training.

        Returns:
            The released model; the only training metric of a round is the epsilon that was spent by then.

        Raises:
            ValueError: when the model has more than weights, the nodes are more than the users, or no noise meets the
                target.
            TimeoutError: when fewer nodes than users come up.
            LedgerError: when the ledger holds releases already, is damaged or in use.
            RoundError: when a node refuses, or all of a round's (two or more) fail; nothing of the round was released.
        """
        check_weights(initial_arrays)
        release = self.calibrated(num_rounds)
        users = self._users(grid, timeout)
        key = RunKey.drawn()
        with self._open_ledger(key, release) as ledger:
            self.statement = self._statement(release)
            self._running = self._strategy(release, users, key, initial_arrays), ledger
            arrays = to_arrays(from_arrays(initial_arrays))
            result = super().start(grid, arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn)
        self._log_statement(self.statement)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns one message to each node that was drawn: the app's own records, and what its mod is asked for."""
        messages = list(self._of_run()[0].configure_train(server_round, arrays, config, grid))
        for message in messages:
            message.content[REQUEST] = message.content.config_records["config"]
            message.content["config"] = ConfigRecord({**config, "server-round": server_round})
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord]:
        """Returns the released model, and the epsilon spent so far: counts of a round are not private."""
        strategy, ledger = self._of_run()
        arrays, _ = strategy.aggregate_train(server_round, replies)
        return arrays, MetricRecord({"epsilon": ledger.epsilon()})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns nothing: what clients would answer has no noise."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Does nothing, see `configure_evaluate`."""

    def summary(self) -> None:
        """Logs what the noise is calibrated to."""
        settings = self._of_run()[0].settings
        _log.info("\t├──> Users: %d nodes, each with %s", self.num_users, self.selector)
        _log.info("\t├──> Clip norm %g, noise multiplier %.4g", self.clip_norm, settings.noise_multiplier)
        _log.info("\t└──> Target: epsilon %g at delta %.3g", self.target_epsilon, self.delta)

    def _users(self, grid: Grid, timeout: float) -> Population:
        """The nodes, by their ids: who is drawn does not depend on which others there are."""
        nodes = wait_for_nodes(grid, self.num_users, timeout)
        if len(nodes) > self.num_users:
            raise ValueError(f"num_users={self.num_users} must be the number of nodes, of which there are {len(nodes)}")
        return Population(np.array(nodes, dtype=np.uint64))

    def _open_ledger(self, key: RunKey, release: acc.PoissonUsers) -> Ledger:
        """The run's ledger, which holds no release yet."""
        ledger = Ledger.open(
            self.ledger_path,
            delta=self.delta,
            budget_epsilon=self.target_epsilon,
            run=key.mark("run", repr((release, self.clip_norm, self.num_users))),
            noise_source="os",
            draw=key.mark("draw", ""),
        )
        if ledger.num_releases:
            ledger.close()
            raise LedgerError(
                f"{self.ledger_path} holds {ledger.num_releases} releases of an earlier run, whose epsilon adds to "
                "that of this one: name another ledger, and state both"
            )
        ledger.expect(release.first(1), release.rounds)
        return ledger

    def _statement(self, release: acc.PoissonUsers) -> PrivacyStatement:
        """What the run promises."""
        return PrivacyStatement(
            level="user",
            release=release,
            mechanism="user_level_fedavg",
            num_users=self.num_users,
            rounds=release.rounds,
            delta=self.delta,
            clip_norm=self.clip_norm,
            target_epsilon=self.target_epsilon,
            noise_source="os",
        )

    def _log_statement(self, statement: PrivacyStatement) -> None:
        """Logs what holds, for whom and under which assumptions."""
        assumed = f"It assumes that {'; that '.join(statement.assumptions)}."
        _log.info("%s", " ".join([statement.claim, assumed, *statement.remarks]))
        epsilon, delta = rounded_up(statement.epsilon or 0.0, 7), rounded_up(self.delta, 7)
        _log.info("user-level epsilon = %s at delta = %s; ledger %s", epsilon, delta, self.ledger_path)

    def _strategy(self, release: acc.PoissonUsers, users: Population, key: RunKey, arrays: ArrayRecord) -> UserLevelDP:
        """The strategy that draws, sums up, adds noise and steps."""
        settings = UserLevelSettings(
            population=users,
            clip_norm=self.clip_norm,
            noise_multiplier=release.noise_multiplier,
            key=key,
            num_nodes=self.num_users,
            has_node_per_user=True,
            declared=release,
        )
        rate = LearningRate(self.learning_rate, release.rounds, decays=False)
        return UserLevelDP(
            settings,
            self.selector,
            ServerOptimizer(from_arrays(arrays), self.optimizer_fn, rate),
            OperatingSystemNoise(),
            self._record,
            self._note,
        )

    def _record(self, round: int, answers: str) -> None:
        """Writes a round to the ledger, before it is released."""
        strategy, ledger = self._of_run()
        release = acc.PoissonUsers(strategy.settings.noise_multiplier, self.selector.sampling_prob, 1)
        ledger.record(round, release, strategy.settings.key.mark("answers", repr((round, answers))))

    def _note(self, round: int, replies: RoundReplies, state: ServerState) -> None:
        """Logs whose updates were missing; for whoever runs the server, as every count of a round."""
        for error in replies.errors:
            _log.warning("round %d: a user counts as zero: %s", round, error)

    def _of_run(self) -> tuple[UserLevelDP, Ledger]:
        """The strategy and the ledger of the run."""
        if self._running is None:
            raise RuntimeError("UserLevelFedAvg trains by its method `start`, which opens the ledger")
        return self._running
