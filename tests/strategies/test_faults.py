"""Nodes that fail, in every way that is known: the sum's sensitivity, the denominator and the ledger hold."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fedsim_userdp.errors import NodeRefusal, RoundError
from fedsim_userdp.federation.client_app import make_client_app
from fedsim_userdp.federation.engines.in_process import InProcessGrid
from fedsim_userdp.federation.messages import (
    GRACE_SECONDS,
    TrainRequest,
    read_request,
    to_arrays,
    write_refusal,
    write_reply,
)
from fedsim_userdp.federation.replies import RoundReplies
from fedsim_userdp.federation.rounds import RetryPolicy, Rounds, run_rounds
from fedsim_userdp.population import Population
from fedsim_userdp.privacy.clipping import clip_and_sum
from fedsim_userdp.privacy.noise import SeededNoise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import PoissonSelector
from fedsim_userdp.strategies.optimizers import ServerOptimizer
from fedsim_userdp.strategies.user_level_dp import ServerState, UserLevelDP, UserLevelSettings
from fedsim_userdp.training.cohort import CohortUpdate
from fedsim_userdp.training.schedule import LearningRate
from tests.federation.grids import MeddledGrid, Meddling
from tests.known import known

SHAPES = {"a": (30, 20), "b": (7,)}
NUM_USERS = 4
Content = Callable[[CohortUpdate], RecordDict]


def honest(request: TrainRequest) -> CohortUpdate:
    """Every user's raw update is 1 everywhere; clipped as the request says."""
    raw = {name: torch.ones(len(request.users), *tensor.shape) for name, tensor in request.state.items()}
    return CohortUpdate(clip_and_sum(raw, request.clip_norm), loss_sum=1.0, num_tokens=5)


def with_arrays(update: CohortUpdate, change: Callable[[dict[str, np.ndarray]], object]) -> RecordDict:
    """The honest answer with its arrays changed in place."""
    content = write_reply(update)
    arrays = {name: tensor.numpy().copy() for name, tensor in update.clipped.total.items()}
    change(arrays)
    content["arrays"] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return content


def with_metrics(update: CohortUpdate, **changes: float) -> RecordDict:
    """The honest answer with other numbers."""
    content = write_reply(update)
    content["metrics"] = MetricRecord(dict(content.metric_records["metrics"]) | changes)
    return content


def with_failed(update: CohortUpdate, *users: int) -> RecordDict:
    """The honest answer that names other users as failed."""
    content = write_reply(update)
    content["run"] = ConfigRecord({"mark": "", "failed": list(users)})
    return content


def with_bytes(update: CohortUpdate, data: bytes) -> RecordDict:
    """The honest answer with other bytes in place of an array's."""
    content = write_reply(update)
    arrays = content.array_records["arrays"]
    arrays["a"] = Array(arrays["a"].dtype, arrays["a"].shape, arrays["a"].stype, data)
    return content


def raises(update: CohortUpdate) -> RecordDict:
    raise RuntimeError("out of memory")


WRONG_CONTENT: dict[str, Content] = {
    "raises": raises,
    "nan": lambda update: with_arrays(update, lambda a: a["a"].__setitem__((0, 0), np.nan)),
    "inf": lambda update: with_arrays(update, lambda a: a["b"].__setitem__(3, -np.inf)),
    "norm 1e30": lambda update: with_arrays(update, lambda a: a["a"].fill(1e30)),
    "just above its bound": lambda update: with_arrays(update, lambda a: a["b"].__imul__(1.2)),
    "wrong shape": lambda update: with_arrays(update, lambda a: a.update(a=np.zeros((20, 30), np.float32))),
    "flattened": lambda update: with_arrays(update, lambda a: a.update(a=a["a"].ravel())),
    "missing name": lambda update: with_arrays(update, lambda a: a.pop("b")),
    "extra name": lambda update: with_arrays(update, lambda a: a.update(c=np.zeros(1, np.float32))),
    "other name": lambda update: with_arrays(update, lambda a: a.update(c=a.pop("b"))),
    "float64": lambda update: with_arrays(update, lambda a: a.update(a=a["a"].astype(np.float64))),
    "int32": lambda update: with_arrays(update, lambda a: a.update(b=np.zeros(7, np.int32))),
    "complex": lambda update: with_arrays(update, lambda a: a.update(b=np.zeros(7, np.complex64))),
    "no bytes": lambda update: with_bytes(update, b""),
    "rubbish": lambda update: with_bytes(update, b"rubbish"),
    "a broken zip": lambda update: with_bytes(update, b"PK\x03\x04rubbish"),
    "a pickle": lambda update: with_bytes(update, b"\x80\x04\x8c\x05hello."),
    "too many bytes": lambda update: with_bytes(update, bytes(10_000)),
    "no content": lambda update: RecordDict(),
    "no metrics": lambda update: RecordDict({"arrays": write_reply(update)["arrays"]}),
    "infinitely many users": lambda update: with_metrics(update, num_units=math.inf),
    "a failed user who was not asked for": lambda update: with_failed(update, 99),
    "a failed user named twice": lambda update: with_failed(update, 0, 0),
    "words for numbers": lambda update: RecordDict(
        {"arrays": write_reply(update)["arrays"], "metrics": ConfigRecord({"num_units": "many"})}
    ),
}


def app_of(content_of: Callable[[TrainRequest, int], Content | None]) -> ClientApp:
    """An app that answers with what `content_of` (request and node) makes of the honest update; None is honest."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        request = read_request(message.content)
        content = content_of(request, context.node_id) or write_reply
        return Message(content(honest(request)), reply_to=message)

    return app


class Run:
    """One round of the strategy on in-process nodes, and everything that happened."""

    def __init__(
        self,
        app: ClientApp,
        *,
        num_nodes: int = NUM_USERS,
        num_users: int = NUM_USERS,
        max_retries: int = 0,
        is_dealt: bool = False,
        has_node_per_user: bool = True,
        noise_multiplier: float = 0.0,
        meddle: Meddling = lambda replies, attempt: replies,
    ) -> None:
        self.events: list[str] = []
        self.replies: list[RoundReplies] = []
        start = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
        self.strategy = UserLevelDP(
            UserLevelSettings(
                Population.numbered(num_users),
                1.0,
                noise_multiplier,
                RunKey.seeded(0),
                num_nodes,
                sizes_by_number if is_dealt else None,
                has_node_per_user and num_nodes == num_users,
            ),
            PoissonSelector(1.0),
            ServerOptimizer(start, torch.optim.SGD, LearningRate(1.0, 1, decays=False)),
            SeededNoise(RunKey.seeded(0)),
            lambda round, answers: self.events.append(f"ledger {round}"),
            self.remember,
        )
        self.grid = MeddledGrid(app, num_nodes, meddle)
        self.error: RoundError | None = None
        try:
            policy = RetryPolicy(max_retries, timeout=0.05, start_up=0.0)
            run_rounds(self.strategy, self.grid, to_arrays(start), Rounds(1, 1), policy)
        except RoundError as error:
            self.error = error
        self.moved = -torch.cat([t.flatten() for _, t in sorted(self.strategy.optimizer.state.items())]).double()

    def remember(self, round: int, replies: RoundReplies, state: ServerState) -> None:
        self.events.append(f"done {round}")
        self.replies.append(replies)


def sizes_by_number(users: Sequence[int], round: int) -> list[float]:
    return [1.0 + user for user in users]


def norm(run: Run) -> float:
    return float(run.moved.norm())


@pytest.mark.parametrize("name", WRONG_CONTENT)
def test_a_wrong_answer_counts_as_an_exact_zero_and_changes_nothing_else(name: str) -> None:
    run = Run(app_of(lambda request, node: WRONG_CONTENT[name] if 0 in request.users else None))
    (replies,) = run.replies
    assert (replies.num_sampled, replies.num_failed, replies.num_retried) == (NUM_USERS, 1, 0)
    assert len(replies.errors) == 1
    assert "\n" not in replies.errors[0]
    assert norm(run) == pytest.approx((NUM_USERS - 1) / NUM_USERS, rel=1e-4)
    assert run.events == ["ledger 1", "done 1"]


@pytest.mark.parametrize("name", WRONG_CONTENT)
def test_a_retry_on_another_node_gives_what_no_failure_gives(name: str) -> None:
    app = app_of(lambda request, node: WRONG_CONTENT[name] if node == 1 else None)
    run = Run(app, max_retries=1, is_dealt=True, num_nodes=2, num_users=10)
    (replies,) = run.replies
    assert (replies.num_sampled, replies.num_failed, replies.num_retried) == (10, 0, 5)
    assert norm(run) == pytest.approx(1.0, rel=1e-4)
    assert run.grid.num_attempts == 2


def test_users_who_live_on_a_shared_node_by_their_id_are_not_asked_for_again() -> None:
    """A node that one user alone is asked of, and that fails, would move everybody's second node."""

    def sum_of(num_users: int, first: tuple[int, ...], second: int) -> Tensor:
        attempts: list[int] = []

        def content_of(request: TrainRequest, node: int) -> Content | None:
            attempts.append(node)
            is_again = node in attempts[:-1]
            return raises if node in first or (is_again and node == second) else opinion_of(request)

        run = Run(app_of(content_of), num_users=num_users, num_nodes=4, max_retries=1)
        return run.moved * num_users

    for first in itertools.combinations(range(1, 5), 2):
        for second in range(1, 5):
            difference = sum_of(7, first, second) - sum_of(6, first, second)
            assert float(difference.norm()) <= 1 + 1e-4, (first, second)


FAULTY_DELIVERY: dict[str, Meddling] = {
    "nothing at all": lambda replies, attempt: replies[1:],
    "an error of the runtime": lambda replies, attempt: [swapped(replies[0], Error(5, "gone")), *replies[1:]],
    "of another node": lambda replies, attempt: [from_node(replies[0], 2), *replies[1:]],
    "to another question": lambda replies, attempt: [to_question(replies[0], "elsewhere"), *replies[1:]],
}


def swapped(reply: Message, error: Error) -> Message:
    return Message(metadata=reply.metadata, error=error)  # type: ignore[call-overload]


def from_node(reply: Message, node: int) -> Message:
    reply.metadata.__dict__["_src_node_id"] = node
    return reply


def to_question(reply: Message, message_id: str) -> Message:
    reply.metadata.__dict__["_reply_to_message_id"] = message_id
    return reply


@pytest.mark.parametrize("name", FAULTY_DELIVERY)
def test_an_answer_that_does_not_arrive_as_it_should_counts_as_zero(name: str) -> None:
    run = Run(app_of(lambda request, node: None), meddle=FAULTY_DELIVERY[name])
    assert run.replies[0].num_failed == 1
    assert norm(run) == pytest.approx((NUM_USERS - 1) / NUM_USERS, rel=1e-4)
    assert run.events == ["ledger 1", "done 1"]


@pytest.mark.parametrize("times", [2, 5])
def test_answers_that_come_several_times_count_once(times: int) -> None:
    run = Run(app_of(lambda request, node: None), meddle=lambda replies, attempt: replies * times)
    assert run.replies[0].num_failed == 0
    assert norm(run) == pytest.approx(1.0, rel=1e-4)


def test_an_answer_that_is_too_late_is_not_added_to_that_of_the_retry() -> None:
    late: list[Message] = []

    def hold_back(replies: list[Message], attempt: int) -> list[Message]:
        if attempt == 1:
            late.append(replies.pop(0))
            return replies
        return [*late, *replies, *late]

    run = Run(
        app_of(lambda request, node: None),
        max_retries=2,
        is_dealt=True,
        num_nodes=3,
        num_users=12,
        meddle=hold_back,
    )
    assert late
    assert (run.replies[0].num_failed, run.replies[0].num_retried) == (0, 4)
    assert norm(run) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("age", [0.0, 2.0])
def test_a_message_that_nobody_waits_for_any_more_is_not_worked_on(age: float) -> None:
    worked: list[int] = []

    def train(request: TrainRequest) -> CohortUpdate:
        worked.append(request.round)
        return honest(request)

    run = Run(app_of(lambda request, node: None), num_nodes=1)
    (message, *_) = run.strategy.configure_train(2, to_arrays(run.strategy.optimizer.state), ConfigRecord(), run.grid)
    message.metadata.ttl = GRACE_SECONDS + 1.0
    message.metadata.created_at -= age
    reply = InProcessGrid(make_client_app(train), 1)._answer(
        message
    )  # sent, it would have no end: nothing is late there
    assert reply.has_error() == (age > 1)
    assert worked == ([] if age > 1 else [2])


@pytest.mark.parametrize(("is_dealt", "max_retries"), [(False, 0), (False, 2), (True, 2)])
def test_a_round_in_which_everybody_failed_is_not_released_and_stops_with_one_sentence(
    is_dealt: bool, max_retries: int
) -> None:
    run = Run(
        app_of(lambda request, node: raises), max_retries=max_retries, is_dealt=is_dealt, num_nodes=2, num_users=6
    )
    assert run.error is not None
    assert "round 1: 6 of 6 users" in str(run.error)
    assert "out of memory" in str(run.error)
    assert "\n" not in str(run.error)
    assert run.events == []
    assert norm(run) == 0.0
    assert run.grid.num_attempts == 1 + (max_retries if is_dealt else 0)


def test_users_who_were_dealt_by_size_and_stay_missing_are_never_counted_as_zero() -> None:
    """Who shares a node with whom depends on everybody's size then, so leaving a share out is not one user's matter."""
    app = app_of(lambda request, node: raises if 0 in request.users else None)
    run = Run(app, max_retries=1, is_dealt=True, num_nodes=2, num_users=6)
    assert run.error is not None
    assert run.events == []


def test_the_ledger_is_told_which_users_are_in_the_sum_and_not_only_how_many() -> None:
    def answers(num_users: int, *failed: int) -> str:
        def content_of(request: TrainRequest, node: int) -> Content:
            gone = tuple(user for user in request.users if user in failed)
            counted: dict[str, Any] = {"num_units": 1, "num_clipped": 0}
            return lambda update: write_reply(replace(update, failed=gone, clipped=replace(update.clipped, **counted)))

        run = Run(app_of(content_of), num_nodes=2, num_users=num_users, has_node_per_user=False)
        return run.replies[0].answers()

    told = {answers(6), answers(7), answers(6, 1), answers(6, 2), answers(6, 1, 2)}
    assert len(told) == 5
    assert answers(6, 2) == answers(6, 2)


def test_a_lone_user_who_always_fails_does_not_stop_the_run() -> None:
    run = Run(app_of(lambda request, node: raises), num_nodes=1, num_users=1)
    assert run.error is None
    assert run.replies[0].num_failed == 1
    assert run.events == ["ledger 1", "done 1"]


@pytest.mark.parametrize("max_retries", [0, 1])
def test_noise_is_the_same_whether_a_node_failed_or_not(max_retries: int) -> None:
    app = app_of(lambda request, node: raises if node == 1 else None)
    noisy = Run(app, noise_multiplier=2.0, max_retries=max_retries)
    plain = Run(app, noise_multiplier=0.0, max_retries=max_retries)
    drawn = (noisy.moved - plain.moved) * NUM_USERS
    low, high = stats.chi2.ppf([5e-10, 1 - 5e-10], len(drawn))
    assert low < float((drawn / 2.0).square().sum()) < high
    assert not low < float((drawn / 1.5).square().sum()) < high


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_users=st.integers(1, 12),
    num_nodes=st.integers(1, 5),
    max_retries=st.integers(0, 3),
    is_dealt=st.booleans(),
)
def test_no_user_counts_twice_whatever_is_lost_repeated_mixed_up_or_late(
    seed: int, num_users: int, num_nodes: int, max_retries: int, is_dealt: bool
) -> None:
    generator = np.random.default_rng(seed)
    seen: list[Message] = []

    def shuffle(replies: list[Message], attempt: int) -> list[Message]:
        seen.extend(replies)
        if not seen:
            return []
        return [
            seen[index] for index in generator.integers(0, len(seen), size=generator.integers(0, 2 * len(seen) + 1))
        ]

    run = Run(
        app_of(lambda request, node: WRONG_CONTENT["nan"] if generator.random() < 0.3 else None),
        num_users=num_users,
        num_nodes=num_nodes,
        max_retries=max_retries,
        is_dealt=is_dealt,
        meddle=shuffle,
    )
    if run.error is None:
        counted = num_users - run.replies[0].num_failed
        assert norm(run) == pytest.approx(counted / num_users, rel=1e-4, abs=1e-9)
        assert counted == num_users or not is_dealt
    else:
        assert run.events == []


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_one_more_user_moves_the_sum_by_at_most_clip_norm_although_nodes_fail_and_are_dealt_anew(lost: int) -> None:
    def opinionated(request: TrainRequest, node: int) -> Content | None:
        def content(update: CohortUpdate) -> RecordDict:
            if node == lost + 1:
                raise RuntimeError("killed")
            raw = {
                name: torch.stack([own_direction(user, tensor) for user in request.users])
                for name, tensor in request.state.items()
            }
            return write_reply(replace(update, clipped=clip_and_sum(raw, request.clip_norm)))

        return content

    sums = [
        Run(app_of(opinionated), num_users=n, num_nodes=3, max_retries=1, is_dealt=True).moved * n for n in (20, 21)
    ]
    assert 0.99 <= float((sums[1] - sums[0]).norm()) <= 1 + 1e-4


@pytest.mark.parametrize("num_nodes", [None, 7])
@pytest.mark.parametrize("max_retries", [0, 1, 2])
@pytest.mark.parametrize("dead", [2, 3, 4])
def test_one_more_user_moves_the_sum_by_at_most_clip_norm_whichever_nodes_fail_in_whichever_attempt(
    num_nodes: int | None, max_retries: int, dead: int
) -> None:
    def silent(replies: list[Message], attempt: int) -> list[Message]:
        return [reply for reply in replies if (reply.metadata.src_node_id + attempt) % dead]

    sums = []
    for n in (20, 21):
        app = app_of(lambda request, node: opinion_of(request))
        run = Run(app, num_users=n, num_nodes=num_nodes or n, max_retries=max_retries, meddle=silent)
        assert run.replies[0].num_failed > 0 or max_retries
        sums.append(run.moved * n)
    assert float((sums[1] - sums[0]).norm()) <= 1 + 1e-4


def opinion_of(request: TrainRequest) -> Content:
    """Every user's update is of norm 1 and of a direction of its own."""
    raw = {
        name: torch.stack([own_direction(user, tensor) for user in request.users])
        for name, tensor in request.state.items()
    }
    return lambda update: write_reply(replace(update, clipped=clip_and_sum(raw, request.clip_norm)))


def test_a_refusal_of_many_lines_is_one_sentence_and_nothing_is_released() -> None:
    refusal = NodeRefusal("another data\nthan " + "the server" * 1000)
    run = Run(app_of(lambda request, node: lambda update: write_refusal(refusal)), max_retries=2)
    assert str(run.error).startswith("another data; nothing of the round was released")
    assert run.events == []


def own_direction(user: int, like: Tensor) -> Tensor:
    return 10 * torch.randn(like.shape, generator=torch.Generator().manual_seed(user))


def test_the_first_round_of_a_run_waits_longer_since_workers_start_in_it() -> None:
    policy = RetryPolicy(timeout=2.0)
    assert policy.timeout_of(is_first=False) == 2.0
    assert known(policy.timeout_of(is_first=True)) > 100
    assert RetryPolicy().timeout_of(is_first=True) is None


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^max_retries=-1"):
        RetryPolicy(max_retries=-1)
    with pytest.raises(ValueError, match=r"^round_timeout=0"):
        RetryPolicy(timeout=0)
