"""Imports go one way, as docs/design.md has it: from the commands down to the privacy accounting and the errors."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {
    "fedsim_userdp.errors": 0,
    "fedsim_userdp.naming": 0,
    "fedsim_userdp.plain_files": 0,
    "fedsim_userdp.printable": 0,
    "fedsim_userdp.stopping": 0,
    "fedsim_userdp.cache": 1,
    "fedsim_userdp.plugins": 1,
    "fedsim_userdp.sealed": 1,
    "fedsim_userdp.settings": 1,
    "fedsim_userdp.privacy": 2,
    "fedsim_userdp.participation": 3,
    "fedsim_userdp.population": 3,
    "fedsim_userdp.sampling_plan": 3,
    "fedsim_userdp.selectors": 3,
    "fedsim_userdp.selection": 3,
    "fedsim_userdp.signals": 3,
    "fedsim_userdp.studies": 5,
    "fedsim_userdp.wagers": 3,
    "fedsim_userdp.data": 3,
    "fedsim_userdp.models": 3,
    "fedsim_userdp.training": 4,
    "fedsim_userdp.report": 4,
    "fedsim_userdp.audit": 5,
    "fedsim_userdp.federation": 5,
    "fedsim_userdp.strategies": 6,
    "fedsim_userdp.mechanisms": 7,
    "fedsim_userdp.simulations": 8,
}
ONLY_IN = {
    "flwr": ("fedsim_userdp.federation", "fedsim_userdp.strategies", "fedsim_userdp.simulations.measurements"),
    "ray": ("fedsim_userdp.federation",),
    "hydra": ("fedsim_userdp.simulations",),
    "omegaconf": ("fedsim_userdp.simulations",),
    "opacus": ("fedsim_userdp.training",),
}
# Tensors are mathematics; module classes, Flower and Hydra are not.
PRIVACY_MAY_NOT = ("flwr", "hydra", "omegaconf", "peft", "transformers", "torch.nn", "opacus")
MODULES = sorted(
    path for folder in ("fedsim_userdp", "strategies", "simulations") for path in (ROOT / folder).rglob("*.py")
)


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return name if name.startswith("fedsim_userdp") else f"fedsim_userdp.{name}"


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(name: str) -> int | None:
    return next((rank for prefix, rank in LAYERS.items() if f"{name}.".startswith(f"{prefix}.")), None)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_one_way(path: Path) -> None:
    own = layer(module_name(path))
    if own is None:
        return
    upwards = {name for name in imports(path) if (other := layer(name)) is not None and other > own}
    assert not upwards


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_frameworks_are_imported_only_at_their_edge(path: Path) -> None:
    for framework, allowed in ONLY_IN.items():
        if any(f"{name}.".startswith(f"{framework}.") for name in imports(path)):
            assert module_name(path).startswith(allowed), f"{path} imports {framework}"


def test_privacy_is_mathematics_only() -> None:
    for path in (ROOT / "fedsim_userdp" / "privacy").rglob("*.py"):
        assert not [name for name in imports(path) if name.startswith(PRIVACY_MAY_NOT)], path


def test_the_graph_check_sees_a_wrong_import(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from fedsim_userdp.federation import engines\n")
    assert layer(next(iter(imports(wrong)))) == LAYERS["fedsim_userdp.federation"]
