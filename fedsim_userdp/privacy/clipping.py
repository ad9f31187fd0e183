"""Clipping of per-unit updates and their sum, whose sensitivity is `clip_norm` (docs/design.md, rules 2 and 5)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

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


def clip_and_sum(updates: Mapping[str, Tensor], clip_norm: float) -> ClippedSum:
    """Returns sum_u min(1, clip_norm / |g_u|) g_u over the units u.

    Guarantee: adding or removing one unit changes `total` by at most `clip_norm` in L2 norm.  A unit whose
    update is not finite contributes an exact zero.
    Assumes: each unit's slice depends on that unit's data only.

    Args:
        updates: name to tensor of shape [units, ...], any floating dtype; at least one tensor.
        clip_norm: bound on the L2 norm, above 0; infinity switches clipping off and gives no guarantee.

    Returns:
        The sum in float32, and counts.

    Raises:
        ValueError: when `clip_norm` is NaN, zero or negative, or there is no tensor.

    Source: Abadi et al. 2016, arXiv 1607.00133, Algorithm 1; McMahan et al. 2018, arXiv 1710.06963.
    """
    if math.isnan(clip_norm) or clip_norm <= 0:
        raise ValueError(f"clip_norm={clip_norm} must be above 0")
    norms = unit_norms(updates)
    finite = torch.isfinite(norms)
    scale = _clip_scale(norms, finite, clip_norm)
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


def _weighted_sum(tensor: Tensor, scale: Tensor, dropped: Tensor | None) -> Tensor:
    """sum_u scale[u] * tensor[u] in float32; `dropped` units are taken out before, since 0 * NaN is NaN."""
    values = _precise(_as_rows(tensor))
    if dropped is not None:
        values = values.masked_fill(dropped, 0.0)
    return (scale @ values).float().reshape(tensor.shape[1:])
