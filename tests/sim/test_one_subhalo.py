"""One subhalo on the arc of each smooth lens."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import changed

from sublens.sim import one_subhalo
from sublens.sim.one_subhalo import places_on_arc, with_subhalo
from sublens.sim.population import CLASSES, draw
from sublens.sim.render import render
from sublens.surveys.presets import preset
from sublens.surveys.priors import Floats
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth


@pytest.fixture(scope="module")
def survey() -> Survey:
    """Elliptical lenses with light of their own."""
    return changed("euclid", camera={"n_pixels": 48, "supersampling": 2})


@pytest.fixture(scope="module")
def smooth(survey: Survey) -> Truth:
    return draw(survey, 5, "test", range(0, 90, len(CLASSES)))


@pytest.fixture(scope="module")
def places(survey: Survey, smooth: Truth) -> tuple[Floats, Floats]:
    return places_on_arc(smooth, survey, render(smooth, survey), np.random.default_rng(0))


def test_places_lie_on_the_ellipse_whose_area_is_that_of_the_ring(smooth: Truth, places: tuple[Floats, Floats]) -> None:
    q, turn = smooth.scenes["halo_q"], smooth.scenes["halo_angle"]
    along = places[0] * np.cos(turn) + places[1] * np.sin(turn)
    across = places[1] * np.cos(turn) - places[0] * np.sin(turn)
    assert np.sqrt(q * along**2 + across**2 / q) == pytest.approx(smooth.scenes["theta_e"])


def test_places_lie_where_the_source_is_bright_whatever_the_lens_shines(
    survey: Survey, smooth: Truth, places: tuple[Floats, Floats]
) -> None:
    arcs = render(smooth, survey.model_copy(update={"lens_light": None})).numpy()
    column, row = (np.rint(p / survey.camera.pixel_scale + 23.5).astype(int) for p in places)
    at_places = arcs[np.arange(len(arcs)), row, column]
    assert np.mean(at_places > np.quantile(arcs, 0.8, axis=(1, 2))) > 0.9


def test_the_subhalo_is_added_and_the_ring_stays(survey: Survey, smooth: Truth, places: tuple[Floats, Floats]) -> None:
    whole = with_subhalo(smooth, survey, *places, np.full(len(smooth), 1e9), np.random.default_rng(0))
    assert (whole.scenes["n_subhaloes"] == 1).all()
    assert (whole.subhaloes["mass_msun"] == 1e9).all()
    assert whole.scenes["theta_e"] == pytest.approx(smooth.scenes["theta_e"])
    assert (whole.scenes["halo_theta_e"] < smooth.scenes["halo_theta_e"]).any()


def test_a_scene_keeps_the_subhaloes_that_it_has(survey: Survey) -> None:
    filled = draw(survey, 5, "test", range(1, 9, len(CLASSES)))
    n = len(filled)
    whole = with_subhalo(filled, survey, np.zeros(n), np.ones(n), np.full(n, 2e9), np.random.default_rng(0))
    for number in range(n):
        before, after = (truth.take(np.array([number])).subhaloes["mass_msun"].tolist() for truth in (filled, whole))
        assert after == [*before, 2e9]


def test_extended_subhaloes_follow_the_survey(smooth: Truth, places: tuple[Floats, Floats]) -> None:
    survey = changed("euclid", subhaloes={"profile": "tnfw", "concentration": 15, "truncation": 10})
    whole = with_subhalo(smooth, survey, *places, np.full(len(smooth), 1e9), np.random.default_rng(0))
    assert (whole.subhaloes["m200_msun"] == 1e9).all()
    assert (whole.subhaloes["mass_msun"] < 1.5e9).all()
    assert whole.subhaloes["r_t"] == pytest.approx(10 * whole.subhaloes["r_s"])


def test_all_light_of_a_clumpy_source_counts() -> None:
    survey = preset("hst-acs")
    truth = draw(survey, 3, "test", range(0, 12, 3))
    dark = truth.extra_or_blank().copy()
    dark["stamp_intensity"] = 0
    smooth = replace(truth, extra=dark)
    light = one_subhalo._source_light(truth, survey, render(truth, survey)).sum(axis=(1, 2))
    disc = one_subhalo._source_light(smooth, survey, render(smooth, survey)).sum(axis=(1, 2))
    assert (light > 1.05 * disc).any()
    assert (light >= 0.99 * disc).all()
