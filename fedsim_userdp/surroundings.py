"""What libraries say and send by themselves: switched off, unless the user's environment sets it."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_NO_REPORTS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
# Said by a dependency about its own code on every run; nothing that a user could act on.
_HARMLESS_WARNINGS = (
    "`is_gradient_checkpointing` is deprecated",
    "Full backward hook is firing when gradients are computed with respect to module outputs",
)


def send_no_reports() -> None:
    """Switches off the usage reports of Flower, Ray and the Hugging Face Hub, unless the environment sets them."""
    for name, value in _NO_REPORTS.items():
        os.environ.setdefault(name, value)


def ignore_harmless_warnings() -> None:
    """Ignores warnings of dependencies that nobody can act on."""
    for message in _HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def without_harmless_warnings() -> Iterator[None]:
    """Within the block, warnings of dependencies that nobody can act on are not shown."""
    with warnings.catch_warnings():
        ignore_harmless_warnings()
        yield
