"""What the camera does: pixel grid, point-spread function, photon noise, normalisation."""

from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PSF_REACH = 4.0
"""The Gaussian is cut this many standard deviations from its centre."""


def pixel_centres(n_pixels: int, pixel_scale: float) -> Tensor:
    """Positions of pixel centres along one axis, arcsec, [n_pixels]; 0 is the grid's middle."""
    return (torch.arange(n_pixels) - (n_pixels - 1) / 2) * pixel_scale


@cache
def gaussian_blur(n_pixels: int, sigma: float) -> Tensor:
    """The matrix [n, n] that blurs one axis by a Gaussian sampled at pixel centres.

    sigma: pixels. Light outside the image equals that of the nearest edge pixel, as the edges
    of the published images show. Each row sums to one. Blur an image with B @ image @ B.T.
    """
    reach = int(np.ceil(PSF_REACH * sigma))
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    pixels = torch.arange(n_pixels)[:, None]
    blur = torch.zeros(n_pixels, n_pixels, dtype=torch.float64)
    blur.scatter_add_(1, (pixels + offsets).clamp(0, n_pixels - 1), (kernel / kernel.sum()).expand(n_pixels, -1))
    return blur


def expose(image: Tensor, background: float, seeds: Iterable[int]) -> NDArray[np.int64]:
    """Photon counts: one Poisson draw a pixel around image + background.

    image: noiseless counts [b, h, w]. seeds: one an image, so that an image's noise does not
    depend on its neighbours. Returns [b, h, w].
    """
    rates = image + background
    drawn = [
        torch.poisson(rate, torch.Generator(rate.device).manual_seed(seed))
        for rate, seed in zip(rates, seeds, strict=True)
    ]
    return torch.stack(drawn).cpu().numpy().astype(np.int64)


def above_minimum(counts: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Counts above each image's minimum, [b, h, w]; dividing by the maximum gives min-max pixels."""
    return np.asarray(counts - counts.min(axis=(1, 2), keepdims=True), dtype=np.uint16)
