"""`fedsim data`: what a corpus looks like before any training, and what the bound on records per user keeps."""

from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from fedsim_userdp.data.layout import META
from fedsim_userdp.data.split import split_users
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.errors import ConfigError, DataError
from fedsim_userdp.printable import printable
from fedsim_userdp.report.files import NOT_PRIVATE
from fedsim_userdp.simulations.arguments import check_types
from fedsim_userdp.simulations.job_folder import folder_of_job
from fedsim_userdp.simulations.names import made


@hydra.main(version_base="1.3", config_path="pkg://fedsim_userdp.conf", config_name="describe")
def main(config: DictConfig) -> None:
    """Prints the tables and what they say, and writes `data.csv`, `data.json` and `data.png`."""
    with folder_of_job() as folder:
        describe(config, folder)


def describe(config: DictConfig, folder: Path) -> None:
    """Describes the corpus into a folder."""
    check_types(config, "describe")
    own, bounds = bounds_of(config)
    from fedsim_userdp.data.statistics import corpus_statistics
    from fedsim_userdp.mechanisms.construction import tokenised
    from fedsim_userdp.report import data as report  # here, so that --help and refusals need not load them
    from fedsim_userdp.report.data_plot import plot_data
    from fedsim_userdp.report.table import result_console
    from fedsim_userdp.settings import Settings
    from fedsim_userdp.simulations.configured import configured_corpus, plain

    console = result_console()
    with console.status("reading"):
        corpus = configured_corpus(config)
        settings = Settings.of(plain(config))
        store = tokenised(corpus, made("model", config.model), settings.tokens, settings.cache_dir)
    statistics = corpus_statistics(store, bounds, config.seed)
    name, split = corpus.name, split_in_words(store, config)
    report.write_data_json(folder, statistics, corpus=name, split=split)
    report.write_data_csv(folder, statistics)
    records, tokens = store.records_per_user[store.has_records], store.tokens_per_user[store.has_records]
    plot_data(folder / NOT_PRIVATE / "data.png", statistics, records, tokens, own)
    console.print(f"{printable(name)}: {split}", highlight=False, markup=False, soft_wrap=True)
    for table in (report.distribution_table(statistics), report.bound_table(statistics, own)):
        console.print(table)
    if statistics.dropped:
        console.print(report.dropped_table(statistics))
        console.print(
            f"where each came first: {printable(str(store.path / META))}", highlight=False, markup=False, soft_wrap=True
        )
    for text in (*report.in_words(statistics), f"folder: {printable(str(folder))}"):
        console.print(text, highlight=False, markup=False, soft_wrap=text.startswith("folder"))


def bounds_of(config: DictConfig) -> tuple[int | None, Sequence[int]]:
    """Returns the run's own k (None where the mechanism has none) and all bounds to compare, ascending.

    Raises:
        ConfigError: when a bound is no whole number of at least 1, or there is none.
    """
    own = config.mechanism.get("records_per_user")
    listed = config.describe.records_per_user
    values = [listed] if isinstance(listed, int | float | str) else list(listed or [])
    for key, each in (("describe", values), ("mechanism", [] if own is None else [own])):
        for value in each:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{key}.records_per_user={value} must be a whole number of at least 1")
    bounds = sorted({*values, *([] if own is None else [own])})
    if not bounds:
        raise ConfigError("describe.records_per_user is empty: name at least one bound, such as [1, 4, 16]")
    return own, bounds


def split_in_words(store: TokenStore, config: DictConfig) -> str:
    """Returns how many users a run would train on and hold out, or why it would refuse."""
    users = f"{store.num_users:,} users"
    if store.declares_owners and store.num_places > store.num_users:
        users = f"{store.num_places:,} users, {store.num_places - store.num_users:,} of them without a usable record"
    try:
        split = split_users(
            store,
            heldout_users=config.split.heldout_users,
            validation_users=config.split.validation_users,
            seed=config.split.seed,
            keep_places=store.declares_owners,
        )
    except DataError as error:
        return f"{users}; a run would refuse: {error}"
    parts = {"to train on": split.train, "held out": split.heldout, "for validation": split.validation}
    return f"{users}: " + ", ".join(f"{len(part):,} {name}" for name, part in parts.items())
