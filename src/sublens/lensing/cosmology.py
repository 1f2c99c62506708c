"""Distances and Einstein radii, under a named convention.

`angular-diameter` is the textbook formula. `deeplense` is what the published DeepLense data
sets were made with: luminosity distances, and their plain difference in place of the
distance from lens to source. It gives 1.281" instead of 1.665" for 1e12 Msun at redshifts
0.5 and 1.0, and is kept because a replica of that data needs it.
"""

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from sublens.surveys.mass import Cosmology
from sublens.surveys.priors import Floats

if TYPE_CHECKING:
    from astropy.cosmology import FlatLambdaCDM

ARCSEC_PER_RADIAN = 206264.80624709636
FOUR_G_OVER_C2_MPC_PER_MSUN = 1.9141663372e-19
"""4 G / c^2 with G Msun = 1.32712440e20 m^3/s^2 (IAU 2015, resolution B3)."""


@cache
def _universe(h0: float, om0: float) -> "FlatLambdaCDM":
    from astropy.cosmology import FlatLambdaCDM  # 1.3 s to import

    return FlatLambdaCDM(H0=h0, Om0=om0)


def einstein_radius(mass_msun: Floats, z_lens: Floats, z_source: Floats, cosmology: Cosmology) -> Floats:
    """Einstein radius of a point mass, arcsec: sqrt(4 G M / c^2 * D_ls / (D_l D_s)).

    mass_msun: solar masses, >= 0. z_lens < z_source. The arguments broadcast.
    Source: Schneider, Kochanek & Wambsganss 2006, eq. 22 of part 1.
    """
    factor = FOUR_G_OVER_C2_MPC_PER_MSUN * inverse_distance(z_lens, z_source, cosmology)
    return np.asarray(np.sqrt(mass_msun * factor) * ARCSEC_PER_RADIAN)


LIGHT_KM_S = 299792.458
"""Speed of light, km/s."""


def isothermal_radius(sigma_v: Floats, z_lens: Floats, z_source: Floats, cosmology: Cosmology) -> Floats:
    """Einstein radius of a singular isothermal sphere, arcsec: 4 pi (sigma_v / c)^2 D_ls / D_s.

    sigma_v: velocity dispersion, km/s. Source: Schneider, Kochanek & Wambsganss 2006, eq. 43 of part 2.
    """
    universe = _universe(cosmology.h0, cosmology.om0)
    is_plain = cosmology.convention == "deeplense"
    distance = universe.luminosity_distance if is_plain else universe.angular_diameter_distance
    ratio = inverse_distance(z_lens, z_source, cosmology) * distance(z_lens).value
    return np.asarray(4 * np.pi * (sigma_v / LIGHT_KM_S) ** 2 * ratio * ARCSEC_PER_RADIAN)


def inverse_distance(z_lens: Floats, z_source: Floats, cosmology: Cosmology) -> Floats:
    """D_ls / (D_l D_s) in 1/Mpc under the convention."""
    universe = _universe(cosmology.h0, cosmology.om0)
    if cosmology.convention == "deeplense":
        d_l = universe.luminosity_distance(z_lens).value
        d_s = universe.luminosity_distance(z_source).value
        return np.asarray((d_s - d_l) / (d_l * d_s))
    c_l = universe.comoving_distance(z_lens).value
    c_s = universe.comoving_distance(z_source).value
    return np.asarray((c_s - c_l) / c_s * (1 + z_lens) / c_l)  # the factors 1 + z_source cancel


def nfw_angles(
    mass_msun: Floats, concentration: Floats, z_lens: Floats, z_source: Floats, cosmology: Cosmology
) -> tuple[Floats, Floats]:
    """Scale radius of an NFW halo and its deflection there, both arcsec.

    mass_msun: M200, inside the radius r_200 of 200 times the critical density at z_lens.
    concentration: r_200 over the scale radius. A cylinder of one scale radius holds the mass
    M200 (1 + ln 1/2) / (ln(1 + c) - c / (1 + c)). Source: Wright & Brainerd 2000, eqs. 1-2, 13.
    """
    universe = _universe(cosmology.h0, cosmology.om0)
    density = universe.critical_density(z_lens).to_value("Msun / Mpc3")
    r_s_mpc = np.cbrt(3 * mass_msun / (800 * np.pi * density)) / concentration
    r_s = r_s_mpc / universe.angular_diameter_distance(z_lens).value * ARCSEC_PER_RADIAN
    inside = mass_msun * (1 + np.log(0.5)) / (np.log1p(concentration) - concentration / (1 + concentration))
    return r_s, einstein_radius(inside, z_lens, z_source, cosmology) ** 2 / r_s


def mean_concentration(relation: str, mass_msun: Floats, z: Floats, h0: float) -> Floats:
    """Mean concentration r_200 / r_s of haloes of M200 `mass_msun` at redshift z.

    `duffy2008`: 5.71 (M / 2e12 h^-1 Msun)^-0.084 (1 + z)^-0.47, all haloes of Duffy et al. 2008, arXiv:0804.2486,
    Table 1. `dutton2014`: eqs. 7, 10 and 11 of Dutton & Maccio 2014, arXiv:1402.7073. Both were fitted above some
    1e10 h^-1 Msun, and go on below as the same power law.
    """
    mass = mass_msun * h0 / 100
    if relation == "duffy2008":
        return np.asarray(5.71 * (mass / 2e12) ** -0.084 * (1 + z) ** -0.47)
    a, b = 0.520 + (0.905 - 0.520) * np.exp(-0.617 * z**1.21), -0.101 + 0.026 * z
    return np.asarray(10 ** (a + b * np.log10(mass / 1e12)))
