"""Where caches may lie: in a folder of their own, since they hold users' text, and a run's folder is for others."""

import os
from collections.abc import Iterator
from pathlib import Path

from fedsim_userdp.cache import VARIABLE, folder_of
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.settings_tree import Tree


def check_cache_folders(tree: Tree, *folders: Path) -> None:
    """Raises where a folder of caches is none, or is or lies in one of these folders, by links too.

    Args:
        tree: the settings.
        folders: of a run, and of the sweep that it belongs to.

    Raises:
        ConfigError, ValueError: names the setting.
    """
    for setting, value in _named(tree):
        place = os.path.realpath(folder_of(value, setting))
        for folder in folders:
            if Path(place).is_relative_to(os.path.realpath(folder)):
                raise ConfigError(
                    f"{setting}={value} lies in {folder}, the folder of the run: name one elsewhere, as caches hold "
                    "users' text"
                )


def _named(tree: Tree) -> Iterator[tuple[str, str]]:
    """The folders of caches that are named, by what names them."""
    chosen, of_model = tree.get("cache_dir"), (tree.get("model") or {}).get("cache_dir")
    if chosen is not None:
        yield "cache_dir", str(chosen)
    elif named := os.environ.get(VARIABLE):
        yield VARIABLE, named
    if of_model is not None and of_model != chosen:
        yield "model.cache_dir", str(of_model)
