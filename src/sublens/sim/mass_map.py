"""Truth table -> maps of the substructure's mass."""

import numpy as np
from numpy.typing import NDArray

from sublens.sim.population import ANGLES, ANNULI, annuli
from sublens.surveys.priors import Floats
from sublens.surveys.truth import Truth

STRING_SAMPLES = 64
"""Pieces of a string whose mass is shared out over cells."""


def mass_map(truth: Truth, n_cells: int, field: float, samples: int = STRING_SAMPLES) -> Floats:
    """Substructure mass in each cell, Msun, [n, n_cells, n_cells] with rows along y.

    field: side of the square around the optical axis that the cells divide, arcsec. Mass outside
    is left out. Strings and extended subhaloes are cut into pieces, each added to the cell of its middle;
    samples: pieces of a string.
    """
    parts = (_points(truth), _halo_pieces(truth, field), _string_pieces(truth, samples))
    x, y, msun, owner = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    column, row = (np.floor((p / field + 0.5) * n_cells).astype(np.int64) for p in (x, y))
    inside = (column >= 0) & (column < n_cells) & (row >= 0) & (row < n_cells)
    flat = (owner * n_cells + row) * n_cells + column
    total = np.bincount(flat[inside], msun[inside], minlength=len(truth) * n_cells**2)
    return np.asarray(total.reshape(len(truth), n_cells, n_cells), dtype=np.float64)


Pieces = tuple[Floats, Floats, Floats, NDArray[np.int64]]
"""Positions x and y of pieces of mass, arcsec, their masses, Msun, and the positions of their scenes, each [k]."""


def _points(truth: Truth) -> Pieces:
    is_point = truth.subhaloes["r_s"] == 0
    points = truth.subhaloes[is_point]
    return points["x"], points["y"], points["mass_msun"], truth.owners()[is_point]


def _halo_pieces(truth: Truth, field: float) -> Pieces:
    """Extended subhaloes as far as the field's corners: `ANGLES` pieces of each of their annuli."""
    is_halo = truth.subhaloes["r_s"] > 0
    halos = truth.subhaloes[is_halo]
    r, theta_e2 = annuli(halos, np.hypot(halos["x"], halos["y"]) + field / np.sqrt(2))
    msun = theta_e2 * (halos["mass_msun"] / halos["theta_e"] ** 2)[:, None] / ANGLES
    angle = GOLDEN * np.arange(ANNULI)[:, None] + 2 * np.pi / ANGLES * np.arange(ANGLES)
    x = halos["x"][:, None, None] + r[:, :, None] * np.cos(angle)
    y = halos["y"][:, None, None] + r[:, :, None] * np.sin(angle)
    owner = np.repeat(truth.owners()[is_halo], ANNULI * ANGLES)
    return x.ravel(), y.ravel(), np.repeat(msun, ANGLES), owner


GOLDEN = np.pi * (3 - np.sqrt(5))
"""Golden angle, by which the pieces of an annulus are turned against those of the one inside it."""


def _string_pieces(truth: Truth, samples: int) -> Pieces:
    strung = np.flatnonzero(truth.scenes["string_mass_msun"] > 0)
    scenes = truth.scenes[strung]
    offset = scenes["string_half_length"][:, None] * ((np.arange(samples) + 0.5) / samples * 2 - 1)
    x = scenes["string_x"][:, None] + offset * np.cos(scenes["string_angle"])[:, None]
    y = scenes["string_y"][:, None] + offset * np.sin(scenes["string_angle"])[:, None]
    return x.ravel(), y.ravel(), np.repeat(scenes["string_mass_msun"] / samples, samples), np.repeat(strung, samples)
