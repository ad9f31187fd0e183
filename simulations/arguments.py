"""The command line: Hydra's own, and going on with a run folder by `resume=PATH`.

What a run was started with is kept in its `run.json`.  Going on takes settings from there and nothing else: no flags of
the program, no settings of Hydra, and no code but what this package's own configuration names.
"""

import difflib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from fedsim_userdp import __version__
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms import settings_tree
from fedsim_userdp.mechanisms.cache_folder import check_cache_folders
from fedsim_userdp.mechanisms.run_files import plain_content
from fedsim_userdp.mechanisms.settings_tree import is_own_code, leaves
from fedsim_userdp.mechanisms.started import FORMAT, RUN_FILE, check_continues, read_started, write_started
from fedsim_userdp.simulations import hydras_own, names
from fedsim_userdp.simulations.explanations import choices
from fedsim_userdp.simulations.kinds import annotations, in_words, is_taken, word_of
from fedsim_userdp.simulations.metric_arguments import leaves_out_metrics, with_metrics_changed

GROUPS = frozenset(
    {"mechanism", "selection", "data", "records", "model", "engine", "optimizer", "experiment"}
)  # choices of a file, not settings
# Hydra's own, as its help lists them.
_FLAGS = frozenset(
    {
        *("-h", "--help", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r"),
        *("--multirun", "-m", "--shell-completion", "-sc", "--config-dir", "-cd", "--info", "-i"),
    }
)
_SWEEP = frozenset({"-m", "--multirun"})
_MAY_BE_NULL = ("audit.epsilons", "audit.real_users")  # of a command's own settings, which no class has
_MAY_BE_ONE = ("benchmark.parts", "describe.records_per_user")  # in place of a list
_MAY_BE_MAPPING = ("tuned.searched", "metrics", "study.grid")
_SWEEP_FILE = "multirun.yaml"
_FOLDERS = ("output_dir", "resume", "cache_dir")
_ABSENT = object()
_log = logging.getLogger(__name__)


def complete_arguments(command: str, arguments: Sequence[str]) -> list[str]:
    """Returns the command line for Hydra: values quoted where need be, and what `resume=PATH` stands for.

    Raises:
        ConfigError: when the folder holds no run of this command, or one that would run somebody else's code; when jobs
            of a sweep would not lie in its folder.
    """
    for before, argument, after in zip(["", *arguments], arguments, [*arguments[1:], ""], strict=False):
        if "=" in argument or argument.startswith(("-", "~")) or not before.startswith("-"):  # else a flag's value
            _check_known(argument, after)
    quoted = [_quoted_if_needed(argument) for argument in arguments]
    for argument in quoted:
        _check_value(argument)
        _check_place(argument)
        if override_key(argument).startswith("hydra") and "=" in argument:
            hydras_own.check_override(_parsed(argument))
        if override_key(argument) == "output_dir" and argument.partition("=")[2].strip(" \"'") in ("", "null", "~"):
            raise ConfigError(f"{argument} names no folder: name one, or leave output_dir out for one in runs/")
        if override_key(argument) == "hydra.mode":
            raise ConfigError(f"{argument}: use --multirun for a sweep")
        if override_key(argument) == "hydra.sweep.subdir" and "=" in argument:
            check_subdir(str(_parsed(argument).value()))
    found = [_parsed(argument).value() for argument in quoted if override_key(argument) == "resume"]
    if not found or found[-1] is None:
        flags = [argument for argument in quoted if argument in _SWEEP]  # Hydra takes none between settings
        return [*flags, *(argument for argument in quoted if argument not in _SWEEP)]
    if not isinstance(found[-1], str | int | float):
        asked = next(argument for argument in quoted if override_key(argument) == "resume")
        raise ConfigError(f"{asked} names several folders: go on with one at a time")
    if isinstance(found[-1], bool) or not str(found[-1]).strip():
        raise ConfigError(
            f"resume={str(found[-1]).lower()} names no run folder: give the one that is to be gone on with"
        )
    folder = str(found[-1])
    _check_one_place(quoted, folder)
    given = {override_key(argument) for argument in quoted} | {"resume", "output_dir"}
    is_sweep = bool(_SWEEP & set(quoted)) or command == "study"
    found_there = map(_quoted_if_needed, (swept_with if is_sweep else _started_with)(Path(folder), command))
    stored, quoted = with_metrics_changed([*found_there], quoted)
    if is_sweep:  # each of its jobs finds out by itself what is left to do
        quoted = [argument for argument in quoted if override_key(argument) != "resume"]
    kept = [override for override in stored if override_key(override) not in given]
    for override in kept:
        _check_harmless(override, folder)
    flags, settings = _flags_and_settings(quoted)
    return [*flags, *kept, *settings, f"output_dir={_quoted(folder)}"]


def _flags_and_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line's flags, each with the value behind it, and its settings."""
    is_flag = [
        argument.startswith("-") or (before.startswith("-") and "=" not in argument)
        for before, argument in zip(["", *arguments], arguments, strict=False)
    ]
    pairs = list(zip(arguments, is_flag, strict=True))
    return [one for one, is_one in pairs if is_one], [one for one, is_one in pairs if not is_one]


def _check_one_place(arguments: Sequence[str], folder: str) -> None:
    """Raises ConfigError where `output_dir` names another folder than the one that is gone on with."""
    named = [str(_parsed(argument).value()) for argument in arguments if override_key(argument) == "output_dir"]
    if named and os.path.abspath(named[-1]) != os.path.abspath(folder):
        raise ConfigError(
            f"resume={folder} goes on in that folder, and output_dir={named[-1]} names another: leave one of them out"
        )


def _check_known(argument: str, after: str) -> None:
    """Raises ConfigError for a flag or a setting that there is not.

    Args:
        argument: of the command line.
        after: the one behind it, which may have been meant as its value.
    """
    if argument.startswith("-"):
        flag, _, value = argument.partition("=")
        hydras_own.check_flag(flag)
        if flag not in _FLAGS:
            said = f"there is no flag {flag}: settings are KEY=VALUE, without dashes"
            near = difflib.get_close_matches(
                flag.replace("_", "-"), [one for one in _FLAGS if one.startswith("--")], n=1, cutoff=0.8
            )
            raise ConfigError(
                said + (f"; did you mean {near[0]}?" if near else _meant(flag.lstrip("-"), value or after))
            )
    elif "=" in argument or argument.startswith("~"):
        key = override_key(argument)
        if leaves_out_metrics(argument):
            return
        names.check_name(key, groups=GROUPS)
        if argument.startswith("~") and key.partition(".")[0] not in GROUPS:
            raise ConfigError(f"{argument}: {key} cannot be left out; set it by {key}=VALUE")
        if argument.startswith("~") and key in GROUPS - {"experiment"}:
            raise ConfigError(f"{argument}: {key} cannot be left out; choose one of {_offered(key)} by {key}=NAME")
    elif argument:
        raise ConfigError(f"{argument} is no setting: settings are KEY=VALUE" + _meant(argument, after))


def _meant(key: str, value: str) -> str:
    """What may have been meant by a key without a value, to be added to what is said of it; empty for nothing."""
    value = "..." if not value or "=" in value or value.startswith("-") else value
    found = [key] if key in names.known() or key in GROUPS else names.suggestions(key)
    return f"; did you mean {' or '.join(f'{name}={value}' for name in found)}?" if found else ""


def _offered(group: str) -> str:
    """The names of a group's files of settings."""
    return ", ".join(choices().get(group, ()))


def _check_value(argument: str) -> None:
    """Raises ConfigError for null, a list or a mapping where one value belongs, and for a choice that is added."""
    key = override_key(argument)
    if argument.startswith(("-", "~")) or "=" not in argument:
        return
    if key in GROUPS and argument.startswith("+"):
        raise ConfigError(f"{argument}: a choice is replaced, not added: write {key}={argument.partition('=')[2]}")
    parsed = _parsed(argument)
    if parsed.is_sweep_override():
        return
    value = parsed.value()
    if key in GROUPS and not isinstance(value, str) and not (key == "experiment" and isinstance(value, list)):
        raise ConfigError(f"{argument} is no choice of {key}: it must be one of {_offered(key)}")
    if key in _FOLDERS and isinstance(value, list | dict):
        raise ConfigError(f"{argument} must be the name of one folder, such as {key}=my-run")
    if key == "metrics" and not isinstance(value, dict):
        raise ConfigError(f"{argument} names no metric's class: write +metrics.NAME._target_=CLASS")
    is_own = key.partition(".")[0] not in GROUPS and key in names.known()
    if is_own and isinstance(value, dict) and key not in _MAY_BE_MAPPING:
        raise ConfigError(f"{argument} must be one value or a list of them, not a mapping")


def _check_place(argument: str) -> None:
    """Raises ConfigError where Hydra's own settings name the folder, which `output_dir` does."""
    key, value = override_key(argument), argument.partition("=")[2]
    if key == "hydra.output_subdir" and value.strip(" \"'") != "null":
        raise ConfigError(f"{argument}: files of Hydra's own are no part of a run's folder: leave it out")
    if key in ("hydra.run.dir", "hydra.sweep.dir"):
        raise ConfigError(
            f"{argument}: a run and all jobs of a sweep lie in one folder, and output_dir names it: write "
            f"output_dir={value or 'FOLDER'} instead"
        )


def beginning(config: DictConfig, command: str) -> Callable[[], None]:
    """Returns what writes down, in the job's folder, what the run was started with.

    It is to be called once nothing can be refused any more, and before anything else is written.  A run that goes on
    keeps what it was started with, unless `checkpoint.allow_changes` let settings differ.

    Raises:
        ConfigError: when the folder is to be resumed and was run with other settings; says which.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    settings = OmegaConf.to_container(config, resolve=True)
    content: dict[str, Any] = {
        "format": FORMAT,
        "command": command,
        "version": __version__,
        "overrides": list(HydraConfig.get().overrides.task),
        "choices": {group: name for group, name in HydraConfig.get().runtime.choices.items() if group in GROUPS},
        "config": settings,
    }
    if config.resume is not None:
        changed = check_continues(settings, folder, may_change=bool(config.checkpoint.allow_changes))
        _check_targets(settings, folder)
        content = content if changed else read_started(folder)
    return partial(write_started, folder, content)


def override_key(override: str) -> str:
    """Returns the key of an override such as `+a.b=c` or `~a`."""
    return override.split("=")[0].lstrip("+~")


def override_value(override: str) -> object:
    """Returns the value of an override."""
    return _parsed(override).value()


_DEPTH = 12  # of a job's folder in that of its sweep, at most


def check_subdir(subdir: str) -> None:
    """Raises ConfigError unless `hydra.sweep.subdir` leads below the sweep's folder, in which its jobs are counted."""
    path = Path(subdir)
    if path.is_absolute() or ".." in path.parts or not 0 < len(path.parts) <= _DEPTH:
        raise ConfigError(
            f"hydra.sweep.subdir={subdir} must name a folder below the sweep's own, such as ${{hydra:job.num}}, with "
            "neither .. nor / at its start: what all jobs promise together is counted and written there"
        )


def check_types(config: DictConfig, config_name: str) -> None:
    """Raises ConfigError when a setting of the running job is of another kind than its default."""
    _check_references(config)
    names.check_arguments(config)
    _check_output_dir(config)
    check_kinds(config, config_name)


def check_kinds(config: DictConfig, config_name: str, only: Sequence[str] = ()) -> None:
    """Raises ConfigError when a setting is of another kind than its default.

    Args:
        config: a job's configuration.
        config_name: the command's.
        only: sections and settings that alone are looked at; empty for all.
    """
    chosen = [override for override in HydraConfig.get().overrides.task if override_key(override) in GROUPS]
    defaults = OmegaConf.to_container(hydra.compose(config_name, overrides=chosen), resolve=True)
    settings = OmegaConf.to_container(config, resolve=True)
    annotated = annotations(config)
    for key, before in leaves(defaults):
        now = _at(settings, key)
        if only and key.partition(".")[0] not in only:
            continue
        if now is not _ABSENT and (now != before or type(now) is not type(before)):
            _check_kind(key, now, before, annotated.get(key, _ABSENT))


def _check_kind(key: str, now: object, before: object, annotation: object) -> None:
    """Raises ConfigError when a setting is of another kind than its class takes; of one without, than its default."""
    example = "" if before is None else f", such as {before}"
    if annotation is not _ABSENT:
        if not is_taken(now, annotation) and not (now is None and before is None):
            raise ConfigError(f"{key}={'null' if now is None else now} must be {in_words(annotation)}{example}")
    elif before is None or (now is None and key in _MAY_BE_NULL):
        return
    elif now is None:
        raise ConfigError(f"{key}=null must be {word_of(before)}{example}")
    elif isinstance(before, list):
        if not isinstance(now, list) and key not in _MAY_BE_ONE:
            raise ConfigError(f"{key}={now} must be a list, such as [{', '.join(map(str, before))}]")
    elif not is_taken(now, type(before)):
        raise ConfigError(f"{key}={now} must be {word_of(before)}{example}")


def _check_references(config: DictConfig) -> None:
    """Raises ConfigError for a setting that refers to one that there is not."""
    for key, value in leaves(OmegaConf.to_container(config)):
        if isinstance(value, str) and "${" in value and not isinstance(_parent_of(config, key), ListConfig):
            try:
                OmegaConf.select(config, key)
            except InterpolationResolutionError as error:
                said = str(error).splitlines()[0].rstrip(".")
                raise ConfigError(f"{key}={value} refers to what is no setting ({said})") from error


def _parent_of(config: DictConfig, key: str) -> object:
    """The node that a setting is in."""
    parent = key.rpartition(".")[0]
    return OmegaConf.select(config, parent) if parent else config


def _check_output_dir(config: DictConfig) -> None:
    """Raises ConfigError where the running job lies elsewhere than `output_dir` says, or what it keeps lies there."""
    hydra_settings = HydraConfig.get()
    is_sweep = hydra_settings.mode == RunMode.MULTIRUN
    if hydra_settings.mode is None or OmegaConf.is_missing(hydra_settings.runtime, "cwd"):
        return  # composed, not run
    named = hydra_settings.sweep.dir if is_sweep else hydra_settings.run.dir
    asked, place = (Path(hydra_settings.runtime.cwd, str(one)) for one in (config.output_dir, named))
    if os.path.abspath(asked) != os.path.abspath(place):
        raise ConfigError(
            f"output_dir={config.output_dir} and hydra.{'sweep' if is_sweep else 'run'}.dir={named} name two folders: "
            "leave the latter out"
        )
    settings: Any = OmegaConf.to_container(config, resolve=True)
    check_cache_folders(settings, Path(hydra_settings.runtime.output_dir), *([place] if is_sweep else []))


def _quoted_if_needed(argument: str) -> str:
    """The argument, its value quoted where Hydra could not read it otherwise: a path with an emoji, say."""
    key, equals, value = argument.partition("=")
    if "\0" in value or not _is_text(argument):
        raise ConfigError(f"{key}={value[:80]!r} is no text: it holds NUL characters, or bytes that are not UTF-8")
    if not equals or key.startswith("-"):
        return argument
    if key in GROUPS and "${" in value:
        raise ConfigError(f"{key}={value[:80]} is unknown: it must be the name of a file of settings")
    try:
        _parsed(argument)
    except HydraException:
        return f"{key}={_quoted(value)}"
    except RecursionError as error:
        raise ConfigError(f"{key}={value[:80]}... is nested too deeply") from error
    return argument


def _is_text(value: str) -> bool:
    """Whether UTF-8 can hold it, which it cannot where a byte of the command line was not UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _quoted(value: str) -> str:
    """A text that Hydra reads as it is."""
    return QuotedString(text=value.replace("${", "\\${"), quote=Quote.single).with_quotes()


def _parsed(override: str) -> Override:
    """The override as Hydra reads it."""
    return OverridesParser.create().parse_override(override)


def _started_with(folder: Path, command: str) -> list[str]:
    """The overrides that the run in a folder was started with."""
    if not (folder / RUN_FILE).is_file() and (folder / _SWEEP_FILE).is_file():
        raise ConfigError(f"resume={folder} holds a sweep, not one run: add --multirun to go on with its jobs")
    if folder.name == RUN_FILE and folder.is_file():
        raise ConfigError(f"resume={folder} is a file of a run: give the folder, resume={folder.parent}")
    content = read_started(folder)
    if content.get("command") != command:
        raise ConfigError(f"resume={folder} holds a run of `fedsim {content.get('command')}`: resume it with that")
    overrides = content.get("overrides")
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise ConfigError(f"{folder / RUN_FILE}: its overrides are not a list of texts")
    return overrides


def swept_with(folder: Path, command: str) -> list[str]:
    """Returns the overrides that the sweep or study in a folder was started with.

    Raises:
        ConfigError: it holds none, or one of another command.
    """
    file = folder / _SWEEP_FILE
    try:
        content = yaml.safe_load(plain_content(file))
        found, name = content["hydra"]["overrides"]["task"], content["hydra"]["job"]["config_name"]
    except FileNotFoundError as error:
        raise ConfigError(f"resume={folder} holds no sweep: there is no {file.name}; leave out --multirun") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read ({error})") from error
    if name != command:
        raise ConfigError(f"resume={folder} holds a sweep of `fedsim {name}`: resume it with that")
    if not isinstance(found, list) or not all(isinstance(override, str) for override in found):
        raise ConfigError(f"{file}: its overrides are not a list of texts")
    return found


def _check_harmless(override: str, folder: str) -> None:
    """Raises ConfigError for a stored override that is more than a setting: a flag, Hydra's own, foreign code."""
    if hydras_own.is_more_than_a_setting(override):
        raise ConfigError(f"resume={folder}: {RUN_FILE} holds {override!r}, which is no setting of a run")
    if not all(map(is_own_code, _targets_in([override]))):
        raise ConfigError(
            f"resume={folder}: the run used {override}, code that does not belong to this program: give it again on "
            "the command line if you trust it"
        )


def _check_targets(settings: object, folder: Path) -> None:
    """Raises ConfigError when a resumed run would run code that neither this program nor the command line names."""
    named = _targets_in(HydraConfig.get().overrides.task)
    for key, value in leaves(settings):
        if key.endswith("_target_") and not is_own_code(str(value)) and value not in named:
            raise ConfigError(
                f"resume={folder}: {key}={value} is code that does not belong to this program: give "
                "it again on the command line if you trust it"
            )


def override_problem(overrides: Sequence[str], settings: object, choices: Mapping[str, str]) -> str:
    """Returns which override is not in the settings or choices that it led to, in words; empty where all are.

    Args:
        overrides: `KEY=VALUE` each; of those with one key the last counts.
        settings: The resolved configuration, nested mappings.
        choices: Names of the files of settings that were chosen, by group.
    """
    for override in {override_key(override): override for override in overrides}.values():
        key, value = override_key(override), _parsed(override).value()
        now = choices.get(key, _ABSENT) if key in GROUPS else _at(settings, key)
        is_plain = isinstance(now, str | int | float | None) and "${" not in str(value)
        if is_plain and not override.startswith("~") and now != (str(value) if isinstance(now, str) else value):
            return f"{RUN_FILE}: {override} led to {now!r}"
    return ""


def foreign_targets(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Returns the `_target_`s of a configuration that neither this program nor the overrides name."""
    named = _targets_in(overrides)
    return [target for target in settings_tree.foreign_targets(config) if target not in named]


def _targets_in(overrides: Sequence[str]) -> set[str]:
    """The `_target_`s that overrides name, in lists and mappings too."""
    found: set[str] = set()
    for override in overrides:
        parsed = _parsed(override)
        values = parsed.sweep_iterator() if parsed.is_sweep_override() else [parsed.value()]
        for value in values:
            at = parsed.key_or_group
            found |= {str(one) for key, one in leaves({at: value}) if key.rpartition(".")[2] == "_target_"}
    return found


def _at(node: object, key: str) -> object:
    """The part of nested mappings at a dotted key, or `_ABSENT`."""
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return _ABSENT
        node = node[part]
    return node
