"""The privacy loss of one release on a grid, dominating the true one (Connect-the-Dots)."""

import dataclasses
import math

import numpy as np
import numpy.typing as npt
from scipy import special

from fedsim_userdp.privacy.pld.mixture import Floats, Mixture

_UNDERFLOW = 1e-290


@dataclasses.dataclass(frozen=True)
class Loss:
    """A discrete privacy loss that may be infinite.

    Attributes:
        values: Losses, shape (n,).
        probs: Their probabilities, shape (n,).
        infinite: Probability of an infinite loss.
    """

    values: Floats
    probs: Floats
    infinite: float

    def cumulant(self, theta: float) -> float:
        """Returns log E[e^(theta loss); loss finite]."""
        exponent = theta * self.values
        peak = float(exponent.max())
        # np.sum, not a BLAS product: here and below, BLAS threads cost more than they bring, the more on a busy machine
        return peak + math.log(float(np.sum(self.probs * np.exp(exponent - peak))))

    def tilted(self, theta: float) -> Floats:
        """Returns probs * e^(theta loss), normalised to one."""
        exponent = theta * self.values
        weights = self.probs * np.exp(exponent - exponent.max())
        return np.asarray(weights / weights.sum())

    def moments(self, theta: float) -> tuple[float, float]:
        """Returns mean and variance of the tilted loss."""
        weights = self.tilted(theta)
        mean = float(np.sum(weights * self.values))
        return mean, float(np.sum(weights * (self.values - mean) ** 2))


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where a loss is put: multiples of `spacing`, sparser away from zero.

    Attributes:
        spacing: h > 0.
        points: Number of intervals before their width doubles, >= 1; each is at most |loss| / points wide, or h.
        widest: Largest width, in multiples of h, a power of two.
    """

    spacing: float
    points: int
    widest: int

    def between(self, low: float, high: float) -> npt.NDArray[np.int64]:
        """Returns the multiples of h that are used, increasing, from at most `low` to at least `high`."""
        first, last = math.floor(low / self.spacing), math.ceil(high / self.spacing)
        upper, lower = self._steps(last), -self._steps(-first)[::-1]
        inner = np.concatenate((lower[:-1], upper))
        inner = inner[(inner > first) & (inner < last)]
        return np.concatenate(([first], inner, [last]))

    def _steps(self, last: int) -> npt.NDArray[np.int64]:
        """Multiples of h from 0 to beyond `last` (or 0 alone), in intervals of doubling width."""
        parts, start, width = [np.zeros(1, dtype=np.int64)], 0, 1
        while start < last:
            end = last + width if width == self.widest else 2 * self.points * width
            parts.append(np.arange(start + width, min(end, last + width) + 1, width))
            start, width = int(parts[-1][-1]), min(2 * width, self.widest)
        return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class Release:
    """One release prepared for discretization: its pair, cut where the tails no longer matter.

    Attributes:
        mixture: The pair, without the largest counts.
        x: Fine table of outputs between the cuts, increasing, shape (n,).
        loss: L(x).
        cut: Probability that the cuts remove from P or Q, an upper bound; counted as infinite loss.
    """

    mixture: Mixture
    x: Floats
    loss: Floats
    cut: float

    def sketch(self, *, removed: bool) -> Loss:
        """Returns the loss of removing (or adding) the user roughly, on the table: for choosing scales only."""
        without, with_user, _ = self.mixture.masses(self.x)
        middle = (self.loss[1:] + self.loss[:-1]) / 2.0
        return _positive(middle, with_user, self.cut) if removed else _positive(-middle, without, self.cut)

    def largest(self, *, removed: bool) -> float:
        """Returns the largest finite loss of removing (or adding) the user."""
        return float(self.loss[-1] if removed else -self.loss[0])

    def discretize(self, grid: Grid, *, removed: bool, floor: float = -math.inf) -> Loss:
        """Returns the loss of removing (or adding) the user, on the grid.

        Guarantee: it dominates the true pair: its hockey-stick divergence is at least the true one at every epsilon, up
            to rounding. A loss in [a, b] has its mass split between a and b so that both P and Q keep theirs; a loss
            below `floor` is raised to about that.

        Args:
            grid: Where losses are put.
            removed: Direction.
            floor: Loss below which nothing matters; below the largest loss.
        """
        low, high = float(self.loss[0]), float(self.loss[-1])
        low, high = (max(low, floor), high) if removed else (low, min(high, -floor))
        losses: Floats = grid.between(low, high).astype(np.float64) * grid.spacing
        edges = self._invert(losses)
        without, with_user, gap = self.mixture.masses(edges)
        if removed:
            upper = _upper_share(with_user, without, gap, losses)
            probs = np.append(with_user - upper, 0.0) + np.insert(upper, 0, 0.0)
            probs[1] += self._below(edges[0])
            return _positive(losses, probs, self.cut)
        upper = _upper_share(without[::-1], with_user[::-1], -gap[::-1], -losses[::-1])
        probs = np.append(without[::-1] - upper, 0.0) + np.insert(upper, 0, 0.0)
        probs[1] += float(special.ndtr(-edges[-1] / self.mixture.noise_multiplier))
        return _positive(-losses[::-1], probs, self.cut)

    def _below(self, low: float) -> float:
        """P below `low`."""
        shifted = (low - self.mixture.support) / self.mixture.noise_multiplier
        return float(np.exp(self.mixture.log_weights) @ special.ndtr(shifted))

    def _invert(self, losses: Floats) -> Floats:
        """The outputs x with L(x) equal to each loss, by Newton steps from the table; its ends for losses beyond."""
        cell = np.clip(np.searchsorted(self.loss, losses), 1, self.loss.size - 1)
        low, high = self.x[cell - 1], self.x[cell]
        x = np.interp(losses, self.loss, self.x)
        for _ in range(3):
            value, slope = self.mixture.log_ratio(x)
            with np.errstate(divide="ignore", invalid="ignore"):
                step = np.nan_to_num((losses - value) / slope, nan=0.0)
            x = np.clip(x + step, low, high)
        return np.maximum.accumulate(x)


def prepare(mixture: Mixture, log_mass: float) -> Release:
    """Returns a release whose cuts remove at most e^log_mass from each of P and Q."""
    kept = mixture.truncated(log_mass - math.log(2.0))
    scale, top = kept.noise_multiplier, float(kept.support[-1])
    reach = scale * math.sqrt(2.0 * (math.log(2.0) - log_mass))
    num_points = math.ceil((top + 2.0 * reach) / min(scale / 25.0, scale**2 / 4.0)) + 2
    x = np.linspace(-reach, top + reach, num_points)
    _, with_user, _ = kept.masses(x)
    beyond = np.cumsum(with_user[::-1])[::-1]
    x = x[: max(int(np.count_nonzero(beyond > math.exp(log_mass) / 4.0)) + 1, 3)]
    loss, _ = kept.log_ratio(x)
    return Release(kept, x, np.maximum.accumulate(loss), math.exp(log_mass))


def _positive(values: Floats, probs: Floats, infinite: float) -> Loss:
    """A loss without the values of probability zero."""
    kept = probs > 0.0
    return Loss(values[kept], probs[kept], infinite)


def _upper_share(upper: Floats, lower: Floats, gap: Floats, losses: Floats) -> Floats:
    """The mass of each interval of losses [a, b] that goes to b: (P - e^a Q) / (1 - e^(a - b)), P being `upper`.

    gap = P - Q keeps its digits where losses are small. All of P goes to b where Q is too small to be trusted.
    """
    low, width = losses[:-1], np.diff(losses)
    with np.errstate(over="ignore", invalid="ignore"):
        excess = np.where(np.abs(low) < 1.0, gap - np.expm1(low) * lower, upper - np.exp(low) * lower)
    share = np.clip(np.nan_to_num(excess, nan=0.0) / -np.expm1(-width), 0.0, upper)
    return np.where(lower < _UNDERFLOW, upper, share)
