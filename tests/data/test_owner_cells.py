import csv
import json
from decimal import Decimal
from pathlib import Path

import pytest

from fedsim_userdp.data.owner_cells import owners_of
from fedsim_userdp.data.table import TableCorpus
from fedsim_userdp.errors import DataError


@pytest.mark.parametrize(
    ("cell", "owners"),
    [
        (None, ()),
        ("  ", ()),
        ([], ()),
        ("[]", ()),
        ("boss", ("boss",)),
        (" a ; b;", ("a", "b")),
        ("O'Brien; two words; x@y.com", ("O'Brien", "two words", "x@y.com")),
        ("Boss; boss", ("Boss", "boss")),
        (7, ("7",)),
        (7.0, ("7",)),
        ("7; 8", ("7", "8")),
        ([7, 8.0, "nine"], ("7", "8", "nine")),
        ('["u7", "boss"]', ("u7", "boss")),
        ("[7, 8.0]", ("7", "8")),
        ('["Smith, John"]', ("Smith, John",)),
        ("u7; boss\u200b", ("u7", "boss")),
        ("jose\u0301;\xa0jos\xe9", ("jos\xe9", "jos\xe9")),
        (["jose\u0301\ufeff"], ("jos\xe9",)),
        (Decimal("7.00"), ("7",)),
    ],
)
def test_what_is_certain_is_read(cell: object, owners: tuple[str, ...]) -> None:
    assert owners_of(cell, ";", "f:1") == owners


UNCERTAIN_TEXTS = [
    "['u7', 'boss']", "('u7', 'boss')", "{'u7', 'boss'}", "(u7; boss)", "{u7;boss}", "[u7, boss]", "[u7; boss]",
    "frozenset({'u7', 'boss'})", "'u7', 'boss'", '"u7"; "boss"', "\u201cu7\u201d; boss", "`u7`", "u7; 'boss'",
    "u7,boss", "u7|boss", "u7\tboss", "u7\nboss", "u7; bo\u200bss", "u7;;boss", ";boss", ";", '[{"id": "boss"}]',
    '[["boss"]]', '["u7", null]', "[true]", "[1.5]", "[NaN]", '["u7", ""]', '["u7;boss"]', "[\"['u7', 'boss']\"]",
    '["u7"] boss', '{"id": "boss"}', "7.0", "7.", "7;8.00", "1e+05", '["7.0"]', "1e3",
    "nan", "Boss <boss@x.com>", "[deleted]", "[" * 100_000,
]  # fmt: skip
UNCERTAIN_VALUES = [
    ["u7", None], ["u7", ""], ["u7", " "], [["boss"]], [{"id": "boss"}], {"id": "boss"}, [True], True, [1.5], 1.5,
    [b"boss"], Decimal("7.5"), 2.0**53, float("nan"), float("inf"), 1e300, [("u7", 1)], ["u7;boss"], ["'boss'"],
]  # fmt: skip


@pytest.mark.parametrize("cell", UNCERTAIN_TEXTS + UNCERTAIN_VALUES, ids=lambda cell: repr(cell)[:40])
def test_what_is_uncertain_is_refused_and_never_guessed(cell: object) -> None:
    with pytest.raises(DataError, match="f:1: an owner ") as refusal:
        owners_of(cell, ";", "f:1")
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("cell", UNCERTAIN_TEXTS[:-1], ids=lambda cell: repr(cell)[:40])
def test_a_csv_cell_that_cannot_be_read_is_refused_by_file_and_line(tmp_path: Path, cell: object) -> None:
    with (tmp_path / "mail.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["user_id", "text", "to"], ["ann", "x", "boss"], ["ann", "y", cell]])
    with pytest.raises(DataError, match=r"mail\.csv:3: an owner .*\(column 'to'\)$"):
        list(TableCorpus(tmp_path / "mail.csv", "csv", owners_column="to").records())


def test_another_separator_is_read_when_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "mail.jsonl").write_text(json.dumps({"user_id": "ann", "text": "x", "to": "u7, boss"}))
    (record,) = TableCorpus(tmp_path / "mail.jsonl", owners_column="to", owners_separator=",").records()
    assert record.owners == ("u7", "boss")


def test_a_list_column_of_parquet_is_read_and_a_null_in_it_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name, to in {"good": ["u7", "boss"], "bad": ["u7", None], "structs": [{"id": "boss"}]}.items():
        rows = [{"user_id": "ann", "text": "x", "to": to}]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    (record,) = TableCorpus(tmp_path / "good.parquet", "parquet", owners_column="to").records()
    assert record.owners == ("u7", "boss")
    for name in ("bad", "structs"):
        with pytest.raises(DataError, match=rf"{name}\.parquet: row 1: an owner "):
            list(TableCorpus(tmp_path / f"{name}.parquet", "parquet", owners_column="to").records())


def test_a_refusal_tells_the_place_and_neither_id_nor_text() -> None:
    for cell in ("['CANARY', 'b']", "CANARY,b", ["CANARY\tb"], {"CANARY": 1}, '["CANARY"', "CANARY;;b"):
        with pytest.raises(DataError) as refusal:
            owners_of(cell, ";", "f:1")
        assert "CANARY" not in str(refusal.value)
