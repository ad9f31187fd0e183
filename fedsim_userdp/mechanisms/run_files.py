"""Where in a run folder the ledger and the adapter of each run are, and how a file of somebody else's is read."""

import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

_LARGEST = 2**28  # bytes of a file that is read whole

CONFIG_FILE = "config.yaml"
WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
ADAPTER_CONFIG = "adapter_config.json"
# What tokenizers are saved as.
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)


def adapter_folder(folder: Path, mechanism: str, seed: int, before: Sequence[str]) -> Path:
    """Returns the folder of a run's adapter, with the seed in its name where the mechanism ran `before`."""
    return folder / "adapters" / (f"{mechanism}-seed{seed}" if mechanism in before else mechanism)


def tokenizer_digest(adapter: Path) -> str:
    """Returns the sha256 of the names and contents of a tokenizer's files in an adapter's folder; empty without any."""
    digest = hashlib.sha256()
    found = [name for name in TOKENIZER if os.path.lexists(adapter / name)]
    for name in found:
        content = plain_content(adapter / name)
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest() if found else ""


def ledger_file(folder: Path, mechanism: str, seed: int) -> Path:
    """Returns the ledger of a run."""
    return folder / "ledger" / f"{mechanism}-seed{seed}.jsonl"


def plain_content(path: Path) -> bytes:
    """Returns what a file holds, without following a link or waiting for a pipe.

    Raises:
        OSError: it cannot be read, is a link or no file, or is larger than any that this program writes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is no file", str(path))
        if found.st_size > _LARGEST:
            raise OSError(errno.EFBIG, "is too large to be of this program", str(path))
        return file.read()
