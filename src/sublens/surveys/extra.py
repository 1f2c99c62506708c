"""Columns of truth that only surveys with the settings of real lenses have."""

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from sublens.surveys.defects import Kind
from sublens.surveys.survey import Survey

MASS = ("slope", "halo_x", "halo_y", "m3", "m3_angle", "m4", "m4_angle")
"""Density slope of the halo, its centre, arcsec, and amplitudes and angles of its multipoles, radians."""
LIGHT = (
    *("light_seed", "source_stamp", "source_mirror", "source_scale", "stamp_intensity", "n_knots"),
    *("lens_q", "lens_angle", "lens_x", "lens_y", "lens_boxiness"),
    *("disc_n", "disc_r_eff", "disc_q", "disc_angle", "disc_intensity", "nucleus_electrons"),
)
"""Columns of the source's and the lens galaxy's light.

light_seed: seed of all that has no column: knots, neighbours, stars. source_stamp: index of the source's stamp, which
source_mirror, -1 or 1, mirrors. source_scale: arcsec a pixel of it, or of the image of the source's knots.
stamp_intensity: electrons a pixel where it is 1. n_knots: number of knots. scenes["lens_intensity"] is
that of the lens galaxy's first component."""
CAMERA = (
    *("n_exposures", "psf_fwhm", "psf_index", "psf_turn", "psf_broadening"),
    *("noise_correlation", "sky_residual", "sky_gradient", "sky_gradient_angle", "noise_error"),
)
"""Columns of the observation: exposures added up; width of the point-spread function, its number in a set, how it
is turned, and the Gaussian that blurs it, arcsec; and the settings of `Camera` of these names, the angle in radians."""
DEFECTS = (*(f"n_{kind}" for kind in get_args(Kind)), "defects_seed")
"""Columns of the defects: the number of each kind, and the seed of their shapes."""
N_POINTS = 5
"""Greatest number of a contaminant's own points of light."""
CONTAMINANTS = (
    *("contaminant", "contaminant_seed", "contaminant_size", "contaminant_separation", "contaminant_electrons"),
    *(f"point_{name}_{number}" for number in range(N_POINTS) for name in ("x", "y", "electrons")),
)
"""Columns of scenes that are no lens of the survey's kind, all 0 for a lens.

contaminant: the number of its kind in `contaminants.KINDS`, from 1. contaminant_seed: seed of all that has no column.
contaminant_electrons: light of its galaxies, without the image of a disc, ring or tail, which stamp_intensity is
for. point_x, point_y, arcsec, and point_electrons: images of its quasar, or its stars."""
EXTRA = np.dtype([(name, "<f8") for name in (*MASS, *LIGHT, *CAMERA, *DEFECTS, *CONTAMINANTS)])
"""Columns of the table beside the scenes, one row an image."""


def is_kept(survey: Survey) -> bool:
    """Whether scenes of this survey have a row of dtype EXTRA."""
    return any((survey.halo.is_general, survey.has_general_light, survey.camera.is_drawn, survey.defects))


def blank(n: int) -> NDArray[np.void]:
    """The rows of n scenes in which each setting is off: an isothermal halo at the origin without multipoles."""
    rows = np.zeros(n, EXTRA)
    rows["slope"] = 2
    rows["n_exposures"] = rows["noise_error"] = 1
    return rows
