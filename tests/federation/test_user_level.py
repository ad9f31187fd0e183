import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from fedsim_userdp.federation.engines.in_process import InProcessGrid
from fedsim_userdp.federation.messages import RunDescription, read_refusal, read_reply, write_request
from fedsim_userdp.federation.user_level import REQUEST, check_weights, clipped_update, numpy_client
from fedsim_userdp.training.cohort import CohortUpdate
from tests.federation.own_app import Arrays, Training, arrays_of, moved_by, ordinary_app, record

CLIP = 0.5
SENT: Arrays = {
    "weight": np.ones((3, 4), np.float32),
    "bias": np.full(5, 2.0, np.float32),
    "scale": np.array(1.0, np.float32),
}


def answer(app: ClientApp, sent: Arrays = SENT, users: tuple[int, ...] = (0,), clip_norm: float = CLIP) -> Message:
    """What a node of the app answers to a request of the server's."""
    request = write_request(record(sent), 1, users, clip_norm, RunDescription())
    content = RecordDict({"arrays": request["arrays"], "config": ConfigRecord({"lr": 0.1}), REQUEST: request["config"]})
    grid = InProcessGrid(app, 1)
    (reply,) = grid.send_and_receive([Message(content, 1, MessageType.TRAIN)])
    return reply


def update(training: Training, **options: Any) -> CohortUpdate:
    return read_reply(answer(ordinary_app(training), **options).content)


def norm(total: Mapping[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in total.values()))


def at_random(sent: Arrays, node: int, scale: float = 1.0) -> Arrays:
    generator = np.random.default_rng(node)
    return {name: array + scale * generator.standard_normal(array.shape) for name, array in sent.items()}


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 1e3, 1e30])
def test_an_answer_is_within_the_clip_norm_over_all_arrays_together(scale: float) -> None:
    clipped = update(lambda sent, node: at_random(sent, 3, scale)).clipped
    assert norm(clipped.total) <= CLIP * (1 + 1e-6)
    assert clipped.num_units == 1


def test_an_update_within_the_bound_is_what_was_sent_minus_what_was_answered() -> None:
    clipped = update(moved_by(0.1)).clipped
    assert {name: tuple(tensor.shape) for name, tensor in clipped.total.items()} == {
        "weight": (3, 4),
        "bias": (5,),
        "scale": (),
    }
    for tensor in clipped.total.values():
        np.testing.assert_allclose(tensor.numpy(), 0.1, rtol=1e-5)


def test_a_clipped_update_keeps_its_direction() -> None:
    clipped = update(moved_by(3.0)).clipped
    assert norm(clipped.total) == pytest.approx(CLIP, rel=1e-5)
    assert {round(float(value), 6) for tensor in clipped.total.values() for value in tensor.flatten()} == {
        round(CLIP / math.sqrt(18), 6)
    }


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 1e300])
def test_an_update_that_is_not_finite_is_an_exact_zero(wrong: float) -> None:
    def training(sent: Arrays, node: int) -> Arrays:
        return {name: array.astype(np.float64) + wrong * (name == "bias") for name, array in sent.items()}

    with np.errstate(over="ignore", invalid="ignore"):
        clipped = update(training).clipped
    assert norm(clipped.total) == 0.0
    assert clipped.num_nonfinite == 1


def test_what_else_a_client_answers_goes_nowhere() -> None:
    honest, lying = (answer(ordinary_app(moved_by(0.01), num_examples=number)).content for number in (1, 10**9))
    assert set(honest) == set(lying)
    assert honest.metric_records["metrics"] == lying.metric_records["metrics"]
    assert "loss" not in lying.metric_records["metrics"]
    assert "num-examples" not in lying.metric_records["metrics"]
    for name, array in arrays_of(honest.array_records["arrays"]).items():
        np.testing.assert_array_equal(array, arrays_of(lying.array_records["arrays"])[name])


def test_a_client_that_trains_in_place_answers_with_its_whole_update() -> None:
    app = ClientApp(mods=[clipped_update])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        for name, array in arrays_of(arrays).items():
            arrays[name] = record({name: array - np.float32(0.1)})[name]
        return Message(RecordDict({"arrays": arrays}), reply_to=message)

    assert norm(read_reply(answer(app).content).clipped.total) == pytest.approx(0.1 * math.sqrt(18), rel=1e-5)


@pytest.mark.parametrize(
    "extra",
    [{"bn.num_batches_tracked": np.int64(3)}, {"bn.running_mean": np.zeros(3, np.float32)}, {"steps": np.arange(3)}],
)
def test_running_statistics_and_counters_are_refused_in_a_sentence(extra: Arrays) -> None:
    sentence = read_refusal(answer(ordinary_app(moved_by(0.1)), sent=SENT | extra).content)
    assert sentence is not None
    assert next(iter(extra)) in sentence
    assert "GroupNorm" in sentence


def test_a_model_without_arrays_is_refused() -> None:
    with pytest.raises(ValueError, match="no arrays"):
        check_weights(ArrayRecord())


def test_a_node_that_is_asked_for_two_users_refuses() -> None:
    assert "holds one" in str(read_refusal(answer(ordinary_app(moved_by(0.1)), users=(0, 1)).content))


@pytest.mark.parametrize(
    "training",
    [
        lambda sent, node: {"weight": sent["weight"]},
        lambda sent, node: sent | {"more": np.zeros(2, np.float32)},
        lambda sent, node: sent | {"bias": np.zeros(6, np.float32)},
    ],
)
def test_other_arrays_than_were_sent_are_no_answer(training: Training) -> None:
    reply = answer(ordinary_app(training))
    assert reply.has_error()
    assert "names or shapes" in str(reply.error.reason)


def test_a_server_that_asks_for_no_clipped_update_gets_no_update() -> None:
    message = Message(RecordDict({"arrays": record(SENT), "config": ConfigRecord()}), 1, MessageType.TRAIN)
    (reply,) = InProcessGrid(ordinary_app(moved_by(0.1)), 1).send_and_receive([message])
    assert reply.has_error()
    assert "UserLevelFedAvg" in str(reply.error.reason)


def test_other_messages_than_training_are_passed_on() -> None:
    app = ClientApp(mods=[clipped_update, numpy_client])

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    content = RecordDict({"config": ConfigRecord({"question": 1})})
    (reply,) = InProcessGrid(app, 1).send_and_receive([Message(content, 1, MessageType.QUERY)])
    assert reply.content["config"]["question"] == 1


def numpy_app(step: float, num_left_out: int = 0) -> ClientApp:
    from flwr.client import NumPyClient

    class Client(NumPyClient):
        def fit(
            self, parameters: list[np.ndarray], config: dict[str, Any]
        ) -> tuple[list[np.ndarray], int, dict[str, Any]]:
            assert config["lr"] == 0.1
            return [one - np.float32(step) for one in parameters[num_left_out:]], 10**9, {"loss": 1.0}

    return ClientApp(lambda context: Client().to_client(), mods=[clipped_update, numpy_client])


def test_a_numpy_client_answers_like_any_other() -> None:
    found = read_reply(answer(numpy_app(0.1)).content).clipped
    expected = update(moved_by(0.1)).clipped
    for name, tensor in expected.total.items():
        np.testing.assert_array_equal(found.total[name].numpy(), tensor.numpy())
    assert norm(read_reply(answer(numpy_app(7.0)).content).clipped.total) <= CLIP * (1 + 1e-6)


def test_a_numpy_client_with_too_few_arrays_gives_no_answer() -> None:
    assert answer(numpy_app(0.1, num_left_out=1)).has_error()
