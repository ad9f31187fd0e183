"""A folder in which token stores and scores are kept between runs, tried before it is used."""

import tempfile
from pathlib import Path

from fedsim_userdp.data.corpus import DataError
from fedsim_userdp.privacy.cache import VARIABLE


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
        raise DataError(
            f"cache folder {folder} cannot be written ({error.strerror}); set {VARIABLE} or cache_dir to one that can"
        ) from error
