"""Small corpora of made-up text for whole runs of the commands."""

import json
from pathlib import Path

import numpy as np


def write_jsonl(path: Path, num_users: int = 14, records: int = 6, words: int = 12, prefix: str = "user") -> Path:
    """Writes users with as many records of as many words each, and returns the path."""
    generator = np.random.default_rng(0)
    vocabulary = ["the", "house", "of", "people", "and", "government", "law", "year", "is", "great"]
    rows = [
        {"user_id": f"{prefix} {user}", "text": " ".join(generator.choice(vocabulary, size=words))}
        for user in range(num_users)
        for _ in range(records)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def small_settings(corpus: Path, cache: Path, rounds: int = 8) -> list[str]:
    """Settings of a run on such a corpus that takes a second beside its start."""
    return [
        "data=jsonl", f"data.path={corpus}", f"cache_dir={cache}", "split.heldout_users=2", "tokens.min_words=0",
        "tokens.window=16", f"tuned.rounds={rounds}", "tuned.records_per_user=2", "selection.sampling_prob=0.3",
        "evaluation.records_per_user=1", "evaluation.every=100", "checkpoint.every=1", "threads=1",
        "local.max_tokens=512", "model.device=cpu",
    ]  # fmt: skip
