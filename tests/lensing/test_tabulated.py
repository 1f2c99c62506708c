import numpy as np
import pytest
import torch
from conftest import changed

from sublens.lensing import tabulated
from sublens.sim.population import draw
from sublens.sim.render import DEFLECTIONS, PARAMETERS
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth

PROFILES = {
    "nfw": {"profile": "nfw", "concentration": {"uniform": (8, 20)}},
    "tnfw": {"profile": "tnfw", "concentration": {"uniform": (8, 20)}, "truncation": {"uniform": (0.7, 20)}},
}


def drawn(profile: str) -> tuple[Survey, Truth]:
    survey = changed("hst", subhaloes=PROFILES[profile])
    return survey, draw(survey, 1, "train", range(1, 31, 3))


def deflections(truth: Truth, profile: str, radii: np.ndarray) -> np.ndarray:
    """Deflection of each subhalo at these distances from its centre, arcsec, [k, n]."""
    columns = (torch.from_numpy(truth.subhaloes[name][:, None].copy()) for name in PARAMETERS[profile][2:])
    r, nought = torch.from_numpy(radii)[None], torch.zeros(())
    return DEFLECTIONS[profile](r, torch.zeros_like(r), nought, nought, *columns)[0].numpy()


@pytest.mark.parametrize("profile", PROFILES)
def test_tabulated_masses_deflect_as_the_formula_to_a_50000th_of_an_arcsec(profile: str) -> None:
    survey, truth = drawn(profile)
    radii, dark = np.geomspace(1e-3, 8, 500), truth.subhaloes
    t2 = (radii / dark["r_s"][:, None]) ** 2
    entry = (np.floor(np.log2(t2)) - tabulated.FIRST_OCTAVE) * 16
    entry += (t2 / 2 ** np.floor(np.log2(t2)) - 1) * 16
    tables = tabulated.masses_inside(dark, survey.subhaloes)
    inside = [np.interp(place, np.arange(tables.shape[1]), table) for place, table in zip(entry, tables, strict=True)]
    strength = dark["alpha_rs"] / ((1 - np.log(2)) * dark["r_s"])
    ours = strength[:, None] * np.array(inside) / t2 * radii
    assert np.abs(ours - deflections(truth, profile, radii)).max() < 2e-5


def test_beyond_its_reach_a_truncated_subhalo_is_a_point() -> None:
    _, truth = drawn("tnfw")
    radii = tabulated.reach(truth.subhaloes)
    points = truth.subhaloes["theta_e"] ** 2 / radii
    exact = np.diag(deflections(truth, "tnfw", radii))
    assert np.abs(points - exact).max() < tabulated.AS_POINT


def test_an_nfw_halo_without_truncation_is_never_a_point() -> None:
    assert np.isinf(tabulated.reach(drawn("nfw")[1].subhaloes)).all()


@pytest.mark.parametrize(("q", "slope"), [(0.99, 2.0), (0.3, 1.5), (0.05, 2.4)])
def test_a_series_has_its_terms_in_fours(q: float, slope: float) -> None:
    series = tabulated.power_law_series(q, slope)
    assert series.shape[1] % 4 == 0
    assert abs(series[0, -1]) < 1e-6


@pytest.mark.parametrize("parts", [1, 2, 3, 18])
def test_weights_between_pixels_give_a_quartic_its_values(parts: int) -> None:
    places = (np.arange(parts) + 0.5) / parts - 0.5
    quartic = np.polynomial.Polynomial([1, -2, 0.5, 3, -1])
    np.testing.assert_allclose(tabulated.weights_between(parts) @ quartic(np.arange(-2, 3)), quartic(places), atol=2e-5)
