"""`fedsim study`: a grid of runs, each in a folder of its own, summed up with how sure it is."""

import csv
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.run_files import plain_content
from fedsim_userdp.mechanisms.settings_tree import FREE, leaves
from fedsim_userdp.mechanisms.written import as_value
from fedsim_userdp.plain_files import open_file
from fedsim_userdp.printable import printable
from fedsim_userdp.privacy.figures import rounded_up
from fedsim_userdp.report.files import NOT_PRIVATE, write_text
from fedsim_userdp.report.table import result_console
from fedsim_userdp.simulations import jobs
from fedsim_userdp.simulations.arguments import override_key, swept_with
from fedsim_userdp.simulations.compare import changes_of, overrides_with, selection_of
from fedsim_userdp.simulations.sentences import MENDABLE, sentence
from fedsim_userdp.studies.files import FILE, in_json, write_study, write_tables
from fedsim_userdp.studies.grid import AXES, CELLS, SELECTION, TRIALS, Cell, CellResult, Choice, Entry, cells_of
from fedsim_userdp.studies.groups import groups_of, write_groups
from fedsim_userdp.studies.shown import study_table
from fedsim_userdp.studies.summary import Line, curves_of, lines_of, pairs_of
from fedsim_userdp.studies.tuning import Search, Space, settings_to_try, space_of

FAILED: list[str] = []  # cells of this process's study without a result, each said when it was
LIST_OF_JOBS = "multirun.yaml"  # marks the folder as one whose runs are stated together
_RESULTS, _LOCK_FILE = "results.json", ".study"
_MAY_DIFFER = (FREE - {"selection.public", "selection.public_columns"}) | {"study.dry_run"}
_FIXED_COST = 8.0  # of a cell besides its rounds: loading, evaluation, files; in records of a user


@dataclass
class Planned:
    """A cell or trial that is to be run, or has been.

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
    given = [one for one in settings.overrides.task if not override_key(one).startswith("study.")]
    given = [one for one in given if override_key(one) not in ("output_dir", "resume")]
    cells = study_cells(config)
    Study(Path(settings.runtime.output_dir), config, given, cells, searches_of(config, given, cells)).run(settings)


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


def searches_of(config: DictConfig, given: Sequence[str], cells: Sequence[Cell]) -> list[Search]:
    """Returns what is tuned: each mechanism that trains, at each epsilon of the study or at one.

    Args:
        config: the study's configuration.
        given: settings for all of its runs, as on the command line.
        cells: the cells.

    Raises:
        ConfigError: there are no validation users to tune on, or a setting is out of range.
    """
    node = config.study.tune
    trials = node.trials
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 0:
        raise ConfigError(f"study.tune.trials={trials} must be a whole number of at least 0")
    if not trials:
        return []
    if not config.split.validation_users:
        raise ConfigError(
            f"study.tune.trials={trials} tunes on validation users, and split.validation_users=0: set some aside, such "
            "as split.validation_users=50"
        )
    found: dict[tuple[str, str], Search] = {}
    for cell in cells:
        epsilon = cell.axes.get("epsilon") if node.epsilon is None else None
        mechanism = hydra.compose("run", overrides=overrides_with("run", given, cell.changes)).mechanism
        space = space_of(str(mechanism._target_).rpartition(".")[2], mechanism)
        if space and (key := (cell.mechanism, str(epsilon))) not in found:
            axes = {} if epsilon is None else {"epsilon": epsilon}
            found[key] = Search(cell.mechanism, axes, space, _trials_of(config, cell, axes, space))
    return list(found.values())


def _trials_of(config: DictConfig, cell: Cell, axes: Mapping[str, Any], space: Space) -> list[CellResult]:
    """The trials of a mechanism at one setting: with one seed, scored on validation users."""
    node, found = config.study.tune, []
    for number, tried in enumerate(settings_to_try(space, node.trials, cell.seed)):
        changes = {**cell.changes, **{f"mechanism.{name}": value for name, value in tried.items()}}
        changes |= {"evaluation.users": "validation"}
        changes |= {} if node.epsilon is None else {"privacy.epsilon": node.epsilon}
        label = f"{cell.mechanism}-trial{number:03d}"
        one = replace(cell, axes=axes, changes=changes, label=label, dropped=(*cell.dropped, "evaluation.users"))
        found.append(CellResult(one, part=TRIALS, tried=tried))
    return found


class Study:
    """Runs trials and cells of a study, one after the other, and keeps its files up to date after each.

    Args:
        folder: of the study.
        config: its settings.
        given: settings for all of its runs, as on the command line.
        cells: the cells.
        searches: what is tuned before they are run.
    """

    def __init__(
        self, folder: Path, config: DictConfig, given: Sequence[str], cells: Sequence[Cell], searches: Sequence[Search]
    ) -> None:
        self.folder, self._given, self._searches = folder, given, searches
        self._config: Any = OmegaConf.to_container(config, resolve=True)
        self.results = [CellResult(cell) for cell in cells]
        self.trials = [one for search in searches for one in search.trials]
        self._spent = self._costs = 0.0  # of runs that train
        self._number, self._asked = 0, list[str]()

    def run(self, settings: Any) -> None:
        """Runs what is left, writing after each run; names what failed."""
        for result in (*self.trials, *self.results):
            self._take_up(result)
        trials, cells = self._planned(self.trials), self._planned(self.results)
        self._check([*trials, *cells])
        if self._config["study"]["dry_run"]:
            self._show_planned([*trials, *cells])
            return
        self._asked = list(settings.overrides.task)
        self.folder.mkdir(parents=True, exist_ok=True)
        with _alone(self.folder):
            self._run_left(settings, trials, cells)

    def _run_left(self, settings: Any, trials: Sequence[Planned], cells: Sequence[Planned]) -> None:
        """Runs what is left, and writes what all of it says."""
        self._begin(settings)
        total = len(self.trials) + len(self.results)
        self._number = total - len(trials) - len(cells)
        if self._number:
            print(f"{self._number} of {total} runs have been made before", flush=True)
        self._run_all(trials, cells)
        self._run_all(self._planned(self.results) if self._searches else cells, [])  # with the settings that won
        self.write()
        self.report()
        self._show()

    def _planned(self, results: Sequence[CellResult]) -> list[Planned]:
        """What is left of some runs, with their command lines, the cheapest first."""
        found = [self._plan_of(one) for one in results if one.status == "planned"]
        return sorted(found, key=lambda one: one.cost)

    def _plan_of(self, result: CellResult) -> Planned:
        """A run with its command line, composed once to see that it can be."""
        cell = result.cell
        changes, dropped = dict(cell.changes), set(cell.dropped)
        search = next((one for one in self._searches if result.part == CELLS and one.is_for(cell)), None)
        if search is not None:
            changes |= {f"mechanism.{name}": value for name, value in search.winner.items()}
            changes |= {"privacy.num_searched": len(search.trials) + 1}
        own = [one for one in self._given if override_key(one) not in dropped]
        overrides = [*overrides_with("run", own, changes), f"output_dir={as_value(str(self.folder / result.place))}"]
        mechanism = hydra.compose("run", overrides=overrides).mechanism
        cost = float(mechanism.get("rounds", 0) or 0) * float(mechanism.get("records_per_user", 1) or 1)
        return Planned(result, overrides, cost)

    def _run_all(self, left: Sequence[Planned], later: Sequence[Planned]) -> None:
        """Makes runs one after the other; `later` are those to come after them."""
        total = len(self.trials) + len(self.results)
        for number, one in enumerate(left, start=1):
            start = time.monotonic()
            self._run(one)
            self._number += 1
            if one.cost:
                self._spent, self._costs = self._spent + time.monotonic() - start, self._costs + one.cost + _FIXED_COST
            rest = [*left[number:], *later]
            seconds = sum(other.cost + _FIXED_COST for other in rest) * self._spent / max(self._costs, 1.0)
            self.write()
            print(f"{self._number} of {total}: {_said(one.result)}{_left(seconds)}", flush=True)

    def write(self) -> None:
        """Writes `study.json` and the tables."""
        lines, pairs = lines_of(self.results), pairs_of(self.results)
        write_study(self.folder, self._config, self.results, self.trials, self._searches, lines)
        write_tables(self.folder, list(self.results[0].cell.axes), lines, pairs)

    def _check(self, planned: Sequence[Planned]) -> None:
        """Raises where the folder holds other cells, or what all cells share is refused; nothing was written.

        Raises:
            ConfigError, DataError, ModelError, ValueError: one sentence on what is wrong.
        """
        jobs.check_sweep_folder(self.folder)
        there = {f"{path.parts[-3]}/{path.parts[-2]}" for path in self.folder.glob("*/*/run.json")}
        if other := sorted(there - {one.place for one in (*self.trials, *self.results)}):
            raise ConfigError(
                f"{self.folder} holds another study, with {other[0]} among its runs: go on with that by "
                f"`fedsim study resume={self.folder}`, or choose another folder"
            )
        if (self.folder / LIST_OF_JOBS).is_file():
            swept_with(self.folder, "study")  # which refuses the folder of a sweep
        if changed := self._changed():
            raise ConfigError(
                f"{self.folder} holds another study ({changed} differs): go on with that by "
                f"`fedsim study resume={self.folder}`, or choose another folder"
            )
        for one in planned:
            if not (folder := self._folder_of(one)).joinpath("run.json").is_file():
                with _as_job(one.overrides, folder) as config:
                    jobs.check_cell(config, folder)
                return  # the rest shares corpus and model; what is wrong with a cell alone is its reason

    def _changed(self) -> str:
        """The first setting that differs from those that the folder's study was started with; empty for none."""
        if not (self.folder / FILE).is_file():
            return ""
        before = dict(leaves(json.loads(plain_content(self.folder / FILE))["config"]))
        now = dict(leaves(in_json(self._config)))
        keys = [key for key in {**before, **now} if not any(f"{key}.".startswith(f"{one}.") for one in _MAY_DIFFER)]
        return next((key for key in keys if before.get(key) != now.get(key)), "")

    def _show_planned(self, planned: Sequence[Planned]) -> None:
        """Prints what would be run, and with how much noise."""
        for one in planned:
            print(printable(f"{one.result.cell.name}: {self._noise_of(one)}"), flush=True)
        print(f"{len(self.results)} cells and {len(self.trials)} trials; nothing was trained", flush=True)

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
        return self.folder / one.result.place

    def report(self) -> None:
        """Draws the figures, and writes the page."""
        from fedsim_userdp.studies.figures import figures_of, svg_of, write_figures  # matplotlib takes its time
        from fedsim_userdp.studies.page import Findings, write_page

        lines, pairs = lines_of(self.results), pairs_of(self.results)
        rounds = {one.cell.name: _perplexities(self.folder / one.place) for one in self.results if one.status == "done"}
        told = {one.cell.name: _participation(self.folder / one.place) for one in self.results if one.status == "done"}
        groups = groups_of(self.results, {name: entry for name, entry in told.items() if entry})
        if groups:
            write_groups(self.folder, list(groups[0].axes), groups)
        figures = figures_of(lines, pairs, curves_of(self.results, rounds), self._footer(lines), groups)
        write_figures(self.folder, figures)
        svgs = {name: (svg_of(name, figure, said), said) for name, (figure, said) in figures.items()}
        overrides = [*self._given, *_own_settings(self._asked)]
        seeds = len({one.cell.seed for one in self.results if one.cell.is_seeded})
        found = Findings(self.results, lines, pairs, self._searches, groups, _joint(self.folder), overrides, seeds)
        write_page(self.folder, found, svgs)

    def _footer(self, lines: Sequence[Line]) -> str:
        """What figures say of the study."""
        context = next((one.context for one in self.results if one.context), {})
        delta = next((line.delta for line in lines if line.delta is not None), None)
        ks = sorted({line.records_per_user for line in lines if line.records_per_user is not None})
        said = [f"{context.get('data', '')}, {context.get('model', '')}"]
        said += [] if delta is None else [f"delta {delta:.2g}"]
        return ", ".join([*said, *([f"k {', '.join(map(str, ks))}"] if ks else [])])

    def _begin(self, settings: Any) -> None:
        """Marks the folder as the study's, once its cells are known."""
        kept = OmegaConf.create(
            {"hydra": {"overrides": {"task": list(settings.overrides.task)}, "job": {"config_name": "study"}}}
        )
        if not (self.folder / LIST_OF_JOBS).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / LIST_OF_JOBS, OmegaConf.to_yaml(kept))
        self.write()

    def _take_up(self, result: CellResult) -> None:
        """Finds the result of a run that has been made before."""
        folder = self.folder / result.place
        if jobs.has_ended(folder):
            _note(result, folder)

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


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other studies out of a folder for the duration of the block.

    Raises:
        ConfigError: when another one is at work in it.
    """
    descriptor = open_file(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{folder} is in use by another study: wait for it, or name another folder") from error
        yield
    finally:
        os.close(descriptor)


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


def _own_settings(overrides: Sequence[str]) -> list[str]:
    """The study's own settings on its command line."""
    return [one for one in overrides if override_key(one).startswith("study.")]


def _perplexities(folder: Path) -> dict[int, float]:
    """Perplexity by round of a run that has ended."""
    text = plain_content(folder / NOT_PRIVATE / "rounds.csv").decode()
    rows = csv.DictReader(text.splitlines())
    return {int(row["round"]): float(row["perplexity"]) for row in rows if row["perplexity"]}


def _participation(folder: Path) -> Mapping[str, Any]:
    """What selection did in a run that has ended; nothing where nobody is drawn, or nothing is public."""
    try:
        (found,) = json.loads(plain_content(folder / NOT_PRIVATE / "participation.json"))["runs"]
    except FileNotFoundError:
        return {}
    return dict(found)


def _joint(folder: Path) -> str:
    """What all runs of a study promise together, as a sentence."""
    try:
        content = json.loads(plain_content(folder / "privacy.json"))
        epsilon, delta = content["joint"]["epsilon"], content["joint"]["delta"]
    except (OSError, ValueError, KeyError, TypeError):
        return "Nothing here promises users anything."
    if epsilon is None:
        return "All runs together, trials included, have no finite epsilon."
    return f"All runs together, trials included, have ({rounded_up(epsilon)}, {rounded_up(delta, 3)})-DP for users."


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
