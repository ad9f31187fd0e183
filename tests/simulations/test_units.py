"""What a user is, by the settings of a corpus, and a sweep over several of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from fedsim_userdp.data.in_memory import InMemoryCorpus
from fedsim_userdp.data.table import TableCorpus
from fedsim_userdp.mechanisms.settings_tree import tree_of
from fedsim_userdp.mechanisms.units import user_in_words
from fedsim_userdp.simulations.cli import run_command
from tests.simulations.corpora import small_settings
from tests.simulations.verified import problems

pytestmark = pytest.mark.usefixtures("quick_accounting")


class Own:
    """Stands for a corpus of one's own; what it is called decides nothing."""


def words(*overrides: str) -> str:
    """What a user is under some settings, asked of both kinds of trees."""
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        data = compose("run", overrides=list(overrides)).data
    found = user_in_words(data)
    assert user_in_words(OmegaConf.to_container(data, resolve=True)) == found  # type: ignore[arg-type]
    return found


def test_what_tells_ids_and_owners_decides_what_a_user_is_and_nothing_else_does() -> None:
    own = ["data=jsonl", "data._target_=my.Corpus"]
    kinds = [
        ["data=jsonl"], ["data=jsonl", "data.user_column=thread"], ["data=jsonl", "data.owners_column=to"],
        ["data=jsonl", "data.owners_column=cc"], ["data=jsonl", "data.owners_column=to", "data.owners_separator=/"],
        ["data=enron"], ["data=enron", "data.owners=all"], ["data=booksum"], ["data=booksum", "data.user_column=title"],
        ["data=chitchat"], ["data=shakespeare"], own, [*own, "data.user_column=thread"], [*own, "+data.by=[a,b]"],
    ]  # fmt: skip
    assert len({words(*each) for each in kinds}) == len(kinds)
    same = ["data=csv", "data=parquet", "data=datasets"]
    assert {words(each, "data.path=x", "data.name=n") for each in same} == {words("data=jsonl")}
    assert words("data=jsonl", "data.owners_separator=/") == words("data=jsonl")
    assert words("data=jsonl", "data.user_column=0") == words("data=jsonl", "data.user_column='0'")
    assert words(*own, "data.name=n", "data.license=mit") == words(*own)


def test_objects_made_in_python_have_the_words_of_their_settings() -> None:
    assert user_in_words(tree_of("data", TableCorpus("x", user_column="thread"))) == words(
        "data.user_column=thread", "data=jsonl"
    )
    assert user_in_words({"_target_": TableCorpus.__module__ + ".TableCorpus"}) == words("data=jsonl")
    assert (
        user_in_words(tree_of("data", InMemoryCorpus([("a", "b")], name="x")))
        == "an id that a program gave with the text"
    )
    columns: dict[str, list[object]] = {"author": ["a"], "thread": ["t"], "text": ["b"]}
    by = {one: tree_of("data", InMemoryCorpus.of_table(columns, user_column=one)) for one in ("author", "thread")}
    assert [user_in_words(tree) for tree in by.values()] == [
        "an id in column 'author' of a table that a program gave",
        "an id in column 'thread' of a table that a program gave",
    ]
    assert "test_units.Own, with settings" in user_in_words(tree_of("data", Own()))


def stated(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "privacy.json").read_text()))


@pytest.mark.parametrize("key", ["data.user_column=user_id,thread_id", "data.owners_column=to,cc"])
def test_a_sweep_over_what_a_user_is_has_no_joint_epsilon(key: str, tmp_path: Path) -> None:
    text = "the people of this land and that one, who meet and part and meet again"
    rows = [
        {"user_id": f"u{user}", "thread_id": f"t{(user + number) % 20}", "to": f"u{number}", "cc": "u9", "text": text}
        for user in range(20)
        for number in range(3)
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = small_settings(tmp_path / "c.jsonl", tmp_path / "cache", rounds=1)
    mechanism = "mechanism=group_privacy" if "owners" in key else "mechanism=user_wise"
    folder = tmp_path / "sweep"
    assert run_command("run", ["--multirun", *small, mechanism, key, f"output_dir={folder}"]) == 0
    joint = stated(folder)["joint"]
    assert (joint["epsilon"], joint["accountant"], joint["adjacency"]) == (None, None, None)
    assert "a user is not the same in all of them" in joint["sentences"][0]
    assert "a user is not the same in all of them" in (folder / "PRIVACY.md").read_text()
    users = [stated(folder / job)["runs"][0]["users"] for job in ("0", "1")]
    assert users[0] != users[1]
    assert f"| A user is | {users[1]} |" in (folder / "1" / "PRIVACY.md").read_text()
    assert f"| A user is | {users[0]} |" in next(folder.glob("0/adapters/*/README.md")).read_text()
    assert stated(folder / "0")["joint"]["epsilon"] is not None
    assert problems(folder) == []
