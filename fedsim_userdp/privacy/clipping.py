"""Clipping of per-unit updates and their sum, whose sensitivity is `clip_norm` (docs/design.md, rules 2 and 5)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim_userdp.errors import ClippingError
from fedsim_userdp.plugins import calling, class_name

# One user's update, name to tensor, and the clip norm, to what the user adds instead: of an L2 norm of at most that.
Clipping = Callable[[Mapping[str, Tensor], float], Mapping[str, Tensor]]

# Keeps a clipped update at or below clip_norm after it is rounded to float32.
_ROUNDING_MARGIN = 1e-6


@dataclass(frozen=True)
class ClippedSum:
    """The sum of clipped updates, and what happened on the way (diagnostics are not private).

    Attributes:
        total: name to tensor, the sum over the units in float32; no axis for units.
        num_units: units that came in, those that contributed zero included.
        num_nonfinite: units replaced by an exact zero since their update held NaN or infinity.
        num_clipped: units whose norm was above `clip_norm`.
        norm_sum: sum of the finite units' norms before clipping.
    """

    total: dict[str, Tensor]
    num_units: int
    num_nonfinite: int
    num_clipped: int
    norm_sum: float


def unit_norms(updates: Mapping[str, Tensor]) -> Tensor:
    """Returns the L2 norm of each unit's update over all tensors together, shape [units], float64.

    Args:
        updates: name to tensor of shape [units, ...], any floating dtype.
    """
    _check_units(updates)
    squares = [_precise(_as_rows(tensor)).square().sum(1) for tensor in updates.values()]
    return torch.stack(squares).sum(0).sqrt()


def clip_and_sum(updates: Mapping[str, Tensor], clip_norm: float, weights: Sequence[float] | None = None) -> ClippedSum:
    """Returns sum_u w_u min(1, clip_norm / |g_u|) g_u over the units u.

    Guarantee: adding or removing one unit changes `total` by at most w_u * `clip_norm` in L2 norm, w_u being 1 as a
    rule.  A unit whose update is not finite contributes an exact zero.
    Assumes: each unit's slice depends on that unit's data only.

    Args:
        updates: name to tensor of shape [units, ...], any floating dtype; at least one tensor.
        clip_norm: bound on the L2 norm, above 0; infinity switches clipping off and gives no guarantee.
        weights: w_u of each unit, public, finite and at least 0; None for 1.

    Returns:
        The sum in float32, and counts.

    Raises:
        ValueError: when `clip_norm` is NaN, zero or negative, there is no tensor, or weights are none.

    Source: Abadi et al. 2016, arXiv 1607.00133, Algorithm 1; McMahan et al. 2018, arXiv 1710.06963.
    """
    if math.isnan(clip_norm) or clip_norm <= 0:
        raise ValueError(f"clip_norm={clip_norm} must be above 0")
    norms = unit_norms(updates)
    finite = torch.isfinite(norms)
    scale = _clip_scale(norms, finite, clip_norm) * _checked_weights(weights, norms)
    kept = torch.where(finite, norms, torch.zeros_like(norms))
    sums = torch.stack([(~finite).to(norms).sum(), (kept > clip_norm).to(norms).sum(), kept.sum()])
    num_nonfinite, num_clipped, norm_sum = sums.tolist()  # one wait for the device
    dropped = None if num_nonfinite == 0 else ~finite.unsqueeze(1)
    return ClippedSum(
        total={name: _weighted_sum(tensor, scale, dropped) for name, tensor in updates.items()},
        num_units=len(norms),
        num_nonfinite=int(num_nonfinite),
        num_clipped=int(num_clipped),
        norm_sum=norm_sum,
    )


def clip_each_and_sum(
    updates: Mapping[str, Tensor], clip_norm: float, clipping: Clipping, weights: Sequence[float] | None = None
) -> ClippedSum:
    """Returns the sum of what `clipping` makes of each unit's update, in the place of scaling it as a whole.

    Guarantee: that of `clip_and_sum`, whatever `clipping` returns: it sees one unit at a time, in float32, and what it
    returns is held to the bound.  A unit whose update is not finite contributes an exact zero and is not shown to it.
    Assumes: what `clipping` returns follows from its arguments alone; nothing of other units is remembered.

    Args:
        updates: as for `clip_and_sum`.
        clip_norm: as for `clip_and_sum`.
        clipping: one unit's update and `clip_norm` to tensors of the same names and shapes, of L2 norm <= `clip_norm`.
        weights: as for `clip_and_sum`.

    Returns:
        The sum in float32; counts and norms are those of the updates as they came.

    Raises:
        ClippingError: when what it returned is no such update, or longer than clip_norm * (1 + 1e-6).
        PluginError: when `clipping` itself raises.
        ValueError: as for `clip_and_sum`.
    """
    norms = unit_norms(updates)
    is_finite = torch.isfinite(norms)
    shrunk = {name: torch.zeros_like(tensor.detach(), dtype=torch.float32) for name, tensor in updates.items()}
    for unit in is_finite.nonzero().flatten().tolist():
        update = {name: tensor[unit].detach().float().clone() for name, tensor in updates.items()}
        for name, tensor in clipped_by(clipping, update, clip_norm).items():
            shrunk[name][unit] = tensor
    kept = norms[is_finite]
    return replace(
        clip_and_sum(shrunk, clip_norm, weights),
        num_nonfinite=len(norms) - len(kept),
        num_clipped=int((kept > clip_norm).sum()),
        norm_sum=float(kept.sum()),
    )


def clipped_by(clipping: Clipping, update: Mapping[str, Tensor], clip_norm: float) -> dict[str, Tensor]:
    """Returns what a clipping of the user's own makes of one unit's update, after checking that it can be that.

    Raises:
        ClippingError, PluginError: as for `clip_each_and_sum`.
    """
    shapes = {name: tensor.shape for name, tensor in update.items()}
    with calling("mechanism", clipping, "clipping a user's update"):
        answer = clipping(update, clip_norm)
    name = class_name(clipping)
    is_alike = isinstance(answer, Mapping) and answer.keys() == shapes.keys()
    if not is_alike or not all(_is_real(answer[key], shape) for key, shape in shapes.items()):
        raise ClippingError(f"{name} must return a user's update as it came: tensors of the same names and shapes")
    found = {key: answer[key].detach() for key in shapes}
    norm = float(unit_norms({key: tensor.unsqueeze(0) for key, tensor in found.items()}))
    if not norm <= clip_norm * (1 + _ROUNDING_MARGIN):
        raise ClippingError(
            f"{name} returned a user's update whose L2 norm is above clip_norm={clip_norm:g}, or no number: the noise "
            "covers no more than that"
        )
    return found


def _is_real(tensor: object, shape: torch.Size) -> bool:
    """Whether something is a tensor of real numbers, of that shape."""
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.shape == shape


def _check_units(updates: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless every tensor has the same number of units as its first axis."""
    if not updates:
        raise ValueError("updates is empty: expected at least one tensor of shape [units, ...]")
    if len({tensor.shape[:1] for tensor in updates.values()}) != 1 or any(t.ndim == 0 for t in updates.values()):
        raise ValueError("updates: every tensor needs the same number of units as its first axis")


def _as_rows(tensor: Tensor) -> Tensor:
    """The tensor as [units, numbers of one unit]."""
    return tensor.detach().reshape(tensor.shape[0], -1)


def _precise(tensor: Tensor) -> Tensor:
    """float64, so that squares of large numbers stay finite; float32 where the device has no float64."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def _clip_scale(norms: Tensor, finite: Tensor, clip_norm: float) -> Tensor:
    """The factor of each unit, shape [units]: 1 within the bound, clip_norm / norm above it, 0 if not finite."""
    if math.isinf(clip_norm):
        return finite.to(norms.dtype)
    bound = clip_norm * (1 - _ROUNDING_MARGIN)
    scale = torch.where(norms > bound, bound / norms, torch.ones_like(norms))
    return torch.where(finite, scale, torch.zeros_like(norms))


def _checked_weights(weights: Sequence[float] | None, norms: Tensor) -> Tensor | float:
    """The units' weights, shape [units]; 1.0 where all are."""
    if weights is None:
        return 1.0
    if len(weights) != len(norms) or not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError(f"weights must be {len(norms)} finite numbers of at least 0, got {list(weights)[:4]}")
    if all(weight == 1.0 for weight in weights):
        return 1.0
    return torch.tensor(weights, dtype=norms.dtype, device=norms.device)


def _weighted_sum(tensor: Tensor, scale: Tensor, dropped: Tensor | None) -> Tensor:
    """sum_u scale[u] * tensor[u] in float32; `dropped` units are taken out before, since 0 * NaN is NaN."""
    values = _precise(_as_rows(tensor))
    if dropped is not None:
        values = values.masked_fill(dropped, 0.0)
    return (scale @ values).float().reshape(tensor.shape[1:])
