import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from fedsim_userdp.data.store import open_store
from fedsim_userdp.settings import TokenSettings

from .sources import WordTokenizer


@pytest.fixture
def keep_all():
    """Settings that keep every user."""
    return TokenSettings(window=8, min_words=0, min_tokens=2)


@pytest.fixture
def store_of(tmp_path, keep_all):
    """Opens the store of a corpus in the test's own cache folder."""

    def open_it(corpus, settings=keep_all, tokenizer=None):
        return open_store(corpus, tokenizer or WordTokenizer(), settings, tmp_path / "cache")

    return open_it


@pytest.fixture(scope="session")
def bpe_tokenizer():
    """A real byte-level BPE tokenizer, trained on a few sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

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
