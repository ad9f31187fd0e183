"""`fedsim compare`: every mechanism at one user-level budget."""

from collections.abc import Iterable, Mapping
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, ListConfig

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.written import as_value
from fedsim_userdp.simulations.arguments import override_key
from fedsim_userdp.simulations.jobs import check_used, run_job
from fedsim_userdp.simulations.sentences import sentence

_UNTRAINED = "zero_shot"  # which no selection changes


@hydra.main(version_base="1.3", config_path="pkg://fedsim_userdp.conf", config_name="compare")
def main(config: DictConfig) -> None:
    """Runs the mechanisms one after the other and writes table, plot and adapters."""
    run_job(config, "compare", lambda: mechanism_configs(config), lambda: names_of_runs(config))


def names_of_runs(config: DictConfig) -> list[str]:
    """Returns the names of the runs of a comparison, as its statement has them."""
    return [f"{run.get('mechanism.name', run['mechanism'])}, seed {run['seed']}" for run in compared_runs(config)]


def mechanism_configs(config: DictConfig) -> list[DictConfig]:
    """Returns the configuration of each run: this command's own overrides, with another mechanism and seed.

    Raises:
        ConfigError: when there is no mechanism to compare, or a setting that is given changes none of them.
    """
    changes = compared_runs(config)
    try:
        found = [compose_again("compare", one) for one in changes]
    except MissingConfigException as error:
        raise ConfigError(f"compare.mechanisms={list(config.compare.mechanisms)}: {sentence(error)}") from error
    check_used(zip(found, changes, strict=True))
    return found


def compared_runs(config: DictConfig) -> list[dict[str, Any]]:
    """Returns what differs from run to run of a comparison: mechanism, seed, and settings of the mechanism.

    Raises:
        ConfigError: when there is no mechanism to compare, or no seed, or one of either twice.
    """
    named = config.compare.mechanisms
    entries = [] if named is None else list(named) if isinstance(named, ListConfig) else [named]
    if named is not None and not isinstance(named, ListConfig | str):
        raise ConfigError(f"compare.mechanisms={named} must be a list of mechanisms, such as [user_wise,group_privacy]")
    if not entries:
        raise ConfigError("compare.mechanisms is empty: name at least one mechanism")
    mechanisms = [changes_of(entry) for entry in entries]
    names = [one.get("mechanism.name", one["mechanism"]) for one in mechanisms]
    chosen = config.compare.seeds
    seeds = [config.seed] if chosen is None else list(chosen) if isinstance(chosen, ListConfig) else [chosen]
    if not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise ConfigError(f"compare.seeds={chosen} must be a list of whole numbers, such as [0,1,2], or null")
    if negative := [seed for seed in seeds if seed < 0]:
        raise ConfigError(f"compare.seeds={seeds} holds {negative[0]}: seeds must be at least 0")
    if not seeds:
        raise ConfigError("compare.seeds is empty: name at least one seed, or set it to null for `seed` alone")
    for key, values in (("mechanisms", names), ("seeds", seeds)):
        if twice := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
            raise ConfigError(f"compare.{key}={values} names {twice[0]} twice: leave out one of the two")
    return [{**one, "seed": seed} for seed in seeds for one in _with_selections(mechanisms, config)]


def _with_selections(mechanisms: list[dict[str, Any]], config: DictConfig) -> list[dict[str, Any]]:
    """The mechanisms, each with each of `compare.selections` where there are any; the untrained model once.

    Raises:
        ConfigError: `compare.selections` is no list of selections, or two have one name.
    """
    named = config.compare.get("selections")
    if named is None:
        return mechanisms
    selections = [selection_of(entry) for entry in (named if isinstance(named, ListConfig) else [named])]
    names = [name for name, _ in selections]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"compare.selections={named} must be a list of selections of different names, such as [poisson,growing]; "
            "an entry may be {selection: stratified, users_per_group: 8, name: eight}"
        )
    untrained = [one for one in mechanisms if one == {"mechanism": _UNTRAINED}]
    return untrained + [
        {**one, **changes, "mechanism.name": f"{one.get('mechanism.name', one['mechanism'])}_{name}"}
        for name, changes in selections
        for one in mechanisms
        if one not in untrained
    ]


def selection_of(entry: object) -> tuple[str, dict[str, Any]]:
    """The name of an entry of `compare.selections`, and what it changes: a file of settings, and some of its own."""
    settings = dict(entry) if isinstance(entry, Mapping) else {"selection": entry}
    choice = settings.pop("selection", None)
    name = settings.pop("name", choice)
    if not isinstance(choice, str) or not isinstance(name, str):
        raise ConfigError(f"compare.selections holds {entry}: it must be the name of a selection, such as growing")
    return name, {"selection": choice, **{f"selection.{key}": value for key, value in settings.items()}}


def changes_of(entry: object) -> dict[str, Any]:
    """What an entry of `compare.mechanisms` changes: a file of settings, and settings of its own.

    An entry is the name of a file, or a mapping of `mechanism`, which names one, and of settings.  One with a
    `_target_` is a class of the user's own, which takes the settings that stand there and no other.
    """
    if isinstance(entry, str):
        return {"mechanism": entry}
    if not isinstance(entry, Mapping):
        raise ConfigError(
            f"compare.mechanisms holds {entry}: it must be a list of mechanisms, such as [user_wise,group_privacy]"
        )
    settings = {str(key): value for key, value in entry.items() if key != "mechanism"}
    if "_target_" in settings and "name" not in settings:
        settings["name"] = str(settings["_target_"]).rpartition(".")[2]
    name = entry.get("mechanism", "user_wise" if "_target_" in settings else None)
    if not isinstance(name, str):
        raise ConfigError(f"compare.mechanisms holds {entry}: it lacks `mechanism: NAME`, or a _target_ of your own")
    return {"mechanism": name, **{f"mechanism.{key}": value for key, value in settings.items()}}


def compose_again(config_name: str, changes: Mapping[str, Any]) -> DictConfig:
    """Returns the running job's configuration with `changes`, as `composed` does."""
    return composed(config_name, HydraConfig.get().overrides.task, changes)


def composed(config_name: str, overrides: Iterable[str], changes: Mapping[str, Any]) -> DictConfig:
    """Returns the configuration of `overrides_with`."""
    return hydra.compose(config_name, overrides=overrides_with(config_name, overrides, changes))


def overrides_with(config_name: str, overrides: Iterable[str], changes: Mapping[str, Any]) -> list[str]:
    """Returns the overrides with `changes`, of which a mechanism's own settings go first.

    An override of a setting that the changed mechanism or selection does not have (`mechanism.clip_norm` of the
    non-private run) is left out; that some mechanism has it was checked when the job was composed.
    """
    of_mechanism, of_selection = (
        {key.partition(".")[2]: value for key, value in changes.items() if key.startswith(f"{group}.")}
        for group in ("mechanism", "selection")
    )
    groups = {key: value for key, value in changes.items() if "." not in key}
    others = [f"{key}={as_value(value)}" for key, value in changes.items() if _is_of_neither(key)]
    own = [override for override in overrides if override_key(override) not in changes]
    changed = [f"{key}={value}" for key, value in groups.items()]
    general = [override for override in own if not override_key(override).startswith("mechanism.")] + others
    if "selection" in groups:
        takes = hydra.compose(config_name, overrides=changed).selection
        general = [*_fitting(general, takes), *_settings("selection", of_selection, takes)]
    has = hydra.compose(config_name, overrides=[*general, *changed]).mechanism
    if "_target_" in of_mechanism:  # a class of one's own takes what stands there
        special = [f"~mechanism.{key}" for key in has if key not in of_mechanism]
    else:
        special = [o for o in own if override_key(o).startswith("mechanism.") and override_key(o).split(".")[1] in has]
    special += _settings("mechanism", of_mechanism, has)
    return [*general, *changed, *special]


def _is_of_neither(key: str) -> bool:
    """Whether a dotted key is no setting of a mechanism or of a selection."""
    return "." in key and not key.startswith(("mechanism.", "selection."))


def _settings(group: str, settings: Mapping[str, Any], has: DictConfig) -> list[str]:
    """Overrides that give the settings of a group, some of which its file has."""
    return [f"{'' if key in has else '+'}{group}.{key}={as_value(value)}" for key, value in settings.items()]


def _fitting(overrides: Iterable[str], selection: DictConfig) -> list[str]:
    """The overrides without those of settings that a selection does not have."""
    return [
        one
        for one in overrides
        if not override_key(one).startswith("selection.") or override_key(one).split(".")[1] in selection
    ]
