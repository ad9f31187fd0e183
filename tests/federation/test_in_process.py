import time
from typing import NoReturn

import flwr
import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedsim_userdp.errors import NodeRefusal
from fedsim_userdp.federation.client_app import make_client_app
from fedsim_userdp.federation.engines.identity import ensure_identity
from fedsim_userdp.federation.engines.in_process import InProcessGrid
from fedsim_userdp.federation.hosting import Hosts, wait_for_nodes
from fedsim_userdp.federation.messages import (
    RunDescription,
    from_arrays,
    read_reply,
    read_request,
    to_arrays,
    write_reply,
    write_request,
)
from fedsim_userdp.population import Population
from fedsim_userdp.privacy.clipping import ClippedSum
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.training.cohort import CohortUpdate


def echo_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: object) -> Message:
        if "raise" in message.content:
            raise RuntimeError("broken")
        return Message(message.content, reply_to=message)

    return app


def test_flower_is_the_version_that_the_identity_was_written_for() -> None:
    assert flwr.__version__.startswith("1.41.")
    ensure_identity()
    ensure_identity()
    assert Message(RecordDict(), 1, "train").metadata.run_id == 1


def test_the_grid_is_a_flower_grid_and_answers_each_message_once() -> None:
    grid = InProcessGrid(echo_app(), 3)
    assert isinstance(grid, Grid)
    messages = [Message(RecordDict(), node, "train", group_id="1") for node in grid.get_node_ids()]
    ids = list(grid.push_messages(messages))
    replies = list(grid.pull_messages(ids))
    assert [reply.metadata.src_node_id for reply in replies] == [1, 2, 3]
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    assert list(grid.pull_messages(ids)) == []


def test_a_message_is_never_late_however_the_clock_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(request: object) -> NoReturn:
        raise AssertionError("not reached: the request is empty")

    grid, now = InProcessGrid(make_client_app(train), 1), time.time()
    message = Message(RecordDict(), 1, "train", ttl=60.0)
    monkeypatch.setattr(time, "time", lambda: now + 1e7)
    (reply,) = grid.send_and_receive([message])
    assert not reply.has_error() or "too old" not in str(reply.error.reason)


def test_an_app_that_raises_becomes_an_error_reply() -> None:
    grid = InProcessGrid(echo_app(), 1)
    broken = Message(RecordDict({"raise": ArrayRecord()}), 1, "train")
    (reply,) = grid.send_and_receive([broken])
    assert reply.has_error()
    assert "broken" in str(reply.error.reason)


def test_there_is_at_least_one_node() -> None:
    with pytest.raises(ValueError, match="num_nodes=0"):
        InProcessGrid(echo_app(), 0)


def test_every_user_is_hosted_by_exactly_one_node() -> None:
    hosted = Hosts(Population.numbered(10), RunKey.seeded(0)).group(range(10), [5, 7, 9])
    assert sorted(user for users in hosted.values() for user in users) == list(range(10))
    assert set(hosted) <= {5, 7, 9}


def test_waiting_for_nodes_that_never_come_ends_in_an_error() -> None:
    with pytest.raises(TimeoutError, match="1 of 2 nodes"):
        wait_for_nodes(InProcessGrid(echo_app(), 1), 2, timeout=0.1)


def test_requests_and_replies_survive_the_wire() -> None:
    state = {"b": torch.tensor([[1.5, -2.0]]), "a": torch.tensor(3.0)}
    run = RunDescription({"data": "ab", "base model": "cd"}, '{"seed": 0}', RunKey.seeded(5))
    request = read_request(write_request(to_arrays(state), 4, [8, 2], 0.25, run))
    assert (request.round, request.users, request.clip_norm) == (4, (8, 2), 0.25)
    assert (request.run, request.run.key) == (run, RunKey.seeded(5))
    assert read_request(write_request(to_arrays(state), 4, [], 0.25, RunDescription())).run == RunDescription()
    assert all(torch.equal(request.state[name], state[name]) for name in state)
    update = CohortUpdate(ClippedSum(state, 3, 1, 2, 0.5), 1.25, 99)
    assert read_reply(write_reply(update)).clipped.num_nonfinite == 1
    assert read_reply(write_reply(update)).num_tokens == 99
    assert from_arrays(to_arrays(state)).keys() == state.keys()


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"data": "a", "model": "c"}, "model"),
        ({"data": "b", "model": "c"}, "data, model"),
        ({"data": "a"}, "model"),
        ({"data": "a", "model": "b", "more": "d"}, "more"),
    ],
)
def test_a_node_of_something_else_refuses_and_names_what_differs(own: dict[str, str], named: str) -> None:
    run = RunDescription({"data": "a", "model": "b"})
    run.check({"model": "b", "data": "a"})
    with pytest.raises(NodeRefusal, match=f"another {named} than"):
        run.check(own)
