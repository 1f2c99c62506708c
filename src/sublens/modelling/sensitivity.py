"""How strong one subhalo on the arcs of a fitted lens would have to be to show, to first order in its deflection.

The deflection of a weak subhalo changes the image by the gradient of the lensed source; what neither source, galaxy nor
smooth lens can take over of that change, in units of the noise, is what its evidence grows by (Vegetti & Koopmans 2009,
arXiv:0805.0201, for the full one).
"""

from typing import NamedTuple

import numpy as np
from scipy import linalg

from sublens.modelling import response, smooth_lens
from sublens.modelling.fitter import Floats, factor_of
from sublens.modelling.perturbers import LOG_SIZE, SUBHALO
from sublens.modelling.tracks import Track

PLACES = 40
"""Number of places around the ring."""
DARK = 1e-3
"""Weight of a place without light, as a share of the brightest one's."""
LEAST = 1e-6
"""Least signal to noise of unit strength."""


class Sensitivity(NamedTuple):
    """Signal to noise of a subhalo of unit strength, ln, weighted by the light of the arcs around the ring."""

    mean: float
    spread: float
    """Standard deviation."""


def around_ring(track: Track) -> Sensitivity:
    """The sensitivity of a fit to subhaloes on the ring, of median size."""
    fitter, solution = track
    theta_e, q, turn = smooth_lens.shape(solution.parameters)
    angle = 2 * np.pi * np.arange(PLACES) / PLACES
    long, short = theta_e * np.cos(angle) / np.sqrt(q), theta_e * np.sin(angle) * np.sqrt(q)
    x = solution.parameters[smooth_lens.X] + long * np.cos(turn) - short * np.sin(turn)
    y = solution.parameters[smooth_lens.Y] + long * np.sin(turn) + short * np.cos(turn)
    source = solution.source.reshape(solution.grid.size, -1).astype(np.float32)
    light, first = response.light(solution.splines[0], source).clip(0), fitter.data.x[0, 0]
    step = fitter.data.x[0, 1] - first
    column, row = (np.rint((place - first) / step).astype(int).clip(0, len(light) - 1) for place in (x, y))
    weights = light[row, column].astype(np.float64) + DARK * max(float(light.max()), np.finfo(np.float64).tiny)
    each = at_places(track, x, y)
    mean = float(np.average(each, weights=weights))
    return Sensitivity(mean, float(np.sqrt(np.average((each - mean) ** 2, weights=weights))))


def at_places(track: Track, x: Floats, y: Floats) -> Floats:
    """ln of the signal to noise of a subhalo of unit strength at each place, arcsec, [n]."""
    fitter, solution = track
    data, system = fitter.data, fitter.system(solution)
    along_x, along_y = solution.grid.gradient(solution.splines, solution.source)
    bent = [
        SUBHALO.deflection(np.array([*place, 0.0, LOG_SIZE[0]]), data.x, data.y) for place in zip(x, y, strict=True)
    ]
    planes = np.stack([-(along_x * field[0] + along_y * field[1]) for field in bent])
    columns = response.of_planes(planes, data.blur) / fitter.noise[:, None].astype(np.float32)
    products = (system.columns.T @ columns).astype(np.float64)
    taken_over = linalg.cho_solve((factor_of(system.matrix, system.precisions), True), products)
    left2 = (columns.astype(np.float64) ** 2).sum(0) - (products * taken_over).sum(0)
    return np.asarray(0.5 * np.log(np.maximum(left2, LEAST**2)))
