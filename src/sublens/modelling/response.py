"""What each part of a source gives to each pixel of an image, through the lens and the point-spread function.

A source is a grid of quadratic B-splines, so that its light and the gradient of that are continuous, and an image is
linear in their coefficients. Points are where light is traced, one or more to a pixel; pixels are those of the data.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens.lensing.compiled import Reals, compiled

released = partial(compiled, nogil=True)
"""As `compiled`; other threads run meanwhile."""
NODES = 3
"""Splines along one side that are not 0 at a place."""
OFF = -NODES
"""In place of the first of them, where all lie beyond the grid."""


class Blur(NamedTuple):
    """From points [n, n] to the pixels of the data."""

    kernel: NDArray[np.float32]
    """Weight of each point in a pixel, [k, k], from its corner on."""
    corners: NDArray[np.int64]
    """Row and column of the first point in each pixel, which may lie beyond the edge, [p, 2]."""


class Splines(NamedTuple):
    """The splines at each point: the first of `NODES` along either side, and their values."""

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    """[n, n]; some may lie beyond the grid; `OFF` where the source has no light."""
    along_y: NDArray[np.float32]
    along_x: NDArray[np.float32]
    """[n, n, NODES]"""


def splines(x: Reals, y: Reals, size: int) -> tuple[Splines, Splines]:
    """The splines, and their derivatives, of a grid of `size` a side at places x, y [n, n] in steps of the grid."""
    column, along_x, slope_x = _along(x, size)
    row, along_y, slope_y = _along(y, size)
    is_off = (row == OFF) | (column == OFF)
    row[is_off] = column[is_off] = OFF
    return Splines(row, column, along_y, along_x), Splines(row, column, slope_y, slope_x)


def _along(place: Reals, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    middle = np.rint(place)
    t = (place - middle).astype(np.float32)
    first = middle.astype(np.int64) - 1
    first[(first < OFF) | (first >= size)] = OFF
    values = np.stack([0.5 * (0.5 - t) ** 2, 0.75 - t * t, 0.5 * (0.5 + t) ** 2], axis=-1)
    return first, values, np.stack([t - 0.5, -2 * t, t + 0.5], axis=-1)


def of_source(source: Splines, size: int, blur: Blur) -> NDArray[np.float32]:
    """Light in each pixel of a spline of unit coefficient, [p, size * size]."""
    out = np.zeros((len(blur.corners), size * size), np.float32)
    _respond(*source, *blur, out, size)
    return out


def of_planes(planes: Reals, blur: Blur) -> NDArray[np.float32]:
    """Planes [k, n, n] in each pixel, [p, k]."""
    out = np.zeros((len(blur.corners), len(planes)), np.float32)
    _blur(np.ascontiguousarray(np.moveaxis(planes, 0, -1), np.float32), *blur, out)
    return out


def light(source: Splines, coefficients: NDArray[np.float32]) -> NDArray[np.float32]:
    """Light of a source of coefficients [size, size] at each point, [n, n]."""
    out = np.zeros(source.row.shape, np.float32)
    _shine(*source, coefficients, out)
    return out


@released
def _respond(row, column, along_y, along_x, kernel, corners, out, size):  # type: ignore[no-untyped-def]
    n, k = len(row), len(kernel)
    for pixel in range(len(corners)):
        top, left = corners[pixel]
        for i in range(max(top, 0), min(top + k, n)):
            for j in range(max(left, 0), min(left + k, n)):
                r, c = row[i, j], column[i, j]
                if r > -3:
                    weight = kernel[i - top, j - left]
                    for a in range(max(0, -r), min(3, size - r)):
                        down = weight * along_y[i, j, a]
                        for b in range(max(0, -c), min(3, size - c)):
                            out[pixel, (r + a) * size + c + b] += down * along_x[i, j, b]


@released
def _blur(planes, kernel, corners, out):  # type: ignore[no-untyped-def]
    n, k = len(planes), len(kernel)
    for pixel in range(len(corners)):
        top, left = corners[pixel]
        for i in range(max(top, 0), min(top + k, n)):
            for j in range(max(left, 0), min(left + k, n)):
                weight = kernel[i - top, j - left]
                for plane in range(planes.shape[2]):
                    out[pixel, plane] += weight * planes[i, j, plane]


@released
def _shine(row, column, along_y, along_x, coefficients, out):  # type: ignore[no-untyped-def]
    n, size = len(row), len(coefficients)
    for i in range(n):
        for j in range(n):
            r, c = row[i, j], column[i, j]
            total = np.float32(0)
            if r > -3:
                for a in range(max(0, -r), min(3, size - r)):
                    for b in range(max(0, -c), min(3, size - c)):
                        total += along_y[i, j, a] * along_x[i, j, b] * coefficients[r + a, c + b]
            out[i, j] = total
