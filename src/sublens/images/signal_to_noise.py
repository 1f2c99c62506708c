"""Signal to noise of each pixel <-> a plane of 16 bits, in which images of telescopes travel to the networks."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

MASKED = 0
"""Code of a masked pixel."""
STEP = 0.02
"""Signal to noise between two codes."""
LEAST = -20.0
"""Signal to noise of code 0, which no pixel with a value has; all below `LEAST + STEP` is clipped to that."""
MOST = 65535
"""Largest code: a signal to noise of 1290.7, to which all above is clipped."""


def encode(pixels: ArrayLike, noise: ArrayLike, mask: NDArray[np.bool_] | None = None) -> NDArray[np.uint16]:
    """The codes of pixels [..., h, w] less their sky, by the standard deviation of each pixel's noise in the same unit.

    mask: pixels without a value, [..., h, w]. Masked as well are pixels that are not finite, and those whose noise is
    NaN or not above 0.
    """
    values, sigma = np.asarray(pixels, np.float64), np.asarray(noise, np.float64)
    has_value = np.isfinite(values) & (sigma > 0)
    if mask is not None:
        has_value = has_value & ~mask
    with np.errstate(over="ignore"):
        ratio = np.divide(values, sigma, out=np.zeros(has_value.shape), where=has_value)
        codes = np.rint((ratio - LEAST) / STEP).clip(1, MOST)
    return np.where(has_value, codes, MASKED).astype(np.uint16)


def decode(plane: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The signal to noise behind codes [..., h, w]; NaN where masked."""
    return np.where(plane == MASKED, np.nan, plane * STEP + LEAST).astype(np.float32)
