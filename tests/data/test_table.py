"""Bad input in a user's own table: handled and counted, or refused by file and line."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import pytest

from fedsim_userdp.data.corpus import Corpus
from fedsim_userdp.data.table import Form, TableCorpus
from fedsim_userdp.errors import DataError

from .sources import TEXTS, StoreOf, table_rows, write_datasets, write_parquet


def listed(corpus: Corpus) -> list[tuple[str, str]]:
    return [(record.user_id, record.text) for record in corpus.records()]


class WriteFile(Protocol):
    """The fixture that writes a file."""

    def __call__(self, content: str | bytes, name: str = ...) -> Path: ...


@pytest.fixture
def file(tmp_path: Path) -> WriteFile:
    def write(content: str | bytes, name: str = "mine.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"user_id": "a", "text": "x"}\n{"user_id": ', r"mine\.jsonl:2: not valid JSON"),
        ('{"user_id": "a", "text": "x"}\n\n[1]\n', r"mine\.jsonl:3: expected a JSON object, found list"),
        ('{"user": "a", "text": "x"}', r"mine\.jsonl:1: no column 'user_id'; it has 'user', 'text'; set data\.user_c"),
        ('{"user_id": "a"}', r"mine\.jsonl:1: no column 'text'; .* set data\.text_column=NAME"),
        ('{"a":' * 100_000, r"mine\.jsonl:1: not valid JSON"),
        ("[" * 100_000, r"mine\.jsonl:1: the file is a JSON array"),
        (
            '\ufeff\n [{"user_id": "a", "text": "x"}]',
            r"mine\.jsonl:2: the file is a JSON array; write one object a line",
        ),
        ("[\n{}\n]", r"mine\.jsonl:1: the file is a JSON array"),
        (
            '{\n"user_id": "a", "text": "x"}',
            r"mine\.jsonl:1: not valid JSON: .*; JSON lines have one whole object a line",
        ),
        (
            gzip.compress(b'{"user_id": "a", "text": "x"}', mtime=0),
            r"mine\.jsonl:1: the file is compressed: unpack it first",
        ),
        (bz2.compress(b"x"), r"mine\.jsonl:1: the file is compressed"),
        (lzma.compress(b"x"), r"mine\.jsonl:1: the file is compressed"),
        ('{"user_id": "a", "text": "x"}'.encode("utf-16-le"), r"mine\.jsonl:1: the file is UTF-16; save it as UTF-8"),
        ('{"user_id": "a", "text": "x", "to": "b", "to": "c"}', r"mine\.jsonl:1: not valid JSON: a name stands twice"),
        ('{"user_id": ' + "9" * 5000 + ', "text": "x"}', r"mine\.jsonl:1: not valid JSON: Exceeds the limit"),
        ('{"user_id": "a", "text": "x"}'.encode("utf-16"), r"mine\.jsonl:1: the file is UTF-16; save it as UTF-8"),
    ],
)
def test_bad_jsonl_is_refused_by_file_and_line(file: WriteFile, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        listed(TableCorpus(file(content)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user_id,text\na,x\nb\n", r"mine\.csv:3: 1 fields, expected 2 as in the header"),
        ("user_id,text\na,x,y\n", r"mine\.csv:2: 3 fields, expected 2"),
        ('user_id,text\na,"two\nlines"\nb,"open\n', r"mine\.csv:4: not valid CSV"),
        ("user_id,words\na,x\n", r"mine\.csv:2: no column 'text'; it has 'user_id', 'words'"),
        ("text,text\na,x\n", r"mine\.csv:1: column 'text' appears twice"),
        ("user_id,text\na,x".encode("utf-16"), r"mine\.csv:1: the file is UTF-16"),
        ("user_id,text\na,x".encode("utf-16-be"), r"mine\.csv:1: the file is UTF-16"),
        (gzip.compress(b"user_id,text\na,x", mtime=0), r"mine\.csv:1: the file is compressed: unpack it first"),
        (
            b"PK\x03\x04\x14\0\x06\0\x08\0",
            r"mine\.csv:1: the file is a zip archive or a workbook: .* save the sheet as CSV",
        ),
        ("user_id;text\na;x\n", r"mine\.csv:1: fields are separated by ';', not ',': set data\.delimiter=';'"),
        ("user_id\ttext\na\tx, y\n", r"mine\.csv:1: fields are separated by '\\t', not ',': set data\.delimiter='\\t'"),
        ('"user_id";"text"\n"a";"x"\n', r"mine\.csv:1: fields are separated by ';'"),
        ("\ufeffuser_id|text|n, m\na|x|1\n", r"mine\.csv:1: fields are separated by '|'"),
        ("user_id,text,,\na,hello, there,\n", r"mine\.csv:2: 4 fields, expected 2 as in the header"),
        ("user_id,text,,\na\n", r"mine\.csv:2: 1 fields, expected 2 as in the header"),
        ("user_id,,text,user_id\na,b,c,d\n", r"mine\.csv:1: column 'user_id' appears twice"),
    ],
)
def test_bad_csv_is_refused_by_file_and_line(file: WriteFile, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        listed(TableCorpus(file(content, "mine.csv"), "csv"))


@pytest.mark.parametrize(
    "content",
    [
        "sep=;\nuser_id;text\na;x, y\n",
        "\ufeffsep=;\r\nuser_id;text\r\na;x, y\r\n",
        '"sep=\t"\nuser_id\ttext\na\tx, y\n',
        'sep=,,\nuser_id,text\na,"x, y"\n',
        'SEP=|\n"user_id"|"text"\n"a"|"x, y"\n',
        'user_id,text,,,\na,"x, y",,,\n',
        'user_id,text,,\na,"x, y"\n',
        'user_id,text\na,"x, y",,\n',
        ',user_id,text\n0,a,"x, y"\n',
        'user_id,,text,\na,1,"x, y",\n',
        '\n,,\nuser_id,text\na,"x, y"\n',
        '\ufeff"user_id","text"\r"a","x, y"\r',
    ],
)
def test_csv_as_spreadsheets_and_libraries_write_it_is_read(file: WriteFile, content: str | bytes) -> None:
    assert listed(TableCorpus(file(content, "mine.csv"), "csv")) == [("a", "x, y")]


def test_a_line_is_named_as_an_editor_counts_it_after_a_sep_line(file: WriteFile) -> None:
    with pytest.raises(DataError, match=r"mine\.csv:4: 1 fields, expected 2"):
        listed(TableCorpus(file("sep=;\nuser_id;text\na;x\nb\n", "mine.csv"), "csv"))


def test_rows_of_empty_fields_are_counted_as_rows_without_a_user(file: WriteFile) -> None:
    corpus = TableCorpus(file("user_id,text,,\na,x,,\n,,,\n,,,\n", "mine.csv"), "csv")
    assert listed(corpus) == [("a", "x")]
    assert corpus.dropped.counts == {"row without a user id": 2}


@pytest.mark.parametrize(
    ("content", "delimiter"),
    [("user_id\ttext\na\tx, y\n", ","), ('user_id,text\na,"x, y"\n', ","), ("user_id;text\na;x, y\n", ";")],
)
def test_a_tsv_file_has_tabs_unless_its_header_or_the_settings_say_otherwise(
    file: WriteFile, content: str | bytes, delimiter: str
) -> None:
    assert listed(TableCorpus(file(content, "mine.tsv"), "csv", delimiter=delimiter)) == [("a", "x, y")]


def test_a_delimiter_is_a_tab_as_the_command_line_writes_it(file: WriteFile) -> None:
    corpus = TableCorpus(file("user_id\ttext\na\tx, y\n", "mine.csv"), "csv", delimiter="\\t")
    assert listed(corpus) == [("a", "x, y")]


@pytest.mark.parametrize(
    ("form", "content"), [("csv", "0,1,2\na,x,b\n"), ("jsonl", '{"0": "a", "1": "x", "2": ["b"]}')]
)
def test_columns_may_be_called_by_numbers(file: WriteFile, form: Form, content: str | bytes) -> None:
    path = file(content, f"mine.{form}")
    (record,) = TableCorpus(path, form, user_column=0, text_column=1, owners_column=2).records()  # type: ignore[arg-type]
    assert (record.user_id, record.text, record.owners) == ("a", "x", ("b",))


@pytest.mark.parametrize("name", [True, None, "", ["a"]])
@pytest.mark.parametrize("key", ["user_column", "text_column", "owners_column"])
def test_what_is_no_name_of_a_column_is_refused(key: str, name: Any) -> None:
    if (key, name) != ("owners_column", None):
        with pytest.raises(DataError, match=f"{key} must be a column's name"):
            TableCorpus("x", **{key: name})


def test_fields_beyond_the_csv_limit_of_python_are_read(file: WriteFile) -> None:
    content = 'user_id,text\r\na,"' + "long text, " * 100_000 + '"\r\n'
    ((user, text),) = listed(TableCorpus(file(content, "mine.csv"), "csv"))
    assert user == "a"
    assert len(text) == 1_100_000


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_bytes_that_are_not_utf8_are_read_as_latin1_and_counted_with_the_line(file: WriteFile, form: Form) -> None:
    rows = {
        "jsonl": b'{"user_id": "a", "text": "gr\xc3\xbcn"}\n{"user_id": "a", "text": "caf\xe9"}\n',
        "csv": b"user_id,text\na,gr\xc3\xbcn\na,caf\xe9\n",
    }
    corpus = TableCorpus(file(rows[form], f"mine.{form}"), form)
    assert [text for _, text in listed(corpus)] == ["grün", "café"]
    assert corpus.dropped.counts == {"text that is not UTF-8, read as latin-1": 1}
    assert corpus.dropped.first_at["text that is not UTF-8, read as latin-1"].endswith(
        f":{ {'jsonl': 2, 'csv': 3}[form] }"
    )


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(file: WriteFile, form: Form) -> None:
    content = {"jsonl": '\ufeff{"user_id": "a", "text": "x"}', "csv": "\ufeffuser_id,text\na,x\n"}[form]
    assert listed(TableCorpus(file(content, f"mine.{form}"), form)) == [("a", "x")]


def test_rows_without_id_are_left_out_and_those_without_text_blank_and_both_counted_with_the_line(
    file: WriteFile,
) -> None:
    values = [("a", "x"), (None, "x"), ("", "x"), ("  ", "x"), (True, "x"), (1.5, "x"), ("a", None), ("a", 3)]
    content = "".join(json.dumps({"user_id": user, "text": text}) + "\n" for user, text in values)
    corpus = TableCorpus(file(content))
    assert listed(corpus) == [("a", "x"), ("a", ""), ("a", "")]
    assert corpus.dropped.counts == {"row without a user id": 5, "row without text": 2}
    assert corpus.dropped.first_at["row without a user id"].endswith("mine.jsonl:2")


def test_whole_numbers_serve_as_ids_however_they_are_typed(file: WriteFile) -> None:
    content = '{"user_id": 7, "text": "x"}\n{"user_id": 7.0, "text": "y"}\n{"user_id": "7", "text": "z"}\n'
    assert {user for user, _ in listed(TableCorpus(file(content)))} == {"7"}


@pytest.mark.parametrize(
    ("form", "content"), [("jsonl", ""), ("csv", ""), ("jsonl", "\n \n\n"), ("csv", "user_id,text\n"), ("csv", "\n")]
)
def test_an_empty_file_leaves_no_user_and_the_message_names_it(
    file: WriteFile, form: Form, content: str | bytes, store_of: StoreOf
) -> None:
    with pytest.raises(DataError, match=rf"corpus '{form}': no user is left: empty file: 1 \(first .*mine\.{form}\)"):
        store_of(TableCorpus(file(content, f"mine.{form}"), form))


def test_an_empty_file_beside_a_good_one_is_counted(file: WriteFile, tmp_path: Path, store_of: StoreOf) -> None:
    file("", "1.jsonl")
    file('{"user_id": "a", "text": "some words"}', "2.jsonl")
    file("not read", "notes.txt")
    (tmp_path / "more").mkdir()
    store = store_of(TableCorpus(tmp_path))
    assert store.stats.dropped == {"empty file": 1, "file of another kind, or folder, beside the corpus' files": 3}


def test_what_is_wrong_with_a_record_is_told_with_its_file_and_line(file: WriteFile, store_of: StoreOf) -> None:
    content = '{"user_id": "a", "text": "some words"}\n{"user_id": "b", "text": " "}\n{"user_id": "a", "text": ""}\n'
    store = store_of(TableCorpus(file(content)))
    assert store.stats.dropped == {"empty record": 2, "user without a usable record": 1}
    assert store.stats.first_at["empty record"].endswith("mine.jsonl:2")


def test_white_space_around_an_id_makes_no_other_user_nor_another_owner(file: WriteFile, store_of: StoreOf) -> None:
    rows = [
        ("a", "b ; c", "first text"),
        (" b", "", "second text"),
        ("b ", " a", "third text"),
        ("c\n", None, "fourth"),
    ]
    content = "".join(json.dumps({"user_id": u, "to": to, "text": text}) + "\n" for u, to, text in rows)
    store = store_of(TableCorpus(file(content), owners_column="to"))
    assert [store.user_id(user) for user in range(store.num_users)] == ["a", "b", "c"]
    assert store.stats.num_owners == 3


def test_a_file_without_a_header_is_refused_and_little_of_it_is_shown(file: WriteFile) -> None:
    content = ",".join(f"SECRET {number} " + "text " * 50 for number in range(40)) + "\n" + "x," * 39 + "x\n"
    with pytest.raises(DataError, match=r"mine\.csv:2: no column 'user_id'") as refusal:
        listed(TableCorpus(file(content, "mine.csv"), "csv"))
    assert len(str(refusal.value).partition("it has")[2]) < 700


def test_a_place_that_is_neither_file_nor_folder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place, why in [("/dev/null", "neither a file nor a folder"), (str(tmp_path / "loop"), "symbolic links")]:
        with pytest.raises(DataError, match=rf"corpus 'jsonl': data\.path=.*{why}"):
            listed(TableCorpus(place))


@pytest.mark.parametrize("name", ["x" * 10_000, "a\0b", "~nobody-of-that-name/x"])
def test_a_path_that_no_file_can_have_is_refused_in_one_short_line(name: str) -> None:
    with pytest.raises(DataError, match=r"corpus 'jsonl': data\.path='") as refusal:
        listed(TableCorpus(name))
    assert len(str(refusal.value)) < 300
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("name", ["a b", "new\nline", "😀", "..", "-rf", "a,b=c'd\"e"])
def test_a_file_of_any_name_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.jsonl").write_text('{"user_id": "a", "text": "x"}')
    assert listed(TableCorpus(tmp_path / f"{name}.jsonl")) == [("a", "x")]
    assert listed(TableCorpus(tmp_path)) == [("a", "x")]


def test_users_with_only_empty_text_keep_a_place_without_records_and_are_counted(
    file: WriteFile, store_of: StoreOf
) -> None:
    content = '{"user_id": "a", "text": "  \\n"}\n{"user_id": "b", "text": "some words"}\n{"user_id": "a", "text": ""}'
    store = store_of(TableCorpus(file(content)))
    assert [store.user_id(user) for user in range(store.num_places)] == ["a", "b"]
    assert (store.num_users, store.records_per_user.tolist()) == (1, [0, 1])
    assert store.stats.dropped == {"empty record": 2, "user without a usable record": 1}


def test_a_folder_is_read_in_order_and_an_id_in_two_files_is_one_user(
    file: WriteFile, tmp_path: Path, store_of: StoreOf
) -> None:
    file('{"user_id": "a", "text": "second file"}', "2.jsonl")
    file('{"user_id": "a", "text": "first file"}\n{"user_id": "b", "text": "one more"}', "1.jsonl")
    file("not read", "notes.txt")
    corpus = TableCorpus(tmp_path)
    assert [text for _, text in listed(corpus)] == ["first file", "one more", "second file"]
    store = store_of(corpus)
    assert (store.num_users, store.num_records(0)) == (2, 2)


def test_a_folder_without_such_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file with suffix \.parquet in this folder; set data\.path=PATH"):
        listed(TableCorpus(tmp_path, "parquet"))


@pytest.mark.parametrize("value", [["a", "b"], {"id": "a"}])
def test_several_users_in_a_row_are_refused_by_file_and_line(file: WriteFile, value: object) -> None:
    with pytest.raises(DataError, match=r"mine\.jsonl:1: a record is filed under one user, found .* data\.owners_col"):
        listed(TableCorpus(file(json.dumps({"user_id": value, "text": "x"}))))


@pytest.mark.parametrize("user_id", ["['u7', 'boss']", "u7;boss", "7.5", "1e3"])
def test_a_user_who_could_be_several_is_refused_where_owners_are_declared(file: WriteFile, user_id: str) -> None:
    content = json.dumps({"user_id": user_id, "text": "x", "to": None})
    assert listed(TableCorpus(file(content))) == [(user_id, "x")]
    with pytest.raises(DataError, match=r"mine\.jsonl:1: an owner .* \(column 'user_id'\)$"):
        listed(TableCorpus(file(content), owners_column="to"))


def test_an_empty_separator_is_refused() -> None:
    with pytest.raises(DataError, match="owners_separator must be text that is not empty, got ''"):
        TableCorpus("x", owners_column="to", owners_separator="")


@pytest.mark.parametrize("value", ["bob; cid ;", ["bob", " cid"], '["bob", "cid"]'])
def test_owners_come_from_a_list_or_a_separated_text(file: WriteFile, value: object) -> None:
    corpus = TableCorpus(file(json.dumps({"user_id": "a", "text": "x", "to": value})), owners_column="to")
    (record,) = corpus.records()
    assert record.owners == ("bob", "cid")


def test_other_columns_and_delimiter_can_be_named(file: WriteFile) -> None:
    corpus = TableCorpus(
        file("who\twhat\na\tx, y\n", "m.tsv"), "csv", user_column="who", text_column="what", delimiter="\t"
    )
    assert listed(corpus) == [("a", "x, y")]


@pytest.mark.parametrize(
    ("change", "name"),
    [({"form": "xml"}, "form"), *(({"delimiter": bad}, "delimiter") for bad in ("::", "", 1, None, '"', "\n"))],
)
def test_unknown_form_and_long_delimiter_are_refused(change: dict[str, Any], name: str) -> None:
    with pytest.raises(DataError, match=f"{name} must be"):
        TableCorpus("x", **change)


@pytest.mark.parametrize("form", ["parquet", "datasets"])
def test_without_pyarrow_the_message_says_what_to_install(
    tmp_path: Path, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    corpus = {"parquet": write_parquet, "datasets": write_datasets}[form](tmp_path, TEXTS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="needs pyarrow: pip install"):
        listed(corpus)


@pytest.mark.parametrize("content", [b"", b"PAR1 not really PAR1"])
def test_a_file_that_is_not_parquet_is_refused_or_counted_as_empty(
    file: WriteFile, content: str | bytes, store_of: StoreOf
) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=r"mine\.parquet"):
        store_of(TableCorpus(file(content, "mine.parquet"), "parquet"))


def test_a_missing_column_of_a_parquet_file_is_refused_by_row(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_parquet(tmp_path, TEXTS)
    with pytest.raises(DataError, match=r"mine\.parquet: row 1: no column 'body'"):
        listed(TableCorpus(tmp_path / "mine.parquet", "parquet", text_column="body"))


def unused(pyarrow: Any) -> dict[str, Any]:
    """Columns that Python cannot hold, by name."""
    utf8 = pyarrow.StringArray.from_buffers(1, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff"))
    return {
        "late": pyarrow.array([2**40], pyarrow.timestamp("s")),
        "zone": pyarrow.array([0], pyarrow.timestamp("s", tz="Mars/Phobos")),
        "nanoseconds": pyarrow.array([1], pyarrow.duration("ns")),
        "utf8": utf8,
        "words": pyarrow.ListArray.from_arrays([0, 1], utf8),
    }


def write_with_unused(folder: Path, form: Form) -> Path:
    """A table of one row whose further columns are of no concern."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({**unused(pyarrow), "user_id": ["a"], "text": ["x"], "to": [["b"]]})
    if form == "parquet":
        parquet.write_table(table, folder / "mine.parquet")
        return folder / "mine.parquet"
    write_datasets(folder, {"a": ["x"]})
    for number in range(2):
        name = str(folder / "saved" / f"data-{number:05d}-of-00002.arrow")
        with pyarrow.OSFile(name, "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table.slice(0, 1 - number))
    return folder / "saved"


@pytest.mark.parametrize("form", ["parquet", "datasets"])
def test_columns_that_are_not_wanted_are_not_read(tmp_path: Path, form: Form) -> None:
    (record,) = TableCorpus(write_with_unused(tmp_path, form), form, owners_column="to").records()
    assert (record.user_id, record.text, record.owners) == ("a", "x", ("b",))


@pytest.mark.parametrize("form", ["parquet", "datasets"])
@pytest.mark.parametrize("name", ["late", "zone", "words"])
@pytest.mark.parametrize("key", ["user_column", "text_column", "owners_column"])
def test_a_wanted_column_that_cannot_be_read_is_refused_by_file_and_name(
    tmp_path: Path, form: Form, name: str, key: str
) -> None:
    with pytest.raises(
        DataError, match=rf"(mine\.parquet|arrow): column '{name}' cannot be read \(\w+\): save it as text"
    ):
        listed(TableCorpus(write_with_unused(tmp_path, form), form, **{key: name}))


@pytest.mark.parametrize("form", ["parquet", "datasets"])
def test_text_of_arrow_that_is_not_utf8_is_read_as_latin1_and_counted(tmp_path: Path, form: Form) -> None:
    corpus = TableCorpus(write_with_unused(tmp_path, form), form, text_column="utf8")
    assert listed(corpus) == [("a", "\xff")]
    assert corpus.dropped.counts == {"text that is not UTF-8, read as latin-1": 1}


@pytest.mark.parametrize("form", ["parquet", "datasets"])
@pytest.mark.parametrize("missing", [["user_column"], ["text_column"], ["user_column", "text_column"]])
def test_missing_columns_of_arrow_are_told_with_those_that_there_are(
    tmp_path: Path, form: Form, missing: list[str]
) -> None:
    with pytest.raises(
        DataError, match=rf"row 1: no column 'gone'; it has 'late', .*'to'; set data\.{missing[0]}=NAME"
    ):
        listed(TableCorpus(write_with_unused(tmp_path, form), form, **dict.fromkeys(missing, "gone")))


def test_texts_kept_in_a_dictionary_are_read(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        name: pyarrow.array([value]).dictionary_encode() for name, value in {"user_id": "a", "text": "x"}.items()
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "mine.parquet")
    assert listed(TableCorpus(tmp_path / "mine.parquet", "parquet")) == [("a", "x")]


def test_a_column_that_a_parquet_file_has_twice_is_refused_by_file(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table([["a"], ["x"], ["b"], ["c"]], ["user_id", "text", "to", "to"])
    parquet.write_table(table, tmp_path / "mine.parquet")
    with pytest.raises(DataError, match=r"mine\.parquet: column 'to' appears twice"):
        listed(TableCorpus(tmp_path / "mine.parquet", "parquet", owners_column="to"))


def test_a_saved_dataset_with_several_splits_is_refused_and_one_split_of_it_read(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for split, texts in {"train": TEXTS, "test": {"zoe": ["Only here."]}}.items():
        (tmp_path / "both" / split).mkdir(parents=True)
        write_datasets(tmp_path, texts)
        for part in (tmp_path / "saved").iterdir():
            part.rename(tmp_path / "both" / split / part.name)
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for ask in (listed, TableCorpus.fingerprint):
        with pytest.raises(
            DataError, match=r"both: .* several splits \('test', 'train'\): set data\.path to one of them"
        ):
            ask(TableCorpus(tmp_path / "both", "datasets"))
    assert listed(TableCorpus(tmp_path / "both" / "test", "datasets")) == [("zoe", "Only here.")]
    (tmp_path / "both" / "train" / "state.json").unlink()
    assert listed(TableCorpus(tmp_path / "both", "datasets")) == [("zoe", "Only here.")]
    (tmp_path / "both" / "test" / "state.json").unlink()
    with pytest.raises(DataError, match="both: a saved dataset without a split"):
        listed(TableCorpus(tmp_path / "both", "datasets"))


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train", "test"], "test, train"),
        (["train-00000-of-00001", "validation-00000-of-00001"], "train, validation"),
        (["mine_Train1", "mine_DEV", "other"], "dev, train"),
        (["eval", "training.v2"], "eval, training"),
    ],
)
def test_a_folder_with_files_of_several_splits_is_refused(
    file: WriteFile, tmp_path: Path, names: list[str], splits: str
) -> None:
    for name in names:
        file('{"user_id": "a", "text": "x"}', f"{name}.jsonl")
    for ask in (listed, TableCorpus.fingerprint):
        with pytest.raises(DataError, match=rf"files of several splits \({splits}\): set data\.path to one file"):
            ask(TableCorpus(tmp_path))
    assert listed(TableCorpus(tmp_path / f"{names[0]}.jsonl")) == [("a", "x")]


@pytest.mark.parametrize(
    "names", [["train-1", "train-2"], ["trainer", "test"], ["valid", "val"], ["constrain", "latest"]]
)
def test_a_folder_with_files_of_one_split_is_read(file: WriteFile, tmp_path: Path, names: list[str]) -> None:
    for name in names:
        file('{"user_id": "a", "text": "x"}', f"{name}.jsonl")
    assert listed(TableCorpus(tmp_path)) == [("a", "x")] * 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", None, r"saved: no state\.json: not a folder written by datasets' save_to_disk"),
        ("state.json", b"[" * 100_000, r"state\.json: not readable as the state of a saved dataset"),
        ("state.json", b"{}", r"state\.json: not readable as the state of a saved dataset"),
        ("data-00001-of-00002.arrow", None, r"state\.json: lists 'data-00001-of-00002\.arrow', which is not in"),
        ("data-00001-of-00002.arrow", b"junk", r"data-00001-of-00002\.arrow: not an Arrow stream"),
        ("state.json", b'{"_data_files": [{"filename": "../../secret.arrow"}]}', r"lists '\.\./\.\./secret\.arrow'"),
    ],
)
def test_a_damaged_saved_dataset_is_refused_by_file(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    pytest.importorskip("pyarrow")
    corpus = write_datasets(tmp_path, TEXTS)
    (tmp_path / "saved" / name).unlink()
    if content is not None:
        (tmp_path / "saved" / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        listed(corpus)


def test_what_the_datasets_library_saves_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(table_rows(TEXTS)).save_to_disk(tmp_path / "real", num_shards=2)
    expected = [(row["user_id"], row["text"]) for row in table_rows(TEXTS)]
    assert listed(TableCorpus(tmp_path / "real", "datasets")) == expected


def test_reading_tables_imports_neither_pickle_users_nor_datasets_nor_torch() -> None:
    code = "import sys, fedsim_userdp.data.table, fedsim_userdp.data.store; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "pyarrow", "pandas", "flwr", "hydra"} & set(loaded)
