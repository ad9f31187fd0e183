"""What asks a command to stop: a signal, or a reader that is gone; it is never mistaken for what a plug-in raises."""

import signal
from types import FrameType

READER_GONE = 128 + signal.SIGPIPE  # exit code


class ReaderGone(SystemExit):
    """Nobody reads what a command prints any more."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop; its text is the signal's name, empty for Ctrl-C's.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__("" if number == signal.SIGINT else signal.Signals(number).name)
        self.number = number


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raises `Stopped`: what handles Ctrl-C's signal within a command."""
    raise Stopped(number)


def is_asked_for(error: BaseException) -> bool:
    """Returns whether what was raised asks this process to stop, and comes from no class of the user's own.

    Where Ctrl-C is handled by `interrupt`, or ignored, any other KeyboardInterrupt was raised by code.
    """
    if isinstance(error, Stopped | ReaderGone):
        return True
    return isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) not in (interrupt, signal.SIG_IGN)
