from itertools import product

import numpy as np
import pytest
from conftest import changed
from scipy import stats

from sublens.errors import ConfigError
from sublens.lensing.cosmology import einstein_radius, mean_concentration
from sublens.sim import substructure
from sublens.sim.population import CLASSES, draw
from sublens.surveys.extra import blank
from sublens.surveys.presets import preset
from sublens.surveys.priors import Prior
from sublens.surveys.survey import Survey
from sublens.surveys.truth import SCENE, Truth

RELATION = {"relation": "duffy2008", "scatter_dex": 0.16}
FAINT = {"power_law": (-1.9, 1e7, 1e9)}


def with_subhaloes(**settings: object) -> Survey:
    """hst with other subhaloes; None leaves a setting out."""
    tree = changed("hst").model_dump(exclude_none=True)
    tree["subhaloes"] = {k: v for k, v in (tree["subhaloes"] | settings).items() if v is not None}
    return Survey.model_validate(tree)


def spheres(survey: Survey, n: int = 300) -> Truth:
    return draw(survey, 2, "train", range(1, 1 + n * len(CLASSES), len(CLASSES)))


@pytest.mark.parametrize("profile", [{}, {"profile": "tnfw", "concentration": RELATION, "truncation": 10}])
def test_subhaloes_hold_the_fraction_of_the_mass_inside_the_ring(profile: dict[str, object]) -> None:
    truth = spheres(with_subhaloes(number=None, fraction=0.01, mass_msun=FAINT, placement="area", **profile))
    distance = np.hypot(truth.subhaloes["x"], truth.subhaloes["y"])
    inside = truth.subhaloes["mass_msun"] * (distance < truth.scenes["theta_e"][truth.owners()])
    share = np.bincount(truth.owners(), inside, len(truth)) / truth.scenes["lens_mass_msun"]
    assert share.mean() == pytest.approx(0.01, abs=4 * share.std() / len(truth) ** 0.5)
    assert share.std() / len(truth) ** 0.5 < 1e-3


def test_a_fraction_that_asks_for_too_many_subhaloes_is_refused() -> None:
    with pytest.raises(ConfigError, match="asks for .* subhaloes in an image; needs a mean of at most 12000"):
        spheres(with_subhaloes(number=None, fraction=0.1, mass_msun=1e5))


SHAPE = "z_lens", "z_source", "theta_e", "halo_q"


@pytest.mark.parametrize("name", ["hst-acs", "hst-wfc3", "euclid-vis", "jwst-nircam"])
def test_no_scene_of_a_preset_can_ask_for_too_many_subhaloes(name: str) -> None:
    survey, most = preset(name), np.array([1 - 1e-9])
    corners = product(*([float(prior.quantile(u)[0]) for u in (1 - most, most)] for prior in dimensions(survey)))
    scenes = np.zeros(32, SCENE)
    more = blank(32)
    columns = np.array(list(corners)).T
    for table, name_, column in zip((*[scenes] * 4, more), (*SHAPE, "slope"), columns, strict=True):
        table[name_] = column
    unit = einstein_radius(np.ones(32), scenes["z_lens"], scenes["z_source"], survey.cosmology)
    scenes["lens_mass_msun"] = (scenes["theta_e"] / unit) ** 2
    means = substructure._mean_numbers(scenes, more, survey, most.repeat(32))
    assert means.max() < substructure.MOST


def dimensions(survey: Survey) -> list[Prior]:
    """Priors of redshifts, Einstein radius, axis ratio and slope."""
    cosmology, halo = survey.cosmology, survey.halo
    assert halo.theta_e
    return [cosmology.z_lens, cosmology.z_source, halo.theta_e, halo.q, halo.slope]


def test_a_fraction_without_subhaloes_inside_the_ring_is_refused() -> None:
    with pytest.raises(ConfigError, match="no subhalo of subhaloes.radius lies inside the ring"):
        spheres(with_subhaloes(number=None, fraction=0.01, radius={"uniform": (5, 6)}))


def test_subhaloes_are_uniform_in_area() -> None:
    truth = spheres(with_subhaloes(placement="area", radius={"uniform": (0.5, 2)}))
    distance2 = truth.subhaloes["x"] ** 2 + truth.subhaloes["y"] ** 2
    assert stats.kstest(distance2, stats.uniform(0.25, 3.75).cdf).pvalue > 1e-3


def test_a_subhalo_on_the_ring_lies_on_the_critical_curve() -> None:
    truth = spheres(with_subhaloes(placement="ring", number=1, radius=1))
    scenes, x, y = truth.scenes, truth.subhaloes["x"], truth.subhaloes["y"]
    cos, sin = np.cos(scenes["halo_angle"]), np.sin(scenes["halo_angle"])
    u, v, q = cos * x + sin * y, cos * y - sin * x, scenes["halo_q"]
    np.testing.assert_allclose(np.sqrt(q * u**2 + v**2 / q), scenes["theta_e"], rtol=1e-9)


def test_concentrations_scatter_about_their_relation_with_mass() -> None:
    truth = spheres(with_subhaloes(profile="nfw", concentration=RELATION, mass_msun=FAINT))
    exact = spheres(with_subhaloes(profile="nfw", concentration=RELATION | {"scatter_dex": 0}, mass_msun=FAINT))
    scatter = np.log10(exact.subhaloes["r_s"] / truth.subhaloes["r_s"])
    assert stats.kstest(scatter, stats.norm(0, 0.16).cdf).pvalue > 1e-3
    fixed = spheres(with_subhaloes(profile="nfw", concentration=10, mass_msun=FAINT))
    z = truth.scenes["z_lens"][truth.owners()]
    mean = mean_concentration("duffy2008", truth.subhaloes["m200_msun"], z, 70)
    np.testing.assert_allclose(10 * fixed.subhaloes["r_s"] / exact.subhaloes["r_s"], mean, rtol=1e-9)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"number": None}, "needs either number or fraction"),
        ({"fraction": 0.01}, "needs either number or fraction"),
        ({"placement": "area", "radius": 1}, "placement area needs a radius"),
        ({"placement": "ring", "number": None, "fraction": 0.01}, "placement ring needs a number"),
        ({"profile": "nfw", "concentration": {"relation": "duffy"}}, "'duffy2008' or 'dutton2014'"),
        ({"profile": "nfw", "concentration": 0}, "above 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        with_subhaloes(**settings)
