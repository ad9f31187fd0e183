"""Running one configured mechanism."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from fedsim_userdp.data.statistics import corpus_statistics
from fedsim_userdp.report.data import write_data_json
from fedsim_userdp.report.progress import RunProgress
from simulations.corpora import configured_corpus
from simulations.diary import Outcome
from simulations.mechanisms import Mechanism
from simulations.task import build_task


def run_mechanism(config: DictConfig, progress: RunProgress, folder: Path) -> Outcome:
    """Returns the outcome of the configuration's mechanism; settings are checked before any training.

    What the corpus looks like and what was left out of it is in the folder's `not_private/data.json` from the start.
    """
    mechanism: Mechanism = instantiate(config.mechanism)
    task = build_task(config, folder)
    k = getattr(mechanism, "records_per_user", None)
    statistics = corpus_statistics(task.store, () if k is None else (k,), task.seed)
    write_data_json(folder, statistics, corpus=configured_corpus(config).name)
    return mechanism.run(task, progress)
