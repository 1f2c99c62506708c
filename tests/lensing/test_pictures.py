import math
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sublens.lensing import light
from sublens.lensing.pictures import picture, pixelated, smooth_stamp
from sublens.surveys.light import PixelatedSource


def lenstronomy_grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[-2:2:40j, -2:2:50j]
    return x, y


@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(0, 6.3))
def test_a_pixelated_source_agrees_with_lenstronomy(x_0: float, y_0: float, angle: float) -> None:
    from lenstronomy.LightModel.Profiles.interpolation import Interpol

    pixels, (x, y) = np.random.default_rng(0).random((12, 17)), lenstronomy_grid()
    scale = 0.1
    got = pixelated(
        torch.from_numpy(x - x_0)[None], torch.from_numpy(y - y_0)[None], torch.from_numpy(pixels), scale=scale,
        angle=torch.tensor(angle, dtype=torch.float64), intensity=torch.tensor(2.0, dtype=torch.float64),
    )[0].numpy()  # fmt: skip
    expected = (
        Interpol()
        .function(x.ravel(), y.ravel(), image=pixels, amp=2, center_x=x_0, center_y=y_0, phi_G=angle, scale=scale)
        .reshape(x.shape)
    )
    u = (x - x_0) * math.cos(angle) + (y - y_0) * math.sin(angle)
    v = (y - y_0) * math.cos(angle) - (x - x_0) * math.sin(angle)
    inside = (np.abs(u) < 0.8 - 1e-9) & (np.abs(v) < 0.55 - 1e-9)  # theirs fades over a pixel more
    np.testing.assert_allclose(got[inside], expected[inside], rtol=1e-7, atol=1e-9)
    assert not got[(np.abs(u) > 0.8 + 1e-9) | (np.abs(v) > 0.55 + 1e-9)].any()


def test_a_picture_is_scaled_to_its_brightest_pixel(tmp_path: Path) -> None:
    np.save(tmp_path / "galaxy.npy", np.array([[0.0, 4.0], [2.0, -0.01]]))
    tree = {"profile": "pixelated", "file": tmp_path / "galaxy.npy", "scale": 1, "angle": 0, "offset": 0}
    source = PixelatedSource.model_validate(tree | {"magnitude": 20})
    assert picture(source).tolist() == [[0, 1], [0.5, 0]]


def a_stamp() -> np.ndarray:
    return np.pad(np.random.default_rng(0).random((7, 9)), 2).astype(np.float32)


def test_a_smooth_stamp_keeps_the_light_and_is_dark_outside() -> None:
    axis = torch.arange(-12, 12, 0.25, dtype=torch.float64) + 0.125
    u, v = torch.meshgrid(axis, axis, indexing="xy")
    smooth = smooth_stamp(u, v, torch.from_numpy(a_stamp()))
    np.testing.assert_allclose(float(smooth.sum() / 16), a_stamp().sum(), rtol=1e-6)
    assert not smooth[(u.abs() > 6.1) | (v.abs() > 5.1)].any()
    assert smooth.min() >= 0


def test_a_pixel_of_a_stamp_is_spread_by_half_a_pixel() -> None:
    point = np.zeros((7, 7), np.float32)
    point[3, 3] = 1
    axis = torch.arange(-3, 3, 0.01, dtype=torch.float64) + 0.005
    profile = smooth_stamp(axis[None], torch.zeros(1, 600, dtype=torch.float64), torch.from_numpy(point))[0]
    assert math.isclose(float((profile * axis**2).sum() / profile.sum()), 0.25, rel_tol=1e-3)


def test_compiled_stamps_are_those_of_torch() -> None:
    x, y = np.random.default_rng(1).uniform(-1, 1, (2, 400)).astype(np.float32)
    matrix = np.array([6, 3, -3, 6, 2], np.float32)
    bright = np.zeros(400, np.float32)
    light._stamp(x.copy(), y.copy(), matrix, a_stamp(), bright)
    u, v = torch.from_numpy(6 * x + 3 * y)[None], torch.from_numpy(6 * y - 3 * x)[None]
    expected = 2 * smooth_stamp(u, v, torch.from_numpy(a_stamp()))[0]
    np.testing.assert_allclose(bright, expected.numpy(), atol=1e-5)
