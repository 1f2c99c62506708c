import numpy as np
import pytest

from sublens.lensing.cosmology import (
    ARCSEC_PER_RADIAN,
    FOUR_G_OVER_C2_MPC_PER_MSUN,
    einstein_radius,
    isothermal_radius,
    mean_concentration,
)
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


def test_the_radius_of_a_velocity_dispersion_is_lenstronomys() -> None:
    from astropy.cosmology import FlatLambdaCDM
    from lenstronomy.Cosmo.lens_cosmo import LensCosmo

    settings = cosmology("angular-diameter")
    expected = LensCosmo(0.2, 0.6, FlatLambdaCDM(70, 0.3)).sis_sigma_v2theta_E(250.0)
    ours = isothermal_radius(np.array([250.0]), np.array([0.2]), np.array([0.6]), settings)
    assert ours[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("relation", "mass_msun", "z", "expected"),
    [
        ("duffy2008", 2e12 / 0.7, 0.0, 5.71),
        ("duffy2008", 2e13 / 0.7, 1.0, 5.71 * 10**-0.084 * 2**-0.47),
        ("dutton2014", 1e12 / 0.7, 0.0, 10**0.905),
        ("dutton2014", 1e12 / 0.7, 0.5, 10**0.814),
        ("dutton2014", 1e10 / 0.7, 0.5, 10 ** (0.814 + 2 * 0.088)),
    ],
)
def test_mean_concentrations_are_the_published_ones(relation: str, mass_msun: float, z: float, expected: float) -> None:
    ours = mean_concentration(relation, np.array(mass_msun), np.array(z), 70)
    assert ours == pytest.approx(expected, rel=5e-3)
