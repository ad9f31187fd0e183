"""Columns of a corpus' table that are declared public."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim_userdp import conf
from fedsim_userdp.data.in_memory import InMemoryCorpus
from fedsim_userdp.data.public_columns import public_columns
from fedsim_userdp.data.table import TableCorpus
from fedsim_userdp.data.writer import hash_id
from fedsim_userdp.errors import DataError
from tests.simulations.zygote import Zygote

ROWS: list[dict[str, Any]] = [
    {"user_id": f"u{user}", "text": f"the house of the people {user} {one}", "region": "ab"[user % 2], "age": user}
    for user in range(12)
    for one in range(2)
]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def hashes(*users: str) -> np.ndarray:
    return np.frombuffer(b"".join(hash_id(user.encode()) for user in users), dtype="<u8")


def test_columns_of_a_table_are_public_facts(tmp_path: Path) -> None:
    corpus = TableCorpus(written(tmp_path / "t.jsonl", ROWS))
    facts = public_columns(corpus, ["region", "age"]).of_users(hashes("u3", "u0"))
    assert facts["region"].tolist() == ["b", "a"]
    assert facts["age"].tolist() == [3.0, 0.0]


def test_columns_of_a_csv_file_are_read_besides_ids_and_texts(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["user_id", "text", "region", "age"])
        writer.writeheader()
        writer.writerows(ROWS)
    facts = public_columns(TableCorpus(tmp_path / "t.csv", "csv"), ["region"]).of_users(hashes("u1"))
    assert {name: values.tolist() for name, values in facts.items()} == {"region": ["b"]}


def test_users_with_two_values_are_refused_by_number(tmp_path: Path) -> None:
    rows = [{**row, "region": "c"} if n in (0, 2, 3) else row for n, row in enumerate(ROWS)]
    with pytest.raises(DataError, match="1 users have more than one value in column 'region'") as error:
        public_columns(TableCorpus(written(tmp_path / "t.jsonl", rows)), ["region"])
    assert "u0" not in str(error.value)


@pytest.mark.parametrize("name", ["user_id", "text"])
def test_ids_and_texts_are_not_declared_public(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="other than those of ids, texts and owners"):
        public_columns(TableCorpus(written(tmp_path / "t.jsonl", ROWS)), [name])


def test_a_missing_column_and_a_corpus_without_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'town'"):
        public_columns(TableCorpus(written(tmp_path / "t.jsonl", ROWS)), ["town"])
    with pytest.raises(DataError, match="InMemoryCorpus reads no table"):
        public_columns(InMemoryCorpus([("u", "text")]), ["region"])


def test_a_run_states_its_public_columns_and_their_content_is_what_it_is(tmp_path: Path, processes: Zygote) -> None:
    file = written(tmp_path / "t.jsonl", ROWS)
    given = [
        "data=jsonl", f"data.path={file}", "selection=fixed_strata", "selection.users_per_group=2",
        "selection.public_columns=[region]", "split.heldout_users=2", "tokens.min_words=0", "mechanism.rounds=1",
        "model.device=cpu", f"cache_dir={tmp_path / 'cache'}", "tokens.window=16", "evaluation.every=100",
    ]  # fmt: skip
    done = processes.run("run", *given, f"output_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "run" / "PRIVACY.md").read_text()
    assert "what the corpus says of each user in region, and how many users there are of each kind" in page
    assert processes.run("verify", str(tmp_path / "run")).returncode == 0
    both = processes.run("run", *given, "selection.public=x.csv", f"output_dir={tmp_path / 'other'}")
    assert "give one of them" in both.stderr
    written(tmp_path / "t.jsonl", [{**row, "region": "a" if row["user_id"] == "u5" else row["region"]} for row in ROWS])
    resumed = processes.run("run", f"resume={tmp_path / 'run'}")
    assert resumed.returncode != 0
    assert "public facts" in resumed.stderr


def test_every_selection_takes_public_facts_of_both_kinds() -> None:
    files = sorted((Path(str(conf.__file__)).resolve().parent / "selection").glob("*.yaml"))
    assert files
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "\npublic: null" in text, file.name
        assert "\npublic_columns: null" in text, file.name
