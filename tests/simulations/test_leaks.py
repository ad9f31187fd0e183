"""Nothing of users' text, and no id of theirs, is in a run folder or in what is printed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulations.corpora import small_settings
from tests.simulations.zygote import Ended, Zygote

PHRASE = "xylophonic quartermaster zugzwang"
ID = "Wolfeschlegelsteinhausen"
NUM_USERS = 14
MECHANISMS = "[zero_shot,user_wise,user_wise_adaptive,group_privacy,example_level_tight,record_level,non_private]"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A corpus in which every record holds the phrase and its user's number, and every id the planted name."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = [
        {"user_id": f"{ID}-{user}", "text": f"{PHRASE} secret{user}of{record} is said here by somebody"}
        for user in range(NUM_USERS)
        for record in range(4)
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return small_settings(folder / "corpus.jsonl", folder / "cache", rounds=2)


def planted() -> list[re.Pattern[bytes]]:
    """What must be found nowhere, in any case and with any white space or punctuation between the words."""
    words = [*PHRASE.split(), ID]
    return [
        *(re.compile(word.encode(), re.I) for word in words),
        re.compile(rb"secret\d+of\d+", re.I),
        *(re.compile(word.encode("utf-16-le"), re.I) for word in words),
    ]


def leaks(folder: Path, *outputs: Ended) -> list[str]:
    """Where something planted is: files by content and by name, and what was printed."""
    found = [
        f"{file}: {pattern.pattern!r}"
        for file in folder.rglob("*")
        for pattern in planted()
        if pattern.search(str(file.relative_to(folder)).encode())
        or (file.is_file() and pattern.search(file.read_bytes()))
    ]
    return found + [
        f"{name}: {pattern.pattern!r}"
        for ended in outputs
        for name, text in (("stdout", ended.stdout), ("stderr", ended.stderr))
        for pattern in planted()
        if pattern.search(text.encode())
    ]


def test_the_search_finds_what_is_planted(tmp_path: Path) -> None:
    assert leaks(tmp_path) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.png").write_bytes(b"\0\x89PNG Quartermaster\0")
    (tmp_path / f"{ID}-3").write_text("")
    assert len(leaks(tmp_path)) == 2
    assert len(leaks(tmp_path, Ended(0, "said Zugzwang", "secret3of4", 0.0))) == 4


def test_a_comparison_of_all_mechanisms_leaks_nothing(tmp_path: Path, processes: Zygote, settings: list[str]) -> None:
    folder = tmp_path / "run"
    ended = processes.run("compare", *settings, f"compare.mechanisms={MECHANISMS}", f"output_dir={folder}")
    assert ended.returncode == 0, ended.stderr
    assert {"results.csv", "comparison.png", "run.json", "PRIVACY.md"} <= {file.name for file in folder.iterdir()}
    assert len(list(folder.rglob("adapter_model.safetensors"))) == 6
    assert leaks(folder, ended) == []


def test_a_sweep_with_the_operating_systems_noise_leaks_nothing_and_no_seed_of_its_noise(
    tmp_path: Path, processes: Zygote, settings: list[str]
) -> None:
    folder = tmp_path / "sweep"
    ended = processes.run(
        "run", "--multirun", *settings, "mechanism=user_wise,group_privacy", "noise.source=os", "seed=918273645",
        f"output_dir={folder}",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert leaks(folder, ended) == []
    for job in ("0", "1"):
        lines = [json.loads(line) for path in (folder / job / "ledger").iterdir() for line in path.open()]
        assert [line["noise_source"] for line in lines if "sealed" not in line] == ["os", "os"]
        assert all("seed" not in key for line in lines for key in line)
        statement = json.loads((folder / job / "privacy.json").read_text())["runs"][0]
        assert statement["noise_source"] == "os"


def test_of_single_users_only_their_rounds_are_written_by_number_and_not_as_private(
    tmp_path: Path, processes: Zygote, settings: list[str]
) -> None:
    folder = tmp_path / "run"
    assert processes.run("run", *settings, f"output_dir={folder}").returncode == 0
    tables = [file for file in folder.rglob("*.csv") if "checkpoints" not in str(file)]
    assert {file.name for file in tables} == {"results.csv", "rounds.csv", "participation.csv"}
    of_users = [file for file in tables if any("user" in each for each in columns(file) if not is_of_everybody(each))]
    assert [columns(file) for file in of_users] == [["mechanism", "seed", "user", "rounds", "not_private"]]
    names = ("rounds.csv", "data.json", "participation.csv", "participation.json")
    diagnostics = [file for file in folder.rglob("*") if file.is_file() and file.name in names]
    assert [file.parent.name for file in diagnostics] == ["not_private"] * len(diagnostics)
    longest = max(len(value) for value in lists_in(json.loads((folder / "not_private" / "data.json").read_text())))
    assert longest < NUM_USERS, "a list as long as there are users"


def columns(file: Path) -> list[str]:
    return file.read_text().splitlines()[0].split(",")


def is_of_everybody(column: str) -> bool:
    """Settings that are named after users."""
    return column == "records_per_user"


def lists_in(value: object) -> Iterator[list[object]]:
    """All lists of a JSON value, and an empty one."""
    yield []
    if isinstance(value, list):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from lists_in(part)


def test_a_wrong_record_is_named_by_its_place_and_not_by_its_text(
    tmp_path: Path, processes: Zygote, settings: list[str]
) -> None:
    corpora = {
        "half a line": f'{{"user_id": "{ID}", "text": "{PHRASE}',
        "no text column": json.dumps({"user_id": ID, "words": PHRASE}),
        "no object": json.dumps([PHRASE, ID]),
        "owners of another kind": json.dumps({"user_id": ID, "text": PHRASE, "owners": {PHRASE: ID}}),
        "a number of thousands of digits": f'{{"user_id": "{ID}", "text": "{PHRASE}", "n": {"9" * 5000}}}',
        "too few users": json.dumps({"user_id": ID, "text": PHRASE * 20}),
    }
    for name, line in corpora.items():
        file = tmp_path / "wrong.jsonl"
        file.write_text(line + "\n")
        owners = ["data.owners_column=owners"] if "owners" in name else []
        ended = processes.run("run", *settings, f"data.path={file}", *owners, f"output_dir={tmp_path / name}")
        assert ended.returncode == 2, name
        assert ended.stderr.count("\n") == 1
        assert leaks(tmp_path / name, ended) == [], name
