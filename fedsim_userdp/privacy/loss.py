"""The privacy loss of one release on a uniform grid, dominating the true one (Connect-the-Dots)."""

import dataclasses
import math

import numpy as np
from scipy import special

from fedsim_userdp.privacy.mixture import Floats, Mixture

_UNDERFLOW = 1e-290


@dataclasses.dataclass(frozen=True)
class Loss:
    """A discrete privacy loss that may be infinite.

    Attributes:
        start: Index of the smallest value; value j is (start + j) * spacing. 0 where values are not on a grid.
        values: Losses, increasing, shape (n,).
        probs: Their probabilities, shape (n,).
        infinite: Probability of an infinite loss.
    """

    start: int
    values: Floats
    probs: Floats
    infinite: float

    def cumulant(self, theta: float) -> float:
        """Returns log E[e^(theta loss); loss finite]."""
        exponent = theta * self.values
        peak = exponent.max()
        return float(peak + math.log(self.probs @ np.exp(exponent - peak)))

    def tilted(self, theta: float) -> Floats:
        """Returns probs * e^(theta loss), normalised to one."""
        exponent = theta * self.values
        weights = self.probs * np.exp(exponent - exponent.max())
        return np.asarray(weights / weights.sum())

    def moments(self, theta: float) -> tuple[float, float]:
        """Returns mean and variance of the tilted loss."""
        weights = self.tilted(theta)
        mean = float(weights @ self.values)
        return mean, float(weights @ (self.values - mean) ** 2)


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
        return Loss(0, middle, with_user, self.cut) if removed else Loss(0, -middle, without, self.cut)

    def discretize(self, spacing: float, *, removed: bool) -> Loss:
        """Returns the loss of removing (or adding) the user, on the grid of that spacing.

        Guarantee: it dominates the true pair: its hockey-stick divergence is at least the true one at every epsilon, up
            to rounding. A loss in [a, a + h] has its mass split between a and a + h so that both P and Q are kept.
        """
        first, last = math.floor(self.loss[0] / spacing), math.ceil(self.loss[-1] / spacing)
        grid = np.arange(first, last + 1) * spacing
        edges = np.concatenate((self.x[:1], self._invert(grid[1:-1]), self.x[-1:]))
        without, with_user, difference = self.mixture.masses(edges)
        step = -math.expm1(-spacing)

        if removed:
            upper = _difference(with_user, without, difference, grid[:-1]) / step
            upper = np.where(without < _UNDERFLOW, with_user, np.clip(upper, 0.0, with_user))
            probs = np.append(with_user - upper, 0.0) + np.insert(upper, 0, 0.0)
            probs[1] += self._outside(edges[0])
            return Loss(first, grid, probs, self.cut)
        upper = _difference(without, with_user, -difference, -grid[1:]) / step
        upper = np.where(with_user < _UNDERFLOW, without, np.clip(upper, 0.0, without))
        probs = np.append(upper, 0.0) + np.insert(without - upper, 0, 0.0)
        probs[-2] += float(special.ndtr(-edges[-1] / self.mixture.noise_multiplier))
        return Loss(-last, -grid[::-1], probs[::-1], self.cut)

    def _outside(self, low: float) -> float:
        """P below `low`."""
        shifted = (low - self.mixture.support) / self.mixture.noise_multiplier
        return float(np.exp(self.mixture.log_weights) @ special.ndtr(shifted))

    def _invert(self, losses: Floats) -> Floats:
        """The outputs x with L(x) equal to each loss, by Newton steps from the table."""
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


def _difference(upper: Floats, lower: Floats, gap: Floats, losses: Floats) -> Floats:
    """upper - e^losses * lower, from gap = upper - lower where the losses are small."""
    with np.errstate(over="ignore", invalid="ignore"):
        direct = upper - np.exp(losses) * lower
        precise = gap - np.expm1(losses) * lower
    return np.nan_to_num(np.where(np.abs(losses) < 1.0, precise, direct), nan=0.0, neginf=0.0)
