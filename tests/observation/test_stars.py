from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import changed

from sublens.observation import camera, stars
from sublens.observation.psf import in_own_pixels
from sublens.surveys import presets
from sublens.surveys.camera import FWHM_PER_SIGMA, Camera
from sublens.surveys.extra import blank

GAUSSIAN = {"profile": "gaussian", "fwhm": 0.12}
MOFFAT = {"profile": "moffat", "fwhm": 0.12, "beta": 3}


def cameras(psf: dict[str, Any], n_pixels: int = 60, supersampling: int = 2) -> Camera:
    own = {"n_pixels": n_pixels, "pixel_scale": 0.05, "supersampling": supersampling, "psf": psf}
    return changed("hst", camera=own).camera


def star(pixels: Camera, x: float, y: float, light: float = 1000) -> np.ndarray:
    image = np.zeros((1, pixels.n_pixels, pixels.n_pixels))
    stars.add_points(image, np.zeros(1, np.int64), np.array([[x, y, light]]), pixels, blank(1))
    return np.asarray(image[0])


@pytest.mark.parametrize("psf", [GAUSSIAN, MOFFAT])
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.0137, -0.0222), (0.2, 0.31)])
def test_a_star_has_its_light_and_its_place(psf: dict[str, Any], place: tuple[float, float]) -> None:
    image, axis = star(cameras(psf), *place), camera.pixel_centres(60, 0.05).numpy()
    assert image.sum() == pytest.approx(1000, rel=5e-3)
    assert (image.sum(axis=0) @ axis) / image.sum() == pytest.approx(place[0], abs=1e-3)
    assert (image.sum(axis=1) @ axis) / image.sum() == pytest.approx(place[1], abs=1e-3)


@pytest.mark.parametrize("x", [0.0, 0.006, 0.0125])
def test_a_star_is_as_wide_as_the_camera_blurs_wherever_it_lies(x: float) -> None:
    axis, expected = camera.pixel_centres(60, 0.05).numpy(), (0.12 / FWHM_PER_SIGMA) ** 2 + 0.05**2 / 12
    profile = star(cameras(GAUSSIAN), x, 0).sum(axis=0)
    assert (profile @ (axis - x) ** 2) / profile.sum() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("psf", [GAUSSIAN, MOFFAT])
def test_a_star_on_a_point_of_the_grid_is_what_the_camera_makes_of_that_point(psf: dict[str, Any]) -> None:
    pixels = cameras(psf)
    light = torch.zeros(1, 120, 120, dtype=torch.float64)
    light[0, 50, 71] = 4000
    axis = camera.pixel_centres(60, 0.05, 2)
    image = star(pixels, float(axis[71]), float(axis[50]))
    np.testing.assert_allclose(image, camera.in_pixels(light, pixels)[0].numpy(), atol=1e-9 * 1000)


@pytest.mark.parametrize("psf", [GAUSSIAN, MOFFAT])
@pytest.mark.parametrize("x", [1.5, 1.49, 1.55, 2.2])
def test_a_star_at_the_edge_is_that_of_a_larger_image(psf: dict[str, Any], x: float) -> None:
    """Light outside the image equals that of the edge, which would draw a star out to a bar."""
    larger = star(cameras(psf, 120), x, 0.1)[30:90, 30:90]
    np.testing.assert_allclose(star(cameras(psf), x, 0.1), larger, atol=1e-3)


def test_a_star_far_outside_adds_nothing() -> None:
    assert not star(cameras(GAUSSIAN), 40, 0).any()
    assert not star(cameras(GAUSSIAN), 0, -40).any()


def test_a_star_has_the_blur_of_extended_light_the_right_way_round(tmp_path: Path) -> None:
    ramp = (
        np.hanning(9)[1:-1, None] * np.hanning(9)[1:-1] * (1 + 0.1 * np.arange(7)) * (1 + 0.05 * np.arange(7)[:, None])
    )
    np.save(tmp_path / "psf.npy", ramp[None] / ramp.sum())
    (tmp_path / "mine.toml").write_text(
        presets.source("hst")
        .read_text()
        .replace(
            'psf = { profile = "gaussian", fwhm = 0.151 }', 'psf = { profile = "pixelated-set", file = "psf.npy" }'
        )
    )
    pixels = presets.preset(str(tmp_path / "mine.toml")).camera
    point = torch.zeros(1, 3 * pixels.n_pixels, 3 * pixels.n_pixels, dtype=torch.float64)
    point[0, 121, 118] = 9000  # the middle of a pixel's nine parts
    centre = (pixels.n_pixels - 1) / 2
    image = star(pixels, (39 - centre) * pixels.pixel_scale, (40 - centre) * pixels.pixel_scale)
    np.testing.assert_allclose(image, in_own_pixels(point, pixels, blank(1))[0].numpy(), atol=1e-6)
