"""Writes what follows from the definition of settings: `python -m fedsim_userdp.simulations.settings_page`.

The sections of `conf/base.yaml` are the fields of `fedsim_userdp.settings`, with their defaults and what their
docstrings say of them; docs/settings.md lists all files of settings.
"""

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, fields

from fedsim_userdp.settings import SECTIONS, Settings
from fedsim_userdp.simulations.command_help import as_yaml
from fedsim_userdp.simulations.explanations import ROOT, SettingsFile, choices, read_choice, read_settings

PAGE = ROOT.parent / "docs" / "settings.md"
_HEAD = """# Settings

Every setting is `KEY=VALUE` on the command line. `fedsim COMMAND --help` lists a command's settings with their values,
`fedsim COMMAND --help WORD` those with WORD in their names. This page is made from `conf/*.yaml` and the docstrings of
`fedsim_userdp.settings` by `python -m fedsim_userdp.simulations.settings_page`: change them there.
"""
_COMMON = "base"
_COLUMN, _WIDTH = 27, 120  # where comments begin, and end


def page() -> str:
    """Returns the page."""
    parts = [_HEAD, "## Of every command that trains", "", *_table("", read_settings(ROOT / f"{_COMMON}.yaml"))]
    for path in sorted(ROOT.glob("*.yaml")):
        file = read_settings(path)
        if path.stem != _COMMON and file.settings:
            title, _, about = file.about.partition(": ")
            parts += ["", f"## `{title}`", "", _sentence(about), "", *_table("", file)]
    for group, offered in choices().items():
        parts += ["", f"## `{group}=NAME`"]
        for name in offered:
            file = read_choice(group, name)
            parts += ["", f"### `{group}={name}`", "", _sentence(file.about), "", *_table(_prefix(group), file)]
    return "\n".join(parts) + "\n"


def _table(prefix: str, file: SettingsFile) -> Iterator[str]:
    """A row for each setting, and for each section of which something is said."""
    yield "| setting | value | meaning |"
    yield "|---|---|---|"
    said: set[str] = set()
    for key, value in file.settings.items():
        parts = key.split(".")
        for section in (".".join(parts[:length]) for length in range(1, len(parts))):
            if section not in said and section in file.explained:
                yield f"| `{prefix}{section}.*` | | {_cell(file.explained[section])} |"
            said.add(section)
        meaning = "the class" if key == "_target_" else file.explained.get(key, "")
        yield f"| `{prefix}{key}` | `{_cell(value)}` | {_cell(meaning)} |"


def _prefix(group: str) -> str:
    """What stands before the keys of a group's files; an experiment sets those of all others."""
    return "" if group == "experiment" else f"{group}."


def _sentence(text: str) -> str:
    """A comment as a sentence of its own."""
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "?", "!")) else ".")


def _cell(text: str) -> str:
    """A text that a cell of a table can hold."""
    return text.replace("|", "\\|")


def base_file(text: str) -> str:
    """Returns the content of `conf/base.yaml`, its settings as `fedsim_userdp.settings` defines them.

    Args:
        text: the content with what else it holds; each section and setting of `Settings` must be in it.
    """
    values, meanings = asdict(Settings()), _meanings(Settings)
    for one in fields(Settings):
        kind = SECTIONS.get(one.name)
        if kind is None:
            lines = list(_entry(one.name, values[one.name], meanings[one.name]))
        else:
            said = _meanings(kind)
            lines = [f"{one.name}:"]
            for key, value in values[one.name].items():
                lines += _entry(f"  {key}", value, said[key])
        text, count = re.subn(rf"^{one.name}:.*\n(?:[ \t]+.*\n)*", "\n".join([*lines, ""]), text, flags=re.M)
        if count != 1:
            raise ValueError(f"{one.name} is {count} times in conf/{_COMMON}.yaml and must be there once")
    return text


def _entry(key: str, value: object, meaning: str) -> Iterator[str]:
    """A setting and what it means, as lines of a file."""
    begun = f"{key}: {as_yaml(value)}"
    column = max(_COLUMN, len(begun) + 3)
    lines = textwrap.wrap(meaning.rstrip("."), _WIDTH - column - 2, break_long_words=False, break_on_hyphens=False)
    for number, line in enumerate(lines):
        yield f"{'' if number else begun:<{column}}# {line}"


def _meanings(kind: type) -> dict[str, str]:
    """What the docstring of a class says of its fields."""
    entries = re.search(r"^Attributes:\n((?: +.*\n?)+)", inspect.getdoc(kind) or "", re.M)
    found = re.split(r"^    (?=\w)", entries[1] if entries else "", flags=re.M)[1:]
    return {name: " ".join(said.split()) for name, _, said in (one.partition(":") for one in found)}


def main() -> None:
    """Writes both."""
    base = ROOT / f"{_COMMON}.yaml"
    base.write_text(base_file(base.read_text(encoding="utf-8")), encoding="utf-8")
    read_settings.cache_clear()
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
