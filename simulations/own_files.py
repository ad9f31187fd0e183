"""Classes of the user's own that lie in the working folder."""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader

from fedsim_userdp.errors import ConfigError

# By which a folder of settings, which may name such classes, is added to this program's own.
FOLDERS = ("--config-dir", "-cd")


def working_folder() -> str:
    """Returns the working folder.

    Raises:
        ConfigError: It was removed, or cannot be reached.
    """
    try:
        return os.getcwd()
    except OSError as error:
        raise ConfigError(
            f"the working folder cannot be used ({error.strerror}): change to one that is there, and start again"
        ) from error


def find_named_classes(arguments: Sequence[str]) -> None:
    """Has Python look for modules in the working folder, last of all, where a command line names a class of its own.

    Else it is not looked at: a folder there with the name of a library would be taken for it.

    Args:
        arguments: The command line.
    """
    if not any("_target_" in one or one.partition("=")[0].lstrip("+") in FOLDERS for one in arguments):
        return
    folder = working_folder()
    if folder not in sys.path:
        sys.path_importer_cache[folder] = _FilesFirst(folder, arguments)
        sys.path.append(folder)


class _FilesFirst(FileFinder):
    """Finds modules in a folder; a folder without `__init__.py` is one only where the command line names it."""

    def __init__(self, folder: str, arguments: Sequence[str]) -> None:
        super().__init__(folder, (SourceFileLoader, SOURCE_SUFFIXES))
        self._arguments = arguments

    def find_spec(self, fullname: str, target: object = None) -> ModuleSpec | None:
        """Returns what is found under a name."""
        if fullname.partition(".")[0] == "hydra_plugins":  # code that Hydra loads unasked, and no statement names
            return None
        spec = super().find_spec(fullname)
        is_named = any(f"{fullname}." in one for one in self._arguments)
        return spec if spec is None or spec.loader is not None or is_named else None
