"""Which tokens a model's code may treat otherwise than others, such as the one for padding."""

import re
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import nn

_NAMED = re.compile(r"(^|_)(token_ids?|token_index)$|^(pad|padding|bos|eos|unk|mask|sep|cls)_(index|idx|ids?)$")
_PADDING = re.compile(r"^pad")  # what most often decides which tokens are read at all


def special_ids(model: nn.Module) -> tuple[int, ...]:
    """Returns the ids of tokens that a model knows by a role, each once, those for padding first.

    They are what its configuration, the parts of that, and its layers keep under a name such as `pad_token_id`,
    `eos_index` or `padding_idx`, as far as its vocabulary has them.
    """
    get_base = getattr(model, "get_base_model", None)
    base = get_base() if callable(get_base) else model
    found: list[tuple[str, int]] = []
    for name in ("config", "generation_config"):
        found += _named(getattr(getattr(base, name, None), "to_dict", dict)())
    for module in base.modules():
        found += _named(vars(module))
    found.sort(key=lambda pair: not _PADDING.match(pair[0]))
    size = int(base.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    return tuple(dict.fromkeys(token for _, token in found if 0 <= token < size))


def with_special(tokens: NDArray[np.int64], special: tuple[int, ...], turn: int = 0) -> NDArray[np.int64]:
    """Returns tokens of which every other one is special, in turn from number `turn` on; the last one that is read too.

    Args:
        tokens: a record, at least one token; the last one is predicted and never read.
        special: ids; where there are none the tokens stay.
        turn: with which of them to begin.
    """
    places = sorted({*range(0, len(tokens), 2), max(len(tokens) - 2, 0)})
    changed = tokens.copy()
    if special:
        changed[places] = np.resize(np.roll(special, -turn), len(places))
    return changed


def _named(values: Mapping[str, object]) -> Iterator[tuple[str, int]]:
    """The ids in a mapping, parts of a configuration included, each with the name that it is kept under."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _named({str(key): one for key, one in value.items()})
        elif _NAMED.search(name):
            tokens = value if isinstance(value, list | tuple) else [value]
            yield from ((name, token) for token in tokens if isinstance(token, int) and not isinstance(token, bool))
