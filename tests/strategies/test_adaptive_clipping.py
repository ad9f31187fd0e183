"""The server's strategy when the clip norm adapts itself: what is asked, noised, counted and carried over."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fedsim_userdp.federation.client_app import TrainFn, make_client_app
from fedsim_userdp.federation.engines.in_process import InProcessGrid
from fedsim_userdp.federation.messages import TrainRequest, to_arrays
from fedsim_userdp.federation.replies import RoundReplies
from fedsim_userdp.federation.rounds import Rounds, run_rounds
from fedsim_userdp.population import Population
from fedsim_userdp.privacy.adaptive_clipping import ClipAdaptation
from fedsim_userdp.privacy.clipping import clip_and_sum
from fedsim_userdp.privacy.noise import SeededNoise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import PoissonSelector
from fedsim_userdp.strategies.optimizers import ServerOptimizer
from fedsim_userdp.strategies.user_level_dp import ServerState, UserLevelDP, UserLevelSettings
from fedsim_userdp.training.cohort import CohortUpdate
from fedsim_userdp.training.schedule import LearningRate

SIZE, NUM_USERS = 5000, 20
ADAPTATION = ClipAdaptation(0.5, 0.2, 0.0)


def unit(user: int) -> Tensor:
    """A direction of a user's own, of norm 1."""
    return torch.nn.functional.one_hot(torch.tensor(user), SIZE).float()


def linear_norms(request: TrainRequest) -> CohortUpdate:
    """User i's raw update has the norm (i + 1) / 10."""
    raw = torch.stack([unit(user) * (user + 1) / 10 for user in request.users])
    return CohortUpdate(clip_and_sum({"a": raw}, request.clip_norm), loss_sum=0.0, num_tokens=0)


class Run:
    """A strategy's rounds over in-process nodes, with what each round did."""

    def __init__(
        self,
        rounds: int,
        *,
        first: int = 1,
        state: ServerState | None = None,
        adaptation: ClipAdaptation = ADAPTATION,
        noise_multiplier: float = 0.0,
        clip_norm: float = 1.0,
        num_nodes: int = 1,
        train_fn: TrainFn = linear_norms,
    ) -> None:
        self.replies: list[RoundReplies] = []
        self.states: list[ServerState] = []
        start = {"a": torch.zeros(SIZE)} if state is None else state.adapter
        settings = UserLevelSettings(
            Population.numbered(NUM_USERS),
            clip_norm if state is None else state.clip_norm,
            noise_multiplier,
            key=RunKey.seeded(0),
            num_nodes=num_nodes,
            adaptation=adaptation,
        )
        strategy = UserLevelDP(
            settings,
            PoissonSelector(1.0),
            ServerOptimizer(start, torch.optim.SGD, LearningRate(1.0, 1, decays=False)),
            SeededNoise(RunKey.seeded(0)),
            lambda round, answers: None,
            self.remember,
        )
        grid = InProcessGrid(make_client_app(train_fn), num_nodes)
        run_rounds(strategy, grid, to_arrays(start), Rounds(first, rounds))

    def remember(self, round: int, replies: RoundReplies, state: ServerState) -> None:
        self.replies.append(replies)
        self.states.append(state)

    @property
    def clip_norms(self) -> list[float]:
        """The bound of each round, and that of the round to come."""
        return [*(replies.clip_norm for replies in self.replies), self.states[-1].clip_norm]


@pytest.mark.parametrize("num_nodes", [1, 3])
def test_every_round_is_clipped_to_the_norm_that_the_round_before_left(num_nodes: int) -> None:
    run = Run(5, num_nodes=num_nodes, clip_norm=0.5)
    for replies, state, clip_norm in zip(run.replies, run.states, run.clip_norms[1:], strict=True):
        assert state.clip_norm == clip_norm
        expected = sum(min((user + 1) / 10, replies.clip_norm) ** 2 for user in range(NUM_USERS))
        norm = float(replies.update.clipped.total["a"].norm())
        assert norm == pytest.approx(math.sqrt(expected), rel=1e-5)
    assert len(set(run.clip_norms)) == 6


@pytest.mark.parametrize("start", [0.02, 50.0])
def test_the_clip_norm_ends_at_the_median_of_the_users_norms(start: float) -> None:
    assert Run(80, clip_norm=start).clip_norms[-1] == pytest.approx(1.05, abs=0.07)


def test_nodes_and_their_number_do_not_change_the_clip_norm() -> None:
    adaptation = replace(ADAPTATION, count_stddev=2.0)
    assert Run(6, adaptation=adaptation).clip_norms == Run(6, adaptation=adaptation, num_nodes=4).clip_norms


def test_noise_on_the_update_follows_the_clip_norm_and_that_of_the_first_round_is_rejected() -> None:
    noise_multiplier = 3.0
    noisy, plain = Run(4, noise_multiplier=noise_multiplier, clip_norm=0.2), Run(4, clip_norm=0.2)
    assert noisy.clip_norms == plain.clip_norms  # the count has no noise here, so that the rounds can be compared
    before = torch.zeros(SIZE)
    low, high = stats.chi2.ppf([5e-10, 1 - 5e-10], SIZE)
    for at in range(4):
        noise = (noisy.states[at].adapter["a"] - before) - (
            plain.states[at].adapter["a"] - (plain.states[at - 1].adapter["a"] if at else torch.zeros(SIZE))
        )
        before = noisy.states[at].adapter["a"]
        sample = noise.double().numpy() * NUM_USERS / noise_multiplier
        assert low < float(np.square(sample / noisy.clip_norms[at]).sum()) < high
        if at:
            assert not low < float(np.square(sample / noisy.clip_norms[0]).sum()) < high


def test_noise_on_the_count_reaches_the_clip_norm() -> None:
    quiet, noisy = Run(3), Run(3, adaptation=replace(ADAPTATION, count_stddev=3.0))
    assert quiet.clip_norms[0] == noisy.clip_norms[0]
    assert quiet.clip_norms[1:] != noisy.clip_norms[1:]


def test_a_strategy_that_goes_on_where_another_stopped_does_the_same() -> None:
    adaptation = replace(ADAPTATION, count_stddev=2.0)
    whole = Run(6, adaptation=adaptation, noise_multiplier=1.0)
    begun = Run(3, adaptation=adaptation, noise_multiplier=1.0)
    ended = Run(6, first=4, state=begun.states[-1], adaptation=adaptation, noise_multiplier=1.0)
    assert begun.clip_norms[:3] + ended.clip_norms == whole.clip_norms
    assert torch.equal(ended.states[-1].adapter["a"], whole.states[-1].adapter["a"])


@pytest.mark.parametrize(
    "counts",
    [
        {"num_units": 10**6},
        {"num_units": -1},
        {"num_clipped": 10**6},
        {"num_clipped": -1},
        {"num_nonfinite": -5},
        {"num_nonfinite": 10**6},
    ],
)
def test_an_answer_with_counts_that_its_users_cannot_have_is_dropped_whole(counts: dict[str, Any]) -> None:
    def lying(request: TrainRequest) -> CohortUpdate:
        update = linear_norms(request)
        return replace(update, clipped=replace(update.clipped, **counts)) if 0 in request.users else update

    run = Run(1, train_fn=lying, num_nodes=NUM_USERS)
    assert run.replies[0].num_failed == 1
    assert "counts" in run.replies[0].errors[0]
    assert run.replies[0].update.clipped.num_units == NUM_USERS - 1


def test_failed_users_count_neither_as_clipped_nor_as_unclipped() -> None:
    def failing(request: TrainRequest) -> CohortUpdate:
        if 0 in request.users:
            raise RuntimeError("out of memory")
        return linear_norms(request)

    everybody, without_one = Run(1, num_nodes=NUM_USERS), Run(1, train_fn=failing, num_nodes=NUM_USERS)
    shares = [0.5 - math.log(run.clip_norms[1]) / 0.2 for run in (everybody, without_one)]
    assert shares[0] - shares[1] == pytest.approx(0.5 / NUM_USERS)
