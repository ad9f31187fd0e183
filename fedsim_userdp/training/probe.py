"""Whether a model keeps records apart, tried on a few random tokens before anything is trained on.

Clipping bounds what a unit adds only if nothing of the other units is in its gradient.  That is a property of the
model's code, which no name tells: it is tried, and refused by the name of the layer where it fails.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from fedsim_userdp.errors import MODEL_FAILURES, ModelError
from fedsim_userdp.models.adapters import lora_layers, trainable_state, with_adapter
from fedsim_userdp.models.special_tokens import special_ids, with_special
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.training.batches import MicroBatch, StepAddress, Unit, collate
from fedsim_userdp.training.losses import token_losses

PROBE_STEP = StepAddress(key=RunKey.seeded(0, "probe"))  # with masks, where the model drops features
GradientsFn = Callable[[Mapping[str, Tensor], MicroBatch, StepAddress], tuple[dict[str, Tensor], Tensor]]

# Largest relative difference between gradients of batches of several shapes that rounding explains, by dtype.
_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1}
# The same for batches of one shape.
_REPEATED = {torch.float32: 1e-5, torch.bfloat16: 0.02}
# Part of a gradient that may fall on tokens that the loss must not see; rounding puts none there.
_LEAK = 1e-6
# Tokens of the short records: ragged, and rows and lengths of the batch differ from each other in every way.
_LENGTHS = (6, 8, 3)


@dataclass(frozen=True)
class Probe:
    """What a model is tried on: nothing of it is anybody's text, and no factor of the adapters is 0.

    Attributes:
        stacked: an adapter for each record, name to tensor of shape [records, ...].
        records: units of one record each, of different lengths; tokens that mean something to the model stand at the
            ends of every record and inside.
        changed: the same with other tokens in all but the first.
        units: the same records as two units, the second of two records.
        beside_longest: the first record, one of half as many tokens as a record may have, and one of as many.
    """

    stacked: dict[str, Tensor]
    records: tuple[Unit, ...]
    changed: tuple[Unit, ...]
    units: tuple[Unit, ...]
    beside_longest: tuple[Unit, ...]
    device: torch.device

    def adapters(self, num_units: int) -> dict[str, Tensor]:
        """Returns the first `num_units` adapters, leaves that take gradients."""
        return {name: tensor[:num_units].clone().requires_grad_() for name, tensor in self.stacked.items()}

    def equal_adapters(self, num_units: int) -> dict[str, Tensor]:
        """Returns the first adapter `num_units` times, leaves that take gradients."""
        own = {name: tensor.unsqueeze(0) for name, tensor in self.one_adapter().items()}
        return {name: t.expand(num_units, *t.shape[1:]).clone().requires_grad_() for name, t in own.items()}

    def one_adapter(self) -> dict[str, Tensor]:
        """Returns the first adapter alone, as the model itself would hold it."""
        return {name: tensor[0] for name, tensor in self.stacked.items()}


def probe_for(model: nn.Module, window: int) -> Probe:
    """Returns what a model is tried on; the same at every call.

    Args:
        model: a PEFT model.
        window: the most tokens of a record, at least 2.
    """
    device, generator = next(model.parameters()).device, np.random.default_rng(0)
    scaling = max([1.0, *(max(layer.scaling.values()) for layer in lora_layers(model).values())])

    def drawn(shape: Sequence[int]) -> Tensor:
        bound = 1 / math.sqrt(max(math.prod(shape[1:]), 1)) / scaling
        return torch.from_numpy(generator.uniform(-bound, bound, (len(_LENGTHS), *shape)).astype(np.float32))

    stacked = {name: drawn(tensor.shape).to(device) for name, tensor in trainable_state(model).items()}
    special = special_ids(model)

    def record(length: int, turn: int = 0) -> np.ndarray:
        return with_special(generator.integers(0, vocabulary_size(model), length), special, turn)

    first, second, third = (record(length, turn) for turn, length in enumerate(_LENGTHS))
    others = [record(length, turn) for turn, length in enumerate(_LENGTHS[1:])]
    longest, medium = record(window), record(min(max(window // 2, _LENGTHS[0]), window))
    return Probe(
        stacked,
        records=(Unit(0, [first]), Unit(1, [second]), Unit(2, [third])),
        changed=(Unit(0, [first]), Unit(1, [others[0]]), Unit(2, [others[1]])),
        units=(Unit(0, [first]), Unit(1, [second, third])),
        beside_longest=(Unit(0, [first]), Unit(1, [medium]), Unit(2, [longest])),
        device=device,
    )


def vocabulary_size(model: nn.Module) -> int:
    """Returns the number of tokens that the model knows."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def why_rows_mix(model: nn.Module, alone: GradientsFn, probe: Probe) -> str | None:
    """Returns which layer lets a record's loss depend on the records beside it, or None where none does.

    Args:
        model: a PEFT model; left as it was.
        alone: one forward and backward for each unit.
        probe: what it is tried on.

    Raises:
        ModelError: where even a gradient computed alone is not the unit's own: the model remembers, draws random
            numbers, or looks at what comes after a token.
    """
    stacked = probe.adapters(len(probe.records))
    longest = collate(probe.beside_longest[-1:], probe.device)
    try:
        with _watched(model):
            found, _ = alone(stacked, collate(probe.records, probe.device), PROBE_STEP)
            # Last: a short record may undo what it has changed.
            with torch.no_grad():
                with_adapter(model, probe.one_adapter(), lambda own: token_losses(own, longest))
        with _watched(model):
            again, _ = alone(probe.adapters(1), collate(probe.records[:1], probe.device), PROBE_STEP)
        sees_rows, sees_later = _what_is_seen(model, probe)
    except ModelError:
        raise
    except MODEL_FAILURES as error:
        most = max(*_LENGTHS, longest.input_ids.shape[1] + 1)
        raise ModelError(f"{_kind(model)} cannot be trained on records of {most} tokens: {error}") from error
    _check_signal(model, found)
    if not distance(again, first_of(found, 1)) <= _rounding(_REPEATED, model):
        raise ModelError(
            f"{_kind(model)} gives a record another gradient after other ones: it keeps something between forward "
            "passes, so that a user's update would depend on other users; set model.path to another model"
        )
    if sees_later:
        layer = _first_to_differ(model, probe, collate(probe.records[:1]).input_ids, _padded(probe.records[0]))
        raise ModelError(
            f"{_kind(model)} is not causal: {layer} looks at tokens after the one that is read, padding included; set "
            "model.path to a causal language model"
        )
    if not sees_rows:
        return None
    batches = [collate(units, probe.device).input_ids for units in (probe.records, probe.changed)]
    return f"the model's layers mix the rows of a batch, first {_first_to_differ(model, probe, *batches)}"


def why_different(model: nn.Module, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Returns in which layer units' gradients are not what they are alone, or None where they are."""
    if distance(found, expected) <= _rounding(_ROUNDING, model):
        return None
    worst = max(expected, key=lambda name: distance({name: found[name]}, {name: expected[name]}))
    return f"the gradients of a batch are not those of its records alone, most of all in {layer_of(worst)}"


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Returns the largest relative L2 distance of a unit's gradients, NaN where one is not finite."""
    difference = torch.stack([_squares(found[name] - expected[name]) for name in expected]).sum(0).sqrt()
    norm = torch.stack([_squares(tensor) for tensor in expected.values()]).sum(0).sqrt()
    return float((difference / norm.clamp(min=1e-30)).max())


def first_of(gradients: Mapping[str, Tensor], num_units: int) -> dict[str, Tensor]:
    """Returns the gradients of the first units."""
    return {name: tensor[:num_units] for name, tensor in gradients.items()}


def layer_of(name: str) -> str:
    """Returns the name that the model gives to the layer of an adapter's parameter."""
    return name.removeprefix("base_model.model.").split(".lora_")[0]


def _rounding(by_dtype: Mapping[torch.dtype, float], model: nn.Module) -> float:
    """What rounding explains for a model of its dtype."""
    return by_dtype.get(next(model.parameters()).dtype, by_dtype[torch.bfloat16])


def _squares(tensor: Tensor) -> Tensor:
    """The sum of squares of each unit."""
    return tensor.detach().cpu().double().reshape(len(tensor), -1).square().sum(1)


def _kind(model: nn.Module) -> str:
    """What the model is called."""
    get_base = getattr(model, "get_base_model", None)
    return f"model.path: {type(get_base() if callable(get_base) else model).__name__}"


def _check_signal(model: nn.Module, gradients: Mapping[str, Tensor]) -> None:
    """Raises ModelError where the gradients could not show anything."""
    norms = torch.stack([_squares(tensor) for tensor in gradients.values()]).sum(0)
    if not bool(torch.isfinite(norms).all()):
        raise _not_finite(model)
    if not bool((norms > 0).any()):
        raise ModelError(f"lora.target_modules: no adapted layer has a say in what {type(model).__name__} predicts")


def _not_finite(model: nn.Module) -> ModelError:
    """The error of a model whose gradients are not finite."""
    special = ", ".join(map(str, special_ids(model))) or "none"
    return ModelError(
        f"{_kind(model)} has gradients that are not finite: are its weights whole, is lora.alpha moderate, and can it "
        f"read its special tokens in a text (ids {special})? Where one is embedded as zeros, a norm has no gradient"
    )


@contextmanager
def _watched(model: nn.Module) -> Iterator[None]:
    """A block after which buffers and random state are as before; raises ModelError where it changed one."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    cuda = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(cuda):
            random = _random_states(cuda)
            yield
            is_random = not all(map(torch.equal, random, _random_states(cuda)))
    finally:
        after = dict(model.named_buffers())
        changed = [name for name in {**before, **after} if not _same(after.get(name), before.get(name))]
        for name in changed:
            if name in before:
                owner, _, short = name.rpartition(".")
                setattr(model.get_submodule(owner), short, before[name])
    if is_random:
        raise ModelError(
            f"{_kind(model)} draws random numbers in evaluation mode, which other users' records would move on"
        )
    if changed:
        raise ModelError(
            f"{_kind(model)} changes {changed[0].removeprefix('base_model.model.')} in a forward pass, so that a "
            "user's update would depend on other users; set model.path to another model"
        )


def _random_states(cuda: Sequence[int]) -> list[Tensor]:
    """The states of the CPU's global generator and of those of some GPUs."""
    return [torch.random.get_rng_state(), *(torch.cuda.get_rng_state(index) for index in cuda)]


def _same(buffer: Tensor | None, before: Tensor | None) -> bool:
    """Whether a buffer is there as it was, NaN included."""
    if buffer is None or before is None or buffer.shape != before.shape:
        return False
    return bool(((buffer == before) | (buffer != buffer)).all())


def _what_is_seen(model: nn.Module, probe: Probe) -> tuple[bool, bool]:
    """Whether a record's loss depends on other rows, and whether on what stands after its tokens.

    Seen in the gradient with respect to the embedded tokens, in which whatever is not looked at is exactly 0.
    """
    batch = collate(probe.records, probe.device)
    embedded: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # which the model may change in place

    handle = model.get_input_embeddings().register_forward_hook(keep)  # type: ignore[operator]

    def seen(own: nn.Module) -> tuple[bool, bool]:
        losses = token_losses(own, batch)
        if len(embedded) != 1:
            raise ModelError(f"{_kind(model)} reads its input embedding {len(embedded)} times instead of once")
        handle.remove()  # before layers are run again in the backward pass
        sees_rows = sees_later = False
        for row, record in enumerate(probe.records):
            # All of a record's tokens, then the first ones of it, after which its own tokens come too.
            for end in (len(record.records[0]) - 1, 2):
                (gradient,) = torch.autograd.grad(losses[row, :end].sum(), embedded[0], retain_graph=True)
                if not bool(torch.isfinite(gradient[row, :end]).all()):
                    raise _not_finite(model)
                sees_rows |= _is_seen(torch.cat([gradient[:row], gradient[row + 1 :]]), gradient)
                sees_later |= _is_seen(gradient[row, end:], gradient)
        return sees_rows, sees_later

    try:
        return with_adapter(model, probe.one_adapter(), seen)
    finally:
        handle.remove()


def _is_seen(part: Tensor, gradient: Tensor) -> bool:
    """Whether there is more in a part of a gradient than rounding; NaN counts."""
    return not float(part.float().norm()) <= _LEAK * float(gradient.float().norm())


def _padded(unit: Unit) -> Tensor:
    """The inputs of a unit's one record with filling after them, as another record beside it would bring."""
    return collate([replace(unit, records=[np.append(unit.records[0], [0, 0])])]).input_ids


def _first_to_differ(model: nn.Module, probe: Probe, one: Tensor, other: Tensor) -> str:
    """The first layer whose output for the first record, alone in front, differs between two inputs."""
    share = one.shape[0]
    allowed = _rounding(_REPEATED, model)
    outputs = [_outputs(model, probe.one_adapter(), ids.to(probe.device)) for ids in (one, other)]
    for name, output in outputs[0].items():
        count = output.numel() // share
        first, second = output.flatten()[:count], outputs[1].get(name, output).flatten()[:count]
        if first.shape != second.shape or not float((first - second).norm()) <= allowed * float(first.norm()):
            return name
    return "a layer"


@torch.no_grad()
def _outputs(model: nn.Module, adapter: Mapping[str, Tensor], input_ids: Tensor) -> dict[str, Tensor]:
    """What each module returned, in the order in which they finished, float32."""
    made: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(_: nn.Module, __: object, output: object) -> None:
            tensor = output[0] if isinstance(output, tuple) and output else output
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                made.setdefault(layer_of(name), tensor.detach().float().cpu())

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        with_adapter(model, adapter, lambda own: own(input_ids=input_ids, use_cache=False))
    finally:
        for handle in handles:
            handle.remove()
    return made
