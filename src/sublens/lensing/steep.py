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
def _bent(field: Reals, row: int, column: int) -> Single:
    """Sum of the absolute fourth differences along both axes."""
    middle = SIX * field[row, column]
    down = field[row - 2, column] + field[row + 2, column] - FOUR * (field[row - 1, column] + field[row + 1, column])
    across = field[row, column - 2] + field[row, column + 2] - FOUR * (field[row, column - 1] + field[row, column + 1])
    return abs(down + middle) + abs(across + middle)


@compiled
def mark_rough(fields: Reals, sky: Single, limits: Reals, rough: NDArray[np.bool_]) -> None:
    """Set `rough` [n, n] to whether a pixel's fields must not be interpolated.

    fields: deflections and light that is not lensed, [3, n + 4, n + 4], see `light.sample`. limits: of the fourth
    differences of the first, arcsec, and of the last, standard deviations of the noise, whose variance is light + sky.
    """
    for row in range(len(rough)):
        for column in range(len(rough)):
            i, j = row + 2, column + 2
            is_even = (_bent(fields[0], i, j) <= limits[0]) & (_bent(fields[1], i, j) <= limits[0])
            noise = np.sqrt(fields[2, i, j] + sky)
            rough[row, column] = not (is_even & (_bent(fields[2], i, j) <= limits[1] * noise))  # as where it is NaN
