"""The errors of the training part."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued from, in one sentence."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError of the block that names no file, such as that of a full disk, the name of `path`."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
