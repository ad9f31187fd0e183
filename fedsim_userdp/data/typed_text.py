"""What somebody typed is text: a tokenizer in whose input no spelling of a control token becomes that token."""

from __future__ import annotations

import json
from typing import Any

from fedsim_userdp.data.tokens import Tokenizer


class TypedText:
    """Token ids of texts, for `encode_texts`, in which added tokens are spelled out like any other text.

    Tokenizers leave out only those that are marked special, when asked to. Many a control token is not, such as
    `<think>` or `<tool_call>`. Added tokens of white space alone stand for that white space and stay tokens.

    Args:
        tokenizer: A tokenizer of transformers.

    Attributes:
        eos_token_id: The tokenizer's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eos_token_id
        self._tokenizer = tokenizer
        self._backend = _with_all_special(tokenizer)

    def __call__(self, text: list[str], **options: Any) -> dict[str, list[list[int]]]:
        """Returns the ids of each text under `input_ids`, without any mark that the tokenizer would add."""
        if self._backend is None:
            return {"input_ids": self._tokenizer(text, **options)["input_ids"]}
        return {"input_ids": [found.ids for found in self._backend.encode_batch(text, add_special_tokens=False)]}

    def __len__(self) -> int:
        """Returns the number of tokens, added ones included."""
        return len(self._tokenizer)


def _with_all_special(tokenizer: Tokenizer) -> Any | None:
    """The tokenizer's backend with all added tokens special, but for white space; None where none need be changed."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        return None
    content = json.loads(backend.to_str())
    control = [token for token in content.get("added_tokens") or [] if not token["special"] and _is_seen(token)]
    if not control:
        return None
    for token in control:
        token["special"] = True
    content["truncation"] = content["padding"] = None
    changed = type(backend).from_str(json.dumps(content))
    changed.encode_special_tokens = True
    return changed


def _is_seen(token: dict[str, Any]) -> bool:
    """Whether an added token is more than white space, which SentencePiece writes as a low bar."""
    return bool(str(token["content"]).replace("\u2581", " ").strip())
