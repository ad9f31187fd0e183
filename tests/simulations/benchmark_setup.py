"""A small benchmark that every test can afford: 30 ragged users in a file, the bundled model, tiny repeats."""

import json
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_module

from fedsim_userdp.simulations.measurements.workbench import Workbench

WORDS = ("the", "people", "of", "this", "country", "have", "every", "reason", "to", "hope", "for", "peace")


def write_corpus(path: Path, num_users: int = 30) -> Path:
    """Writes users with 1 to 5 records of 8 to 60 words."""
    generator = np.random.default_rng(0)
    rows = [
        {"user_id": f"u{user}", "text": " ".join(generator.choice(WORDS, size=generator.integers(8, 61)))}
        for user in range(num_users)
        for _ in range(generator.integers(1, 6))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def small_overrides(folder: Path) -> list[str]:
    """The settings of a small benchmark in `folder`, which gets the corpus; the cache lies beside it."""
    return [
        "data=jsonl",
        f"data.path={write_corpus(folder / 'users.jsonl')}",
        f"cache_dir={folder.with_name(f'{folder.name}-cache')}",
        "tokens.min_words=0",
        "split.heldout_users=5",
        "evaluation.records_per_user=1",
        "evaluation.every=1",
        "selection.sampling_prob=0.3",
        "tuned.rounds=3",
        "benchmark.repeats=2",
        "benchmark.seconds=0.01",
        "model.device=cpu",
    ]


def small_bench(folder: Path, *overrides: str) -> Workbench:
    """A workbench with those settings."""
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        config = compose("benchmark", overrides=[*small_overrides(folder), f"output_dir={folder}", *overrides])
    return Workbench(config, folder, int(config.benchmark.repeats), float(config.benchmark.seconds), tuple(overrides))
