"""The folder in which token stores and scores are kept between runs."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from fedsim_userdp.data.corpus import DataError

VARIABLE = "FEDSIM_CACHE_DIR"
APP = "fedsim_userdp"


def default_cache_dir() -> Path:
    """Returns $FEDSIM_CACHE_DIR, or this user's cache folder on the platform with `fedsim_userdp` in it."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / APP
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / APP
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / APP


def require_writable(folder: Path) -> None:
    """Makes `folder` if need be, readable by this user only, and tries it by writing to it.

    Raises:
        DataError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"cache folder {folder} cannot be written ({error}); set {VARIABLE} to one that can") from error
