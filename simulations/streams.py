"""Standard output and error of the `fedsim` command: closed pipes and full devices end it in order.

A reader that stops early (`fedsim run | head -1`) ends the command at its next line, without a word and with exit code
141, as the shell reports it of programs that SIGPIPE ends. What cannot be written for another reason is said in one
sentence, and the exit code is 2.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import TextIO, cast

from fedsim_userdp.stopping import READER_GONE, ReaderGone


@contextlib.contextmanager
def watched_streams() -> Iterator[None]:
    """Within the block what cannot be printed ends the command as this module says; at its end all is flushed.

    Raises:
        SystemExit: something could not be printed, or the block raised it.
    """
    streams = (_Watched(sys.stdout, "standard output"), _Watched(sys.stderr, "standard error"))
    out, err = (cast(TextIO, stream) for stream in streams)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            try:
                yield
            finally:
                out.flush()
        except OSError as error:
            print(f"fedsim: {error.filename}: {error.strerror}", file=err)
            raise SystemExit(2) from error


class _Watched:
    """A stream whose errors name it; nothing is written to it after the first one."""

    def __init__(self, stream: TextIO | None, name: str) -> None:
        self._stream = stream or open(os.devnull, "w")  # closed before the start  # noqa: SIM115
        self._name = name

    def write(self, text: str) -> int:
        """Writes to the stream."""
        with self._named():
            return self._stream.write(text)

    def flush(self) -> None:
        """Writes what is buffered."""
        with self._named():
            self._stream.flush()

    def close(self) -> None:
        """Writes what is buffered: the command closes its streams, and no class of the user's own."""
        self.flush()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Turns a closed pipe into the end of the program, and names the stream in any other error."""
        try:
            yield
        except ValueError as error:
            if not self._stream.closed:
                raise
            self._stream = open(os.devnull, "w")  # noqa: SIM115
            raise OSError(errno.EBADF, "was closed", self._name) from error
        except OSError as error:
            self._give_up()
            if isinstance(error, BrokenPipeError):
                raise ReaderGone(READER_GONE) from error
            error.filename = self._name
            raise

    def _give_up(self) -> None:
        """Sends what is still buffered nowhere, or Python complains of it when it exits."""
        with contextlib.suppress(OSError):  # a stream that is no file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> object:
        """Everything else is the stream's own."""
        return getattr(self._stream, name)
