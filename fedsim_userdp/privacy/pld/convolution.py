"""Sums of independent numbers on a grid, by one FFT, with a bound on the rounding error.

    density = F^-1(prod_p F(x_p)^T_p)

Source of the bound: an FFT of length n errs by at most c |result| in 2-norm, c = 8 u log2(n), u the unit roundoff
(Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 24.1: 8 u for each factor 2 of the length
covers radices up to 5 with twiddle factors good to 3 u); a complex product by at most sqrt(5) u of its size (Brent,
Percival & Zimmermann 2007). By Cauchy-Schwarz an error of 2-norm e in a transform moves an entry of the sum by at most
T e |F^(T-1)| / n, in 2-norms over the spectrum of length n.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy import fft

from fedsim_userdp.privacy.pld.mixture import Floats

Spectrum = npt.NDArray[np.complexfloating]
Part = tuple[npt.NDArray[np.int64], Floats, int]

_CHUNK = 8192  # complex numbers that stay in a core's cache while they are squared


def convolve(parts: list[Part], start: int, size: int, *, precise: bool = False) -> tuple[Floats, float]:
    """Returns the distribution of a sum, wrapped around, and how far an entry can be from its exact value.

    Guarantee: every entry is within the second value of what exact arithmetic makes of the given `probs`.

    Args:
        parts: (indices, their probabilities of total 1, how many of these are summed), at least one.
        start: Index of the first entry of the answer.
        size: Number of entries, a product of 2, 3 and 5; mass at other indices lands at the same index modulo `size`.
        precise: Whether to compute in the platform's long double: on x86 three times slower, and 2,000 times closer.
    """
    kind = np.longdouble if precise else np.float64
    unit = float(np.finfo(kind).eps) / 2.0
    error = 8.0 * unit * math.log2(size)
    spectrum = np.ones(size // 2 + 1, dtype=np.result_type(kind, np.complex64))
    log_bound = np.zeros(spectrum.size)  # of prod_p (|F_p| + its error)^T_p, which no exact product exceeds
    sources: list[tuple[Floats, float]] = []
    for index, probs, count in parts:
        wrapped = np.bincount(index % size, weights=probs, minlength=size)
        length = math.sqrt(float(np.sum(wrapped**2)))
        transform = fft.rfft(wrapped.astype(kind))
        log_each = np.log(np.abs(transform).astype(np.float64) + error * math.sqrt(size) * length)
        log_bound += count * log_each
        sources.append((log_each, count * error * length))
        spectrum *= power(transform, count)
    of_transforms = math.fsum(weight * _mean(log_bound - log_each, size) for log_each, weight in sources)
    of_products = math.sqrt(5.0) * unit * sum(count for *_, count in parts) * _mean(log_bound, size)
    density = np.roll(fft.irfft(spectrum, size), -(start % size)).astype(np.float64)
    of_inverse = error * math.sqrt(float(np.sum(density**2)))
    return np.maximum(density, 0.0), of_transforms + of_products + of_inverse


def power(base: Spectrum, exponent: int) -> Spectrum:
    """Returns base^exponent, exponent >= 1, by squaring: exact up to (exponent - 1) complex products."""
    result = np.empty_like(base)
    for first in range(0, base.size, _CHUNK):
        square = base[first : first + _CHUNK].copy()
        product, rest = np.ones_like(square), exponent
        while rest:
            if rest & 1:
                product *= square
            rest >>= 1
            if rest:
                square *= square
        result[first : first + _CHUNK] = product
    return result


def _mean(log_half: Floats, size: int) -> float:
    """Root mean square of e^(.) over a spectrum of `size` entries, of which a real transform gives half; rounded up."""
    return math.sqrt(2.0 * float(np.sum(np.exp(2.0 * log_half))) / size)
