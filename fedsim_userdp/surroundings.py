"""What libraries say and send by themselves: switched off, unless the user's environment sets it."""

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_NO_REPORTS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_ONE_AT_A_TIME = threading.RLock()
NOISY_LOGGERS = ("flwr", "transformers", "opacus")
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
def quiet_libraries() -> Iterator[None]:
    """Within the block, warnings and hints of libraries that nobody can act on are not shown.

    One thread at a time is in such a block: what it changes, and what loads models, belongs to the whole process.
    """
    loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        ignore_harmless_warnings()
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
