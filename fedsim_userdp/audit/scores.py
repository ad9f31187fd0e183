"""How strongly the releases of a run speak for one update having been part of them.

The auditor sees every release of the noisy sum, R_1 ... R_T in units of the clip norm, and asks for each possible unit
direction c whether it was in.  For a direction that nobody used, the inner products y_t = <R_t, c> are Gaussian with
mean 0 and the covariance G[s, t] = <R_s, R_t> / size, whatever the releases are, since c was drawn independently of
them (Andrew et al. 2023, "One-shot Empirical Privacy Estimation for Federated Learning", arXiv 2302.03098).  G is
computed from the releases themselves.  So the score needs to know neither the noise nor what other users did, and it
uses correlations between rounds: what several releases have in common, be it the mean update or noise that was used
twice, is subtracted.

Any score gives a valid bound (`fedsim_userdp.audit.bounds`); a better one gives a larger bound.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fedsim_userdp.audit.directions import Floats

# Contributions that a score expects, in clip norms: what a correct run allows, less and more.
AMPLITUDES = (0.25, 1.0, 4.0)
_CHUNK = 4096
_RIDGE = 1e-9  # relative; keeps releases that are equal, or all zero, from breaking the inverse
_SMALL, _LARGE = np.float32(-15.0), np.float32(30.0)  # float32 still tells e^-15 - 1 from -1


@dataclass(frozen=True)
class Scorer:
    """Turns inner products with the releases into log Bayes factors.

    The alternatives to "was not in", with equal weight: contributions of each of `AMPLITUDES`, in rounds that were
    drawn with `sampling_prob`, or in every round.

    Attributes:
        precision: inverse of G, shape [rounds, rounds], float64.
        sampling_prob: probability of taking part in a round, in (0, 1].
    """

    precision: NDArray[np.float64]
    sampling_prob: float

    @classmethod
    def of(cls, releases: Floats, sampling_prob: float) -> "Scorer":
        """Returns the scorer of a run.

        Args:
            releases: noisy sums in units of the clip norm, shape [rounds, size].
            sampling_prob: see above.

        Raises:
            ValueError: when the releases are not finite or all zero, or the probability is out of range.
        """
        if not 0 < sampling_prob <= 1:
            raise ValueError(f"sampling_prob={sampling_prob} must lie in (0, 1]")
        precise = releases.astype(np.float64)
        covariance = precise @ precise.T / releases.shape[1]
        scale = float(np.diag(covariance).max())
        if not np.isfinite(scale) or scale == 0:
            raise ValueError("the releases must be finite and not all zero to be audited")
        return cls(np.linalg.inv(covariance + _RIDGE * scale * np.eye(len(covariance))), sampling_prob)

    def log_bayes_factors(self, products: Floats) -> NDArray[np.float64]:
        """Returns the evidence for each direction, from its inner products with the releases.

        Args:
            products: shape [rounds, directions].

        Returns:
            log (mean over the alternatives of their likelihood / likelihood of "was not in"), shape [directions].
        """
        starts = range(0, products.shape[1], _CHUNK)
        return np.concatenate([self._of_chunk(products[:, start : start + _CHUNK]) for start in starts])

    def _of_chunk(self, products: Floats) -> NDArray[np.float64]:
        """The evidence for a few directions, which fit a processor's cache."""
        weighted = self.precision @ products.astype(np.float64)
        parts = [part for amplitude in AMPLITUDES for part in self._alternatives(weighted, amplitude)]
        return np.asarray(special.logsumexp(parts, axis=0) - np.log(len(parts)))

    def _alternatives(self, weighted: NDArray[np.float64], amplitude: float) -> list[NDArray[np.float64]]:
        """The log likelihood ratios of one amplitude: in rounds that were drawn, and in every round.

        The first takes each round given all the others, as if the rounds were then independent; the second is exact.
        """
        diagonal = np.diag(self.precision)[:, None]
        exponent = (amplitude * weighted - amplitude**2 / 2 * diagonal).astype(np.float32)
        drawn = _log_mixture(exponent, np.float32(self.sampling_prob)).sum(0, dtype=np.float64)
        always = amplitude * weighted.sum(0) - amplitude**2 / 2 * self.precision.sum()
        return [drawn, always]


def _log_mixture(exponent: Floats, weight: np.float32) -> Floats:
    """log(1 - weight + weight * e^exponent), an exponent below -15 taken for -15."""
    bounded: Floats = np.log1p(weight * np.expm1(np.clip(exponent, _SMALL, _LARGE)))
    return bounded + np.maximum(exponent - _LARGE, 0)
