"""Running configured mechanisms: all of them are checked before the first byte of any is written."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from fedsim_userdp.data.statistics import corpus_statistics
from fedsim_userdp.plugins import calling
from fedsim_userdp.report.data import write_data_json
from fedsim_userdp.report.progress import RunProgress
from fedsim_userdp.simulations.corpora import configured_corpus
from fedsim_userdp.simulations.diary import Outcome
from fedsim_userdp.simulations.mechanisms import Mechanism, RecordLevelDP
from fedsim_userdp.simulations.names import made
from fedsim_userdp.simulations.plugins import check_plugins
from fedsim_userdp.simulations.saver import check_saved
from fedsim_userdp.simulations.task import Task, build_task


class Session:
    """The runs of one folder, their settings checked: what each promises, and what the folder holds of it already.

    Args:
        configs: the configuration of each run.
        folder: the folder.
        begin: writes down what the folder was started with; called before anything else is written.
        sweep: the folder of the sweep that the folder is a job of; None outside of one.

    Raises:
        ConfigError, DataError, ModelError, CheckpointError, LedgerError, ValueError: one sentence on what is wrong;
            nothing was written to the folder.
    """

    def __init__(
        self, configs: Sequence[DictConfig], folder: Path, begin: Callable[[], None], sweep: Path | None = None
    ) -> None:
        self._folder, self._begin = folder, begin
        self._runs: list[tuple[Mechanism, Task, DictConfig]] = []
        for config in configs:
            mechanism: Mechanism = made("mechanism", config.mechanism)
            task = replace(build_task(config, folder), sweep=sweep)
            if hasattr(mechanism, "promise"):  # one's own need not have it
                promise = mechanism.promise(task)
                check_saved(task, promise)
                if (records_per_user := getattr(mechanism, "records_per_user", None)) is not None:
                    check_plugins(task, promise, records_per_user)
            self._runs.append((mechanism, task, config))
        self._try_out()

    def _try_out(self) -> None:
        """Raises where Opacus refuses what one of the runs trains, before another run trains.

        One such run is tried, since those of a folder share model, adapter and engine; the first run tries its own.
        """
        for number, (mechanism, task, _) in enumerate(self._runs):
            if isinstance(mechanism, RecordLevelDP) and task.central_engine == "opacus":
                if number:
                    mechanism.try_out(task)
                return

    def outcomes(self, progress: RunProgress) -> Iterator[Outcome]:
        """Yields the outcome of each run.

        What the corpus looks like and what was left out of it is in the folder's `not_private/data.json` from the
        start.
        """
        for number, (mechanism, task, config) in enumerate(self._runs):
            k = getattr(mechanism, "records_per_user", None)
            statistics = corpus_statistics(task.store, () if k is None else (k,), task.seed)

            begin = _Once(
                *([] if number else [self._begin]),
                partial(write_data_json, self._folder, statistics, corpus=configured_corpus(config).name),
            )
            with calling("mechanism", mechanism, "run()"):
                outcome = mechanism.run(replace(task, begin=begin), progress)
            begin()
            yield outcome


class _Once:
    """Calls several functions, one after the other, when it is called first."""

    def __init__(self, *functions: Callable[[], None]) -> None:
        self._left = list(functions)

    def __call__(self) -> None:
        """Calls what is left to be called."""
        while self._left:
            self._left.pop(0)()
