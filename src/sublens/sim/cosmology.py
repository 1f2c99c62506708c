"""Distances and Einstein radii, under a named convention.

`angular-diameter` is the textbook formula. `deeplense` is what the published DeepLense data
sets were made with: luminosity distances, and their plain difference in place of the
distance from lens to source. It gives 1.281" instead of 1.665" for 1e12 Msun at redshifts
0.5 and 1.0, and is kept because a replica of that data needs it.
"""

from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from astropy.cosmology import FlatLambdaCDM

Convention = Literal["angular-diameter", "deeplense"]
Floats = NDArray[np.float64]

ARCSEC_PER_RADIAN = 206264.80624709636
FOUR_G_OVER_C2_MPC_PER_MSUN = 1.9141663372e-19
"""4 G / c^2 with G Msun = 1.32712440e20 m^3/s^2 (IAU 2015, resolution B3)."""


@cache
def _universe(h0: float, om0: float) -> "FlatLambdaCDM":
    from astropy.cosmology import FlatLambdaCDM  # 1.3 s to import

    return FlatLambdaCDM(H0=h0, Om0=om0)


def einstein_radius(
    mass_msun: Floats,
    z_lens: Floats,
    z_source: Floats,
    *,
    convention: Convention,
    h0: float,
    om0: float,
) -> Floats:
    """Einstein radius of a point mass, arcsec: sqrt(4 G M / c^2 * D_ls / (D_l D_s)).

    mass_msun: solar masses, >= 0. z_lens < z_source. h0: km/s/Mpc. The arguments broadcast.
    Source: Schneider, Kochanek & Wambsganss 2006, eq. 22 of part 1.
    """
    factor = FOUR_G_OVER_C2_MPC_PER_MSUN * inverse_distance(z_lens, z_source, convention=convention, h0=h0, om0=om0)
    return np.asarray(np.sqrt(mass_msun * factor) * ARCSEC_PER_RADIAN)


def inverse_distance(z_lens: Floats, z_source: Floats, *, convention: Convention, h0: float, om0: float) -> Floats:
    """D_ls / (D_l D_s) in 1/Mpc under the convention."""
    universe = _universe(h0, om0)
    if convention == "deeplense":
        d_l = universe.luminosity_distance(z_lens).value
        d_s = universe.luminosity_distance(z_source).value
        return np.asarray((d_s - d_l) / (d_l * d_s))
    c_l = universe.comoving_distance(z_lens).value
    c_s = universe.comoving_distance(z_source).value
    return np.asarray((c_s - c_l) / c_s * (1 + z_lens) / c_l)  # the factors 1 + z_source cancel
