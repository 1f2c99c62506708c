from typing import Any

import numpy as np
import pytest
import torch
from conftest import changed
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.Solver.lens_equation_solver import LensEquationSolver

from sublens.models.macro import CONTAMINANT
from sublens.sim.population import draw
from sublens.sim.render import render, simulate
from sublens.surveys.contaminants import KINDS, Contaminants, Kind
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth

DARK: dict[str, Any] = {"lens_light": None, "neighbours": None, "stars": None, "defects": None}


@pytest.fixture(scope="module")
def survey() -> Survey:
    """hst-acs on 60 pixels of 0.1 arcsec, with a Gaussian point-spread function."""
    camera = {"n_pixels": 60, "pixel_scale": 0.1, "psf": {"profile": "gaussian", "fwhm": 0.15}}
    return changed("hst-acs", name="small", camera=camera, defects=None)


@pytest.fixture(scope="module")
def bare() -> Survey:
    """The same camera on a wider field, haloes that are isothermal, and no light but the source's."""
    camera = {"n_pixels": 90, "pixel_scale": 0.1, "psf": {"profile": "gaussian", "fwhm": 0.15}}
    halo = {"slope": 2, "x": 0, "y": 0, "m3": 0, "m4": 0, "q": {"uniform": [0.6, 0.9]}}
    return changed("hst-acs", name="bare", camera=camera, halo=halo, **DARK)


def alone(survey: Survey, kind: Kind, n: int = 6) -> Truth:
    return draw(survey, 1, "train", range(n), Contaminants.alone(kind))


def lights(truth: Truth) -> np.ndarray:
    """Electrons of the quasar's images or the stars, x, y and electrons, [n, 5, 3]."""
    assert truth.extra is not None
    extra, columns = truth.extra, ("x", "y", "electrons")
    return np.stack([[extra[f"point_{name}_{k}"] for name in columns] for k in range(5)]).transpose(2, 0, 1)


def test_a_contaminant_depends_on_its_seed_split_and_index_alone(survey: Survey) -> None:
    some = Contaminants(share=0.5)
    whole, planes = simulate(survey, 3, "train", range(20), contaminants=some)
    part, same_planes = simulate(survey, 3, "train", range(6, 18, 3), contaminants=some)
    assert np.array_equal(planes[6:18:3], same_planes)
    assert np.array_equal(whole.scenes[6:18:3], part.scenes)
    assert not np.array_equal(planes, simulate(survey, 4, "train", range(20), contaminants=some)[1])


def test_the_other_scenes_stay_as_they_are(survey: Survey) -> None:
    truth, planes = simulate(survey, 3, "train", range(24), contaminants=Contaminants(share=0.5))
    plain, plain_planes = simulate(survey, 3, "train", range(24))
    is_lens = truth.scenes["label"] != CONTAMINANT
    assert 5 < is_lens.sum() < 19
    kept, same = (table.take(np.flatnonzero(is_lens)) for table in (truth, plain))
    for name in ("scenes", "subhaloes", "extra"):
        assert np.array_equal(getattr(kept, name), getattr(same, name))
    assert np.array_equal(planes[is_lens], plain_planes[is_lens])


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_light_of_contaminants_is_that_of_torch(survey: Survey, kind: Kind) -> None:
    truth = alone(survey, kind)
    fast, exact = render(truth, survey), render(truth, survey, dtype=torch.float64)
    noise = (
        exact + torch.from_numpy(truth.scenes["background"] + truth.scenes["noise_rms"] ** 2)[:, None, None]
    ).sqrt()
    assert ((fast - exact).abs() / noise).max() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_contaminants_have_no_substructure_and_but_for_quasars_no_lens(survey: Survey, kind: Kind) -> None:
    truth = alone(survey, kind, 9)
    assert (truth.scenes["label"] == CONTAMINANT).all()
    assert not len(truth.subhaloes)
    assert not truth.scenes["string_mass_msun"].any()
    assert (truth.scenes["theta_e"] > 0).all() == (kind == "quasars")


def test_ellipticals_are_the_lens_galaxies_without_their_arcs(survey: Survey) -> None:
    truth, lensed = alone(survey, "ellipticals"), draw(survey, 1, "train", range(6))
    scenes = lensed.scenes.copy()
    scenes["source_intensity"] = 0
    assert lensed.extra is not None
    lensed.extra["stamp_intensity"] = 0
    torch.testing.assert_close(render(truth, survey), render(Truth(scenes, lensed.subhaloes, lensed.extra), survey))


@pytest.mark.parametrize("kind", ["spirals", "mergers", "rings", "pairs"])
def test_galaxies_have_the_light_that_is_drawn(survey: Survey, kind: Kind) -> None:
    """But for the wings outside of a field of 30 arcsec, which the lens galaxies have longer."""
    wide = survey.camera.model_copy(update={"n_pixels": 300})
    plain = survey.model_copy(update={"neighbours": None, "stars": None, "camera": wide})
    settings = Contaminants(share=1, kinds=(kind,), size=0.15, separation=0.5, brightness=0.5)  # type: ignore[arg-type]
    galaxies = draw(plain, 1, "train", range(5), settings)
    light, whole = (render(truth, plain).sum((1, 2)).numpy() for truth in (galaxies, alone(plain, "ellipticals", 5)))
    assert light / whole == pytest.approx(0.55, abs=0.06)


def test_images_of_a_quasar_are_where_lenstronomy_has_them(bare: Survey) -> None:
    truth = alone(bare, "quasars", 5)
    for scene, own in zip(truth.scenes, lights(truth), strict=True):
        e, model = (1 - scene["halo_q"]) / (1 + scene["halo_q"]), LensModel(["SIE", "SHEAR"])
        turn, shear = 2 * scene["halo_angle"], 2 * scene["shear_angle"]
        parameters = [
            {"theta_E": scene["theta_e"], "e1": e * np.cos(turn), "e2": e * np.sin(turn)},
            {"gamma1": scene["gamma"] * np.cos(shear), "gamma2": scene["gamma"] * np.sin(shear)},
        ]
        places = scene["source_x"], scene["source_y"]
        search = {"search_window": 9, "min_distance": 0.02}  # a coarser grid misses one of two images near each other
        x, y = LensEquationSolver(model).image_position_from_source(*places, parameters, **search)
        power, own = np.abs(model.magnification(x, y, parameters)), own[own[:, 2] > 0]
        bright = power > 1e-3
        order = np.argsort(x[bright])
        np.testing.assert_allclose(np.sort(own[:, 0]), x[bright][order], atol=1e-5)
        ratios = own[np.argsort(own[:, 0]), 2] / own[:, 2].sum()
        np.testing.assert_allclose(ratios, power[bright][order] / power[bright].sum(), rtol=1e-3)


def test_the_light_of_a_quasar_arrives_whole(bare: Survey) -> None:
    truth = alone(bare, "quasars", 6)
    dark = Truth(truth.scenes, truth.subhaloes, truth.extra.copy() if truth.extra is not None else None)
    for number in range(5):
        dark.extra_or_blank()[f"point_electrons_{number}"] = 0
    light = (render(truth, bare) - render(dark, bare)).sum((1, 2)).numpy()
    np.testing.assert_allclose(light, lights(truth)[:, :, 2].sum(1), rtol=5e-3)


def test_fields_show_stars_or_nothing(bare: Survey) -> None:
    truth = alone(bare, "fields", 60)
    stars = (lights(truth)[:, :, 2] > 0).sum(1)
    assert set(stars) == set(range(6))
    assert (render(truth, bare)[stars == 0] == 0).all()


def test_kinds_that_are_left_out_are_not_drawn(survey: Survey) -> None:
    truth = draw(survey, 1, "train", range(60), Contaminants(share=0.5, kinds=("spirals", "pairs")))
    assert truth.extra is not None
    assert set(truth.extra["contaminant"]) == {0, 1 + KINDS.index("spirals"), 1 + KINDS.index("pairs")}


@pytest.mark.parametrize("name", ["common-test-1", "model-3", "hst", "jwst"])
def test_older_surveys_have_contaminants_too(name: str) -> None:
    small = changed(name, camera={"n_pixels": 48, "pixels": "signal-to-noise"})
    truth, planes = simulate(small, 1, "test", range(14), contaminants=Contaminants.alone())
    assert (truth.scenes["label"] == CONTAMINANT).all()
    assert planes.shape == (14, 48, 48)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"camera": {"pixels": "counts"}}, "signal-to-noise"), ({"contaminants": {"share": 0.9}}, "0.5 or less")],
)
def test_contaminants_that_teach_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    tree = {"contaminants": {"share": 0.1}, "camera": {"pixels": "signal-to-noise"}} | changes
    with pytest.raises(ValueError, match=message):
        changed("hst", **tree)
