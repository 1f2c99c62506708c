"""Solutions of the lens equation: the images of a point source, and their magnifications."""

from collections.abc import Callable

import numpy as np

from sublens.surveys.priors import Floats

Deflect = Callable[[Floats, Floats], tuple[Floats, Floats]]
"""From positions x and y, arcsec, of any one shape, to the deflection there."""
PARTS = 48, 8, 8
"""Parts along each side of a square that are searched for images, first of the whole and then of each part that may
hold one: images that lie 1 / 3,072 of the whole apart are told apart."""
MARGIN = 0.5
"""Share of its size by which the box that holds a mapped square is enlarged, since its sides are curved."""
ITERATIONS = 12
"""Steps of Newton's method; from a square that is a thousandth of the whole, a few are enough."""
SMALLEST = 1e-3
"""Least magnification of an image; the one in the middle of a singular halo has none."""


def images(source: tuple[float, float], deflect: Deflect, reach: float) -> Floats:
    """The images of a point source, [k, 3]: x and y, arcsec, and magnification, the most magnified first.

    source: its position, arcsec. deflect: deflection of the lens, finite everywhere. reach: half of the
    side of the square around the origin that is searched, arcsec. A central image fainter than `SMALLEST` is left out.
    """
    corners, side = np.full((1, 2), -reach), 2 * reach
    for parts in PARTS:
        corners, side = _squares_around(source, deflect, corners, side, parts)
    x, y = corners.T + side / 2
    for _ in range(ITERATIONS):
        miss_x, miss_y, (xx, xy, yx, yy) = _mapped(source, deflect, x, y, 1e-6 * reach)
        determinant = xx * yy - xy * yx
        x, y = x - (yy * miss_x - xy * miss_y) / determinant, y - (xx * miss_y - yx * miss_x) / determinant
    miss_x, miss_y, (xx, xy, yx, yy) = _mapped(source, deflect, x, y, 1e-6 * reach)
    magnification = 1 / np.abs(xx * yy - xy * yx)
    is_near = np.hypot(*(np.stack([x, y]) - corners.T - side / 2)) < 4 * side
    kept = (np.hypot(miss_x, miss_y) < 1e-9 * reach) & (magnification > SMALLEST) & is_near
    return _distinct(np.stack([x, y, magnification], axis=1)[kept], 1e-6 * reach)


def _squares_around(
    source: tuple[float, float], deflect: Deflect, corners: Floats, side: float, parts: int
) -> tuple[Floats, float]:
    """Lower left corners and side of those parts of squares that may hold an image: a box around their place in the
    source plane holds the source. corners: of the squares, [k, 2]."""
    axis = np.arange(parts + 1) * (side / parts)
    shape = len(corners), parts + 1, parts + 1
    x = np.broadcast_to(corners[:, 0, None, None] + axis, shape)
    y = np.broadcast_to(corners[:, 1, None, None] + axis[:, None], shape)
    is_around = np.ones((len(corners), parts, parts), bool)
    for place, alpha, origin in zip((x, y), deflect(x, y), source, strict=True):
        beta = place - alpha
        ends = np.stack([beta[:, :-1, :-1], beta[:, :-1, 1:], beta[:, 1:, :-1], beta[:, 1:, 1:]])
        low, high = ends.min(axis=0), ends.max(axis=0)
        is_around &= np.abs(origin - (low + high) / 2) <= (0.5 + MARGIN) * (high - low)
    square, row, column = is_around.nonzero()
    return np.stack([x[square, row, column], y[square, row, column]], axis=1), side / parts


Jacobian = tuple[Floats, Floats, Floats, Floats]
"""Derivatives of the source's x by the image's x and y, and of its y by these."""


def _mapped(
    source: tuple[float, float], deflect: Deflect, x: Floats, y: Floats, step: float
) -> tuple[Floats, Floats, Jacobian]:
    """By how much rays at x and y [k] miss the source, and the Jacobian there, by central differences of this step."""
    offsets = step * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])[:, :, None]
    places_x, places_y = x + offsets[:, 0], y + offsets[:, 1]
    alpha_x, alpha_y = deflect(places_x, places_y)
    beta_x, beta_y = places_x - alpha_x, places_y - alpha_y
    slopes = ((beta[i] - beta[i + 1]) / (2 * step) for beta in (beta_x, beta_y) for i in (1, 3))
    xx, xy, yx, yy = slopes
    return beta_x[0] - source[0], beta_y[0] - source[1], (xx, xy, yx, yy)


def _distinct(solutions: Floats, apart: float) -> Floats:
    """Solutions [k, 3] that differ in their place, the most magnified first."""
    kept: list[Floats] = []
    for solution in solutions[np.argsort(-solutions[:, 2], kind="stable")]:
        if all(np.hypot(*(solution - other)[:2]) > apart for other in kept):
            kept.append(solution)
    return np.array(kept).reshape(-1, 3)
