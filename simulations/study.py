"""`fedsim study`: a grid of runs, each in a folder of its own, summed up with how sure it is."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.run_files import plain_content
from fedsim_userdp.mechanisms.settings_tree import FREE, leaves
from fedsim_userdp.printable import printable
from fedsim_userdp.report.files import write_text
from fedsim_userdp.report.table import result_console
from fedsim_userdp.simulations import jobs
from fedsim_userdp.simulations.arguments import override_key
from fedsim_userdp.simulations.compare import changes_of, overrides_with, selection_of
from fedsim_userdp.simulations.sentences import MENDABLE, sentence
from fedsim_userdp.studies.files import FILE, write_study, write_tables
from fedsim_userdp.studies.grid import AXES, CELLS, SELECTION, Cell, CellResult, Choice, Entry, cells_of
from fedsim_userdp.studies.shown import study_table
from fedsim_userdp.studies.summary import lines_of, pairs_of

FAILED: list[str] = []  # cells of this process's study without a result, each said when it was
LIST_OF_JOBS = "multirun.yaml"  # marks the folder as one whose runs are stated together
_RESULTS = "results.json"
_MAY_DIFFER = (FREE - {"selection.public", "selection.public_columns"}) | {"study.dry_run"}
_FIXED_COST = 8.0  # of a cell besides its rounds: loading, evaluation, files; in records of a user


@dataclass
class Planned:
    """A cell that is to be run, or has been.

    Attributes:
        result: the cell, and what became of it.
        overrides: its command line, for `fedsim run`.
        cost: how long it takes, in comparison with others.
    """

    result: CellResult
    overrides: list[str]
    cost: float


@hydra.main(version_base="1.3", config_path="pkg://fedsim_userdp.conf", config_name="study")
def main(config: DictConfig) -> None:
    """Runs what is left of the study's cells, and writes what they say."""
    FAILED.clear()
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    given = [one for one in settings.overrides.task if not override_key(one).startswith("study.")]
    given = [one for one in given if override_key(one) not in ("output_dir", "resume")]
    planned = [_planned(cell, given, folder) for cell in study_cells(config)]
    planned.sort(key=lambda one: one.cost)
    Study(folder, OmegaConf.to_container(config, resolve=True), planned).run(settings)


def study_cells(config: DictConfig) -> list[Cell]:
    """Returns the cells of the study that a configuration names.

    Raises:
        ConfigError: an axis is no list of different values, or there is no mechanism or seed.
    """
    node = config.study
    entries = [_entry(entry) for entry in _listed(node.mechanisms, "mechanisms")]
    seeds = _listed(node.seeds, "seeds")
    if not all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds):
        raise ConfigError(f"study.seeds={node.seeds} must be a list of whole numbers of at least 0, such as [0,1,2]")
    axes = {
        axis: [Choice(value, {keys[0]: value}) for value in _listed(node[axis], axis)]
        for axis, keys in AXES.items()
        if node[axis] is not None
    }
    if node.selections is not None:
        chosen = [selection_of(entry) for entry in _listed(node.selections, "selections")]
        axes[SELECTION] = [Choice(name, changes) for name, changes in chosen]
    for key, values in dict(node.grid or {}).items():
        axes[str(key)] = [Choice(value, {str(key): value}) for value in _listed(values, f"grid.{key}")]
    found = cells_of(entries, axes, seeds)
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise ConfigError(f"study.mechanisms={names} names one twice: give one of them another name")
    return found


def _listed(given: object, axis: str) -> list[Any]:
    """The values of an axis: a list of at least one, each once."""
    values = list(given) if isinstance(given, ListConfig | list | tuple) else [given]
    plain = [OmegaConf.to_container(one) if OmegaConf.is_config(one) else one for one in values]
    if not plain or None in plain:
        raise ConfigError(f"study.{axis} must be a list of at least one value, or null, got {given}")
    if len({json.dumps(one, sort_keys=True, default=str) for one in plain}) < len(plain):
        raise ConfigError(f"study.{axis}={plain} holds a value twice: leave out one of the two")
    return plain


def _entry(entry: object) -> Entry:
    """A mechanism of the study."""
    changes = changes_of(entry)
    name = str(changes.get("mechanism.name", changes["mechanism"]))
    target = changes.get("mechanism._target_")
    if target is None:
        target = hydra.compose("run", overrides=[f"mechanism={changes['mechanism']}"]).mechanism._target_
    return Entry(name, str(target).rpartition(".")[2], changes)


def _planned(cell: Cell, given: Sequence[str], folder: Path) -> Planned:
    """A cell with its command line, composed once to see that it can be."""
    own = [one for one in given if override_key(one) not in cell.dropped]
    overrides = [*overrides_with("run", own, cell.changes), f"output_dir={folder / CELLS / cell.name}"]
    mechanism = hydra.compose("run", overrides=overrides).mechanism
    cost = float(mechanism.get("rounds", 0) or 0) * float(mechanism.get("records_per_user", 1) or 1)
    return Planned(CellResult(cell), overrides, cost)


class Study:
    """Runs the cells of a study, one after the other, and keeps its files up to date after each.

    Args:
        folder: of the study.
        config: its settings.
        planned: the cells, in the order in which they are run.
    """

    def __init__(self, folder: Path, config: Any, planned: Sequence[Planned]) -> None:
        self.folder, self._config, self._planned = folder, config, list(planned)

    @property
    def results(self) -> list[CellResult]:
        """What became of each cell so far."""
        return [one.result for one in self._planned]

    def run(self, settings: Any) -> None:
        """Runs what is left, writing after each cell; names what failed."""
        for one in self._planned:
            self._take_up(one)
        left = [one for one in self._planned if one.result.status == "planned"]
        self._check(left)
        if self._config["study"]["dry_run"]:
            self._show_planned()
            return
        self._begin(settings)
        done = len(self._planned) - len(left)
        if done:
            print(f"{done} of {len(self._planned)} cells have been run before", flush=True)
        spent = costs = 0.0  # of cells that train
        for number, one in enumerate(left, start=done + 1):
            start = time.monotonic()
            self._run(one)
            if one.cost:
                spent, costs = spent + time.monotonic() - start, costs + one.cost + _FIXED_COST
            rest = sum(other.cost + _FIXED_COST for other in left[number - done :]) * spent / max(costs, 1.0)
            self.write()
            print(f"{number} of {len(self._planned)}: {_said(one.result)}{_left(rest)}", flush=True)
        self.write()
        self._show()

    def write(self) -> None:
        """Writes `study.json` and the tables."""
        lines, pairs = lines_of(self.results), pairs_of(self.results)
        write_study(self.folder, self._config, self.results, lines)
        write_tables(self.folder, list(self._planned[0].result.cell.axes), lines, pairs)

    def _check(self, left: Sequence[Planned]) -> None:
        """Raises where the folder holds other cells, or what all cells share is refused; nothing was written.

        Raises:
            ConfigError, DataError, ModelError, ValueError: one sentence on what is wrong.
        """
        jobs.check_sweep_folder(self.folder)
        there = {path.parent.name for path in (self.folder / CELLS).glob("*/run.json")}
        if other := sorted(there - {one.result.cell.name for one in self._planned}):
            raise ConfigError(
                f"{self.folder} holds another study, with {other[0]} among its cells: go on with that by "
                f"`fedsim study resume={self.folder}`, or choose another folder"
            )
        if (self.folder / LIST_OF_JOBS).is_file() and not (self.folder / FILE).is_file():
            raise ConfigError(f"{self.folder} holds a sweep: a study needs a folder of its own")
        if changed := self._changed():
            raise ConfigError(
                f"{self.folder} holds another study ({changed} differs): go on with that by "
                f"`fedsim study resume={self.folder}`, or choose another folder"
            )
        for one in left:
            if not (folder := self._folder_of(one)).joinpath("run.json").is_file():
                with _as_job(one.overrides, folder) as config:
                    jobs.check_cell(config, folder)
                return  # the rest shares corpus and model; what is wrong with a cell alone is its reason

    def _changed(self) -> str:
        """The first setting that differs from those that the folder's study was started with; empty for none."""
        if not (self.folder / FILE).is_file():
            return ""
        before = dict(leaves(json.loads(plain_content(self.folder / FILE))["config"]))
        now = dict(leaves(self._config))
        keys = [key for key in {**before, **now} if not any(f"{key}.".startswith(f"{one}.") for one in _MAY_DIFFER)]
        return next((key for key in keys if before.get(key) != now.get(key)), "")

    def _show_planned(self) -> None:
        """Prints what would be run, and with how much noise."""
        for one in self._planned:
            noise = "run before" if one.result.status != "planned" else self._noise_of(one)
            print(printable(f"{one.result.cell.name}: {noise}"), flush=True)
        print(f"{len(self._planned)} cells; nothing was trained", flush=True)

    def _noise_of(self, one: Planned) -> str:
        """The noise multiplier of a cell, or why it has none."""
        try:
            with _as_job(one.overrides, self._folder_of(one)) as config:
                found = jobs.noise_of_cell(config, self._folder_of(one))
        except MENDABLE as error:
            return f"refused: {sentence(error)}"
        return f"noise multiplier {found:.4g}" if found else "no noise"

    def _folder_of(self, one: Planned) -> Path:
        """The run folder of a cell."""
        return self.folder / CELLS / one.result.cell.name

    def _begin(self, settings: Any) -> None:
        """Marks the folder as the study's, once its cells are known."""
        kept = OmegaConf.create(
            {"hydra": {"overrides": {"task": list(settings.overrides.task)}, "job": {"config_name": "study"}}}
        )
        if not (self.folder / LIST_OF_JOBS).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / LIST_OF_JOBS, OmegaConf.to_yaml(kept))
        self.write()

    def _take_up(self, one: Planned) -> None:
        """Finds the result of a cell that has been run before."""
        folder = self._folder_of(one)
        if jobs.has_ended(folder):
            _note(one.result, folder)

    def _run(self, one: Planned) -> None:
        """Runs a cell; what goes wrong is its reason."""
        folder = self._folder_of(one)
        is_begun = (folder / "run.json").is_file()
        overrides = [*one.overrides, *([f"resume={folder}"] if is_begun else [])]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _as_job(overrides, folder) as config:
                jobs.run_cell(config)
            _note(one.result, folder)
        except MENDABLE as error:
            one.result.status, one.result.reason = "failed", sentence(error)
        except Exception as error:  # noqa: BLE001 - one cell's bug is no reason to lose the others
            one.result.status, one.result.reason = "failed", f"{type(error).__name__}: {sentence(error)}"
        if one.result.status != "done":
            FAILED.append(one.result.cell.name)

    def _show(self) -> None:
        """Prints the table, and which mechanisms can be told apart."""
        console = result_console()
        console.print(study_table(lines_of(self.results)))
        for pair in pairs_of(self.results):
            if pair.is_different:
                console.print(pair.in_words, highlight=False, markup=False, soft_wrap=True)
        console.print(f"study folder: {printable(str(self.folder))}", highlight=False, markup=False, soft_wrap=True)
        for one in self.results:
            if one.status in ("failed", "diverged"):
                print(printable(f"fedsim: {one.cell.name}: {one.reason}"), file=sys.stderr, flush=True)


def _note(result: CellResult, folder: Path) -> None:
    """Reads the result of a cell that has ended."""
    (row,) = json.loads(plain_content(folder / _RESULTS))
    result.row = row
    result.status = "diverged" if row["perplexity"] is None else "done"
    result.reason = "training diverged: try a smaller learning rate" if row["perplexity"] is None else ""
    started = json.loads(plain_content(folder / "run.json"))
    result.context = {"model": started["choices"].get("model"), "data": started["choices"].get("data")}


@contextmanager
def _as_job(overrides: Iterable[str], folder: Path) -> Iterator[DictConfig]:
    """Gives the configuration of `fedsim run` with these overrides, as Hydra's running job for the block."""
    before = HydraConfig.instance().cfg
    config = hydra.compose("run", overrides=list(overrides), return_hydra_config=True)
    with open_dict(config):
        config.hydra.runtime.output_dir = str(folder)
        config.hydra.job.name = "run"
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    try:
        yield config
    finally:
        HydraConfig.instance().cfg = before


def _said(result: CellResult) -> str:
    """What became of a cell, in short."""
    name = result.cell.name
    if result.row is None or result.status != "done":
        return printable(f"{name}: {result.status}: {result.reason}")
    return printable(f"{name}: perplexity {result.row['perplexity']:.1f} in {result.row['seconds']:.0f} s")


def _left(seconds: float) -> str:
    """How long the rest takes."""
    if seconds < 1:
        return ""
    return f"; about {seconds:.0f} s left" if seconds < 90 else f"; about {seconds / 60:.0f} min left"
