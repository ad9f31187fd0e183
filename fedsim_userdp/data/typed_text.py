"""What somebody typed is text: a tokenizer in whose input no spelling of a control token becomes that token."""

from __future__ import annotations

import json
import secrets
from typing import Any

from fedsim_userdp.data.tokens import Tokenizer


class TypedText:
    """Token ids of texts, for `encode_texts`, in which added tokens are spelled out like any other text.

    Tokenizers leave out only those that are marked special, when asked to. Many a control token is not, such as
    `<think>` or `<tool_call>`, and where a vocabulary is searched for the best pieces (Unigram) or for whole words,
    `</s>` is found there all the same. Added tokens of white space alone stand for that white space and stay tokens.

    Args:
        tokenizer: A tokenizer of transformers.

    Attributes:
        eos_token_id: The tokenizer's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eos_token_id
        self._tokenizer = tokenizer
        self._backend = _without_control(tokenizer)

    def __call__(self, text: list[str], **options: Any) -> dict[str, list[list[int]]]:
        """Returns the ids of each text under `input_ids`, without any mark that the tokenizer would add."""
        if self._backend is None:
            return {"input_ids": self._tokenizer(text, **options)["input_ids"]}
        return {"input_ids": [found.ids for found in self._backend.encode_batch(text, add_special_tokens=False)]}

    def __len__(self) -> int:
        """Returns the number of tokens, added ones included."""
        return len(self._tokenizer)


def _without_control(tokenizer: Tokenizer) -> Any | None:
    """The tokenizer's backend such that no text becomes a control token; None where it is so already."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        return None
    content = json.loads(backend.to_str())
    control = [token for token in content.get("added_tokens") or [] if _is_seen(token)]
    hidden = _hidden(content["model"], {str(token["content"]) for token in control})
    if not hidden and all(token["special"] for token in control):
        return None
    for token in control:
        token["special"] = True
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in hidden]
    content["truncation"] = content["padding"] = None
    changed = type(backend).from_str(json.dumps(content))
    changed.encode_special_tokens = True
    return changed


def _hidden(model: dict[str, Any], names: set[str]) -> set[str]:
    """Gives those of the names that a model's vocabulary has others, which nobody can type; returns them.

    Byte-pair encoding is left as it is: what no merge makes is out of its reach.
    """
    vocab = model["vocab"]
    if model["type"] == "BPE":
        return set()
    found = names & set(vocab if isinstance(vocab, dict) else (piece for piece, _ in vocab))
    others = {name: f"{secrets.token_hex(16)} {name}" for name in found}
    if isinstance(vocab, dict):
        model["vocab"] = {others.get(piece, piece): number for piece, number in vocab.items()}
    else:
        model["vocab"] = [[others.get(piece, piece), score] for piece, score in vocab]
    if "unk_token" in model:
        model["unk_token"] = others.get(model["unk_token"], model["unk_token"])
    return found


def _is_seen(token: dict[str, Any]) -> bool:
    """Whether an added token is more than white space, which SentencePiece writes as a low bar."""
    return bool(str(token["content"]).replace("\u2581", " ").strip())
