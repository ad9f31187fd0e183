import numpy as np
import pytest

from fedsim_userdp.data import tokens
from fedsim_userdp.data.corpus import DataError, Record
from fedsim_userdp.data.tokens import TokenSettings, encode_texts, tokenizer_fingerprint

from .sources import MemoryCorpus, WordTokenizer


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": 1}, "window must be at least 2 tokens, got 1"),
        ({"min_tokens": 1}, "min_tokens must be from 2 to window"),
        ({"window": 8, "min_tokens": 9}, r"window \(8\), got 9"),
        ({"min_words": -1}, "min_words must be at least 0, got -1"),
        ({"long_records": "drop"}, "long_records must be 'split' or 'truncate', got 'drop'"),
    ],
)
def test_settings_out_of_range_are_refused_with_name_and_value(values, message):
    with pytest.raises(DataError, match=message):
        TokenSettings(**values)


def test_a_typed_end_mark_stays_text(bpe_tokenizer):
    (ids,) = encode_texts(bpe_tokenizer, ["the end <|endoftext|> the fox"], TokenSettings())
    assert bpe_tokenizer.eos_token_id not in ids
    assert bpe_tokenizer.decode(ids) == "the end <|endoftext|> the fox"


def test_a_long_text_in_pieces_gives_the_tokens_of_the_whole(bpe_tokenizer, monkeypatch):
    text = "the quick brown fox\njumps over  the lazy dog " * 40
    (whole,) = encode_texts(bpe_tokenizer, [text], TokenSettings())
    monkeypatch.setattr(tokens, "PIECE_CHARS", 97)
    (pieces,) = encode_texts(bpe_tokenizer, [text], TokenSettings())
    assert bpe_tokenizer.decode(pieces) == text
    assert np.mean(pieces[:100] == whole[:100]) > 0.95


def test_a_long_text_without_white_space_is_still_tokenised_whole(bpe_tokenizer, monkeypatch):
    monkeypatch.setattr(tokens, "PIECE_CHARS", 10)
    (ids,) = encode_texts(bpe_tokenizer, ["é" * 101], TokenSettings())
    assert bpe_tokenizer.decode(ids) == "é" * 101


def test_a_50_mb_record_is_truncated_without_being_tokenised_whole(bpe_tokenizer, store_of):
    corpus = MemoryCorpus([Record("a", "the lazy dog " * 4_000_000), Record("b", "the fox jumps over")])
    settings = TokenSettings(window=64, min_words=0, long_records="truncate")
    store = store_of(corpus, settings, bpe_tokenizer)
    assert [len(record) for record in store.records(0)] == [64]
    assert store.stats.dropped == {"record cut to its first 64 tokens": 1}


def test_a_record_of_megabytes_is_split_into_windows(bpe_tokenizer, store_of):
    store = store_of(MemoryCorpus([Record("a", "the lazy dog " * 100_000)]), TokenSettings(), bpe_tokenizer)
    assert store.num_tokens(0) >= 300_000
    assert {len(record) for record in store.records(0)[:-1]} == {64}


@pytest.mark.slow
def test_a_50_mb_record_is_split_into_windows(bpe_tokenizer, store_of):
    store = store_of(MemoryCorpus([Record("a", "the lazy dog " * 4_000_000)]), TokenSettings(), bpe_tokenizer)
    assert store.num_tokens(0) >= 12_000_000


@pytest.mark.parametrize("text", ["", "one", " two  words\n", "a\u00a0b\u2003c\x1fd", "é" * 300 + " z "])
def test_words_of_a_long_text_are_counted_as_those_of_a_short_one(text, monkeypatch):
    expected = len(text.split())
    assert tokens.count_words(text) == expected
    monkeypatch.setattr(tokens, "PIECE_CHARS", 0)
    assert tokens.count_words(text) == expected


def test_lone_surrogates_are_replaced_and_counted(bpe_tokenizer, store_of):
    store = store_of(MemoryCorpus([Record("a", "the \ud800 fox jumps")]), tokenizer=bpe_tokenizer)
    assert store.stats.dropped == {"record with code points that UTF-8 cannot hold, replaced": 1}
    assert bpe_tokenizer.decode(store.records(0)[0]).startswith("the ? fox")


def test_a_tokenizer_without_an_end_mark_is_refused_unless_none_is_wanted(store_of):
    tokenizer = WordTokenizer()
    tokenizer.eos_token_id = None
    corpus = MemoryCorpus([Record("a", "one two three")])
    with pytest.raises(DataError, match=r"WordTokenizer has no end-of-text token: .* tokens\.append_eos=false"):
        store_of(corpus, tokenizer=tokenizer)
    store = store_of(corpus, TokenSettings(min_words=0, append_eos=False), tokenizer)
    assert len(store.records(0)[0]) == 3


def test_a_tokenizer_without_padding_works(bpe_tokenizer, store_of):
    assert bpe_tokenizer.pad_token_id is None
    assert store_of(MemoryCorpus([Record("a", "the fox")]), tokenizer=bpe_tokenizer).num_users == 1


def test_tokenizer_fingerprint_ignores_padding_state_and_use_but_not_the_vocabulary(bpe_tokenizer):
    before = tokenizer_fingerprint(bpe_tokenizer)
    encode_texts(bpe_tokenizer, ["the fox"], TokenSettings())
    bpe_tokenizer(["the fox jumps"], truncation=True, max_length=2)
    assert tokenizer_fingerprint(bpe_tokenizer) == before
    import copy

    other = copy.deepcopy(bpe_tokenizer)
    other.add_tokens(["foxes"])
    assert tokenizer_fingerprint(other) != before


def test_a_text_that_is_not_a_string_is_refused_by_place(store_of):
    with pytest.raises(DataError, match="memory, record 2: text must be a str, got int"):
        store_of(MemoryCorpus([Record("a", "one two"), Record("a", 3)]))


@pytest.mark.parametrize("user_id", ["", None, 7])
def test_a_record_without_a_user_id_is_left_out_and_counted(store_of, user_id):
    store = store_of(MemoryCorpus([Record("a", "one two"), Record(user_id, "three four")]))
    assert store.num_users == 1
    assert store.stats.dropped == {"record without a user id": 1}
    assert store.stats.first_at == {"record without a user id": "memory, record 2"}
