"""Further figures of a model on the evaluation users, besides perplexity; not private, and no part of any promise."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fedsim_userdp.errors import PluginError
from fedsim_userdp.plugins import calling, class_name, is_own, reason_of
from fedsim_userdp.training.batches import IGNORED, MicroBatch, Unit, micro_batches
from fedsim_userdp.training.losses import token_losses

_MAX_TOKENS = 1024  # of a micro-batch, whose logits are held
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32}  # by bytes
_PIECES = 16  # of a tensor, summed up one by one


class Metric(Protocol):
    """A figure of a trained model on the evaluation users."""

    def score(self, model: nn.Module, users: Sequence[Unit], tokenizer: PreTrainedTokenizerBase) -> float:
        """Returns the figure.

        Args:
            model: the causal language model with the trained adapter, in eval mode; it is not to be changed.
            users: whom it is scored on, each with `records`, a sequence of token ids of shape [tokens].
            tokenizer: the model's.
        """
        ...


class NextTokenAccuracy:
    """The share of next tokens that the model gives the highest probability, in [0, 1]."""

    def score(self, model: nn.Module, users: Sequence[Unit], tokenizer: PreTrainedTokenizerBase) -> float:
        """Returns the share over all tokens of the users."""
        correct = total = 0
        for batch in _batches(model, users):
            logits: Tensor = model(input_ids=batch.input_ids, use_cache=False).logits
            correct += int((logits.argmax(-1) == batch.targets).sum())
            total += int((batch.targets != IGNORED).sum())
        return correct / total


class BitsPerByte:
    """The model's loss in bits for each byte of the text, which compares models with different tokenizers.

    The loss is that of all tokens but the first of each record, which nothing predicts; the bytes are those of their
    text in UTF-8.  Special tokens, such as the end of a text, cost bits and have no bytes.
    """

    def score(self, model: nn.Module, users: Sequence[Unit], tokenizer: PreTrainedTokenizerBase) -> float:
        """Returns bits per byte over all records of the users; NaN where their text has no bytes."""
        nats = sum(float(token_losses(model, batch).double().sum()) for batch in _batches(model, users))
        texts = (
            tokenizer.decode(record[1:].tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for user in users
            for record in user.records
        )
        num_bytes = sum(len(text.encode()) for text in texts)
        return nats / math.log(2) / num_bytes if num_bytes else math.nan


def scored(
    metrics: Mapping[str, Metric], model: nn.Module, users: Sequence[Unit], tokenizer: PreTrainedTokenizerBase
) -> dict[str, float]:
    """Returns what each metric says of a model.

    Raises:
        PluginError: a metric of the user's own raised, gave no number, or changed the model or the records; the adapter
            is as before, and so are the records, of which each metric has copies.
    """
    found: dict[str, float] = {}
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters() if _is_of_adapter(name)}
    frozen = _checksums(model)
    for name, metric in metrics.items():
        own_users = [replace(user, records=[np.array(record) for record in user.records]) for user in users]
        own_tokenizer = tokenizer if is_own(metric) else copy.deepcopy(tokenizer)
        try:
            with torch.inference_mode(), calling(f"metrics.{name}", metric, "score()"):
                value = metric.score(model, own_users, own_tokenizer)
        finally:
            is_changed = _restore(model, before)
        if is_changed or _checksums(model) != frozen:
            raise PluginError(f"metrics.{name}={class_name(metric)}: score() changed the model, which it may only read")
        if not all(map(_has_same_records, users, own_users)):
            raise PluginError(f"metrics.{name}={class_name(metric)}: score() changed records, which it may only read")
        with calling(f"metrics.{name}", metric, "the answer of score()"):
            found[name] = _as_number(name, metric, value)
    return found


def _as_number(name: str, metric: Metric, value: object) -> float:
    """What a metric answered, as one number of double precision; PluginError where it is none."""
    about = f"metrics.{name}={class_name(metric)}: score() must return a number"
    if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
        raise PluginError(f"{about}, got {type(value).__name__}")
    try:
        return float(value)
    except Exception as error:  # of a list, of complex or of far too large numbers
        raise PluginError(f"{about} of double precision, got {type(value).__name__} ({reason_of(error)})") from error


@torch.no_grad()
def _restore(model: nn.Module, before: Mapping[str, Tensor]) -> bool:
    """Puts an adapter's parameters and the model's mode back; returns whether the parameters had been changed."""
    model.eval()
    now = dict(model.named_parameters())
    changed = [name for name, tensor in before.items() if name not in now or not torch.equal(now[name], tensor)]
    for name in changed:
        if name in now:
            now[name].data = before[name].clone()
    return bool(changed)


@torch.no_grad()
def _checksums(model: nn.Module) -> dict[str, list[int]]:
    """Sums over pieces of every frozen parameter and buffer, read as whole numbers: exact, and cheap beside a score."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    found = {}
    for name, tensor in tensors:
        if not _is_of_adapter(name):
            words = tensor.detach().reshape(-1)
            words = words.view(_WORDS[min(words.element_size(), 4)])
            found[name] = torch.stack([piece.sum(dtype=torch.int64) for piece in words.tensor_split(_PIECES)]).tolist()
    return found


def _has_same_records(user: Unit, other: Unit) -> bool:
    """Whether two units hold equal records."""
    return len(user.records) == len(other.records) and all(map(np.array_equal, user.records, other.records))


def _is_of_adapter(name: str) -> bool:
    """Whether a parameter is an adapter's, as PEFT names them; those that are not trained are saved as well."""
    return "lora_" in name


def _batches(model: nn.Module, users: Sequence[Unit]) -> Iterator[MicroBatch]:
    """The users' records as micro-batches on the model's device."""
    records = [Unit(number, [one]) for number, one in enumerate(record for user in users for record in user.records)]
    return iter(micro_batches(records, _MAX_TOKENS, next(model.parameters()).device))
