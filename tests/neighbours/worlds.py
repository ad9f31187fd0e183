"""Two worlds that differ in one user, built from files on disk through the whole pipeline, and their sums before noise.

The same run key in both, so that whatever draws at random does so alike for everybody else; and in place of noisy sums
both release zeros, so that every round starts from the same adapter, of which no factor is zero.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fedsim_userdp.federation.engines.in_process import InProcessGrid
from fedsim_userdp.federation.messages import read_request, to_arrays, write_reply
from fedsim_userdp.federation.rounds import run_rounds
from fedsim_userdp.mechanisms.keys import RunKeys
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.models.loading import TINY_MODEL
from fedsim_userdp.participation import expected_share
from fedsim_userdp.population import Reported
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.report.progress import RunProgress
from fedsim_userdp.signals import PaidSignal
from fedsim_userdp.simulations.configured import configured_run
from tests.simulations.small_runs import with_changes

KEY = RunKey.seeded(7, "two worlds")
CLIP_NORM, ROUNDS, K = 0.05, 2, 3
WORDS = ["the", "house", "of", "people", "and", "government", "law", "year", "is", "great", "labor", "treaty", "peace"]
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
    "llama": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 64,
    },
    "opt": {
        "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 64, "word_embed_proj_dim": 16,
    },
    "qwen2_moe": {
        "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 4,
        "num_experts_per_tok": 2, "max_position_embeddings": 64,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Person:
    """Somebody's texts, and who else owns each of them."""

    name: str
    texts: tuple[str, ...]
    owners: tuple[tuple[str, ...], ...] = ()


@dataclass
class World:
    """What a run on one data set would release, before noise."""

    run: Run
    num_users: int
    denominator: float
    sums: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    balances: dict[int, float] = field(default_factory=dict)
    signals: dict[int, np.ndarray] = field(default_factory=dict)
    release: object = None


def people(num: int, seed: int = 0, prefix: str = "user") -> list[Person]:
    """People with one to five texts of 3 to 40 words."""
    generator = np.random.default_rng(seed)
    return [
        Person(
            f"{prefix} {number}",
            tuple(
                " ".join(generator.choice(WORDS, size=generator.integers(3, 41)))
                for _ in range(generator.integers(1, 6))
            ),
        )
        for number in range(num)
    ]


def blanked(person: Person) -> Person:
    """The person with the same records, all of them empty."""
    return replace(person, texts=tuple("" for _ in person.texts))


def write(path: Path, everybody: Sequence[Person]) -> Path:
    """Writes a JSONL file, and returns its path."""
    rows = []
    for person in everybody:
        for place, text in enumerate(person.texts):
            row: dict[str, object] = {"user_id": person.name, "text": text}
            if person.owners:
                row["owners"] = list(person.owners[place])
            rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def family_folder(folder: Path, family: str) -> Path:
    """Returns a folder with a random model of a family, under the bundled model's tokenizer; made at the first call."""
    path = folder / family
    if not path.exists():
        tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
        special = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
        config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **special, **FAMILIES[family])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(path)
        tokenizer.save_pretrained(path)
    return path


def composed(overrides: Sequence[str]) -> Any:
    """The configuration of `fedsim run` with overrides."""
    GlobalHydra.instance().clear()
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        return compose("run", overrides=list(overrides))


def seen(overrides: Sequence[str], folder: Path, dead_node: int | None = None) -> World:
    """Runs a configuration as `fedsim run` does, and returns its sums before noise; what is refused raises.

    Args:
        overrides: settings, `data.path` among them.
        folder: a folder of its own.
        dead_node: id of a node of the engine that never answers; None where all do.
    """
    config = composed([*overrides, f"output_dir={folder}"])
    run = configured_run(config, folder)
    run = with_changes(run, keys=RunKeys.of(KEY))
    if dead_node is not None:
        run = with_changes(run, engine=DeadNode(run.study.engine.num_nodes_for(run.study.num_users), dead_node))
    world = World(
        run, run.study.num_users, expected_share(run.study.selector, run.study.population, 1) * run.study.num_users
    )
    with watched(world), RunProgress(Console(file=io.StringIO())) as progress:
        world.release = instantiate(config.mechanism).run(run, progress).statement.release
    return world


@contextmanager
def watched(world: World) -> Iterator[None]:
    """Within the block, sums go to the world, and zeros are released whatever they are."""

    def add_noise(total: Mapping[str, torch.Tensor], stddev: float, source: object, round: int) -> dict[str, Any]:
        world.sums[round] = {name: tensor.detach().double().clone() for name, tensor in total.items()}
        return {name: torch.zeros_like(total[name], dtype=torch.float32) for name in sorted(total)}

    def initialise(drawn: torch.Tensor, zero: torch.Tensor, seed: int, name: str) -> None:
        generator = RunKey.seeded(seed).generator("init", user=name)
        with torch.no_grad():
            for factor in (drawn, zero):
                factor.copy_(torch.from_numpy(generator.uniform(-0.3, 0.3, size=tuple(factor.shape))))

    def unclipped_share(clipped: Any, expected: float, stddev: float, source: object, round: int) -> float:
        world.balances[round] = (clipped.num_units - clipped.num_nonfinite) / 2 - clipped.num_clipped
        return 0.5

    def release(self: PaidSignal, answer: np.ndarray, source: object, round: int) -> Reported:
        world.signals[round] = np.broadcast_to(answer, (2, self.num_groups)).copy()
        return Reported(np.arange(float(self.num_groups)), np.ones(self.num_groups))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PaidSignal, "release", release)
        for module in ("fedsim_userdp.strategies.user_level_dp", "fedsim_userdp.training.record_steps"):
            patch.setattr(f"{module}.add_noise", add_noise)
        patch.setattr("fedsim_userdp.training.opacus_step.add_noise", add_noise)
        patch.setattr("fedsim_userdp.strategies.user_level_dp.unclipped_share", unclipped_share)
        patch.setattr("fedsim_userdp.models.adapters._initialise", initialise)
        yield


class DeadNode:
    """Nodes in this process of which one never answers; its users count as zero."""

    def __init__(self, num_nodes: int, dead: int) -> None:
        self._num_nodes, self._dead = num_nodes, dead

    def num_nodes_for(self, num_users: int) -> int:
        return self._num_nodes

    def deals_by_size(self, num_users: int) -> bool:
        return False

    def run(self, strategy: Any, recipe: Any, worker: Any, state: Any, rounds: Any) -> None:
        app, dead = ClientApp(), self._dead

        @app.train()
        def train(message: Message, context: Context) -> Message:
            if context.node_id == dead:
                raise RuntimeError("this node is gone")
            request = read_request(message.content)
            return Message(write_reply(worker.train(request), request.run), reply_to=message)

        run_rounds(strategy, InProcessGrid(app, self._num_nodes), to_arrays(state), rounds)


def distances(one: World, other: World) -> dict[int, float]:
    """The L2 distance of the two worlds' sums in each round, in clip norms."""
    assert one.sums.keys() == other.sums.keys()
    return {
        round: sum(float((one.sums[round][n] - other.sums[round][n]).square().sum()) for n in one.sums[round]) ** 0.5
        / CLIP_NORM
        for round in one.sums
    }


def bound(world: World) -> float:
    """What the printed guarantee allows a sum to move by, in clip norms: C, 2 C where replaced, w C with a weight w.

    For records it is k C.
    """
    is_split = isinstance(world.release, acc.AdaptiveClipping | acc.PaidSignals)
    release = acc.inner_run(world.release) if is_split else world.release  # type: ignore[arg-type]
    if isinstance(release, acc.FixedSize | acc.FixedSizeStrata | acc.TruncatedPoisson):
        return 2.0
    if isinstance(release, acc.PoissonGroups):
        return max(weight for group in release.groups for _, weight, _ in group)
    return float(release.records_per_user) if isinstance(release, acc.RecordLevel) else 1.0
