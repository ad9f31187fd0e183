import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Error, Message
from flwr.clientapp import ClientApp
from scipy import stats
from torch import Tensor

from fedsim_userdp.federation.client_app import make_client_app
from fedsim_userdp.federation.engines.in_process import InProcessGrid
from fedsim_userdp.federation.messages import TrainRequest, to_arrays
from fedsim_userdp.federation.replies import RoundReplies
from fedsim_userdp.federation.rounds import Rounds, run_rounds
from fedsim_userdp.population import Past, Population
from fedsim_userdp.privacy.clipping import clip_and_sum
from fedsim_userdp.privacy.noise import NoiseStream, SeededNoise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import ClientSelector, FixedSizeSelector, PoissonSelector
from fedsim_userdp.strategies.optimizers import ServerOptimizer
from fedsim_userdp.strategies.user_level_dp import ServerState, UserLevelDP, UserLevelSettings
from fedsim_userdp.training.cohort import CohortUpdate, zero_update
from fedsim_userdp.training.schedule import LearningRate

SIZE = 5000
ONE = LearningRate(1.0, 1, decays=False)
TrainFn = Callable[[TrainRequest], CohortUpdate]


def constant_update(request: TrainRequest, value: float = 1.0) -> CohortUpdate:
    """Every user's raw update is `value` everywhere; clipped as the request says."""
    raw = {name: torch.full((len(request.users), *t.shape), value) for name, t in request.state.items()}
    return CohortUpdate(clip_and_sum(raw, request.clip_norm), loss_sum=0.0, num_tokens=0)


class Run:
    """A strategy's rounds over in-process nodes, with everything that happened."""

    def __init__(
        self,
        train_fn: TrainFn = constant_update,
        *,
        noise_multiplier: float = 0.0,
        clip_norm: float = 1.0,
        num_users: int = 10,
        num_nodes: int = 1,
        rounds: int = 1,
        selector: ClientSelector | None = None,
        seed: int = 0,
        app: ClientApp | None = None,
    ) -> None:
        self.events: list[str] = []
        self.replies: list[RoundReplies] = []
        self.start = {"a": torch.zeros(SIZE - 10), "b": torch.zeros(10)}
        settings = UserLevelSettings(
            Population.numbered(num_users),
            clip_norm,
            noise_multiplier,
            RunKey.seeded(seed),
            num_nodes,
            has_node_per_user=num_nodes == num_users,
        )
        self.strategy = UserLevelDP(
            settings,
            selector or PoissonSelector(1.0),
            ServerOptimizer(self.start, torch.optim.SGD, ONE),
            SeededNoise(RunKey.seeded(seed)),
            lambda round, answers: self.events.append(f"ledger {round}"),
            self.remember,
        )
        grid = InProcessGrid(app or make_client_app(train_fn), num_nodes)
        run_rounds(self.strategy, grid, to_arrays(self.start), Rounds(1, rounds))
        self.moved = -torch.cat([self.strategy.optimizer.state[name] for name in ("a", "b")]).double()

    def remember(self, round: int, replies: RoundReplies, state: ServerState) -> None:
        self.events.append(f"done {round}")
        self.replies.append(replies)


def test_the_mean_is_the_sum_of_clipped_updates_over_the_expected_cohort() -> None:
    moved = Run(clip_norm=0.5, num_users=10, selector=PoissonSelector(1.0)).moved
    torch.testing.assert_close(float(moved.norm()), 0.5, rtol=1e-4, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_the_denominator_is_the_expected_cohort_whatever_came_back(seed: int) -> None:
    run = Run(num_users=40, selector=PoissonSelector(0.3), seed=seed)
    realised = run.replies[0].num_sampled
    assert float(run.moved.norm()) == pytest.approx(realised / (0.3 * 40), rel=1e-4)


def test_realised_cohorts_do_differ_from_the_expected_one() -> None:
    sizes = {Run(num_users=40, selector=PoissonSelector(0.3), seed=s).replies[0].num_sampled for s in range(5)}
    assert sizes != {12}


@pytest.mark.parametrize("num_nodes", [1, 3])
def test_noise_on_the_mean_has_the_stated_stddev_and_half_is_rejected(num_nodes: int) -> None:
    noise_multiplier, clip_norm = 3.0, 0.2
    noisy = Run(noise_multiplier=noise_multiplier, clip_norm=clip_norm, num_nodes=num_nodes).moved
    plain = Run(noise_multiplier=0.0, clip_norm=clip_norm, num_nodes=num_nodes).moved
    sample = (noisy - plain).numpy() * 10 / clip_norm
    low, high = stats.chi2.ppf([5e-10, 1 - 5e-10], SIZE)
    assert low < float(np.square(sample / noise_multiplier).sum()) < high
    for wrong in (0.5, 2.0, 1 / math.sqrt(num_nodes + 1)):
        assert not low < float(np.square(sample / (noise_multiplier * wrong)).sum()) < high


def test_noise_goes_in_before_the_server_optimizer() -> None:
    seen: list[Tensor] = []

    class Watched(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            seen.append(torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"]]))
            return super().step(closure)

    run = Run(noise_multiplier=2.0)
    optimizer = ServerOptimizer(run.start, Watched, ONE)
    run.strategy.optimizer = optimizer
    grid = InProcessGrid(make_client_app(constant_update), 1)
    run_rounds(run.strategy, grid, to_arrays(run.start), Rounds(1, 1))
    torch.testing.assert_close(seen[0].double(), run.moved, rtol=1e-5, atol=1e-6)


def test_the_ledger_is_written_before_every_release() -> None:
    assert Run(rounds=3).events == ["ledger 1", "done 1", "ledger 2", "done 2", "ledger 3", "done 3"]


def test_a_ledger_that_refuses_stops_the_run_before_any_noise_is_drawn() -> None:
    class Counting:
        is_seeded, calls = True, 0

        def standard_normal(self, size: int, round: int, stream: NoiseStream = "noise") -> np.ndarray:
            self.calls += 1
            return np.zeros(size)

    def refuse(round: int, answers: str) -> None:
        raise RuntimeError("budget")

    source = Counting()
    start = {"a": torch.zeros(3)}
    strategy = UserLevelDP(
        UserLevelSettings(Population.numbered(3), 1.0, 1.0, RunKey.seeded(0)),
        PoissonSelector(1.0),
        ServerOptimizer(start, torch.optim.SGD, ONE),
        source,
        refuse,
        lambda round, replies, state: None,
    )
    with pytest.raises(RuntimeError, match="budget"):
        run_rounds(strategy, InProcessGrid(make_client_app(constant_update)), to_arrays(start), Rounds(1, 1))
    assert source.calls == 0


def test_an_empty_cohort_still_releases_noise_and_is_recorded() -> None:
    run = Run(noise_multiplier=1.0, selector=PoissonSelector(1e-9), num_users=10)
    assert run.replies[0].num_sampled == 0
    assert run.events == ["ledger 1", "done 1"]
    assert float(run.moved.norm()) > 0


def failing(request: TrainRequest) -> CohortUpdate:
    if 0 in request.users:
        raise RuntimeError("out of memory")
    return constant_update(request)


def huge(request: TrainRequest) -> CohortUpdate:
    update = constant_update(request)
    if 0 in request.users:
        update.clipped.total["a"].fill_(1e30)
    return update


def not_a_number(request: TrainRequest) -> CohortUpdate:
    update = constant_update(request)
    if 0 in request.users:
        update.clipped.total["a"][0] = math.nan
    return update


def wrong_shape(request: TrainRequest) -> CohortUpdate:
    if 0 in request.users:
        return zero_update({"a": torch.zeros(2), "b": torch.zeros(10)})
    return constant_update(request)


def missing_tensor(request: TrainRequest) -> CohortUpdate:
    if 0 in request.users:
        return zero_update({"a": torch.zeros(SIZE - 10)})
    return constant_update(request)


@pytest.mark.parametrize("train_fn", [failing, huge, not_a_number, wrong_shape, missing_tensor])
def test_a_failed_node_adds_an_exact_zero_and_changes_nothing_else(train_fn: TrainFn) -> None:
    run = Run(train_fn, num_users=4, num_nodes=4)
    assert run.replies[0].num_failed == 1
    assert len(run.replies[0].errors) == 1
    assert float(run.moved.norm()) == pytest.approx(3 / 4, rel=1e-4)


def test_a_second_answer_of_a_node_is_not_counted() -> None:
    run = Run(num_users=2, num_nodes=2)
    strategy = run.strategy
    grid = InProcessGrid(make_client_app(constant_update), 2)
    messages = list(strategy.configure_train(2, to_arrays(run.start), ConfigRecord(), grid))
    replies = list(grid.send_and_receive(messages))
    before = strategy.optimizer.state["a"]
    strategy.aggregate_train(2, [*replies, *replies, replies[0]])
    assert float((strategy.optimizer.state["a"] - before).norm()) <= 1.0 + 1e-4


def test_an_error_message_from_the_runtime_counts_as_a_failure() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: object) -> Message:
        return Message(Error(5, "gone"), reply_to=message)

    run = Run(app=app, num_users=1)
    assert run.replies[0].num_failed == 1
    assert float(run.moved.abs().max()) == 0.0


@pytest.mark.parametrize("num_nodes", [1, 2, 10])
def test_the_result_does_not_depend_on_the_number_of_nodes(num_nodes: int) -> None:
    expected = Run(noise_multiplier=1.0, rounds=3, selector=PoissonSelector(0.5)).moved
    moved = Run(noise_multiplier=1.0, rounds=3, selector=PoissonSelector(0.5), num_nodes=num_nodes).moved
    assert float((moved - expected).norm()) <= 1e-5 * float(expected.norm())


def test_a_client_reported_number_does_not_weight_the_mean() -> None:
    def misreporting(request: TrainRequest) -> CohortUpdate:
        clipped = constant_update(request).clipped
        return CohortUpdate(type(clipped)(clipped.total, 1, 0, 0, 10.0**9), 10.0**9, 10**9 if 0 in request.users else 1)

    torch.testing.assert_close(Run(misreporting, num_nodes=3).moved, Run(num_nodes=3).moved)


def test_fixed_size_selection_divides_by_its_size() -> None:
    assert float(Run(selector=FixedSizeSelector(4)).moved.norm()) == pytest.approx(1.0, rel=1e-4)


class Weighted:
    """Takes everybody in every round, with the weight 0.25 or 0.5; divides by 3 in the first round, 6 in the second."""

    def probabilities(self, round: int, population: Population, past: Past) -> float:
        return 1.0

    def weights(self, round: int, population: Population) -> np.ndarray:
        return np.where(np.arange(len(population)) % 2 == 0, 0.25, 0.5)

    def denominator(self, round: int, population: Population) -> float:
        return 3.0 * round


def weighted_update(request: TrainRequest) -> CohortUpdate:
    raw = {name: torch.full((len(request.users), *t.shape), 1.0) for name, t in request.state.items()}
    return CohortUpdate(clip_and_sum(raw, request.clip_norm, request.weights), loss_sum=0.0, num_tokens=0)


@pytest.mark.parametrize("num_nodes", [1, 3])
def test_clipped_updates_are_weighted_and_divided_by_the_rounds_denominator(num_nodes: int) -> None:
    once = Run(weighted_update, num_users=8, num_nodes=num_nodes, selector=Weighted())
    assert float(once.moved.norm()) == pytest.approx(8 * 0.375 / 3, rel=1e-4)
    twice = Run(weighted_update, num_users=8, num_nodes=num_nodes, selector=Weighted(), rounds=2)
    assert float(twice.moved.norm()) == pytest.approx(8 * 0.375 / 3 + 8 * 0.375 / 6, rel=1e-4)


def test_a_node_that_passes_over_the_weights_is_dropped() -> None:
    run = Run(num_users=8, num_nodes=8, selector=Weighted(), app=one_of_many(constant_update, weighted_update))
    assert run.replies[0].num_failed == 1
    assert "passes its bound" in run.replies[0].errors[0]


def one_of_many(lie: TrainFn, honest: TrainFn) -> ClientApp:
    """The app of nodes of which the one with user 0 lies."""
    return make_client_app(lambda request: (lie if 0 in request.users else honest)(request))
