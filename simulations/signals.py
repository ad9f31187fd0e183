"""Signals that ask a command to stop: it ends in order, with one sentence and the exit code that shells expect."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fedsim_userdp.stopping import Stopped, interrupt

_ASKING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def stopping_in_order() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise `Stopped` in the main thread; a second one ends the process at once.

    Ctrl-C raises it however often.  A signal that is ignored, as `nohup` has it, stays ignored.  In other threads
    nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (*_ASKING, signal.SIGINT)}
    taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    try:
        for number in taken:
            signal.signal(number, interrupt if number == signal.SIGINT else _stop)
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number] or signal.SIG_DFL)


def exit_code(stop: KeyboardInterrupt) -> int:
    """Returns 128 plus the number of the signal that stopped a command."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def _stop(number: int, frame: FrameType | None) -> None:
    """Raises `Stopped`, once."""
    for one in _ASKING:
        if signal.getsignal(one) is _stop:
            signal.signal(one, signal.SIG_DFL)
    raise Stopped(number)
