"""Nodes that are not as the server is: other data, split, model, settings, version or code.

What `flwr run` does, in this process: its server app and its client app, the run configuration's text for both.
"""

import json
import logging
import pickle
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file, save_file

from fedsim_userdp.errors import NodeRefusal
from fedsim_userdp.federation import worker as worker_module
from fedsim_userdp.federation.client_app import make_client_app, make_configured_client_app
from fedsim_userdp.federation.engines.deployment import nodes_of
from fedsim_userdp.federation.engines.in_process import InProcessGrid
from fedsim_userdp.federation.messages import RunDescription, TrainRequest, read_request, write_reply
from fedsim_userdp.federation.worker import WorkerRecipe
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.models.adapters import trainable_state
from fedsim_userdp.models.loading import TINY_MODEL
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.simulations import flower_app
from fedsim_userdp.simulations.configured import configured_run
from fedsim_userdp.simulations.flower_app import run_on_nodes, train_fn_of
from mechanism import clip_each_tensor

Meddle = Callable[[Message], None]
K = 2


def write_corpus(path: Path, last: str = "the end of it all") -> None:
    """Forty users with four records each."""
    words = ["we", "said", "that", "they", "would", "come", "with", "all", "of", "their", "own", "things", "home"]
    generator = np.random.default_rng(0)
    lines = [
        json.dumps({"user_id": f"user {user}", "text": " ".join(generator.choice(words, 12))})
        for user in range(40)
        for _ in range(4)
    ]
    path.write_text(
        "\n".join([*lines, json.dumps({"user_id": "user 39", "text": f"{last} and much more of it"})]) + "\n"
    )


@dataclass
class World:
    """Files of a test, and the settings that name them."""

    folder: Path

    @property
    def corpus(self) -> Path:
        return self.folder / "std.jsonl"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def settings(self, *more: str) -> list[str]:
        return [
            "mechanism=user_wise", "mechanism.rounds=3", f"mechanism.records_per_user={K}", "data=jsonl",
            f"data.path={self.corpus}", f"model.path={self.model}", "tokens.min_words=0", "tokens.window=16",
            "split.heldout_users=10", "selection.sampling_prob=0.5", "checkpoint.every=1", "local.max_tokens=512",
            "evaluation.records_per_user=1", "evaluation.every=100", "lora.dropout=0.1", "threads=1",
            f"cache_dir={self.folder / 'cache'}", *more,
        ]  # fmt: skip

    def run(
        self,
        name: str,
        *settings: str,
        meddle: Meddle = lambda message: None,
        app: ClientApp | None = None,
        num_nodes: int = 2,
    ) -> Path:
        """Runs into a folder of that name, or with `resume` among the settings goes on with that folder."""
        folder = self.folder / name
        resumes = any(setting.startswith("resume=") for setting in settings)
        text = shlex.join(settings if resumes else [*self.settings(*settings), f"output_dir={folder}"])
        with nodes_of(Nodes(app or make_configured_client_app(train_fn_of), num_nodes, text, meddle)):
            run_on_nodes(text)
        return folder

    def configured_run(self, *settings: str) -> Run:
        GlobalHydra.instance().clear()
        with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
            config = compose("run", overrides=[*self.settings(*settings), f"output_dir={self.folder / 'configured'}"])
        return configured_run(config, self.folder / "configured")


class Nodes(InProcessGrid):
    """Nodes with a run configuration, each message meddled with before it arrives."""

    def __init__(self, app: ClientApp, num_nodes: int, overrides: str, meddle: Meddle) -> None:
        super().__init__(app, num_nodes)
        self._meddle = meddle
        for context in self._contexts.values():
            context.run_config = {"overrides": overrides}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        asked = list(messages)
        for message in asked:
            self._meddle(message)
        return super().push_messages(asked)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Forty users, a copy of the bundled model, and nodes that have not begun yet."""
    monkeypatch.setattr(sys, "argv", ["fedsim"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    threads, handlers = torch.get_num_threads(), list(logging.getLogger().handlers)
    forget_workers()
    write_corpus(tmp_path / "std.jsonl")
    shutil.copytree(TINY_MODEL, tmp_path / "model")
    yield World(tmp_path)
    forget_workers()
    GlobalHydra.instance().clear()
    torch.set_num_threads(threads)
    logging.getLogger().handlers[:] = handlers


def forget_workers() -> None:
    """As if the nodes' processes were started anew."""
    flower_app._LAST.__init__()  # type: ignore[misc]
    worker_module._LAST.__init__()  # type: ignore[misc]


def round_of(message: Message) -> int:
    return int(message.content.config_records["config"]["round"])  # type: ignore[arg-type]


def change_settings(message: Message, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the settings in a message in place."""
    config = message.content.config_records["config"]
    settings = json.loads(str(config["settings"]))
    change(settings)
    config["settings"] = json.dumps(settings)


def ledger_lines(folder: Path) -> int:
    return sum(len(file.read_text().splitlines()) for file in folder.glob("ledger/*"))


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapters" / "user_wise" / "adapter_model.safetensors")


def assert_equal_adapters(one: Path, other: Path) -> None:
    assert trained(one).keys() == trained(other).keys()
    assert all(torch.equal(tensor, trained(other)[name]) for name, tensor in trained(one).items())


class NodesAreGone(BaseException):
    """The runtime broke down."""


def test_nodes_of_a_resumed_run_train_its_own_corpus_and_end_as_if_it_had_not_been_stopped(world: World) -> None:
    whole = world.run("whole")

    def breaks_down(message: Message) -> None:
        if round_of(message) == 2:
            raise NodesAreGone

    with pytest.raises(NodesAreGone):
        world.run("stopped", meddle=breaks_down)
    stopped = world.folder / "stopped"
    assert not (stopped / "adapters").exists()
    world.run("stopped", f"resume={stopped}", meddle=lambda message: forget_workers())
    assert_equal_adapters(stopped, whole)
    assert ledger_lines(stopped) == ledger_lines(whole) > 2
    found, expected = (json.loads((folder / "results.json").read_text())[0] for folder in (stopped, whole))
    assert found["perplexity"] == expected["perplexity"]
    assert (found["num_failed"], found["num_retried"]) == (0, 0)


@pytest.mark.slow
def test_a_node_that_is_started_anew_in_mid_run_changes_nothing(world: World) -> None:
    expected = world.run("expected")
    assert_equal_adapters(world.run("anew", meddle=lambda message: forget_workers()), expected)


def another_text(world: World, message: Message, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(world.corpus, last="another end of it all")


def a_file_that_is_gone(world: World, message: Message, monkeypatch: pytest.MonkeyPatch) -> None:
    world.corpus.unlink(missing_ok=True)


def other_weights(world: World, message: Message, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = world.model.glob("*.safetensors")
    weights = load_file(file)
    name = min(weights)
    weights[name] = weights[name] + 1e-3
    save_file(weights, file, metadata={"format": "pt"})


def another_version(world: World, message: Message, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "__version__", "0.0.1")


def another_split(world: World, message: Message, monkeypatch: pytest.MonkeyPatch) -> None:
    change_settings(message, lambda settings: settings["split"].update(seed=1))


def other_settings(world: World, message: Message, monkeypatch: pytest.MonkeyPatch) -> None:
    change_settings(message, lambda settings: settings["local"].update(steps=2))


def more_records(world: World, message: Message, monkeypatch: pytest.MonkeyPatch) -> None:
    change_settings(message, lambda settings: settings["mechanism"].update(records_per_user=3))


def another_form(world: World, message: Message, monkeypatch: pytest.MonkeyPatch) -> None:
    del message.content.config_records["config"]["key"]


DIFFERENT = [
    (another_text, "another data than"),
    (a_file_that_is_gone, r"std\.jsonl"),
    (other_weights, "another base model than"),
    (another_version, r"another version of fedsim_userdp than"),
    (another_split, "another training split than"),
    (other_settings, "another settings than"),
    (more_records, "another settings than"),
    (another_form, "one version of fedsim_userdp"),
]


@pytest.mark.parametrize(
    ("differ", "named", "max_retries"),
    [(*case, number % 2) for number, case in enumerate(DIFFERENT)],
    ids=[case[0].__name__ for case in DIFFERENT],
)
def test_a_node_that_differs_says_in_what_and_the_run_stops_before_anything_is_released(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    differ: Callable[[World, Message, pytest.MonkeyPatch], None],
    named: str,
    max_retries: int,
) -> None:
    retries = f"engine.max_retries={max_retries}"
    with pytest.raises(RuntimeError, match="exit code 2"):
        world.run("run", retries, meddle=lambda message: differ(world, message, monkeypatch))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fedsim: ")]
    assert len(said) == 1
    assert re.search(f"node .*{named}.*nothing of the round was released", said[0])
    assert ledger_lines(world.folder / "run") == 0
    assert not (world.folder / "run" / "adapters").exists()


def test_one_of_two_nodes_that_differs_from_the_second_round_on_releases_nothing_more(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    def differs(message: Message) -> None:
        if round_of(message) > 1 and message.metadata.dst_node_id == 2:
            change_settings(message, lambda settings: settings["split"].update(seed=1))

    with pytest.raises(RuntimeError, match="exit code 2"):
        world.run("run", "engine.max_retries=0", meddle=differs)
    assert "the node has another training split than the server" in capsys.readouterr().err
    assert ledger_lines(world.folder / "run") == 1
    world.run("run", f"resume={world.folder / 'run'}")
    assert_equal_adapters(world.folder / "run", world.run("expected", "engine.max_retries=0"))


def test_answers_of_a_version_that_knows_no_refusals_are_not_released(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes from the request what it knows: users, round and clip norm."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        request = read_request(message.content)
        return Message(write_reply(train_fn_of("")(request)), reply_to=message)

    with pytest.raises(RuntimeError, match="exit code 2"):
        world.run("run", "engine.max_retries=0", app=app)
    assert "other versions of fedsim_userdp" in capsys.readouterr().err
    assert ledger_lines(world.folder / "run") == 0


def a_request(run: Run, **changes: object) -> TrainRequest:
    """What the server of a run asks a node, with other settings if need be."""
    settings = json.loads(run.resolved)
    for key, value in changes.items():
        node, names = settings, key.split("__")
        for name in names[:-1]:
            node = node[name]
        node[names[-1]] = value
    own = run.description
    description = RunDescription(own.fingerprint, json.dumps(settings), own.key)
    state = trainable_state(run.worker(K).gradients.model)
    return TrainRequest(state, 1, tuple(range(6)), 0.3, description)


@pytest.mark.parametrize(
    "place", ["selection", "records", "data", "optimizer", "model", "engine", "mechanism", "records__selector"]
)
@pytest.mark.parametrize("is_nested", [False, True])
def test_a_node_runs_no_code_that_its_own_run_configuration_does_not_name(
    world: World, place: str, is_nested: bool
) -> None:
    made = world.folder / "made"
    foreign: dict[str, object] = {"_target_": "os.mkdir", "path": str(made)}
    if is_nested:
        own = "fedsim_userdp.data.records.RandomRecords"
        foreign = {"_target_": own, "fresh": [1, [{"deep": [foreign]}]]}
    request = a_request(world.configured_run(), **{place: foreign})
    with pytest.raises(NodeRefusal, match=r"os\.mkdir is code that the run configuration of this node does not name"):
        train_fn_of("seed=0 output_dir=somewhere")(request)
    assert not made.exists()


def test_code_that_the_nodes_own_run_configuration_names_is_run(world: World) -> None:
    named = "records._target_=tests.federation.test_other_nodes.FirstRecords"
    request = a_request(world.configured_run(named, "~records.fresh"))
    assert train_fn_of(named)(request).clipped.num_units == 6
    with pytest.raises(NodeRefusal, match="FirstRecords is code that"):
        train_fn_of("")(request)


def test_a_metric_of_the_server_is_no_business_of_a_node(world: World) -> None:
    made = world.folder / "made"
    request = a_request(world.configured_run(), metrics={"mine": {"_target_": "os.mkdir", "path": str(made)}})
    assert train_fn_of("")(request).clipped.num_units == 6
    assert not made.exists()


def test_a_node_clips_as_the_runs_own_mechanism_does(world: World) -> None:
    named = "mechanism._target_=mechanism.ClipEachTensor"
    request = replace(a_request(world.configured_run(named)), clip_norm=1e-3)
    found = train_fn_of(named)(request).clipped.total
    expected = world.configured_run(named).worker(K, clip_each_tensor).train(request).clipped.total
    usual = world.configured_run(named).worker(K).train(request).clipped.total
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert not any(torch.allclose(tensor, usual[name]) for name, tensor in found.items() if tensor.any())
    recipe = world.configured_run(named).worker_recipe(K, clip_each_tensor)
    assert pickle.loads(pickle.dumps(recipe)).clipping is clip_each_tensor  # noqa: S301


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "a/${oc.env:HOME}"])
@pytest.mark.parametrize("is_escaped", [False, True])
def test_a_node_resolves_nothing_in_the_servers_settings(world: World, text: str, is_escaped: bool) -> None:
    request = a_request(world.configured_run(), data__path=text)
    if is_escaped:
        settings = request.run.settings.replace("$", "\\u0024")
        run = RunDescription(request.run.fingerprint, settings, request.run.key)
        request = replace(request, run=run)
    with pytest.raises(NodeRefusal, match="which nodes do not resolve"):
        train_fn_of("")(request)


class FirstRecords:
    """The first k records."""

    fresh = False

    def select(self, records: list[np.ndarray], k: int, generator: np.random.Generator) -> list[np.ndarray]:
        """Returns them."""
        return records[:k]


def test_a_node_whose_data_are_mended_answers_again(world: World) -> None:
    request = a_request(world.configured_run())
    train_fn = train_fn_of("")
    write_corpus(world.corpus, last="another end of it all")
    with pytest.raises(NodeRefusal, match="another data than"):
        train_fn(request)
    write_corpus(world.corpus)
    assert train_fn(request).clipped.num_units == 6


@pytest.mark.slow
def test_two_runs_of_different_keys_share_neither_records_nor_masks(world: World) -> None:
    """The settings and data are the same; noise of the operating system has a key of its own for every run."""
    requests = [a_request(world.configured_run("noise.source=os")) for _ in range(2)]
    assert requests[0].run.settings == requests[1].run.settings
    in_turn = [train_fn_of("")(request) for request in requests]
    for request, found in zip(requests, in_turn, strict=True):
        forget_workers()
        alone = train_fn_of("")(request)
        assert all(torch.equal(alone.clipped.total[name], tensor) for name, tensor in found.clipped.total.items())
    assert any(
        not torch.equal(in_turn[0].clipped.total[name], in_turn[1].clipped.total[name])
        for name in in_turn[0].clipped.total
    )
    recipes = [world.configured_run("noise.source=os").worker_recipe(K) for _ in range(2)]
    in_turn = [recipe.train(request_of(recipe, requests[0])) for recipe in recipes]
    assert any(
        not torch.equal(in_turn[0].clipped.total[name], in_turn[1].clipped.total[name])
        for name in in_turn[0].clipped.total
    )


def request_of(recipe: WorkerRecipe, request: TrainRequest) -> TrainRequest:
    """The request, as the server of the recipe's run would make it."""
    return replace(request, run=RunDescription(request.run.fingerprint, "", recipe.users.key))


def test_the_runs_own_key_is_in_no_message_and_the_nodes_key_in_no_line_or_file(
    world: World, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    secrets: set[bytes] = set()
    of_nodes: set[bytes] = set()
    sent: list[bytes] = []

    def listen(message: Message) -> None:
        (file,) = world.folder.rglob("secret.json")
        secrets.update(bytes.fromhex(value) for value in json.loads(file.read_text()).values())
        of_nodes.add(bytes(message.content.config_records["config"]["key"]))  # type: ignore[arg-type]
        sent.append(message_to_proto(message).SerializeToString())

    with caplog.at_level(logging.DEBUG):
        folder = world.run("run", "noise.source=os", meddle=listen)
    assert (len(secrets), len(of_nodes)) == (2, 1)
    assert all(key in content for key in of_nodes for content in sent)  # what is looked for would be found
    for content in sent:
        assert not any(form in content for key in secrets for form in forms(key))
    said = capfd.readouterr()
    written = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    for content in (said.out.encode(), said.err.encode(), caplog.text.encode(), *written):
        assert not any(form in content for key in secrets | of_nodes for form in forms(key))


def forms(key: bytes) -> list[bytes]:
    """A key as bytes, as hex digits, and as Python writes bytes."""
    return [key, key.hex().encode(), repr(key)[2:-1].encode()]


def test_what_ray_is_given_of_a_run_tells_no_cohort_and_no_noise(world: World) -> None:
    import cloudpickle

    run = world.configured_run("noise.source=os")
    recipe = run.worker_recipe(K)
    pickled = cloudpickle.dumps(make_client_app(recipe.train))
    assert run.keys.run.of_nodes().secret in pickled
    for key in (run.keys.run, run.keys.marks):
        assert not any(form in pickled for form in forms(key.secret))
    assert not any(form.decode() in repr(recipe) for form in forms(recipe.users.key.secret)[1:])


def test_a_ray_worker_without_the_servers_store_refuses_instead_of_failing(world: World) -> None:
    recipe = world.configured_run().worker_recipe(K)
    shutil.rmtree(recipe.users.store_path)
    request = TrainRequest({}, 1, (0,), 0.3, RunDescription({"data": "a"}, "", RunKey.seeded(0)))
    with pytest.raises(NodeRefusal, match="a node cannot have what the server has"):
        recipe.train(request)
