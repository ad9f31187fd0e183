"""A time limit that also ends what hangs in native code."""

import faulthandler
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ending_process_after(seconds: float | None) -> Iterator[None]:
    """Ends the process with exit code 1 when the block takes longer than `seconds` (None: never)."""
    if seconds is None:
        yield
        return
    faulthandler.dump_traceback_later(seconds, file=sys.__stderr__ or 2, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
