"""How many runs on a run's own users its settings were chosen among."""

from collections.abc import Mapping

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.settings_tree import Tree


def searched_runs(tree: Tree, corpus_name: str) -> int:
    """Returns the number of runs on these users, this one included, that the settings were chosen among.

    `privacy.num_searched` where it is given; else that of the search behind the experiment's settings
    (`tuned.searched`) where it was made on this very corpus; else 1.

    Args:
        tree: The run's settings.
        corpus_name: Name of the run's corpus.

    Raises:
        ConfigError: A number is no whole number of at least 1, or `tuned.searched` lacks its corpus.
    """
    if (given := tree["privacy"]["num_searched"]) is not None:
        return _count("privacy.num_searched", given)
    searched = tree.get("tuned", {}).get("searched")
    if searched is None:
        return 1
    if not isinstance(searched, Mapping) or set(searched) != {"data", "runs"}:
        raise ConfigError(f"tuned.searched={searched} must be null or {{data: NAME-OF-CORPUS, runs: N}}")
    runs = _count("tuned.searched.runs", searched["runs"])
    return runs if searched["data"] == corpus_name else 1


def search_in_words(tree: Tree, corpus_name: str) -> str:
    """Returns by which setting a run says what its settings were chosen among: one text for one search; empty for none.

    Args:
        tree: The run's settings.
        corpus_name: Name of the run's corpus.

    Raises:
        ConfigError: see `searched_runs`.
    """
    number = searched_runs(tree, corpus_name)
    if tree["privacy"]["num_searched"] is not None:
        return f"privacy.num_searched={number}"
    return f"tuned.searched: {number} runs on {corpus_name}" if number > 1 else ""


def _count(key: str, value: object) -> int:
    """A number of runs."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key}={value} must be a whole number of at least 1")
    return value
