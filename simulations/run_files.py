"""Where in a run folder the ledger and the adapter of each run are."""

from collections.abc import Sequence
from pathlib import Path

CONFIG_FILE = "config.yaml"
WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
ADAPTER_CONFIG = "adapter_config.json"


def adapter_folder(folder: Path, mechanism: str, seed: int, before: Sequence[str]) -> Path:
    """Returns the folder of a run's adapter, with the seed in its name where the mechanism ran `before`."""
    return folder / "adapters" / (f"{mechanism}-seed{seed}" if mechanism in before else mechanism)


def ledger_file(folder: Path, mechanism: str, seed: int) -> Path:
    """Returns the ledger of a run."""
    return folder / "ledger" / f"{mechanism}-seed{seed}.jsonl"
