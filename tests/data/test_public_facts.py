"""Public facts are read as the corpus' ids are, and users without them are refused by number."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim_userdp.data.public_facts import PublicFacts
from fedsim_userdp.data.writer import hash_id
from fedsim_userdp.errors import DataError


def hashes(*ids: str) -> np.ndarray:
    return np.frombuffer(b"".join(hash_id(one.encode()) for one in ids), "<u8")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_columns_come_in_the_order_of_the_users_numbers_where_they_are_numbers(tmp_path: Path) -> None:
    facts = PublicFacts.of(write(tmp_path / "u.csv", "user_id,region,hours\nb,south,3\na,north,1.5\nc,south,2\n"))
    found = facts.of_users(hashes("a", "c", "b"))
    assert found["region"].tolist() == ["north", "south", "south"]
    assert found["hours"].tolist() == [1.5, 2.0, 3.0]
    assert facts.names == ("region", "hours")


@pytest.mark.parametrize(
    "given",
    [
        {"user_id": ["a", 7], "n": [1, 2]},
        [{"user_id": "a", "n": 1}, {"user_id": 7, "n": 2}],
    ],
)
def test_tables_and_rows_in_memory_are_read_as_files_are(given: Any) -> None:
    assert PublicFacts.of(given).of_users(hashes("7", "a"))["n"].tolist() == [2.0, 1.0]


def test_lists_of_numbers_are_an_array(tmp_path: Path) -> None:
    path = write(tmp_path / "u.jsonl", '{"user_id": "a", "e": [1, 2]}\n{"user_id": "b", "e": [3, 4]}\n')
    assert PublicFacts.of(path).of_users(hashes("b"))["e"].tolist() == [[3.0, 4.0]]


def test_users_without_a_row_are_counted_and_refused() -> None:
    facts = PublicFacts.of({"user_id": ["a"], "n": [1]})
    with pytest.raises(DataError, match="2 of 3 training users have no row of public facts"):
        facts.of_users(hashes("a", "b", "c"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("user_id,n\na,1\na,2\n", "name a user twice"),
        ("user,n\na,1\n", "need a column 'user_id'; this row has user, n"),
        ("user_id,n\n", "has no row of public facts"),
        ("user_id,n\n,1\n", "names no user"),
    ],
)
def test_what_is_amiss_in_a_table_is_said(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        PublicFacts.of(write(tmp_path / "u.csv", text))


def test_a_file_that_is_not_there_or_of_no_known_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"selection\.public=.*nowhere\.csv is no file"):
        PublicFacts.of(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=r"must end in \.csv"):
        PublicFacts.of(write(tmp_path / "u.txt", "user_id\na\n"))


def test_the_digest_is_of_what_is_said_of_these_users_and_of_nothing_else() -> None:
    one = PublicFacts.of({"user_id": ["a", "b"], "n": [1, 2]})
    more = PublicFacts.of({"user_id": ["b", "a", "c"], "n": [2, 1, 9]})
    other = PublicFacts.of({"user_id": ["a", "b"], "n": [1, 3]})
    users = hashes("a", "b")
    assert one.digest(users) == more.digest(users) != other.digest(users)


def test_codes_that_only_look_like_numbers_stay_text_and_lists_with_gaps_are_refused(tmp_path: Path) -> None:
    found = PublicFacts.of({"user_id": ["a", "b"], "code": ["007", "12"], "n": ["1_0", "2"], "x": ["-1.5e3", ".5"]})
    facts = found.of_users(hashes("a"))
    assert [facts[name].tolist() for name in ("code", "n", "x")] == [["007"], ["1_0"], [-1500.0]]
    with pytest.raises(DataError, match="lists that are not finite numbers of one length"):
        PublicFacts.of({"user_id": ["a"], "e": [[1.0, float("nan")]]})
