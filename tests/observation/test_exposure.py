import numpy as np
import pytest
import torch
from conftest import changed

from sublens.errors import ConfigError
from sublens.images.signal_to_noise import MASKED, decode, encode
from sublens.observation import exposure
from sublens.observation.defects import Marks, marks
from sublens.observation.exposure import Conditions
from sublens.sim import render
from sublens.sim.population import draw, noise_seeds
from sublens.surveys.extra import blank
from sublens.surveys.survey import Survey
from sublens.surveys.truth import SCENE

NONE = Marks(*(np.zeros(0, kind) for kind in (np.int64, float, np.int64, float, np.int64)))


def survey_of(**camera: object) -> Survey:
    pixels = {"n_pixels": 48, "pixel_scale": 0.15, "pixels": "signal-to-noise"}
    return changed("common-test-1", camera=pixels | camera)


def conditions(n: int, sky: float = 100, rms: float = 0, **extra: float) -> Conditions:
    scenes, rows = np.zeros(n, SCENE), blank(n)
    scenes["background"], scenes["noise_rms"] = sky, rms
    for name, value in extra.items():
        rows[name] = value
    return Conditions.of(scenes, rows, torch.zeros(1))


def observed(light: float, side: int = 200, **settings: float) -> np.ndarray:
    images = torch.full((1, side, side), light)
    return np.asarray(decode(exposure.planes(images, conditions(1, **settings), NONE, [5]))[0])


def test_sky_alone_has_a_signal_to_noise_of_mean_0_and_variance_1() -> None:
    plane = observed(0, sky=400, rms=15)
    assert plane.mean() == pytest.approx(0, abs=0.05)  # noise is overestimated where it is positive
    assert plane.std() == pytest.approx(1, rel=0.03)


def test_noise_is_that_of_the_pixels_own_electrons_as_a_pipeline_has_it() -> None:
    images, seeds = torch.rand(2, 30, 30) * 900, [3, 4]
    codes = exposure.planes(images, conditions(2, sky=50, rms=4), NONE, seeds)
    electrons = images + exposure._noise(images + 50, torch.full((2, 1, 1), 4.0), seeds)
    expected = encode(electrons.numpy(), (electrons.clamp_min(0) + 50 + 16).sqrt().numpy())
    assert np.abs(codes.astype(int) - expected).max() <= 1
    assert (codes == expected).mean() > 0.99


def test_drizzled_noise_has_casertanos_variance_and_correlation() -> None:
    white = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 400, 400)))
    drops = torch.tensor([0, 0.5, 1], dtype=torch.float64)
    for drop, noise in zip(drops.tolist(), exposure.drizzled(white, drops[:, None, None]), strict=True):
        axis = 1 - drop / 3
        assert noise.var().item() == pytest.approx(axis**2, rel=0.02)
        correlation = (noise[:, 1:] * noise[:, :-1]).mean() / noise.var()
        assert correlation.item() == pytest.approx(drop / (6 - 2 * drop), abs=0.01)
        blocks = noise.reshape(10, 40, 10, 40).sum((1, 3))
        assert (blocks.std() / 40).item() == pytest.approx(1, rel=0.25)


def test_uncorrelated_noise_is_left_as_it_is() -> None:
    noise = torch.randn(2, 5, 5)
    assert torch.equal(exposure.drizzled(noise, torch.zeros(2, 1, 1)), noise)


@pytest.mark.parametrize(("factor", "spread"), [(1, 1), (2, 0.5)])
def test_a_wrong_noise_map_scales_the_signal_to_noise(factor: float, spread: float) -> None:
    assert observed(0, sky=2500, noise_error=factor).std() == pytest.approx(spread, rel=0.03)


def test_the_sky_that_is_left_and_its_gradient_are_those_of_the_settings() -> None:
    plane = observed(0, sky=1e6, sky_residual=0.5, sky_gradient=2, sky_gradient_angle=0)
    assert plane.mean() == pytest.approx(0.5, abs=0.02)
    slope = np.polyfit(np.arange(200) / 200, plane.mean(axis=0), 1)[0]
    assert slope == pytest.approx(2, abs=0.1)
    assert np.polyfit(np.arange(200) / 200, plane.mean(axis=1), 1)[0] == pytest.approx(0, abs=0.1)


def test_pixels_without_any_noise_are_masked() -> None:
    assert (exposure.planes(torch.zeros(1, 4, 4), conditions(1, sky=0), NONE, [1]) == MASKED).all()


def test_a_plane_has_no_limit_of_counts() -> None:
    assert observed(3e8, side=8).max() == pytest.approx(1290.7)


def test_too_many_electrons_are_refused() -> None:
    with pytest.raises(ConfigError, match="a pixel expects"):
        observed(2e9, side=8)


def test_any_slice_of_planes_simulated_alone_is_the_same_to_the_last_bit() -> None:
    survey = survey_of(
        psf={"profile": "gaussian", "fwhm": {"normal": [0.4, 0.02]}},
        noise_correlation={"uniform": [0, 1]},
        sky_gradient={"uniform": [0, 2]},
        n_exposures=[1, 4],
    ).model_copy(
        update={"defects": changed("common-test-1", camera={"pixels": "signal-to-noise"}, defects=DEFECTS).defects}
    )
    _, whole = render.simulate(survey, 8, "train", range(30))
    _, alone = render.simulate(survey, 8, "train", range(7, 19))
    assert np.array_equal(whole[7:19], alone)


DEFECTS = {"cosmic_rays": {"number": {"poisson": 20}, "masked": 0.5}, "dead_pixels": {"number": 2}}


def test_planes_drawn_together_have_the_statistics_of_those_drawn_alone() -> None:
    survey = survey_of(noise_correlation=0.8)
    truth = draw(survey, 1, "train", range(60))
    images, struck = render.render(truth, survey), marks(survey, truth.extra_or_blank())
    alone = exposure.observe(truth, images, survey, struck, noise_seeds(1, "train", range(60)))
    together = exposure.observe_together(truth, images, survey, struck, torch.Generator().manual_seed(1)).numpy()
    assert together.dtype == np.float32
    assert (together == together.round()).all()
    np.testing.assert_allclose(together.mean((1, 2)), alone.mean((1, 2)), rtol=0.01)
    np.testing.assert_allclose(together[:, :9, :9].std(), alone[:, :9, :9].std(), rtol=0.1)


def test_scenes_of_one_exposure_have_a_quarter_of_the_electrons_of_four() -> None:
    truth = draw(survey_of(n_exposures=[1, 4, 4], exposure_s=10), 1, "train", range(900))
    assert truth.extra is not None
    n = truth.extra["n_exposures"]
    assert set(n) == {1, 4}
    assert (n == 4).mean() == pytest.approx(2 / 3, abs=4 * 0.47 / 30)
    np.testing.assert_array_equal(truth.scenes["exposure_s"], 10 * n)


def test_settings_of_the_observation_leave_the_scene_as_it_is() -> None:
    plain, rich = (
        draw(survey, 1, "train", range(30)) for survey in (survey_of(pixels="counts"), survey_of(sky_residual=1))
    )
    assert plain.extra is None
    np.testing.assert_array_equal(plain.scenes, rich.scenes)
    np.testing.assert_array_equal(plain.subhaloes, rich.subhaloes)


def test_counts_know_no_errors_of_the_sky() -> None:
    with pytest.raises(ValueError, match='sky_residual and noise_error need pixels = "signal-to-noise"'):
        survey_of(pixels="counts", sky_residual=1, noise_error=1.1)
