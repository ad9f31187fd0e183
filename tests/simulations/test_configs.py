from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from fedsim_userdp.simulations.names import without_public

ROOT = Path(__file__).parents[2] / "conf"
GROUPS = sorted(
    (path.parent.name, path.stem) for path in ROOT.glob("*/*.yaml") if path.parent.name not in ("experiment",)
)
EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiment").glob("*.yaml"))
COMMANDS = sorted(path.stem for path in ROOT.glob("*.yaml") if path.stem != "base")


@pytest.mark.parametrize(("group", "name"), GROUPS)
def test_every_choice_composes_and_names_a_class_that_takes_its_settings(group: str, name: str) -> None:
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        config = compose("run", overrides=[f"{group}={name}"])
    node = config[group]
    if node.get("_partial_", False):
        assert callable(instantiate(node))
        return
    instance = instantiate(without_public(node) if group == "selection" else node)
    assert isinstance(instance, get_class(node._target_))


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("command", ["run", "compare"])
def test_every_experiment_composes_and_resolves(command: str, name: str) -> None:
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        config = compose(command, overrides=[f"experiment={name}", "output_dir=x"])
        OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_setting_is_explained(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "#" in text, f"{path} explains nothing"
