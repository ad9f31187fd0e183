"""Which exceptions are the user's to mend, and how they are said in one sentence."""

import errno
import re

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from fedsim_userdp.federation.errors import RoundError
from fedsim_userdp.printable import printable
from fedsim_userdp.privacy.errors import LedgerError
from fedsim_userdp.simulations import names
from fedsim_userdp.simulations.errors import ConfigError

REFUSALS = (ConfigError, LedgerError, RoundError, HydraException, OmegaConfBaseException, ValueError, OSError)


_LONGEST = 1500  # characters of a sentence
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def sentence(error: BaseException) -> str:
    """Returns the error as one line that a terminal can show: escaped where need be, cut where it is long."""
    line = printable(_said(error))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST * 2 // 3]} [...] {line[-_LONGEST // 3 :]}"


def _said(error: BaseException) -> str:
    """The error on one line: for what Hydra wraps, the cause; for a missing choice, what there is."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        key = re.search(r"full_key: (\S+)", str(error))
        said = _said(error.__cause__)
        return said if key is None or key.group(1) in said else f"{key.group(1)}: {said}"
    text = str(error).strip() or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in _FULL_DISK:
        if error.filename is None and (folder := _folder_of_job()):
            text = f"{folder}: {error.strerror}"
        text += "; make room and start again: a run that had begun goes on with resume=PATH, the folder it wrote to"
    refused = re.match(r"Could not (?:override|append to config|delete from config).*?'?([\w./@-]+)'?[.:]", text)
    if refused:
        setting = str(refused.group(1))
        return f"{setting} is no setting of this command" if setting in names.known() else names.unknown(setting)
    if found := re.match(
        r"(?:In '[^']*': )?Could not find '([^']*)'\s+Available options in '([^']*)':\s+(.*)", text, re.S
    ):
        chosen, group, options = found.groups()
        offered = [line.strip() for line in options.splitlines() if re.fullmatch(r"\s*[\w-]+\s*", line)]
        return f"{group}={chosen.removeprefix(group + '/')} is unknown; expected one of {', '.join(offered)}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if not re.match(r"(full_key|object_type|reference_type|Set the environment)", line)]
    return " ".join(kept)


def _folder_of_job() -> str:
    """The folder in which Hydra writes files of its own, such as `multirun.yaml`; empty before it has one."""
    if not HydraConfig.initialized():
        return ""
    settings = HydraConfig.get()
    return str(settings.sweep.dir if settings.mode == RunMode.MULTIRUN else settings.run.dir)
