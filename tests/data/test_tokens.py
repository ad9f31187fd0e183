import copy
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from fedsim_userdp.data import tokens
from fedsim_userdp.data.corpus import Record
from fedsim_userdp.data.tokens import bos_of, encode_texts, tokenizer_fingerprint
from fedsim_userdp.data.typed_text import TypedText
from fedsim_userdp.errors import DataError
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.settings import TokenSettings

from .sources import MemoryCorpus, StoreOf, WordTokenizer


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": 1}, "window must be at least 2 tokens, got 1"),
        ({"min_tokens": 1}, "min_tokens must be from 2 to window"),
        ({"window": 8, "min_tokens": 9}, r"window \(8\), got 9"),
        ({"min_words": -1}, "min_words must be at least 0, got -1"),
        ({"prepend_bos": "yes"}, "prepend_bos must be auto, true or false, got 'yes'"),
        ({"prepend_bos": 1}, "prepend_bos must be auto, true or false, got 1"),
        ({"long_records": "drop"}, "long_records must be 'split' or 'truncate', got 'drop'"),
    ],
)
def test_settings_out_of_range_are_refused_with_name_and_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TokenSettings(**values)


def test_a_typed_end_mark_stays_text(bpe_tokenizer: PreTrainedTokenizerFast) -> None:
    (ids,) = encode_texts(bpe_tokenizer, ["the end <|endoftext|> the fox"], TokenSettings(min_tokens=2))
    assert bpe_tokenizer.eos_token_id not in ids
    assert bpe_tokenizer.decode(ids) == "the end <|endoftext|> the fox"


def with_bos(
    tokenizer: PreTrainedTokenizerFast, *, adds_it: bool = True, added: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A copy with a beginning mark, put before every text or not, and further added tokens that are not special."""
    copied = copy.deepcopy(tokenizer)
    copied.add_special_tokens({"bos_token": "<s>"})
    copied.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    if adds_it:
        template = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", copied.bos_token_id)])
        copied.backend_tokenizer.post_processor = template
    return copied


TEXT = "the quick brown fox jumps over the lazy dog " * 3
BEGUN = [(True, "auto", True), (False, "auto", False), (False, True, True), (True, False, False)]


@pytest.mark.parametrize(("adds_it", "prepend_bos", "has_bos"), BEGUN)
@pytest.mark.parametrize("append_eos", [True, False])
@pytest.mark.parametrize("long_records", ["split", "truncate"])
def test_every_record_begins_once_with_the_beginning_mark_if_the_tokenizer_has_it_so(
    bpe_tokenizer: PreTrainedTokenizerFast,
    store_of: StoreOf,
    adds_it: bool,
    prepend_bos: Literal["auto"] | bool,
    has_bos: bool,
    append_eos: bool,
    long_records: Literal["split", "truncate"],
) -> None:
    tokenizer = with_bos(bpe_tokenizer, adds_it=adds_it)
    settings = TokenSettings(
        window=8, min_words=0, append_eos=append_eos, long_records=long_records, prepend_bos=prepend_bos, min_tokens=2
    )
    corpus = MemoryCorpus([Record("a", TEXT), Record("a", "the fox"), Record("b", "<s>the fox")])
    store = store_of(corpus, settings, tokenizer)
    records = [record.tolist() for user in range(2) for record in store.records(user)]
    assert max(map(len, records)) == 8
    assert all(record[:1] == [tokenizer.bos_token_id] for record in records) is has_bos
    assert sum(record.count(tokenizer.bos_token_id) for record in records) == len(records) * has_bos
    assert store.stats.num_tokens == sum(map(len, records))
    texts = [[id for id in record if id not in (tokenizer.bos_token_id, tokenizer.eos_token_id)] for record in records]
    whole = tokenizer.decode([id for text in texts[:-2] for id in text])
    assert TEXT.startswith(whole) if long_records == "truncate" else whole == TEXT
    assert (records[-1][-1] == tokenizer.eos_token_id) is append_eos


def test_the_beginning_mark_does_not_make_up_for_text(
    bpe_tokenizer: PreTrainedTokenizerFast, store_of: StoreOf
) -> None:
    tokenizer = with_bos(bpe_tokenizer)
    (ids,) = encode_texts(tokenizer, ["the fox"], TokenSettings(min_tokens=2))
    fits = TokenSettings(window=len(ids) + 1, min_words=0, min_tokens=2)
    (record,) = store_of(MemoryCorpus([Record("a", "the fox")]), fits, tokenizer).records(0)
    assert record.tolist() == [tokenizer.bos_token_id, *ids]


def test_a_model_without_a_beginning_mark_has_none(bpe_tokenizer: PreTrainedTokenizerFast) -> None:
    assert (
        bos_of(bpe_tokenizer, TokenSettings(min_tokens=2)) == bos_of(WordTokenizer(), TokenSettings(min_tokens=2)) == []
    )
    assert bos_of(ModelSource().load_tokenizer(), TokenSettings(min_tokens=2)) == []
    with pytest.raises(DataError, match=r"tokenizer WordTokenizer has no beginning-of-text token: .*prepend_bos=false"):
        bos_of(WordTokenizer(), TokenSettings(prepend_bos=True, min_tokens=2))


def test_a_window_without_room_for_the_beginning_mark_is_refused(
    bpe_tokenizer: PreTrainedTokenizerFast, store_of: StoreOf
) -> None:
    with pytest.raises(DataError, match=r"tokens\.window=8 has no room for 8 tokens \(tokens\.min_tokens\) after the"):
        store_of(MemoryCorpus([Record("a", TEXT)]), TokenSettings(window=8, min_tokens=8), with_bos(bpe_tokenizer))


def test_the_beginning_mark_has_a_store_of_its_own(bpe_tokenizer: PreTrainedTokenizerFast, store_of: StoreOf) -> None:
    corpus, found = MemoryCorpus([Record("a", TEXT)]), set()
    for prepend_bos in ("auto", True, False):
        for adds_it in (True, False):
            settings = TokenSettings(window=8, min_words=0, prepend_bos=prepend_bos, min_tokens=2)
            found.add(store_of(corpus, settings, with_bos(bpe_tokenizer, adds_it=adds_it)).fingerprint)
    assert len(found) == 6


CONTROL = ["<think>", "</think>", "[tool call]", "<|im_start|>", "\u2581<x>"]


@pytest.mark.parametrize("token", CONTROL)
def test_an_added_token_that_is_not_marked_special_stays_text_when_somebody_types_it(
    bpe_tokenizer: PreTrainedTokenizerFast, store_of: StoreOf, token: str
) -> None:
    tokenizer = with_bos(bpe_tokenizer, added=CONTROL)
    text = f"the end {token} the{token}fox"
    settings = TokenSettings(window=200, min_words=0, min_tokens=2)
    (record,) = store_of(MemoryCorpus([Record("a", text)]), settings, tokenizer).records(0)
    assert tokenizer.convert_tokens_to_ids(token) in tokenizer(text)["input_ids"]
    assert set(record[1:-1]).isdisjoint(tokenizer.added_tokens_decoder)
    assert tokenizer.decode(record[1:-1]) == text


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary itself has the control tokens, as those of SentencePiece and of whole words do."""
    special, line = (
        ["<unk>", "<s>", "</s>"],
        "the quick brown fox jumps over the lazy dog " + " ".join("abcdefghijkl<s>/"),
    )
    if kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer: trainers.Trainer = trainers.UnigramTrainer(
            vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    backend.train_from_iterator([line] * 20, trainer)
    backend.add_tokens([AddedToken("<think>", special=False), AddedToken("\n\n", special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["unigram", "words"])
def test_control_tokens_of_the_vocabulary_itself_stay_text_when_somebody_types_them(
    store_of: StoreOf, kind: str
) -> None:
    tokenizer = tokenizer_of(kind)
    text = "the fox </s> <s> <think> dog\n\nthe"
    (record,) = store_of(
        MemoryCorpus([Record("a", text)]), TokenSettings(window=99, min_words=0, min_tokens=2), tokenizer
    ).records(0)
    typed = record[:-1].tolist()
    assert not {tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "</s>", "<think>")} & set(typed)
    assert tokenizer.convert_tokens_to_ids("\n\n") in typed
    (plain,) = encode_texts(tokenizer, ["the quick fox"], TokenSettings(min_tokens=2))
    (same,) = encode_texts(TypedText(tokenizer), ["the quick fox"], TokenSettings(min_tokens=2))
    assert plain.tolist() == same.tolist()
    if kind == "words":
        assert typed.count(tokenizer.unk_token_id) == 3


def test_added_tokens_of_white_space_stay_tokens(bpe_tokenizer: PreTrainedTokenizerFast, store_of: StoreOf) -> None:
    tokenizer = with_bos(bpe_tokenizer, added=["    ", "\n\n", "<think>"])
    settings = TokenSettings(window=200, min_words=0, min_tokens=2)
    (record,) = store_of(MemoryCorpus([Record("a", "the    fox\n\n<think>")]), settings, tokenizer).records(0)
    spaces = tokenizer.convert_tokens_to_ids(["    ", "\n\n"])
    assert [id for id in record[1:-1] if id in tokenizer.added_tokens_decoder] == spaces


def test_a_long_text_in_pieces_gives_the_tokens_of_the_whole(
    bpe_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "the quick brown fox\njumps over  the lazy dog " * 40
    (whole,) = encode_texts(bpe_tokenizer, [text], TokenSettings(min_tokens=2))
    monkeypatch.setattr(tokens, "PIECE_CHARS", 97)
    (pieces,) = encode_texts(bpe_tokenizer, [text], TokenSettings(min_tokens=2))
    assert bpe_tokenizer.decode(pieces) == text
    assert np.mean(pieces[:100] == whole[:100]) > 0.95


def test_a_long_text_without_white_space_is_still_tokenised_whole(
    bpe_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "PIECE_CHARS", 10)
    (ids,) = encode_texts(bpe_tokenizer, ["é" * 101], TokenSettings(min_tokens=2))
    assert bpe_tokenizer.decode(ids) == "é" * 101


def test_a_50_mb_record_is_truncated_without_being_tokenised_whole(
    bpe_tokenizer: PreTrainedTokenizerFast, store_of: StoreOf
) -> None:
    corpus = MemoryCorpus([Record("a", "the lazy dog " * 4_000_000), Record("b", "the fox jumps over")])
    settings = TokenSettings(window=64, min_words=0, long_records="truncate", min_tokens=2)
    store = store_of(corpus, settings, bpe_tokenizer)
    assert [len(record) for record in store.records(0)] == [64]
    assert store.stats.dropped == {"record cut to its first 64 tokens": 1}


def test_a_record_of_megabytes_is_split_into_windows(bpe_tokenizer: PreTrainedTokenizerFast, store_of: StoreOf) -> None:
    store = store_of(MemoryCorpus([Record("a", "the lazy dog " * 100_000)]), TokenSettings(min_tokens=2), bpe_tokenizer)
    assert store.num_tokens(0) >= 300_000
    assert {len(record) for record in store.records(0)[:-1]} == {64}


@pytest.mark.slow
def test_a_50_mb_record_is_split_into_windows(bpe_tokenizer: PreTrainedTokenizerFast, store_of: StoreOf) -> None:
    store = store_of(
        MemoryCorpus([Record("a", "the lazy dog " * 4_000_000)]), TokenSettings(min_tokens=2), bpe_tokenizer
    )
    assert store.num_tokens(0) >= 12_000_000


@pytest.mark.parametrize("text", ["", "one", " two  words\n", "a\u00a0b\u2003c\x1fd", "é" * 300 + " z "])
def test_words_of_a_long_text_are_counted_as_those_of_a_short_one(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = len(text.split())
    assert tokens.count_words(text) == expected
    monkeypatch.setattr(tokens, "PIECE_CHARS", 0)
    assert tokens.count_words(text) == expected


def test_lone_surrogates_are_replaced_and_counted(bpe_tokenizer: PreTrainedTokenizerFast, store_of: StoreOf) -> None:
    store = store_of(MemoryCorpus([Record("a", "the \ud800 fox jumps")]), tokenizer=bpe_tokenizer)
    assert store.stats.dropped == {"record with code points that UTF-8 cannot hold, replaced": 1}
    assert bpe_tokenizer.decode(store.records(0)[0]).startswith("the ? fox")


def test_a_tokenizer_without_an_end_mark_is_refused_unless_none_is_wanted(store_of: StoreOf) -> None:
    tokenizer = WordTokenizer()
    tokenizer.eos_token_id = None
    corpus = MemoryCorpus([Record("a", "one two three")])
    with pytest.raises(DataError, match=r"WordTokenizer has no end-of-text token: .* tokens\.append_eos=false"):
        store_of(corpus, tokenizer=tokenizer)
    store = store_of(corpus, TokenSettings(min_words=0, append_eos=False, min_tokens=2), tokenizer)
    assert len(store.records(0)[0]) == 3


def test_a_tokenizer_without_padding_works(bpe_tokenizer: PreTrainedTokenizerFast, store_of: StoreOf) -> None:
    assert bpe_tokenizer.pad_token_id is None
    assert store_of(MemoryCorpus([Record("a", "the fox")]), tokenizer=bpe_tokenizer).num_users == 1


def test_tokenizer_fingerprint_ignores_padding_state_and_use_but_not_the_vocabulary(
    bpe_tokenizer: PreTrainedTokenizerFast,
) -> None:
    before = tokenizer_fingerprint(bpe_tokenizer)
    encode_texts(bpe_tokenizer, ["the fox"], TokenSettings(min_tokens=2))
    bpe_tokenizer(["the fox jumps"], truncation=True, max_length=2)
    assert tokenizer_fingerprint(bpe_tokenizer) == before
    import copy

    other = copy.deepcopy(bpe_tokenizer)
    other.add_tokens(["foxes"])
    assert tokenizer_fingerprint(other) != before


def test_a_text_that_is_not_a_string_is_refused_by_place(store_of: StoreOf) -> None:
    with pytest.raises(DataError, match="memory, record 2: text must be a str, got int"):
        store_of(MemoryCorpus([Record("a", "one two"), Record("a", 3)]))  # type: ignore[arg-type]


@pytest.mark.parametrize("user_id", ["", None])
def test_a_record_without_a_user_id_is_left_out_and_counted(store_of: StoreOf, user_id: Any) -> None:
    store = store_of(MemoryCorpus([Record("a", "one two"), Record(user_id, "three four")]))
    assert store.num_users == 1
    assert store.stats.dropped == {"record without a user id": 1}
    assert store.stats.first_at == {"record without a user id": "memory, record 2"}


def test_a_user_id_that_is_no_text_is_refused(store_of: StoreOf) -> None:
    with pytest.raises(DataError, match="memory, record 2: user_id must be a str, got int"):
        store_of(MemoryCorpus([Record("a", "one two"), Record(7, "three four")]))  # type: ignore[arg-type]
