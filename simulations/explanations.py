"""What each setting means: the comments of `conf/*.yaml`, the one place where settings are explained."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fedsim_userdp import conf

ROOT = Path(str(conf.__file__)).resolve().parent
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, where there is one


@dataclass(frozen=True)
class SettingsFile:
    """A file of settings with its comments.

    Attributes:
        about: what the file is for; empty where it does not say.
        settings: dotted keys of its settings, in their order, with the value as YAML.
        explained: dotted keys of settings and sections, with the comment beside them.
    """

    about: str
    settings: dict[str, str]
    explained: dict[str, str]


@cache
def read_settings(path: Path) -> SettingsFile:
    """Returns the settings of a YAML file and what its comments say of them.

    A comment belongs to the first key of its line and goes on in lines that hold nothing but a comment in the same
    column.  The lines before the first key, or else what stands beside `_target_`, say what the file is for.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    keys: dict[int, str] = {}  # by line, the outermost first
    ends: dict[int, int] = {}  # by line, the column after its last node
    settings: dict[str, str] = {}
    root = yaml.compose(text, Loader=_LOADER)
    for name, key, value in _nodes(root, ""):
        keys.setdefault(key.start_mark.line, name)
        is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        end = (key if is_block else value).end_mark  # a block ends where the next key begins
        ends[end.line] = max(ends.get(end.line, 0), end.column)
        if isinstance(value, yaml.SequenceNode) and is_block:
            settings[name] = f"[{', '.join(str(item.value) for item in value.value)}]"
        elif not isinstance(value, yaml.MappingNode) or not value.value:
            settings[name] = text[value.start_mark.index : value.end_mark.index].strip()
    said = {key: _comment(lines, line, ends.get(line, 0)) for line, key in sorted(keys.items())}
    explained = {key: comment for key, comment in said.items() if comment}
    return SettingsFile(_head(lines) or explained.get("_target_", ""), settings, explained)


@cache
def choices() -> dict[str, tuple[str, ...]]:
    """Returns the groups of settings files, with the names that each offers."""
    folders = sorted(path for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.yaml")))
    return {folder.name: tuple(sorted(file.stem for file in folder.glob("*.yaml"))) for folder in folders}


def read_choice(group: str, name: str) -> SettingsFile:
    """Returns the file that `GROUP=NAME` chooses; its keys lie below the group's, except those of an experiment."""
    return read_settings(ROOT / group / f"{name}.yaml")


class Explanations:
    """What the settings of a command mean, for a choice of files.

    Args:
        command: name of the command's own file, such as `run`.
        chosen: names of the files that were chosen, by group.
    """

    def __init__(self, command: str, chosen: dict[str, str]) -> None:
        self._files = [("", read_settings(ROOT / f"{command}.yaml"))]
        for group, name in chosen.items():
            if name in choices().get(group, ()) and group != "experiment":
                self._files.append((f"{group}.", read_choice(group, name)))
        self._files.append(("", read_settings(ROOT / "base.yaml")))

    def __getitem__(self, key: str) -> str:
        """What a dotted key means; empty where nothing is said of it."""
        for prefix, file in self._files:
            if key.startswith(prefix) and (said := file.explained.get(key.removeprefix(prefix))):
                return said
        return ""


def is_setting(key: str) -> bool:
    """Returns whether a key of a file is a setting, not what Hydra puts it together by."""
    return key.partition(".")[0] not in ("defaults", "hydra") and not key.endswith("_partial_")


def _nodes(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """The dotted name, key and value of every entry of nested mappings."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if is_setting(name):
            yield name, key, value
            yield from _nodes(value, f"{name}.")


def _comment(lines: list[str], line: int, column: int) -> str:
    """The comment after `column` of a line, with the lines that go on with it; empty where there is none."""
    rest = lines[line][column:].lstrip(" :")
    if not rest.startswith("#"):
        return ""
    found, place = [rest], len(lines[line]) - len(rest)
    for below in lines[line + 1 :]:
        if not below[place:].startswith("#") or below[:place].strip():
            break
        found.append(below[place:])
    return " ".join(part.lstrip("# ").rstrip() for part in found)


def _head(lines: list[str]) -> str:
    """The first paragraph of the comment before the first key."""
    found = []
    for line in lines:
        if not line.startswith("#") or line == "#":
            break
        if not line.startswith("# @package"):
            found.append(line.lstrip("# ").rstrip())
    return " ".join(found)
