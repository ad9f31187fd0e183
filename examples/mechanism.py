"""A mechanism of one's own: user-wise DP-SGD that clips each tensor of a user's update to an equal share of the norm.

Beside this file:

    fedsim compare 'compare.mechanisms=[user_wise,{_target_:mechanism.ClipEachTensor,rounds:18,clip_norm:0.3}]'
    fedsim run mechanism._target_=mechanism.ClipEachTensor mechanism.name=clip_each_tensor

In Python: `compare(study, [UserWise(), ClipEachTensor()])`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fedsim_userdp import UserWise
from fedsim_userdp.privacy.clipping import Clipping


@dataclass(frozen=True, kw_only=True)
class ClipEachTensor(UserWise):
    """Its claim is that of `UserWise`: what its clipping returns is held to `clip_norm`, or the run stops."""

    name: str = "clip_each_tensor"

    def clipping(self) -> Clipping:
        """Returns what shrinks one user's update."""
        return clip_each_tensor


def clip_each_tensor(update: Mapping[str, Tensor], clip_norm: float) -> dict[str, Tensor]:
    """Returns one user's update, each of its n tensors within clip_norm / sqrt(n): together within clip_norm."""
    bound = clip_norm * (1 - 1e-6) / len(update) ** 0.5  # rounding must not lead above it
    return {name: tensor * (bound / tensor.norm()).clamp(max=1.0) for name, tensor in update.items()}
