"""Pixels, and parts of pixels, whose light or deflection changes too fast for few points."""

import numpy as np
from numpy.typing import NDArray

from sublens.lensing.compiled import Reals, Single, compiled

HALF, TWO, FOUR, SIX = Single(0.5), Single(2), Single(4), Single(6)


@compiled
def _mark(steep: NDArray[np.uint8], row: int, column: int, level: int) -> None:
    for i in range(max(row - 1, 0), min(row + 2, len(steep))):
        for j in range(max(column - 1, 0), min(column + 2, len(steep))):
            steep[i, j] = max(steep[i, j], level)


@compiled
def mark_steep(light: Reals, sky: Single, per_error: Single, limits: Reals, steep: NDArray[np.uint8]) -> None:
    """Raise `steep` [n, n] to the number of limits that a part's error, or its neighbours', is above.

    The error is the sum of the second differences of light along both axes over per_error and the square root of
    light + sky.
    """
    n = len(light)
    wide, error = np.empty(n + 2, Single), np.empty(n, Single)
    for row in range(n):
        up, here, down = light[max(row - 1, 0)], light[row], light[min(row + 1, n - 1)]
        wide[0], wide[1:-1], wide[-1] = here[0], here, here[-1]
        left, right = wide[:-2], wide[2:]
        for i in range(n):
            curved = abs(up[i] + down[i] - TWO * here[i]) + abs(left[i] + right[i] - TWO * here[i])
            error[i] = curved / (per_error * np.sqrt(here[i] + sky))
        for i in range(n):
            if error[i] > limits[0]:
                _mark(steep, row, i, (error[i] > limits).sum())


@compiled
def _place(position: Single, axis: Reals) -> int:
    """Number of the part of a pixel along an axis that holds a position."""
    step = (axis[-1] - axis[0]) / Single(len(axis) - 1)
    return int(np.floor((position - axis[0]) / step + HALF))


@compiled
def mark_points(points: Reals, axis: Reals, level: int, steep: NDArray[np.uint8]) -> None:
    """Raise `steep` [n, n] to this level in the parts that hold point masses, and in their neighbours."""
    for i in range(len(points)):
        row, column = _place(points[i, 1], axis), _place(points[i, 0], axis)
        if 0 <= row < len(axis) and 0 <= column < len(axis):
            _mark(steep, row, column, level)


@compiled
def _bent(field: Reals, row: int, bent: Reals) -> None:
    """Set `bent` [n] to the sums of the absolute fourth differences along both axes in a row of a field."""
    here, up, down, top, bottom = field[row], field[row - 1], field[row + 1], field[row - 2], field[row + 2]
    for i in range(bent.size):
        j = i + 2
        along = here[j - 2] + here[j + 2] - FOUR * (here[j - 1] + here[j + 1]) + SIX * here[j]
        across = top[j] + bottom[j] - FOUR * (up[j] + down[j]) + SIX * here[j]
        bent[i] = abs(along) + abs(across)


@compiled
def mark_rough(fields: Reals, sky: Single, limits: Reals, rough: NDArray[np.bool_]) -> None:
    """Set `rough` [n, n] to whether a pixel's fields must not be interpolated.

    fields: deflections and light that is not lensed, [3, n + 4, n + 4], see `light.sample`. limits: of the fourth
    differences of the first, arcsec, and of the last, standard deviations of the noise, whose variance is light + sky.
    """
    bent = np.empty((3, len(rough)), Single)
    for row in range(len(rough)):
        for i in range(3):
            _bent(fields[i], row + 2, bent[i])
        light = fields[2, row + 2, 2:-2]
        for i in range(len(rough)):
            is_even = (bent[0, i] <= limits[0]) & (bent[1, i] <= limits[0])
            rough[row, i] = not (is_even & (bent[2, i] <= limits[1] * np.sqrt(light[i] + sky)))  # as where it is NaN
