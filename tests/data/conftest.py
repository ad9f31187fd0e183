import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from fedsim_userdp.data.corpus import Corpus
from fedsim_userdp.data.store import TokenStore, open_store
from fedsim_userdp.data.tokens import Tokenizer
from fedsim_userdp.settings import TokenSettings

from .sources import StoreOf, WordTokenizer


@pytest.fixture
def keep_all() -> TokenSettings:
    """Settings that keep every user."""
    return TokenSettings(window=8, min_words=0, min_tokens=2)


@pytest.fixture
def store_of(tmp_path: Path, keep_all: TokenSettings) -> StoreOf:
    """Opens the store of a corpus in the test's own cache folder."""

    def open_it(corpus: Corpus, settings: TokenSettings = keep_all, tokenizer: Tokenizer | None = None) -> TokenStore:
        return open_store(corpus, tokenizer or WordTokenizer(), settings, tmp_path / "cache")

    return open_it


@pytest.fixture(scope="session")
def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """A real byte-level BPE tokenizer, trained on a few sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
