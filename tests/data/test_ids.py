"""One person has one id in every column, file and format, or the data is refused."""

import csv
import json
import re
import sys
import unicodedata
from decimal import Decimal
from pathlib import Path

import pytest

from fedsim_userdp.data.chitchat import ChitchatCorpus
from fedsim_userdp.data.corpus import Corpus, Record
from fedsim_userdp.data.ids import REWRITTEN, UNSEEN, id_of, plain_id, unseen_in
from fedsim_userdp.data.owners import OwnerBoundedStore, count_owners
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.data.table import Form, TableCorpus
from fedsim_userdp.errors import DataError

from .sources import MemoryCorpus, StoreOf, message

NFC, NFD = "jos\xe9", "jose\u0301"
SAME = [NFC, NFD, f" {NFC}", f"{NFD}\xa0", f"\ufeff{NFC}", f"{NFC}\u200b", f"\u2028{NFD}\0", f"\u00ad{NFC}\u3000"]
AS_FRACTION = [
    "1.0",
    "1.",
    "1,00",
    "+1.0",
    "-1.0",
    ".0",
    "1e+05",
    "1E+05",
    "1.2345678901234568e+18",
    "1.5e3",
    " 1.0\u200b",
]
HIDDEN = {
    "\0": "U+0000",
    "\n": "U+000A",
    "\x1b": "U+001B",
    "\xa0": "U+00A0 NO-BREAK SPACE",
    "\xad": "U+00AD SOFT HYPHEN",
    "\u034f": "U+034F COMBINING GRAPHEME JOINER",
    "\u115f": "U+115F HANGUL CHOSEONG FILLER",
    "\u200b": "U+200B ZERO WIDTH SPACE",
    "\u202e": "U+202E RIGHT-TO-LEFT OVERRIDE",
    "\u2800": "U+2800 BRAILLE PATTERN BLANK",
    "\u3000": "U+3000 IDEOGRAPHIC SPACE",
    "\u3164": "U+3164 HANGUL FILLER",
    "\ufe0f": "U+FE0F VARIATION SELECTOR-16",
    "\U000e0041": "U+E0041 TAG LATIN CAPITAL LETTER A",
}
SAID = ["c: an id", "f:1: an id", "f:1: an owner"]
WITHOUT_A_SHAPE = ("Cc", "Cf", "Zl", "Zp", "Zs")
# Signs of format that are seen, over the number or name after them (Prepended_Concatenation_Mark).
SEEN_FORMAT = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
OTHERS = ["1", "01", "+1", "1e3", "12e45678", "1.5", "1.10", "v1.0", "1.0.0", "ann", "Ann", "a b", "nan", "-", "."]
OTHERS += ["\u0627 \u0628", "\U0001f600"]


def ids_of(store: TokenStore) -> list[str]:
    return [store.user_id(user) for user in range(store.num_places)]


def write_table(folder: Path, form: Form, rows: list[tuple[str, str, str]]) -> Path:
    """A table of one user and one text column in each of the forms."""
    names = ["user_id", "text", "to"]
    path = folder / f"mine.{form}"
    if form == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([names, *rows])
    elif form == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        table = pyarrow.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
    return path


FORMS = pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])


@FORMS
def test_an_id_in_eight_spellings_is_one_user_and_one_owner(form: Form, tmp_path: Path, store_of: StoreOf) -> None:
    rows = [(spelling, f"some text {at}", "boss") for at, spelling in enumerate(SAME)]
    rows += [("boss", "more text", spelling) for spelling in SAME]
    path = write_table(tmp_path, form, rows)
    assert ids_of(store_of(TableCorpus(path, form))) == [NFC, "boss"]
    owned = store_of(TableCorpus(path, form, owners_column="to"))
    assert (ids_of(owned), owned.stats.num_owners) == ([NFC, "boss"], 2)


def test_a_pool_holds_no_more_than_k_records_of_somebody_with_two_spellings(store_of: StoreOf) -> None:
    records = [Record(f"user {at}", f"some text {at}", (spelling,)) for at, spelling in enumerate(SAME)]
    store = store_of(MemoryCorpus(records))
    assert count_owners(store, store.source_users()) == len(SAME) + 1
    assert OwnerBoundedStore(store.path, 4, b"key").used.sum() == 4


@FORMS
@pytest.mark.parametrize("value", AS_FRACTION)
@pytest.mark.parametrize("owners_column", [None, "to"])
def test_a_whole_number_written_as_a_fraction_is_refused_by_file_and_column(
    form: Form, value: str, owners_column: str | None, tmp_path: Path
) -> None:
    path = write_table(tmp_path, form, [("1", "x", "2"), (value, "y", "3")])
    with pytest.raises(DataError, match=rf"mine\.{form}:( row )?[23]: column 'user_id': an id is .* 7 instead of 7\.0"):
        list(TableCorpus(path, form, owners_column=owners_column).records())


@FORMS
@pytest.mark.parametrize("value", AS_FRACTION)
def test_an_owner_written_as_a_fraction_is_refused_by_file_and_column(form: Form, value: str, tmp_path: Path) -> None:
    path = write_table(tmp_path, form, [("1", "x", "2"), ("1", "y", value)])
    with pytest.raises(DataError, match=rf"mine\.{form}:( row )?[23]: an owner .*\(column 'to'\)$"):
        list(TableCorpus(path, form, owners_column="to").records())


def test_an_integer_column_with_a_gap_makes_no_second_user_of_anybody(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,text\n1,x\n")
    (tmp_path / "b.csv").write_text("user_id,text\n1.0,y\n,z\n")
    with pytest.raises(DataError, match=r"b\.csv:2: column 'user_id'"):
        list(TableCorpus(tmp_path, "csv").records())


@pytest.mark.parametrize("value", [7, 7.0, "7", " 7", Decimal("7"), Decimal("7.00")])
def test_a_whole_number_is_one_id_however_it_is_typed(value: object) -> None:
    assert id_of(value, "f:1") == "7"


@pytest.mark.parametrize(
    "value", [None, True, False, 1.5, float("nan"), float("inf"), Decimal("1.5"), Decimal("NaN"), ""]
)
def test_what_is_no_id_is_none(value: object) -> None:
    assert id_of(value, "f:1") is None


@pytest.mark.parametrize("value", [2.0**53, -(2.0**53), 1e300])
def test_a_float_that_could_be_several_numbers_is_refused(value: float) -> None:
    with pytest.raises(DataError, match="f:1: an id is a number too large"):
        id_of(value, "f:1")
    assert id_of(2**53 + 1, "f:1") == "9007199254740993"


def test_other_ids_stay_as_they_are_and_apart() -> None:
    assert [id_of(text, "f:1") for text in OTHERS] == OTHERS


def test_a_refused_id_is_not_told() -> None:
    with pytest.raises(DataError) as refusal:
        id_of("4711.0", "f:1")
    assert "4711" not in str(refusal.value)


def test_a_plain_id_stays_plain() -> None:
    assert {plain_id(plain_id(text)) for text in SAME} == {NFC}
    assert plain_id(" a\u200b\xa0b ") == "a\u200b\xa0b"
    assert plain_id(" \u200b") == ""


@FORMS
@pytest.mark.parametrize("sign", HIDDEN)
def test_what_cannot_be_seen_within_an_id_is_refused_by_place_and_name(form: Form, sign: str, tmp_path: Path) -> None:
    path = write_table(tmp_path, form, [("ann", "x", "boss"), (f"an{sign}n", "y", "boss")])
    with pytest.raises(DataError, match=rf"mine\.{form}:( row )?\d: column 'user_id': an id holds") as refusal:
        list(TableCorpus(path, form).records())
    assert HIDDEN[sign] in str(refusal.value)
    assert sign not in str(refusal.value)


@FORMS
@pytest.mark.parametrize("sign", sorted(HIDDEN.keys() - {"\n"}))
def test_what_cannot_be_seen_within_an_owner_is_refused_by_place_and_name(
    form: Form, sign: str, tmp_path: Path
) -> None:
    path = write_table(tmp_path, form, [("ann", "x", "boss"), ("ann", "y", f"bo{sign}ss")])
    with pytest.raises(DataError, match=rf"mine\.{form}:( row )?[23]: an owner holds .*\(column 'to'\)$") as refusal:
        list(TableCorpus(path, form, owners_column="to").records())
    assert HIDDEN[sign] in str(refusal.value)


@pytest.mark.parametrize("sign", HIDDEN)
def test_what_cannot_be_seen_is_refused_from_every_source(sign: str, tmp_path: Path, store_of: StoreOf) -> None:
    turns = [[message("some words", "ann")], [message("more words", f"an{sign}n")]]
    (tmp_path / "dataset.json").write_text(json.dumps({"c": {"messages": turns}}))
    corpora: list[Corpus] = [
        ChitchatCorpus(tmp_path),
        MemoryCorpus([Record(f"an{sign}n", "some text", at="f:1")]),
        MemoryCorpus([Record("ann", "some text", (f"bo{sign}ss",), at="f:1")]),
    ]
    for corpus, what in zip(corpora, SAID, strict=True):
        with pytest.raises(DataError, match=rf"{what} holds {re.escape(HIDDEN[sign])}.* cannot be seen"):
            store_of(corpus)


def test_all_that_unicode_has_without_a_shape_is_known() -> None:
    formless = {sign for sign in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(sign) in WITHOUT_A_SHAPE}
    assert formless - set(SEEN_FORMAT) <= set(UNSEEN)
    assert all(unseen_in(f"a{sign}b") for sign in UNSEEN if sign != " ")


def test_joiners_that_words_and_emoji_need_make_no_other_user(tmp_path: Path, store_of: StoreOf) -> None:
    words = ["\u0645\u06cc\u200c\u0631", "\u0645\u06cc\u0631", "a\u200d\U0001f600", "a\U0001f600"]
    path = write_table(tmp_path, "jsonl", [(word, "some text", f"x;{word}") for word in words])
    store = store_of(TableCorpus(path, owners_column="to"))
    assert (ids_of(store), store.stats.num_owners) == ([words[1], words[3]], 3)


ALIKE = ["ann", "Ann", "\uff21nn", "ann  b", "ANN b", "bob", "bo b", "stra\xdfe", "STRASSE"]


def test_ids_like_another_but_for_case_width_or_spaces_stay_apart_and_are_told_once(
    store_of: StoreOf, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = MemoryCorpus([Record(name, "some text", ("boss", "BOSS")) for name in ALIKE])
    assert ids_of(store_of(corpus)) == ALIKE
    (told,) = caplog.messages
    assert told.startswith("corpus memory: 9 ids are like another")
    assert ids_of(store_of(corpus)) == ALIKE
    assert caplog.messages == [told]


def test_nothing_is_told_of_ids_that_are_not_alike(store_of: StoreOf, caplog: pytest.LogCaptureFixture) -> None:
    store_of(MemoryCorpus([Record(name, "some text") for name in OTHERS if name != "Ann"]))
    assert not caplog.messages


@FORMS
def test_ids_in_another_form_are_counted(form: Form, tmp_path: Path, store_of: StoreOf) -> None:
    path = write_table(tmp_path, form, [(spelling, "some text", "") for spelling in SAME])
    assert store_of(TableCorpus(path, form)).stats.dropped == {REWRITTEN: len(SAME) - 1}


def test_a_sender_in_two_spellings_is_one_user_of_a_conversation(tmp_path: Path, store_of: StoreOf) -> None:
    turns = [[message(f"some words {at}", spelling)] for at, spelling in enumerate(SAME)]
    (tmp_path / "dataset.json").write_text(json.dumps({"c": {"messages": turns}}))
    store = store_of(ChitchatCorpus(tmp_path))
    assert (ids_of(store), store.stats.num_sources) == ([NFC], 1)


def test_a_user_of_a_corpus_of_ones_own_is_one_in_any_spelling(store_of: StoreOf) -> None:
    corpus = MemoryCorpus([Record(spelling, f"some text {at}") for at, spelling in enumerate([*SAME, "\u200b"])])
    store = store_of(corpus)
    assert ids_of(store) == [NFC]
    assert store.stats.dropped == {"record without a user id": 1, REWRITTEN: len(SAME) - 1}


def test_a_store_is_built_anew_when_ids_come_out_otherwise(store_of: StoreOf, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = MemoryCorpus([Record("ann", "some text")])
    store_of(corpus)
    store_of(corpus)
    assert corpus.num_passes == 1
    monkeypatch.setattr("fedsim_userdp.data.ingestion.RULE", 1)
    store_of(corpus)
    assert corpus.num_passes == 2
