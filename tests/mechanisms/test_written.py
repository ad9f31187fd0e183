"""Objects written down as settings lead to the same objects again."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from fedsim_userdp import conf
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.identity import settings_digest
from fedsim_userdp.mechanisms.settings_tree import tree_of
from fedsim_userdp.mechanisms.written import as_value, defaults_in, tuned_tree, written
from fedsim_userdp.selection import PoissonSelector
from fedsim_userdp.settings import SECTIONS, Settings
from fedsim_userdp.simulations.configured import plain

GOLDEN = {  # of the default settings, before the mechanisms moved
    "user_wise": "02db1363214586e9",
    "user_wise_adaptive": "4d0b7be87698f7c9",
    "group_privacy": "e953c39414332337",
    "example_level_tight": "93892c86663e82e5",
    "record_level": "42c81517c24d1a8c",
    "non_private": "4844303fd28e26e6",
    "zero_shot": "c8f6946daa5e6401",
}
ROOT = Path(str(conf.__file__)).resolve().parent
FILES = [
    (path.parent.name, path.stem)
    for path in sorted(ROOT.glob("*/*.yaml"))
    if path.parent.name not in ("experiment", "__pycache__")
]


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        return plain(compose("compare", overrides=[*overrides, "output_dir=none"]))


_NOT_THE_CLASSES = {("selection", "public"), ("selection", "public_columns")}


def made(group: str, tree: dict[str, Any]) -> Any:
    """The object of a group's settings; the file of public facts is no setting of a selection's class."""
    own = {key: value for key, value in tree.items() if (group, key) not in _NOT_THE_CLASSES}
    return instantiate(own, _convert_="all")


@pytest.mark.parametrize(("group", "name"), FILES)
def test_what_a_file_of_settings_makes_is_written_down_as_that_file(group: str, name: str) -> None:
    """So a run made in Python has the identity of the command's, and the command can go on with it."""
    tree = composed(f"{group}={name}")[group]
    found = written(group, made(group, tree))
    alike = {"selection": {"seldom": "poisson"}}.get(group, {}).get(name, name)
    assert found.tree == tree
    assert found.choice in (name, alike)
    assert composed(f"{group}={found.choice}", *found.overrides)[group] == tree
    assert defaults_in(group, name) == tree


@pytest.mark.parametrize(
    ("group", "value"),
    [
        ("selection", PoissonSelector(0.123)),
        ("optimizer", partial(torch.optim.AdamW, weight_decay=0.1, betas=(0.8, 0.9))),
        ("optimizer", partial(torch.optim.SGD)),
    ],
)
def test_overrides_of_an_object_lead_to_it(group: str, value: object) -> None:
    found = written(group, value)
    tree = composed(f"{group}={found.choice}", *found.overrides)[group]
    assert tree == found.tree
    assert written(group, made(group, tree)).tree == tree


@pytest.mark.parametrize("value", ["it's", "a\\'b", "${x}", "", "1", "[a]", None, True, 1, 1e-7, [1, "b"], {"k": "v'"}])
def test_a_value_is_read_as_it_was_written(value: object) -> None:
    assert composed(f"+lora.probe={as_value(value)}")["lora"]["probe"] == value


def test_the_sections_of_the_base_file_are_the_settings_classes() -> None:
    """One definition: same settings, same defaults."""
    base = yaml.safe_load((ROOT / "base.yaml").read_text(encoding="utf-8"))
    tree = Settings().to_tree()
    for name in SECTIONS:
        assert base[name] == tree[name], name
    assert {name: base[name] for name in ("seed", "threads", "cache_dir")} == {
        name: tree[name] for name in ("seed", "threads", "cache_dir")
    }


def test_the_mechanisms_defaults_are_the_commands() -> None:
    tuned = composed()["tuned"]
    assert tuned_tree() == tuned
    from fedsim_userdp import NonPrivate, RecordLevelDP, UserWise, UserWiseAdaptive, ZeroShot

    for value in (UserWise(), UserWiseAdaptive(), RecordLevelDP(), RecordLevelDP(accountant="tight"), NonPrivate()):
        assert composed(f"mechanism={value.name}")["mechanism"] == tree_of("mechanism", value)
        assert not written("mechanism", value).overrides
    assert asdict(ZeroShot()) == {"name": "zero_shot"}


class _Holder:
    def __init__(self, thing: object) -> None:
        self.thing = thing


class _Hiding:
    def __init__(self, q: float) -> None:
        self._q = q


class _Changed:
    """Takes nothing."""


def test_a_setting_that_would_be_lost_is_refused() -> None:
    """Two runs that differ in it alone would have one noise."""
    with pytest.raises(ConfigError, match=r"selection=_Hiding: .*take q as an argument, and keep it as self\.q"):
        tree_of("selection", _Hiding(0.5))
    changed = _Changed()
    assert tree_of("selection", changed) == {"_target_": f"{__name__}._Changed"}
    changed.q = 0.5  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="take q as an argument"):
        tree_of("selection", changed)
    with pytest.raises(ConfigError, match=r"partial\(\) must be given its arguments by name"):
        tree_of("optimizer", partial(torch.optim.SGD, [], 0.1))


def test_what_cannot_be_written_down_is_refused() -> None:
    class Local:
        """Nobody can import this."""

    with pytest.raises(ConfigError, match="must be defined at the top of a module"):
        tree_of("selection", Local())
    with pytest.raises(ConfigError, match="its setting thing is object"):
        tree_of("selection", _Holder(object()))


def test_the_identity_of_a_run_is_the_one_it_always_had() -> None:
    """Seeded noise follows from it: a class that moves must not change anybody's numbers."""
    digests = {name: settings_digest(composed(f"mechanism={name}"))[:16] for name in GOLDEN}
    assert digests == GOLDEN
