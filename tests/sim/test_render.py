from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import changed
from hypothesis import given, settings
from hypothesis import strategies as st

from sublens.lensing.sersic import sersic_b
from sublens.observation import camera
from sublens.parallel.mapper import HERE, open_processes
from sublens.sim import render
from sublens.sim.population import CLASSES, draw
from sublens.sim.slices import slices
from sublens.surveys import presets
from sublens.surveys.camera import FWHM_PER_SIGMA, Gaussian, Moffat, Psf
from sublens.surveys.light import PixelatedSource
from sublens.surveys.presets import preset
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth


@pytest.fixture(scope="module")
def truth(small_survey: Survey) -> Truth:
    return draw(small_survey, 2, "train", range(24))


@settings(max_examples=12)
@given(start=st.integers(0, 20), n=st.integers(1, 12))
def test_any_slice_rendered_alone_is_the_same_to_the_last_bit(small_survey: Survey, start: int, n: int) -> None:
    _, whole = render.simulate(small_survey, 8, "train", range(32))
    _, alone = render.simulate(small_survey, 8, "train", range(start, start + n))
    assert np.array_equal(whole[start : start + n], alone)


def test_images_do_not_depend_on_the_size_of_a_block(
    truth: Truth, small_survey: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = render.render(truth, small_survey)
    for block in (1, 5, 24):
        monkeypatch.setattr(render, "CPU_BLOCK", block * 48**2)
        assert torch.equal(render.render(truth, small_survey), expected)


def without_substructure(truth: Truth) -> Truth:
    bare = Truth(truth.scenes.copy(), truth.subhaloes[:0])
    bare.scenes["n_subhaloes"] = 0
    bare.scenes["string_mass_msun"] = bare.scenes["string_theta_e"] = 0
    return bare


def test_a_massless_lens_shows_the_source_itself(truth: Truth, small_survey: Survey) -> None:
    empty = without_substructure(truth)
    empty.scenes["halo_theta_e"] = empty.scenes["gamma"] = 0
    image = render.render(empty, small_survey)[0]
    axis = camera.pixel_centres(small_survey.camera.n_pixels, small_survey.camera.pixel_scale)
    row, column = np.unravel_index(int(image.argmax()), image.shape)
    assert float(axis[column]) == pytest.approx(truth.scenes["source_x"][0], abs=small_survey.camera.pixel_scale)
    assert float(axis[row]) == pytest.approx(truth.scenes["source_y"][0], abs=small_survey.camera.pixel_scale)


def test_a_source_behind_a_sphere_makes_a_ring_at_theta_e(truth: Truth, small_survey: Survey) -> None:
    ring = without_substructure(truth.take(np.array([0])))
    for column in ("gamma", "source_x", "source_y"):
        ring.scenes[column] = 0
    ring.scenes["source_q"] = 1
    psf = {"profile": "gaussian", "fwhm": 0.01}
    sharp = changed("common-test-1", camera={"n_pixels": 300, "pixel_scale": 0.02, "psf": psf})
    image = render.render(ring, sharp)[0]
    axis = camera.pixel_centres(300, 0.02)
    radius = torch.hypot(axis[:, None], axis)
    assert float(radius.flatten()[image.argmax()]) == pytest.approx(ring.scenes["halo_theta_e"][0], abs=0.02)


@pytest.mark.parametrize("label", [1, 2])
def test_substructure_dents_the_arcs(truth: Truth, small_survey: Survey, label: int) -> None:
    chosen = truth.take(np.flatnonzero(truth.scenes["label"] == label))
    change = render.render(chosen, small_survey) - render.render(without_substructure(chosen), small_survey)
    assert float(change.abs().amax((1, 2)).median()) > 5


def test_deflection_has_no_curl_and_only_the_halos_convergence(truth: Truth, small_survey: Survey) -> None:
    axis = torch.linspace(-2.9, 2.9, 31, dtype=torch.float64)
    y, x = (plane[None].clone().requires_grad_() for plane in torch.meshgrid(axis, axis, indexing="ij"))
    for position in (0, 1, 2):
        single = truth.take(np.array([position]))
        alpha_x, alpha_y = render.deflection(single, small_survey, x, y)
        xx, xy = torch.autograd.grad(alpha_x.sum(), (x, y), retain_graph=True)
        yx, yy = torch.autograd.grad(alpha_y.sum(), (x, y))
        kappa = float(single.scenes["halo_theta_e"][0]) / (2 * torch.hypot(x, y).clamp_min(1e-9))
        away = torch.hypot(x, y) > 0.1
        torch.testing.assert_close(((xx + yy) / 2)[away], kappa[away], rtol=1e-5, atol=1e-5)
        assert (yx - xy).abs()[away].max() < 1e-6


def test_each_scene_may_be_deflected_at_positions_of_its_own(truth: Truth, small_survey: Survey) -> None:
    x, y = torch.rand(2, len(truth), 3, 4, dtype=torch.float64) + 0.5
    together = torch.stack(render.deflection(truth, small_survey, x, y))
    for row in range(len(truth)):
        alone = render.deflection(truth.take(np.array([row])), small_survey, x[row, None], y[row, None])
        torch.testing.assert_close(together[:, row, None], torch.stack(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("extended", [{}, {"profile": "nfw", "concentration": 15}])
def test_the_convergence_map_holds_the_mass_of_the_scene(extended: dict[str, object]) -> None:
    """Summed over pixels it is the halo's pi theta_E r inside r, and pi theta_E^2 for each thin mass."""
    survey = changed("common-test-1", subhaloes={"radius": 1, **extended})
    truth = draw(survey, 2, "train", range(30))
    change = render.convergence(truth, survey, dtype=torch.float64) - render.convergence(
        without_substructure(truth), survey, dtype=torch.float64
    )
    total = change.sum(dim=(1, 2)).numpy() * survey.camera.pixel_scale**2
    in_subhaloes = np.bincount(truth.owners(), truth.subhaloes["theta_e"] ** 2, minlength=len(truth))
    strings = truth.scenes["string_theta_e"] ** 2
    expected = np.pi * (in_subhaloes + strings)
    thin = truth.scenes["label"] != 1 if extended else np.hypot(truth.scenes["string_x"], truth.scenes["string_y"]) < 1
    np.testing.assert_allclose(total[thin], expected[thin], rtol=1e-6, atol=1e-9)
    if extended:  # a field of 7.5 arcsec holds more or less of an NFW halo than its M200
        assert (total[~thin] > 0.2 * expected[~thin]).all()


def test_the_halo_of_the_convergence_map_is_the_spheres(truth: Truth, small_survey: Survey) -> None:
    bare = without_substructure(truth.take(np.array([0])))
    axis = camera.pixel_centres(small_survey.camera.n_pixels, small_survey.camera.pixel_scale)
    expected = bare.scenes["halo_theta_e"][0] / (2 * torch.hypot(axis[:, None], axis))
    got = render.convergence(bare, small_survey, dtype=torch.float64)[0]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def test_rotating_the_truth_rotates_the_image(truth: Truth, small_survey: Survey) -> None:
    turned = Truth(truth.scenes.copy(), truth.subhaloes.copy())
    for table, x, y in (
        (turned.scenes, "source_x", "source_y"),
        (turned.scenes, "string_x", "string_y"),
        (turned.subhaloes, "x", "y"),
    ):
        table[x], table[y] = -table[y], table[x].copy()
    for angle in ("shear_angle", "source_angle", "string_angle"):
        turned.scenes[angle] += np.pi / 2
    expected = render.render(truth, small_survey).transpose(1, 2).flip(2)
    torch.testing.assert_close(render.render(turned, small_survey), expected, rtol=2e-3, atol=2e-2)


def test_mirroring_the_truth_mirrors_the_image(truth: Truth, small_survey: Survey) -> None:
    mirrored = Truth(truth.scenes.copy(), truth.subhaloes.copy())
    for table, y in ((mirrored.scenes, "source_y"), (mirrored.scenes, "string_y"), (mirrored.subhaloes, "y")):
        table[y] *= -1
    for angle in ("shear_angle", "source_angle", "string_angle"):
        mirrored.scenes[angle] *= -1
    torch.testing.assert_close(
        render.render(mirrored, small_survey), render.render(truth, small_survey).flip(1), rtol=2e-3, atol=2e-2
    )


def test_simulated_images_are_counts_above_their_minimum(small_survey: Survey) -> None:
    _, counts = render.simulate(small_survey, 1, "test", range(6))
    assert counts.dtype == np.uint16
    assert (counts.min(axis=(1, 2)) == 0).all()
    assert (counts.max(axis=(1, 2)) > 20).all()


def test_the_preset_makes_150_pixel_images_with_the_published_peak() -> None:
    truth, counts = render.simulate(preset("common-test-1"), 1, "train", range(60))
    assert counts.shape == (60, 150, 150)
    assert set(truth.scenes["label"]) == set(range(len(CLASSES)))
    assert counts.max(axis=(1, 2)).mean() == pytest.approx(802, abs=4 * 46 / np.sqrt(60))


GOLDEN = [[28, 164, 250, 90], [22, 102, 72, 99], [25, 132, 159, 103]]


def test_golden_images_do_not_change() -> None:
    """Four pixels of each of three images. A change here changes everyone's data: say so in the commit."""
    _, counts = render.simulate(preset("common-test-1"), 1, "train", range(3))
    assert counts[:, 75, [10, 50, 95, 120]].tolist() == GOLDEN


def test_slices_do_not_depend_on_the_number_of_workers(small_survey: Survey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sublens.sim.slices.SLICE_PIXELS", 4 * 48**2)
    alone = list(slices(small_survey, 9, "test", 10, HERE))
    with open_processes(2) as mapper:
        shared = list(slices(small_survey, 9, "test", 10, mapper))
    assert [len(counts) for _, counts, _ in shared] == [4, 4, 2]
    for (truth, counts, _), (other_truth, other_counts, _) in zip(alone, shared, strict=True):
        assert np.array_equal(truth.scenes, other_truth.scenes)
        assert np.array_equal(counts, other_counts)


def lens_of(scene: np.void, survey: Survey, subhaloes: np.ndarray) -> tuple[Any, list[dict[str, float]]]:
    """The same masses in lenstronomy; of the string, none."""
    from lenstronomy.LensModel.lens_model import LensModel

    e = (1 - scene["halo_q"]) / (1 + scene["halo_q"])
    halo = {
        "theta_E": scene["halo_theta_e"],
        "e1": e * np.cos(2 * scene["halo_angle"]),
        "e2": e * np.sin(2 * scene["halo_angle"]),
    }
    shear = {
        "gamma1": scene["gamma"] * np.cos(2 * scene["shear_angle"]),
        "gamma2": scene["gamma"] * np.sin(2 * scene["shear_angle"]),
    }
    points = [{"theta_E": s["theta_e"], "center_x": s["x"], "center_y": s["y"]} for s in subhaloes]
    if scene["halo_q"] == 1:
        halo = {"theta_E": scene["halo_theta_e"]}
    kind = "SIS" if scene["halo_q"] == 1 else "SIE"
    return LensModel([kind, "SHEAR", *["POINT_MASS"] * len(points)]), [halo, shear, *points]


def sersic_of(scene: np.void, what: str, x: float, y: float, q: float, angle: float) -> dict[str, float]:
    """A profile of lenstronomy's, with a radius and amplitude that make up for its less exact b_n."""
    from lenstronomy.LightModel.Profiles.sersic import SersicElliptic

    n, r_eff = float(scene[f"{what}_n"]), float(scene[f"{what}_r_eff"])
    ours, theirs = float(sersic_b(np.array(n))), float(SersicElliptic().k_bn(n, r_eff)[1])
    e = (1 - q) / (1 + q)
    return {
        "amp": float(scene[f"{what}_intensity"]) * np.exp(ours - theirs),
        "R_sersic": r_eff * (theirs / ours) ** n,
        "n_sersic": n,
        "e1": e * np.cos(2 * angle),
        "e2": e * np.sin(2 * angle),
        "center_x": x,
        "center_y": y,
    }


def their_image(truth: Truth, row: int, survey: Survey) -> np.ndarray:
    """The noiseless image: light at our points by lenstronomy, blurred by scipy, and the mean over each pixel.

    Without the core of 1e-4 arcsec that lenstronomy gives a Sersic profile.
    """
    from lenstronomy.Data.imaging_data import ImageData
    from lenstronomy.Data.psf import PSF
    from lenstronomy.ImSim.image_model import ImageModel
    from lenstronomy.LightModel.light_model import LightModel

    single, parts = truth.take(np.array([row])), survey.camera.supersampling
    scene, n, scale = single.scenes[0], survey.camera.n_pixels * parts, survey.camera.pixel_scale / parts
    frame = ImageData(
        image_data=np.zeros((n, n)),
        ra_at_xy_0=-(n - 1) / 2 * scale,
        dec_at_xy_0=-(n - 1) / 2 * scale,
        transform_pix2angle=np.eye(2) * scale,
        background_rms=1,
        exposure_time=1,
    )
    lens, masses = lens_of(scene, survey, single.subhaloes)
    position = (scene["source_x"], scene["source_y"], scene["source_q"], scene["source_angle"])
    own = [sersic_of(scene, "lens", 0, 0, scene["halo_q"], scene["halo_angle"])] if survey.lens_light else []
    lights = LightModel(["SERSIC_ELLIPSE"]), LightModel(["SERSIC_ELLIPSE"] * len(own))
    model = ImageModel(frame, PSF(psf_type="NONE"), lens, *lights)
    for profile in (*model.SourceModel.func_list, *model.LensLightModel.func_list):
        profile._smoothing = 1e-15
    light = np.asarray(model.image(masses, [sersic_of(scene, "source", *position)], own)) / scale**2
    blurred = by_scipy(light, survey.camera.psf, scale)
    return np.asarray(blurred.reshape(n // parts, parts, n // parts, parts).mean(axis=(1, 3)))


def by_scipy(light: np.ndarray, psf: Psf, scale: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter
    from scipy.signal import fftconvolve

    assert isinstance(psf, Gaussian | Moffat)
    assert isinstance(psf.fwhm, float)
    if isinstance(psf, Gaussian):
        sigma = psf.fwhm / FWHM_PER_SIGMA / scale
        return np.asarray(gaussian_filter(light, sigma, mode="nearest", radius=int(np.ceil(4.0556 * sigma - 0.5))))
    core = psf.fwhm / scale / 2 / (2 ** (1 / psf.beta) - 1) ** 0.5
    reach = int(np.ceil(core * (1e-4 ** (1 / (1 - psf.beta)) - 1) ** 0.5 - 0.5))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = (1 + (x**2 + y**2) / core**2) ** -psf.beta
    return np.asarray(fftconvolve(np.pad(light, reach, mode="edge"), kernel / kernel.sum(), mode="valid"))


REAL = [name for name in presets.names() if preset(name).camera.pixels == "signal-to-noise"]
"""The presets of real telescope images."""


@pytest.mark.parametrize("name", [name for name in presets.names() if name not in REAL])
def test_noiseless_images_agree_with_lenstronomy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1e-6 of their peak in double precision and 1e-5 in single; all classes but `vort`, which it lacks."""
    monkeypatch.setattr(render, "STEEP", np.inf)  # the same points on both sides
    survey = preset(name)
    truth = draw(survey, 11, "test", range(6))
    truth = truth.take(np.flatnonzero(truth.scenes["label"] != 2))
    double = render.render(truth, survey, dtype=torch.float64).numpy()
    single = render.render(truth, survey).numpy()
    for row in range(len(truth)):
        expected = their_image(truth, row, survey)
        assert np.abs(double[row] - expected).max() < 1e-6 * expected.max()
        assert np.abs(single[row] - expected).max() < 1e-5 * expected.max()


SAMPLED = [name for name in presets.names() if name != "common-test-1"]
"""The presets whose pixels hold the mean of the light over their area; common-test-1's hold that of their centre,
as the real images do that it was recovered from."""


@pytest.mark.parametrize("name", SAMPLED)
def test_a_pixel_is_within_a_third_of_its_noise_of_a_much_finer_rendering(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = preset(name)
    truth = draw(survey, 5, "train", range(28, 53, 6))  # spheres, of which some are among the worst of sixty scenes
    image = render.render(truth, survey).numpy()
    monkeypatch.setattr(render, "STEEP", 0.005)
    fine = survey.model_copy(update={"camera": survey.camera.model_copy(update={"supersampling": FINE[name]})})
    expected = render.render(truth, fine).numpy()
    sky = truth.scenes["background"] + truth.scenes["noise_rms"] ** 2
    assert (np.abs(image - expected) < np.sqrt(expected + sky[:, None, None]) / 3).all()


FINE = dict.fromkeys(SAMPLED, 12) | {"jwst": 8, "model-1": 8, "jwst-nircam": 8}
"""Points along one side of a pixel in the finer rendering, before those that are added where light is steep."""


@pytest.mark.parametrize("name", SAMPLED)
def test_compiled_light_is_that_of_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finer points and all, to a hundredth of a pixel's noise; to a twentieth with the tables of extended subhaloes."""
    survey = preset(name)
    truth = draw(survey, 3, "train", range(3))
    compiled = render.render(truth, survey).numpy()
    monkeypatch.setattr(render, "_is_compiled", lambda survey: False)
    expected = render.render(truth, survey).numpy()
    sky = truth.scenes["background"] + truth.scenes["noise_rms"] ** 2
    assert (np.abs(compiled - expected) < np.sqrt(expected + sky[:, None, None]) / (20 if name in REAL else 100)).all()


@pytest.mark.parametrize("name", REAL)
def test_light_between_pixels_is_within_a_fortieth_of_the_noise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    survey = preset(name)
    truth = draw(survey, 3, "train", range(12), survey.contaminants)
    between = render.render(truth, survey).numpy()
    monkeypatch.setattr(render, "BENT", (-1, -1))
    exact = render.render(truth, survey).numpy()
    sky = truth.scenes["background"] + truth.scenes["noise_rms"] ** 2
    error = np.abs(between - exact) / np.sqrt(exact + sky[:, None, None])
    assert 0 < error.max() < 1 / 40


@pytest.mark.parametrize("q", [0.2, 0.9, 0.953, 0.955, 0.9999, 1])
def test_compiled_light_is_that_of_torch_for_ellipsoids_of_any_shape(q: float, monkeypatch: pytest.MonkeyPatch) -> None:
    survey = changed("hst", halo={"q": q}, camera={"supersampling": 2})
    truth = draw(survey, 3, "train", range(3))
    monkeypatch.setattr(render, "STEEP", np.inf)
    compiled = render.render(truth, survey).numpy()
    expected = render.render(truth, survey, dtype=torch.float64).numpy()
    assert (np.abs(compiled - expected) < 2e-5 * expected.max(axis=(1, 2), keepdims=True)).all()


REAL_HALO = {
    "slope": {"uniform": (1.7, 2.3)},
    "q": {"uniform": (0.3, 1)},
    **{axis: {"uniform": (-0.1, 0.1)} for axis in "xy"},
    **{order: {"uniform": (0, 0.05)} for order in ("m3", "m4")},
}
PROFILES = {
    "point": {},
    "nfw": {"profile": "nfw", "concentration": {"uniform": (8, 20)}},
    "tnfw": {"profile": "tnfw", "concentration": {"uniform": (8, 20)}, "truncation": {"uniform": (2, 20)}},
}


@pytest.mark.parametrize("profile", PROFILES)
def test_compiled_light_is_that_of_torch_for_real_lenses(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finer points and all, to a hundredth of a pixel's noise."""
    survey = changed("hst", halo=REAL_HALO, subhaloes=PROFILES[profile], camera={"supersampling": 2})
    truth = draw(survey, 3, "train", range(6))
    compiled = render.render(truth, survey).numpy()
    monkeypatch.setattr(render, "_is_compiled", lambda survey: False)
    expected = render.render(truth, survey, dtype=torch.float64).numpy()
    sky = truth.scenes["background"] + truth.scenes["noise_rms"] ** 2
    assert (np.abs(compiled - expected) < np.sqrt(expected + sky[:, None, None]) / 100).all()


def test_the_deflection_of_a_real_lens_is_lenstronomys() -> None:
    from lenstronomy.LensModel.lens_model import LensModel

    survey = changed("hst", halo=REAL_HALO)
    truth = draw(survey, 3, "train", range(1))
    assert truth.extra is not None
    scene, more = truth.scenes[0], truth.extra[0]
    gamma, centre = scene["gamma"], {"center_x": more["halo_x"], "center_y": more["halo_y"]}
    e, turns = (1 - scene["halo_q"]) / (1 + scene["halo_q"]), ((1, np.cos), (2, np.sin))
    shape = {f"e{i}": e * turn(2 * scene["halo_angle"]) for i, turn in turns}
    masses = [
        {"theta_E": scene["halo_theta_e"], "gamma": more["slope"], **shape, **centre},
        {f"gamma{i}": gamma * turn(2 * scene["shear_angle"]) for i, turn in turns},
        *({"m": m, "a_m": more[f"m{m}"] * scene["theta_e"], "phi_m": more[f"m{m}_angle"], **centre} for m in (3, 4)),
    ]
    x, y = np.meshgrid(np.linspace(-3, 3, 30), np.linspace(-3, 3, 30))
    expected = LensModel(["EPL", "SHEAR", "MULTIPOLE", "MULTIPOLE"]).alpha(x, y, masses)
    ours = render.deflection(truth, survey, torch.from_numpy(x)[None], torch.from_numpy(y)[None])
    np.testing.assert_allclose(torch.cat(ours), np.stack(expected), atol=1e-8)


def test_the_convergence_of_a_real_lens_is_half_the_divergence_of_its_deflection() -> None:
    survey = changed("hst", halo=REAL_HALO, subhaloes=PROFILES["tnfw"])
    truth = draw(survey, 3, "train", range(1, 2))
    assert truth.extra is not None
    axis = camera.pixel_centres(survey.camera.n_pixels, survey.camera.pixel_scale).requires_grad_()
    x, y = (plane[None].detach().requires_grad_() for plane in torch.meshgrid(axis, axis, indexing="xy"))
    alpha_x, alpha_y = render.deflection(truth, survey, x, y)
    by_x, by_y = torch.autograd.grad(alpha_x.sum(), x, retain_graph=True)[0], torch.autograd.grad(alpha_y.sum(), y)[0]
    kappa = render.convergence(truth, survey, dtype=torch.float64)
    far = torch.hypot(x - truth.extra["halo_x"][0], y - truth.extra["halo_y"][0]) > 0.2
    torch.testing.assert_close(kappa[far], ((by_x + by_y) / 2)[far].detach(), rtol=1e-4, atol=1e-5)


def test_extra_points_are_those_of_a_finer_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    sharp = {"n_pixels": 20, "supersampling": 1, "psf": {"profile": "gaussian", "fwhm": 1e-6}}
    survey = changed("model-3", camera=sharp | {"supersampling": 2})
    truth = draw(survey, 11, "train", range(3))
    monkeypatch.setattr(render, "_errors", lambda light, *_: torch.full_like(light, np.inf))
    refined = render.render(truth, survey, dtype=torch.float64)
    n = 2 * render.FINE_PARTS[-1]
    fine = changed("model-3", camera=sharp | {"n_pixels": 20 * n, "pixel_scale": 0.08 / n})
    light = render.render(truth, fine, dtype=torch.float64)
    torch.testing.assert_close(refined, camera.binned(light, n), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_that_falls_on_a_pixel_centre_leaves_a_nan(dtype: torch.dtype) -> None:
    survey = changed("common-test-1", camera={"n_pixels": 49, "pixel_scale": 0.125})
    truth = draw(survey, 0, "train", range(6))
    for table, columns in ((truth.scenes, ("source_x", "source_y", "string_x", "string_y")), (truth.subhaloes, "xy")):
        for column in columns:
            table[column] = 0.125
    truth.scenes["string_angle"], truth.scenes["string_half_length"] = 0, 0.25
    for images in (render.render(truth, survey, dtype=dtype), render.convergence(truth, survey, dtype=dtype)):
        assert torch.isfinite(images).all()


@pytest.mark.parametrize("profile", ["nfw", "tnfw"])
def test_extended_subhaloes_dent_less_than_points(profile: str) -> None:
    extended = {"profile": profile, "concentration": 15, **({"truncation": 5} if profile == "tnfw" else {})}
    points, halos = changed("hst"), changed("hst", subhaloes=extended)
    truths = [draw(survey, 5, "train", range(1, 30, 3)) for survey in (points, halos)]
    dents = [
        (render.render(truth, survey) - render.render(without_substructure(truth), survey)).abs().amax((1, 2))
        for truth, survey in zip(truths, (points, halos), strict=True)
    ]
    assert (dents[1] > 0).all()
    assert float(dents[1].median()) < float(dents[0].median())


def test_a_pixelated_source_that_shows_a_sersic_profile_makes_its_image(tmp_path: Path) -> None:
    sersic = changed("hst", source={"r_eff": 0.4, "n": 1, "q": 1, "angle": 0, "magnitude": 22}, lens_light=None)
    axis = (np.arange(301) - 150) * 0.02
    b = float(sersic_b(np.array(1.0)))
    np.save(tmp_path / "galaxy.npy", np.exp(-b * (np.hypot(axis[:, None], axis) / 0.4)))
    file = {"profile": "pixelated", "file": tmp_path / "galaxy.npy", "scale": 0.02}
    place = {name: sersic.source.model_dump()[name] for name in ("x", "y", "angle", "magnitude")}
    tree = sersic.model_dump(exclude_none=True) | {"source": file | place}
    pictured = Survey.model_validate(tree)
    assert isinstance(pictured.source, PixelatedSource)
    images = [render.render(draw(survey, 1, "train", range(6)), survey) for survey in (sersic, pictured)]
    torch.testing.assert_close(images[1], images[0], rtol=0.03, atol=0.01 * float(images[0].max()))


def test_supersampling_is_the_mean_of_finer_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "STEEP", np.inf)
    sharp = {"psf": {"profile": "gaussian", "fwhm": 1e-3}}
    coarse = changed("hst", camera={**sharp, "supersampling": 4})
    fine = changed("hst", camera={**sharp, "supersampling": 1, "n_pixels": 320, "pixel_scale": 0.02})
    truth = draw(coarse, 1, "train", range(3))
    expected = camera.binned(render.render(truth, fine, dtype=torch.float64), 4)
    torch.testing.assert_close(render.render(truth, coarse, dtype=torch.float64), expected, rtol=1e-9, atol=1e-9)
