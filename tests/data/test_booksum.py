import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim_userdp.data.booksum import BooksumCorpus
from fedsim_userdp.errors import DataError

WriteBooks = Callable[..., BooksumCorpus]


@pytest.fixture
def corpus(tmp_path: Path) -> WriteBooks:
    def write(*rows: dict[str, object], **options: Any) -> BooksumCorpus:
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return BooksumCorpus(tmp_path / "train.jsonl", **options)

    return write


def test_a_chapter_is_repeated_when_its_words_are_and_only_within_its_book(corpus: WriteBooks) -> None:
    rows = [("1", "a b"), ("1", "a\n b "), ("2", "a b"), ("1", "a c")]
    books = corpus(*({"bid": book, "chapter": text} for book, text in rows))
    assert [(r.user_id, r.text) for r in books.records()] == [("1", "a b"), ("2", "a b"), ("1", "a c")]
    assert books.dropped.counts == {"repeated chapter": 1}


def test_train_and_test_files_of_a_folder_are_one_corpus(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("bid,is_aggregate,chapter\n1,False,one\n2,False,two\n")
    (tmp_path / "test.csv").write_text("bid,is_aggregate,chapter\n1,False,one\n3,False,three\n")
    assert [(r.user_id, r.text) for r in BooksumCorpus(tmp_path).records()] == [
        ("1", "one"),
        ("3", "three"),
        ("2", "two"),
    ]


@pytest.mark.parametrize("mark", [True, "True", "true"])
def test_aggregates_can_be_left_out_and_are_counted(corpus: WriteBooks, mark: object) -> None:
    rows = [{"bid": 1, "text": "a b", "is_aggregate": mark}, {"bid": 1, "text": "a", "is_aggregate": False}]
    assert len(list(corpus(*rows).records())) == 2
    books = corpus(*rows, keep_aggregates=False)
    assert [r.text for r in books.records()] == ["a"]
    assert books.dropped.counts == {"aggregate of several chapters": 1}


def test_rows_without_a_book_are_left_out_and_those_without_text_blank_and_both_are_counted(corpus: WriteBooks) -> None:
    books = corpus({"bid": None, "text": "a"}, {"bid": "1", "text": None}, {"bid": "1", "text": "a"})
    assert [(r.user_id, r.text) for r in books.records()] == [("1", ""), ("1", "a")]
    assert books.dropped.counts == {"row without a book": 1, "row without text": 1}


def test_the_alignment_file_without_text_is_told_from_the_gathered_one(corpus: WriteBooks) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl:1: no column 'chapter' or 'text'.*run gather_data\.py first"):
        list(corpus({"bid": "1", "chapter_path": "x"}).records())


def test_several_books_in_a_row_are_refused_by_line(corpus: WriteBooks) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl:1: a record is filed under one user, found"):
        list(corpus({"bid": ["1", "2"], "text": "x"}).records())


def test_a_missing_book_column_is_refused_by_line(corpus: WriteBooks) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl:1: no column 'bid'; it has 'book', 'text'"):
        list(corpus({"book": "1", "text": "x"}).records())
