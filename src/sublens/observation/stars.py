"""Points of light through the point-spread function: stars, and nuclei of galaxies."""

from functools import lru_cache
from itertools import repeat

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sublens.lensing.compiled import Reals, compiled
from sublens.observation import camera
from sublens.observation.psf import kernels_alone
from sublens.surveys.camera import Camera, is_drawn
from sublens.surveys.priors import Floats


def add_points(
    images: Reals, owners: NDArray[np.int64], points: Floats, pixels: Camera, extra: NDArray[np.void]
) -> None:
    """Add points of light to blurred images [n, h, w].

    owners: the image of each, [k]. extra: rows of the images, of dtype EXTRA, [n], which tell their point-spread
    functions where these differ. points: x and y, arcsec, and electrons, [k, 3]; those outside an image have their
    wings in it, and unlike extended light they end at its edge. A position between the points of the point-spread
    function's grid is shared out over four of them along each axis, by the cubic through them, which keeps width and
    position; where that falls below 0, nothing is added.
    """
    parts = camera.psf_parts(pixels)
    side = pixels.n_pixels * parts
    places = points[:, :2] / (pixels.pixel_scale / parts) + (side - 1) / 2
    kernels = map(_square, kernels_alone(pixels, extra[owners])) if is_drawn(pixels.psf) else repeat(_kernel(pixels))
    for owner, (column, row), electrons, kernel in zip(owners, places, points[:, 2], kernels, strict=False):
        _add(images[owner], column, row, electrons * parts**2, kernel, parts)


@lru_cache(maxsize=8)
def _kernel(pixels: Camera) -> Floats:
    """The point-spread function in two dimensions; see `camera.psf_kernel`."""
    return _square(camera.psf_kernel(pixels))


def _square(weights: Tensor) -> Floats:
    """The same in two dimensions where a Gaussian comes as its weights along an axis."""
    kernel = weights.numpy()
    return np.ascontiguousarray(np.multiply.outer(kernel, kernel) if kernel.ndim == 1 else kernel)


@compiled
def _shares(place: float) -> tuple[int, tuple[float, float, float, float]]:
    """The first of the four points around a place, and the weights of the cubic through them."""
    first = int(np.floor(place)) - 1
    t = place - first - 1
    before = -t * (t - 1) * (t - 2) / 6
    left, right = (t + 1) * (t - 1) * (t - 2) / 2, -(t + 1) * t * (t - 2) / 2
    return first, (before, left, right, (t + 1) * t * (t - 1) / 6)


@compiled
def _add(image: Reals, column: float, row: float, light: float, kernel: Floats, parts: int) -> None:
    """Add light at a place of the finer grid to an image, through a kernel that acts on `parts` points a pixel."""
    side = len(kernel)  # a pixel to the right of the point has what the kernel holds to the right of its middle
    reach = (side - parts) // 2
    left, across = _shares(column)
    top, down = _shares(row)
    for i in range(max(0, (top + reach - side) // parts), min(len(image), (top + reach + 4) // parts + 1)):
        for j in range(max(0, (left + reach - side) // parts), min(image.shape[1], (left + reach + 4) // parts + 1)):
            total = 0.0
            for k in range(4):
                y = top + k + reach - i * parts
                if 0 <= y < side:
                    for m in range(4):
                        x = left + m + reach - j * parts
                        if 0 <= x < side:
                            total += down[k] * across[m] * kernel[side - 1 - y, side - 1 - x]
            image[i, j] += max(light * total, 0.0)
