"""Columns of truth that only surveys with the settings of real lenses have."""

import numpy as np
from numpy.typing import NDArray

from sublens.surveys.survey import Survey

MASS = ("slope", "halo_x", "halo_y", "m3", "m3_angle", "m4", "m4_angle")
"""Density slope of the halo, its centre, arcsec, and amplitudes and angles of its multipoles, radians."""
LIGHT: tuple[str, ...] = ()
"""Columns of the lens galaxy's and the source's light."""
CAMERA: tuple[str, ...] = ()
"""Columns of the observation."""
EXTRA = np.dtype([(name, "<f8") for name in (*MASS, *LIGHT, *CAMERA)])
"""Columns of the table beside the scenes, one row an image."""


def is_kept(survey: Survey) -> bool:
    """Whether scenes of this survey have a row of dtype EXTRA."""
    return any((survey.halo.is_general,))


def blank(n: int) -> NDArray[np.void]:
    """The rows of n scenes in which each setting is off: an isothermal halo at the origin without multipoles."""
    rows = np.zeros(n, EXTRA)
    rows["slope"] = 2
    return rows
