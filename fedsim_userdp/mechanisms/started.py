"""What the run of a folder was started with: `run.json` and `config.yaml`, and what may differ when it goes on."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.run_files import CONFIG_FILE, plain_content
from fedsim_userdp.mechanisms.settings_tree import FREE, leaves
from fedsim_userdp.report.files import write_text

# What a ledger's lines and a run's noise rest on: never changed within a run.
_FIXED = frozenset(
    {
        *("seed", "privacy", "noise", "selection", "records", "compare"),
        *("mechanism.name", "mechanism._target_", "mechanism.records_per_user"),
    }
)
OF_FIGURES = frozenset({"metrics"})  # which decide nothing that is released, and may differ
_LIST = "compare.mechanisms"
RUN_FILE = "run.json"
FORMAT = 1
_log = logging.getLogger(__name__)


def read_started(folder: Path) -> dict[str, Any]:
    """Returns the content of a folder's `run.json`.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    file = folder / RUN_FILE
    try:
        content = json.loads(plain_content(file))
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} holds no run: there is no {RUN_FILE}; start it anew") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{folder}: {RUN_FILE} cannot be read ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigError(f"{file} is not of this version's format {FORMAT}")
    return content


def write_started(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes both files of a folder.

    Args:
        folder: the run folder.
        content: of `run.json`: command, version, overrides, choices, and under `config` the resolved settings.
    """
    write_text(folder / RUN_FILE, json.dumps(content, indent=1) + "\n")
    write_text(folder / CONFIG_FILE, yaml.safe_dump(content["config"], sort_keys=False, allow_unicode=True))


def check_continues(
    settings: object, folder: Path, may_change: bool, but_for: frozenset[str] = frozenset()
) -> list[str]:
    """Returns the settings that differ from those that `folder` was run with, said as warnings; see `settings_changed`.

    Raises:
        ConfigError: some may not differ, or the folder holds no run.
    """
    said = settings_changed(settings, folder, but_for)
    decisive = [key for key in said if not is_of_figures(key)]
    refused = [key for key in decisive if not may_change or _is_part_of(key, _FIXED)]
    if refused:
        fixed = [key for key in refused if _is_part_of(key, _FIXED)]
        fix = "checkpoint.allow_changes=true allows it"
        if fixed:
            fix = f"{', '.join(fixed)} cannot change within a run: take {'it' if len(fixed) == 1 else 'them'} back"
        raise ConfigError(
            f"{folder}: the run was configured otherwise: {'; '.join(said[key] for key in refused)} ({fix})"
        )
    for sentence in said.values():
        _log.warning("%s: %s", folder, sentence)
    return list(said)


def is_of_figures(key: str) -> bool:
    """Returns whether a setting decides figures only, and nothing that is released."""
    return _is_part_of(key, OF_FIGURES)


def check_same_runs(names: Sequence[str], seed: int, started: Mapping[str, Any], folder: Path) -> None:
    """Raises ConfigError unless a folder was started with runs of these names and this seed, and no other.

    What else the runs depend on is held against their checkpoints.
    """
    config = started["config"]
    if started.get("command") == "run":
        before, seeds = [config["mechanism"]["name"]], [config["seed"]]
    else:
        entries = [one if isinstance(one, dict) else {"mechanism": one} for one in config["compare"]["mechanisms"]]
        before = [str(one.get("name", one["mechanism"])) for one in entries]
        seeds = config["compare"]["seeds"] or [config["seed"]]
    if before != list(names) or seeds != [seed]:
        raise ConfigError(
            f"{folder} holds runs of {', '.join(map(str, before))} with seed {', '.join(map(str, seeds))}: go on with "
            "the same, in this order, or choose another folder"
        )


def settings_changed(settings: object, folder: Path, but_for: frozenset[str] = frozenset()) -> dict[str, str]:
    """Returns how settings differ from those that a folder was run with, by key; free ones are not looked at.

    Args:
        settings: nested mappings.
        folder: the run folder.
        but_for: further keys that are not looked at.

    Raises:
        ConfigError: when it holds no run.
    """
    before, now = (dict(_leaves(one)) for one in (read_started(folder).get("config"), settings))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    return {
        key: f"{key} was {before.get(key, 'absent')} and is {now.get(key, 'absent')}"
        for key in changed
        if not _is_part_of(key, FREE | but_for)
    }


def _leaves(settings: object) -> Iterator[tuple[str, object]]:
    """The leaves of settings by dotted key; the list of a comparison's mechanisms is one."""
    listed: list[tuple[str, object]] = []
    for key, value in leaves(settings):
        if _is_part_of(key, frozenset({_LIST})):
            listed.append((key.removeprefix(_LIST).lstrip("."), value))
        else:
            yield key, value
    if listed:
        yield _LIST, ", ".join(f"{key}={value}" if key else str(value) for key, value in listed)


def _is_part_of(key: str, names: frozenset[str]) -> bool:
    """Whether a dotted key is one of `names` or lies below one."""
    parts = key.split(".")
    return any(".".join(parts[:length]) in names for length in range(1, len(parts) + 1))
