"""`fedsim COMMAND --help [WORD ...]`: a command's settings with their values and what they mean."""

import difflib
import shutil
import textwrap
from collections.abc import Iterator, Sequence

import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.simulations import names
from fedsim_userdp.simulations.arguments import GROUPS, complete_arguments
from fedsim_userdp.simulations.explanations import Explanations, choices, is_setting, read_choice

FLAGS = frozenset({"-h", "--help"})
_OTHER_FLAGS = frozenset({"-m", "--multirun"})  # which change nothing in the help
_COLUMN, _WIDTH = 34, 80  # where explanations begin; columns at least


def is_asked(arguments: Sequence[str]) -> bool:
    """Returns whether a command line asks for the help that is given here; with other flags it is Hydra's own."""
    flags = {argument for argument in arguments if argument.startswith("-")}
    return bool(flags & FLAGS) and flags <= FLAGS | _OTHER_FLAGS


def help_text(name: str, config_name: str, arguments: Sequence[str]) -> str:
    """Returns the help of a command.

    Args:
        name: The command.
        config_name: Name of its file of settings.
        arguments: Its command line: settings, by which values are shown, and words to look for in names.

    Raises:
        ConfigError: A setting is wrong, or no name has one of the words in it.
    """
    asked = [argument for argument in arguments if "=" not in argument and argument[:1] not in ("-", "~", "+")]
    given = complete_arguments(name, [one for one in arguments if one not in asked and not one.startswith("-")])
    words = [word.lower() for word in asked]
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        config = compose(config_name, overrides=given, return_hydra_config=True)
    chosen = {group: chosen for group, chosen in config.hydra.runtime.choices.items() if group in GROUPS}
    header = str(config.hydra.help.header).strip()
    settings = OmegaConf.to_container(config, resolve=False)
    values = {key: value for key, value in _leaves(settings) if is_setting(key)}
    explanations = Explanations(config_name, chosen)
    if not words:
        offered = {f"{group}=NAME": ", ".join(choices()[group]) for group in sorted(chosen)}
        told = [header, f"`fedsim {name} --help WORD ...` shows only settings and choices with WORD in their names."]
        return "\n".join([*told, "", *(_entries(offered)), *([""] if offered else []), *_shown(values, explanations)])
    found = {
        f"{group}={one}": read_choice(group, one).about
        for group in sorted(chosen)
        for one in choices()[group]
        if any(word in f"{group}={one}" for word in words)
    }
    matching = {key: value for key, value in values.items() if any(word in key for word in words)}
    for word in words:
        if not any(word in one for one in (*found, *values)):
            last = {key: key.rpartition(".")[2] for key in values}
            near = [key for key in values if difflib.get_close_matches(word.rpartition(".")[2], [last[key]], 1, 0.75)]
            meant = [key for key in names.suggestions(word) if key in values] or near[:3]
            raise ConfigError(
                f"no setting of fedsim {name} has {word} in its name"
                + (f"; did you mean {' or '.join(meant)}?" if meant else "")
            )
    return "\n".join([*_entries(found), *([""] if found and matching else []), *_shown(matching, explanations)])


def _shown(values: dict[str, object], explanations: Explanations) -> Iterator[str]:
    """Settings, each section of them below a line that says what it is for, where that is said."""
    said: set[str] = set()
    for key, value in values.items():
        parts = key.split(".")
        for section in (".".join(parts[:length]) for length in range(1, len(parts))):
            if section not in said and explanations[section]:
                yield from _entries({f"{section}.*": explanations[section]})
            said.add(section)
        yield from _entries({f"{key}={as_yaml(value)}": explanations[key]})


def _entries(entries: dict[str, str]) -> Iterator[str]:
    """Names and what is said of them, in two columns, as wide as the terminal but no narrower than 80 columns."""
    width = max(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)
    for name, about in entries.items():
        lines = textwrap.wrap(about, width - _COLUMN, break_long_words=False, break_on_hyphens=False)
        if lines and len(name) <= _COLUMN - 2:
            yield f"{name:<{_COLUMN}}{lines.pop(0)}"
        else:
            yield name
        yield from (" " * _COLUMN + line for line in lines)


def as_yaml(value: object) -> str:
    """Returns a value on one line, as a file of settings has it."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _leaves(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Values of nested mappings by dotted key."""
    if isinstance(node, dict) and (node or not prefix):
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node
