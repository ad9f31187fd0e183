"""Writes docs/settings.md from the files of settings: `python -m fedsim_userdp.simulations.settings_page`."""

from collections.abc import Iterator

from fedsim_userdp.simulations.explanations import ROOT, SettingsFile, choices, read_choice, read_settings

PAGE = ROOT.parent / "docs" / "settings.md"
_HEAD = """# Settings

Every setting is `KEY=VALUE` on the command line. `fedsim COMMAND --help` lists a command's settings with their values,
`fedsim COMMAND --help WORD` those with WORD in their names. This page is made from the comments of `conf/*.yaml` by
`python -m fedsim_userdp.simulations.settings_page`: change them there.
"""
_COMMON = "base"


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


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
