"""Settings of this process and of those it starts: quiet libraries, no usage reports, memory kept."""

import ctypes
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fedsim_userdp.surroundings import NOISY_LOGGERS, ignore_harmless_warnings, send_no_reports

_ENVIRONMENT = {
    # Threads that wait for each other sleep soon instead of spinning: with another busy process on the machine an
    # update ran 1.5 to 3 times as fast, and as fast as before without one (docs/decisions/0006).
    "GOMP_SPINCOUNT": "1000",
    # Code that oneDNN keeps for numbers of rows it has seen: a micro-batch needs about 12, thousands would add up.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    # For worker processes, what `_keep_freed_memory` does for this one.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(2**26),
    # Which it reads when it is imported, and sets its logger anew.
    "TRANSFORMERS_VERBOSITY": "error",
}
# glibc's mallopt parameters, malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def prepare_process() -> None:
    """Sets what every command wants, without overriding what the user has set in the environment."""
    if not any(name.startswith("MALLOC_") for name in os.environ):
        _keep_freed_memory()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors of the configuration are raised, not printed
    os.environ["MPLBACKEND"] = "Agg"  # plots are files; a notebook's backend is none that this process could have
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # which logs what it raises
    send_no_reports()
    ignore_harmless_warnings()


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Within the block no garbage is looked for: imports make a million objects that stay, a fifth of their time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _keep_freed_memory() -> None:
    """Tells glibc to keep freed blocks: activations of tens of MB otherwise page-fault anew in every micro-batch."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 2**26)
