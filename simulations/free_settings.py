"""Settings that may differ between a run and its continuation, checked for all jobs of a sweep before one starts."""

import json
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fedsim_userdp.cache import folder_of, require_writable
from fedsim_userdp.mechanisms.cache_folder import check_cache_folders
from fedsim_userdp.settings import Settings
from fedsim_userdp.simulations.arguments import check_kinds, override_key
from fedsim_userdp.simulations.names import check_arguments, made

_FREE = ("threads", "cache_dir", "checkpoint", "engine")


class FreeSettings:
    """Checks the settings of one job after the other; what was checked before is not checked again.

    Args:
        command: `run` or `compare`.
        given: the overrides of the command line.
        sweep: the folder of the sweep.
    """

    def __init__(self, command: str, given: Sequence[str], sweep: Path) -> None:
        self._command, self._sweep = command, sweep
        self._makes_engine = any(override_key(one).partition(".")[0] == "engine" for one in given)
        self._checked = set[str]()

    def check(self, config: DictConfig) -> None:
        """Raises, as a run alone does, where one of these settings of a job's configuration cannot be used."""
        found = OmegaConf.to_container(config, resolve=True)
        assert isinstance(found, dict)
        tree = {str(key): value for key, value in found.items() if key in (*_FREE, "model")}
        if (told := json.dumps(tree, default=str)) in self._checked:
            return
        self._checked.add(told)
        check_arguments(OmegaConf.create({"engine": tree["engine"]}))
        check_kinds(config, self._command, only=_FREE)
        Settings.of({key: tree[key] for key in ("threads", "checkpoint")})
        check_cache_folders(tree, self._sweep)
        if tree["cache_dir"] is not None:
            require_writable(folder_of(tree["cache_dir"], "cache_dir"))
        if self._makes_engine:
            from fedsim_userdp.mechanisms.construction import check_engine  # here, since it loads torch

            check_engine(made("engine", config.engine))
