"""Which file or setting an error is about, where it does not say."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim_userdp.errors import ConfigError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError of the block that names no file, such as that of a full disk, the name of `path`."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def settings_of(section: str, owner: object, **also_called: str) -> Iterator[None]:
    """Within the block, a ValueError that begins with a setting of a section says its whole name.

    Args:
        section: such as `tokens`.
        owner: an object or class that has the settings of the section.
        also_called: what a setting is called in the block, and its name.

    Raises:
        ConfigError: the error, with the section's name before the setting's.
    """
    try:
        yield
    except ValueError as error:
        first, rest = re.fullmatch(r"(\w*)(.*)", str(error), re.S).groups()  # type: ignore[union-attr]  # of any text
        name = also_called.get(first, first)
        if rest[:1] in (" ", "=") and (hasattr(owner, name) or name in also_called.values()):
            raise ConfigError(f"{section}.{name}{rest}") from error
        raise
