from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import changed

from sublens.observation import camera, psf
from sublens.sim import render
from sublens.sim.population import draw
from sublens.surveys.camera import FWHM_PER_SIGMA
from sublens.surveys.survey import Survey

SPOT = np.hanning(9)[1:-1, None] * np.hanning(9)[1:-1]


def drawn_through(supersampling: int = 1, /, **settings: object) -> Survey:
    pixels = {"n_pixels": 48, "pixel_scale": 0.15, "supersampling": supersampling, "psf": settings}
    return changed("common-test-1", camera=pixels)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, object]:
    ramp = np.linspace(0.5, 1, 49).reshape(7, 7)
    np.save(tmp_path / "psf.npy", np.stack([SPOT * ramp, SPOT**3, SPOT**2]))
    return {"profile": "pixelated-set", "file": str(tmp_path / "psf.npy")}


def test_each_scene_draws_an_image_of_the_set_and_a_turn(files: dict[str, object]) -> None:
    extra = draw(drawn_through(**files, turned=True), 1, "train", range(2400)).extra
    assert extra is not None
    for name, n in (("psf_index", 3), ("psf_turn", 8)):
        shares = np.bincount(extra[name].astype(int)) / len(extra)
        np.testing.assert_allclose(shares, np.full(n, 1 / n), atol=4 * np.sqrt(1 / n / 2400))


def test_the_eight_turns_are_all_different_and_keep_the_light(files: dict[str, object]) -> None:
    survey = drawn_through(**files)
    extra = np.repeat(draw(survey, 1, "train", range(1)).extra_or_blank(), 8)
    extra["psf_index"], extra["psf_turn"] = 0, np.arange(8)
    kernels = psf.kernels(survey.camera, extra)
    assert len(np.unique(kernels.flatten(1).numpy(), axis=0)) == 8
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(8, dtype=torch.float64))


@pytest.mark.parametrize("fwhm", [0.04, 0.15, 0.6])
def test_broadening_adds_its_variance_along_both_axes(files: dict[str, object], fwhm: float) -> None:
    plain, broad = (drawn_through(**files, broadening=width) for width in (0, fwhm))
    spread = []
    for survey in (plain, broad):
        extra = draw(survey, 1, "train", range(1)).extra_or_blank()
        row = psf.kernels(survey.camera, extra)[0].sum(0)
        offsets = torch.arange(len(row)) - len(row) // 2
        spread.append(float((row * offsets**2).sum() - (row * offsets).sum() ** 2))
    expected = (fwhm / FWHM_PER_SIGMA / 0.15) ** 2
    assert spread[1] - spread[0] == pytest.approx(expected, rel=0.02, abs=1e-3)


@pytest.mark.parametrize("profile", [{"profile": "gaussian"}, {"profile": "moffat", "beta": 4.0}])
def test_a_drawn_width_blurs_as_the_same_width_that_is_fixed(profile: dict[str, object]) -> None:
    survey = drawn_through(2, **profile, fwhm={"normal": [0.4, 0.02]})
    truth = draw(survey, 1, "train", range(3))
    light = torch.from_numpy(np.random.default_rng(0).random((3, 96, 96)))
    blurred = psf.in_own_pixels(light, survey.camera, truth.extra_or_blank())
    for row, fwhm in enumerate(truth.extra_or_blank()["psf_fwhm"]):
        fixed = drawn_through(2, **profile, fwhm=float(fwhm)).camera
        torch.testing.assert_close(blurred[row : row + 1], camera.in_pixels(light[row : row + 1], fixed))


def test_drawn_widths_are_normal_with_their_tails_cut() -> None:
    extra = draw(drawn_through(profile="gaussian", fwhm={"normal": [0.4, 0.02]}), 1, "train", range(3000)).extra
    assert extra is not None
    assert extra["psf_fwhm"].mean() == pytest.approx(0.4, abs=4 * 0.02 / np.sqrt(3000))
    assert extra["psf_fwhm"].std() == pytest.approx(0.02, rel=0.05)
    assert np.abs(extra["psf_fwhm"] - 0.4).max() <= 3.72 * 0.02


def test_scenes_blurred_together_are_blurred_as_alone(files: dict[str, object]) -> None:
    survey = drawn_through(**files, turned=True, broadening={"uniform": [0, 0.3]})
    truth = draw(survey, 1, "train", range(5))
    together = render.render(truth, survey)
    for row in range(5):
        assert torch.equal(together[row], render.render(truth.take(np.array([row])), survey)[0])


def test_the_way_of_a_device_agrees_with_the_processors(files: dict[str, object]) -> None:
    survey = drawn_through(**files, turned=True, broadening={"uniform": [0, 0.3]})
    truth = draw(survey, 1, "train", range(4))
    light = torch.from_numpy(np.random.default_rng(0).random((4, 48, 48)))
    here = psf.in_own_pixels(light, survey.camera, truth.extra_or_blank())
    together = psf.blurred_together(light, psf.kernels(survey.camera, truth.extra_or_blank()), 1)
    torch.testing.assert_close(together, here, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_kept_kernel_blurs_as_a_new_one(files: dict[str, object], dtype: torch.dtype) -> None:
    survey = drawn_through(**files, turned=True)
    extra = draw(survey, 1, "train", range(6)).extra_or_blank()
    light = torch.from_numpy(np.random.default_rng(0).random((6, 48, 48))).to(dtype)
    expected = [camera.blurred(light[row, None], psf.kernels(survey.camera, extra[[row]])[0]) for row in range(6)]
    for _ in range(2):
        assert torch.equal(psf.in_own_pixels(light, survey.camera, extra), torch.cat(expected))
