import numpy as np
import pytest

from sublens.lensing.cosmology import ARCSEC_PER_RADIAN, FOUR_G_OVER_C2_MPC_PER_MSUN, einstein_radius
from sublens.surveys.mass import Cosmology


def cosmology(convention: str) -> Cosmology:
    return Cosmology.model_validate({"convention": convention, "z_lens": 0.5, "z_source": 1.0})


def radius(convention: str, mass: float = 1e12, z_lens: float = 0.5, z_source: float = 1.0) -> float:
    masses, lenses, sources = (np.array([value]) for value in (mass, z_lens, z_source))
    return float(einstein_radius(masses, lenses, sources, cosmology(convention))[0])


@pytest.mark.parametrize(("convention", "expected"), [("angular-diameter", 1.665), ("deeplense", 1.281)])
def test_a_trillion_suns_bend_by_the_published_radius(convention: str, expected: float) -> None:
    assert radius(convention) == pytest.approx(expected, abs=5e-4)


def test_the_constant_is_four_g_over_c_squared() -> None:
    from astropy import constants, units

    exact = (4 * constants.G * constants.M_sun / constants.c**2).to_value(units.Mpc)
    assert pytest.approx(exact, rel=2e-5) == FOUR_G_OVER_C2_MPC_PER_MSUN


def test_arcsec_per_radian() -> None:
    assert pytest.approx(180 * 3600 / np.pi) == ARCSEC_PER_RADIAN


@pytest.mark.parametrize("convention", ["angular-diameter", "deeplense"])
def test_the_radius_grows_as_the_root_of_the_mass(convention: str) -> None:
    assert radius(convention, mass=4e12) == pytest.approx(2 * radius(convention))


def test_the_angular_diameter_convention_agrees_with_astropy() -> None:
    from astropy.cosmology import FlatLambdaCDM

    flat = FlatLambdaCDM(H0=70, Om0=0.3)
    d_l, d_s = (flat.angular_diameter_distance(z).value for z in (0.3, 1.4))
    d_ls = flat.angular_diameter_distance(0.3, 1.4).value
    expected = np.sqrt(FOUR_G_OVER_C2_MPC_PER_MSUN * 1e11 * d_ls / d_l / d_s) * ARCSEC_PER_RADIAN
    assert radius("angular-diameter", 1e11, 0.3, 1.4) == pytest.approx(expected)


def test_no_mass_bends_nothing() -> None:
    assert radius("deeplense", mass=0) == 0
