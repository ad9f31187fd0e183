"""Which exceptions are the user's to mend, and how they are said in one sentence."""

import difflib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from fedsim_userdp.errors import ConfigError, LedgerError, RoundError
from fedsim_userdp.printable import printable
from fedsim_userdp.simulations import names
from fedsim_userdp.simulations.explanations import choices

MENDABLE = (ConfigError, LedgerError, RoundError, HydraException, OmegaConfBaseException, ValueError, OSError)


_LONGEST = 1500  # characters of a sentence
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def sentence(error: BaseException) -> str:
    """Returns the error as one line that a terminal can show: escaped where need be, cut where it is long."""
    return _cut(printable(_said(error)))


def _cut(line: str) -> str:
    """A text, its middle left out where it is long."""
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST * 2 // 3]} [...] {line[-_LONGEST // 3 :]}"


@contextmanager
def settings_named(config: DictConfig, *, one_of_many: bool = False) -> Iterator[None]:
    """Within the block, what is refused is said of the settings that were given: `tuned.rounds`, which others follow.

    Args:
        config: the configuration.
        one_of_many: whether the mechanism is to be named too.
    """
    try:
        yield
    except MENDABLE as error:
        said, name = sentence(error), OmegaConf.select(config, "mechanism.name")
        given = [
            f"{key} follows {source}"
            for key, source in _followed(OmegaConf.to_container(config), "")
            if re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", said) and source not in said
        ]
        whole = f"{said} ({'; '.join(given)})" if given else said
        if one_of_many and said.startswith(("privacy.", "mechanism.")) and str(name) not in whole:
            whole = f"{name}: {whole}"
        if whole == said:
            raise
        raise ConfigError(whole) from error


def _followed(node: object, prefix: str) -> Iterator[tuple[str, str]]:
    """Yields the settings whose value is that of another one, with that one."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _followed(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, str) and (found := re.fullmatch(r"\$\{([\w.]+)\}", node)):
        yield prefix, found.group(1)


def folder_refused(error: BaseException, arguments: Sequence[str]) -> str:
    """Returns the sentence on a folder that cannot be made, or has no room, where `output_dir` names it; else empty.

    Args:
        error: what was raised.
        arguments: the command line.
    """
    is_full = isinstance(error, OSError) and error.errno in _FULL_DISK
    if not isinstance(error, OSError) or (error.filename is None) != is_full or (is_full and folder_of_command()):
        return ""
    named = [one for one in arguments if one.lstrip("+").startswith("output_dir=")] or ["output_dir=runs"]
    folder = named[-1].partition("=")[2].strip("'\"")
    if is_full:
        return printable(f"{_cut(folder)}: {error.strerror}; make room and start again")
    if not _is_or_contains(Path(os.path.abspath(error.filename)), folder):
        return ""
    return printable(f"output_dir={_cut(folder)} cannot be used ({error.strerror}): name another folder")


def _is_or_contains(path: Path, folder: str) -> bool:
    """Whether a path is a folder or lies above it; of a name that Hydra completes, what is before that is compared."""
    begun, is_completed = folder.partition("${")[0], "${" in folder or folder == "runs"
    whole = Path(os.path.abspath(begun))
    if is_completed and len(path.parts) <= len(Path(os.path.abspath(folder)).parts) + (folder == "runs"):
        return str(path).startswith(str(whole)) or whole.is_relative_to(path)
    return whole.is_relative_to(path)


def _said(error: BaseException) -> str:
    """The error on one line: for what Hydra wraps, the cause; for a missing choice, what there is."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        key = re.search(r"full_key: (\S+)", str(error))
        said = _said(error.__cause__)
        if key is None or re.search(rf"(?<![\w.]){re.escape(key.group(1))}[.=]", said):
            return said
        whole = names.whole_name(key.group(1), said)
        return whole if whole != said else f"{key.group(1)}: {said}"
    text = str(error).strip() or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in _FULL_DISK:
        if error.filename is None and (folder := folder_of_command()):
            text = f"{folder}: {error.strerror}"
        text += "; make room and start again: a run that had begun goes on with resume=PATH, the folder it wrote to"
    refused = re.match(r"Could not (?:override|append to config|delete from config).*?'?([\w./@-]+)'?[.:]", text)
    if refused:
        setting = str(refused.group(1))
        if setting.partition(".")[0] == "metrics" and "delete" in text:
            return "~metrics.NAME leaves out a metric, or a setting of one, that there is not"
        if (group := setting.partition(".")[0]) in choices() and setting in names.known():
            return f"{setting} is no setting of the {group} that was chosen: leave it out, or choose another {group}"
        return f"{setting} is no setting of this command" if setting in names.known() else names.unknown(setting)
    if found := re.match(r"Ambiguous value for argument '(([^=]*)=(.*?))'\s", text, re.S):
        return f"{found[1]} has several values: a list is {found[2]}=[{found[3]}], and --multirun runs each of them"
    if found := re.match(r"Sweep parameters '(.*)' requires --multirun", text, re.S):
        return f"{found[1]} has several values: --multirun runs each of them"
    if isinstance(error, InterpolationKeyError) and (found := re.match(r"Interpolation key '(.*)' not found", text)):
        key = re.search(r"full_key: (\S+)", text)
        return f"{key[1] if key else 'a setting'} refers to {found[1]}, which is no setting"
    if found := re.match(r"Error merging override (\S*?)=(.*)", text):
        return f"{found[1]}={found[2]} is of another kind than {found[1]}: see --help {found[1]}"
    if found := re.match(
        r"(?:In '[^']*': )?Could not find '([^']*)'\s+Available options in '([^']*)':\s+(.*)", text, re.S
    ):
        chosen, group, options = found.groups()
        offered = [line.strip() for line in options.splitlines() if re.fullmatch(r"\s*[\w-]+\s*", line)]
        name = chosen.removeprefix(group + "/")
        near = difflib.get_close_matches(name, offered, n=1)
        meant = f"; did you mean {group}={near[0]}?" if near else ""
        return f"{group}={name} is unknown; expected one of {', '.join(offered)}{meant}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if not re.match(r"(full_key|object_type|reference_type|Set the environment)", line)]
    return " ".join(kept)


def folder_of_command() -> str:
    """Returns the folder in which Hydra writes files of its own, such as `multirun.yaml`; empty before it has one."""
    if not HydraConfig.initialized():
        return ""
    settings = HydraConfig.get()
    return str(settings.sweep.dir if settings.mode == RunMode.MULTIRUN else settings.run.dir)
