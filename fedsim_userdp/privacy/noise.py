"""Gaussian noise on a sum of clipped updates (docs/design.md, rules 3, 4 and 9)."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim_userdp.privacy.streams import RunKey

LEAST, MOST = 1e-30, 1e30  # of a clip norm with noise: beyond, float32 holds no update, or not their sum

# What is released with noise of its own: the sum of updates, the count of unclipped ones (adaptive clipping), signals.
NoiseStream = Literal["noise", "count", "signals"]


class NoiseSource(Protocol):
    """Where standard normal numbers come from."""

    @property
    def is_seeded(self) -> bool:
        """Whether the numbers repeat for the same run key: then they protect no release."""
        ...

    def standard_normal(self, size: int, round: int, stream: NoiseStream = "noise") -> np.ndarray:
        """Returns `size` independent N(0, 1) numbers for (round, stream), float64, shape [size]."""
        ...


@dataclass(frozen=True)
class SeededNoise:
    """Repeatable noise for simulation: whoever knows or guesses the seed can subtract it, so it protects no release.

    Attributes:
        key: the run's key: runs of another mechanism, data set or setting have other noise.
    """

    key: RunKey
    is_seeded: bool = True

    def standard_normal(self, size: int, round: int, stream: NoiseStream = "noise") -> np.ndarray:
        """Returns the numbers that belong to (key, stream, round); the same address gives the same numbers."""
        return self.key.generator(stream, round=round).standard_normal(size)


@dataclass(frozen=True)
class OperatingSystemNoise:
    """Noise from the operating system's cryptographic generator, for a real release; never repeatable.

    Each number is (z1 + z2 + z3 + z4) / 2 of independent z_i ~ N(0, 1), which hides the floating-point grid of
    a single inverse-CDF draw (Holohan and Braghin 2021, arXiv 2107.10138, the counter-measure Opacus takes).
    """

    is_seeded: bool = False

    def standard_normal(self, size: int, round: int, stream: NoiseStream = "noise") -> np.ndarray:
        """Returns fresh numbers; `round` and `stream` are not used."""
        from scipy.special import ndtri

        bits = np.frombuffer(os.urandom(4 * size * 8), dtype=np.uint64).reshape(4, size) >> np.uint64(11)
        uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53
        return np.asarray(ndtri(uniform).sum(axis=0) / 2)


def noise_stddev(noise_multiplier: float, clip_norm: float) -> float:
    """Returns the standard deviation of the noise on the sum, noise_multiplier * clip_norm.

    Raises:
        ValueError: when either is NaN or negative, or noise is wanted and the clip norm is beyond what float32 sums.
    """
    if math.isnan(noise_multiplier) or noise_multiplier < 0 or math.isinf(noise_multiplier):
        raise ValueError(f"noise_multiplier={noise_multiplier} must be finite and at least 0")
    if math.isnan(clip_norm) or clip_norm <= 0:
        raise ValueError(f"clip_norm={clip_norm} must be above 0")
    if noise_multiplier > 0 and math.isinf(clip_norm):
        raise ValueError("clip_norm=inf with noise_multiplier above 0: noise on an unclipped sum protects nobody")
    if noise_multiplier > 0 and not LEAST <= clip_norm <= MOST:
        raise ValueError(
            f"clip_norm={clip_norm} must be a number from {LEAST:g} to {MOST:g}: float32 must hold the sum"
        )
    return 0.0 if noise_multiplier == 0 else noise_multiplier * clip_norm


def add_noise(total: Mapping[str, Tensor], stddev: float, source: NoiseSource, round: int) -> dict[str, Tensor]:
    """Returns total + z with z ~ N(0, stddev^2 I), one draw for all tensors in the order of their names.

    Args:
        total: name to tensor, the sum of clipped updates.
        stddev: absolute standard deviation, noise_multiplier * clip_norm, at least 0.
        source: where the numbers come from.
        round: the round that the noise belongs to, at least 1.

    Returns:
        New tensors of the same shapes, in float32.
    """
    if math.isnan(stddev) or stddev < 0 or math.isinf(stddev):
        raise ValueError(f"stddev={stddev} must be finite and at least 0")
    names = sorted(total)
    if stddev == 0:
        return {name: total[name].float().clone() for name in names}
    drawn = source.standard_normal(sum(total[name].numel() for name in names), round) * stddev
    parts = torch.from_numpy(drawn).split([total[name].numel() for name in names])
    return {
        name: (total[name].double() + part.reshape(total[name].shape).to(total[name].device)).float()
        for name, part in zip(names, parts, strict=True)
    }
