"""How many runs a run's settings were chosen among."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.searches import search_in_words, searched_runs


def searched(*overrides: str, corpus: str = "chitchat") -> int:
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        return searched_runs(compose("run", overrides=list(overrides)), corpus)


def test_the_quickstarts_settings_count_the_runs_that_the_tuning_page_lists() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text()
    names = "user_wise|user_wise_adaptive|group_privacy|example_level_tight|record_level|non_private"
    assert searched() == len(re.findall(rf"^\| \**(?:{names})\** \|", page, re.M)) == 41


def test_a_search_on_another_corpus_is_none_on_ones_own() -> None:
    assert searched(corpus="jsonl") == 1
    assert searched("experiment=paper_enron") == 1
    assert searched("experiment=smollm2_chitchat") == 3


def test_what_is_given_by_hand_counts_instead() -> None:
    assert searched("privacy.num_searched=1") == 1
    assert searched("privacy.num_searched=7", corpus="jsonl") == 7
    assert searched("tuned.searched=null") == 1


def test_searches_are_told_from_each_other_by_the_settings_that_name_them() -> None:
    def words(*overrides: str) -> str:
        with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
            return search_in_words(compose("run", overrides=list(overrides)), "chitchat")

    told = [
        words(),
        words("experiment=smollm2_chitchat"),
        words("privacy.num_searched=3"),
        words("tuned.searched=null"),
    ]
    assert len(set(told)) == 4
    assert told[0] == words("mechanism=group_privacy", "seed=1")
    assert told[3] == words("experiment=paper_enron") == ""


@pytest.mark.parametrize(
    "override",
    ["privacy.num_searched=0", "privacy.num_searched=1.5", "privacy.num_searched=true", "tuned.searched.runs=0",
     "tuned.searched=41", "tuned.searched.more=1"],
)  # fmt: skip
def test_what_is_no_number_of_runs_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=override.split("=")[0].removesuffix(".more")):
        searched(f"+{override}" if "more" in override else override)
