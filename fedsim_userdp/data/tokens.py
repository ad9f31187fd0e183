"""Text to token ids: what a record becomes before it is stored."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.errors import DataError
from fedsim_userdp.settings import TokenSettings

PIECE_CHARS = 100_000
WORD = re.compile(r"\S+")


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    eos_token_id: Any

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Returns a mapping whose `input_ids` holds one list of ids per text."""
        ...

    def __len__(self) -> int:
        """Returns the number of tokens, added ones included."""
        ...


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Returns a hex digest of everything that decides which ids a text becomes, wherever it was loaded from."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        content = json.loads(backend.to_str())
        content["truncation"] = content["padding"] = None
    else:
        content = {
            "class": type(tokenizer).__qualname__,
            "vocab": getattr(tokenizer, "get_vocab", dict)(),
            "settings": getattr(tokenizer, "init_kwargs", {}),
        }
    content["eos"] = tokenizer.eos_token_id
    return hashlib.blake2b(json.dumps(content, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def eos_of(tokenizer: Tokenizer, settings: TokenSettings) -> list[int]:
    """Returns what ends a record: one id, or nothing when `append_eos` is off.

    Raises:
        DataError: an end mark is wanted and the tokenizer has none.
    """
    if not settings.append_eos:
        return []
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"tokenizer {_name(tokenizer)} has no end-of-text token: give it an eos_token or set "
            "tokens.append_eos=false"
        )
    return [int(tokenizer.eos_token_id)]


def bos_of(tokenizer: Tokenizer, settings: TokenSettings) -> list[int]:
    """Returns what begins a record: one id, or nothing.

    Raises:
        DataError: a beginning mark is wanted and the tokenizer has none, or it leaves less room in a window than the
            shortest record needs.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    if settings.prepend_bos is True and bos is None:
        raise DataError(
            f"tokenizer {_name(tokenizer)} has no beginning-of-text token: give it a bos_token or set "
            "tokens.prepend_bos=false"
        )
    is_wanted = _adds_bos(tokenizer, bos) if settings.prepend_bos == "auto" else settings.prepend_bos
    if bos is None or not is_wanted:
        return []
    if settings.min_tokens >= settings.window:
        raise DataError(
            f"tokens.window={settings.window} has no room for {settings.min_tokens} tokens (tokens.min_tokens) after "
            "the beginning-of-text token: raise it, or set tokens.prepend_bos=false"
        )
    return [int(bos)]


def _adds_bos(tokenizer: Tokenizer, bos: int | None) -> bool:
    """Whether the tokenizer puts its beginning-of-text token before a text that is encoded as its model expects it."""
    if bos is None:
        return False
    (ids,) = tokenizer(["a"], add_special_tokens=True, return_attention_mask=False, verbose=False)["input_ids"]
    return list(ids[:1]) == [bos]


def _name(tokenizer: Tokenizer) -> str:
    """What a tokenizer is called in messages."""
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], settings: TokenSettings) -> list[NDArray[np.int64]]:
    """Returns the token ids of each text, uncut and without an end mark.

    Special tokens spelt out in a text stay text: nobody can end a record by typing an end mark; see
    `typed_text.TypedText` for added tokens that are not marked special. A text of more
    than 100,000 characters is tokenised in pieces cut at white space, which keeps memory bounded; with
    `long_records="truncate"` only as many pieces as the window can hold.
    """
    encoded: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(texts)
    short = [index for index, text in enumerate(texts) if len(text) <= PIECE_CHARS]
    for index, ids in zip(short, _encode(tokenizer, [texts[index] for index in short]), strict=True):
        encoded[index] = ids
    limit = settings.window if settings.long_records == "truncate" else None
    for index in set(range(len(texts))).difference(short):
        encoded[index] = _encode_long(tokenizer, texts[index], limit)
    return encoded


def cut_windows(ids: NDArray[np.int64], window: int) -> list[NDArray[np.int64]]:
    """Returns `ids` in consecutive pieces of `window` tokens, the last one shorter if need be."""
    return [ids[start : start + window] for start in range(0, len(ids), window)]


def count_words(text: str) -> int:
    """Returns the number of words between white space; in memory that does not grow with the text's length."""
    return sum(1 for _ in WORD.finditer(text)) if len(text) > PIECE_CHARS else len(text.split())


def replace_lone_surrogates(text: str) -> str:
    """Returns `text` with code points that UTF-8 cannot hold replaced by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[NDArray[np.int64]]:
    """Token ids of texts of bounded length."""
    if not texts:
        return []
    encoded = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )
    return [np.asarray(ids, np.int64) for ids in encoded["input_ids"]]


def _encode_long(tokenizer: Tokenizer, text: str, limit: int | None) -> NDArray[np.int64]:
    """Token ids of a text of any length, piece by piece, until there are `limit` of them."""
    found: list[NDArray[np.int64]] = []
    for piece in _pieces(text):
        found.extend(_encode(tokenizer, [piece]))
        if limit is not None and sum(map(len, found)) >= limit:
            break
    return np.concatenate(found)


def _pieces(text: str) -> Iterator[str]:
    """Cuts a text before white space into pieces of at most PIECE_CHARS characters."""
    start = 0
    while start < len(text):
        end = start + PIECE_CHARS
        if end < len(text):
            space = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
            end = space if space > start else end
        yield text[start:end]
        start = end
