"""What tests of `fedsim verify` share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from fedsim_userdp.simulations.verify import folder_checks


def problems(folder: Path) -> list[str]:
    """What is wrong with a folder."""
    return [f"{check.about}: {check.problem}" for check in folder_checks(folder) if check.problem]


def first_problem(folder: Path) -> str:
    """What is found first; empty if nothing is."""
    return next((f"{check.about}: {check.problem}" for check in folder_checks(folder) if check.problem), "")


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=2) + "\n")


def change_text(path: Path, old: str, new: str) -> None:
    """Puts `new` where `old` is first."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def configure(folder: Path, key: str, value: object) -> None:
    """Changes a setting in both files that hold it, as if the run had been started with it."""

    def change(content: dict[str, Any]) -> None:
        node = content["config"]
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = value
        content["overrides"] = [each for each in content["overrides"] if not each.startswith(f"{key}=")]
        content["overrides"].append(f"{key}={'null' if value is None else value}")

    change_json(folder / "run.json", change)
    stored = json.loads((folder / "run.json").read_text())["config"]
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
