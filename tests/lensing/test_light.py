import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammainc

from sublens.lensing import light
from sublens.lensing.sersic import sersic, sersic_b, sersic_total
from sublens.lensing.stamps import picture, pixelated
from sublens.surveys.light import PixelatedSource


def at(x: float, y: float, source: tuple[float, float, float, float], n: float = 1.5, r_eff: float = 0.5) -> float:
    """Brightness at one place, 100 at r_eff."""
    x_0, y_0, *shape = source
    names = ("q", "angle", "n", "r_eff", "intensity")
    parameters = dict(zip(names, map(torch.tensor, (*map(float, shape), n, r_eff, 100.0)), strict=True))
    return float(sersic(torch.tensor(x - x_0), torch.tensor(y - y_0), **parameters))


@given(st.floats(0.6, 8))
def test_b_puts_half_the_light_inside_the_effective_radius(n: float) -> None:
    assert gammainc(2 * n, float(sersic_b(np.array(n)))) == pytest.approx(0.5, abs=1e-4)


@given(st.floats(0, 2 * math.pi))
def test_a_round_source_has_its_intensity_at_its_effective_radius(angle: float) -> None:
    assert at(0.5 * math.cos(angle), 0.5 * math.sin(angle), (0, 0, 1, 0)) == pytest.approx(100, rel=1e-5)


@given(st.floats(0.3, 1), st.floats(0, math.pi))
def test_the_long_axis_lies_along_the_position_angle(q: float, angle: float) -> None:
    reach = 0.5 / math.sqrt(q)
    assert at(reach * math.cos(angle), reach * math.sin(angle), (0, 0, q, angle)) == pytest.approx(100, rel=1e-4)


@given(st.floats(0.3, 1), st.floats(0, math.pi))
def test_the_short_axis_lies_across_it(q: float, angle: float) -> None:
    reach = 0.5 * math.sqrt(q)
    assert at(-reach * math.sin(angle), reach * math.cos(angle), (0, 0, q, angle)) == pytest.approx(100, rel=1e-4)


def test_n_of_one_is_an_exponential() -> None:
    ratio = at(1.0, 0, (0, 0, 1, 0), n=1) / at(0.5, 0, (0, 0, 1, 0), n=1)
    assert ratio == pytest.approx(math.exp(-float(sersic_b(np.array(1.0)))), rel=1e-5)


def test_the_centre_is_finite_and_brightest() -> None:
    assert at(0.2, 0.1, (0.2, 0.1, 0.5, 1)) == pytest.approx(100 * math.exp(float(sersic_b(np.array(1.5)))), rel=1e-5)


def lenstronomy_grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[-2:2:40j, -2:2:50j]
    return x, y


def test_a_thousand_sersic_profiles_agree_with_lenstronomy() -> None:
    """To 1e-7 of the peak: lenstronomy's b_n is a shorter series, so it is handed over to ours."""
    from lenstronomy.LightModel.Profiles.sersic import SersicElliptic

    rng, (x, y) = np.random.default_rng(3), lenstronomy_grid()
    worst = 0.0
    for _ in range(1000):
        x_0, y_0, q, angle = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.3, 1), rng.uniform(0, 3)
        n, r_eff = rng.uniform(0.6, 4), rng.uniform(0.1, 1)
        e = (1 - q) / (1 + q)
        theirs = SersicElliptic()
        b_theirs = float(theirs.k_bn(n, r_eff)[1])
        expected = theirs.function(
            x, y, 1.0, r_eff, n, e * math.cos(2 * angle), e * math.sin(2 * angle), center_x=x_0, center_y=y_0
        )
        numbers = (q, angle, n, r_eff, 1.0)
        names = ("q", "angle", "n", "r_eff", "intensity")
        parameters = {name: torch.tensor(v, dtype=torch.float64) for name, v in zip(names, numbers, strict=True)}
        got = sersic(torch.from_numpy(x - x_0), torch.from_numpy(y - y_0), **parameters).numpy()
        got **= b_theirs / float(sersic_b(np.array(n)))
        worst = max(worst, np.abs(got - expected).max() / expected.max())
    assert worst < 1e-7


@given(st.floats(0.5, 5), st.floats(0.1, 2))
def test_the_total_is_the_integral(n: float, r_eff: float) -> None:
    from scipy.integrate import quad

    b = float(sersic_b(np.array(n)))
    inner = quad(lambda t: 2 * math.pi * t * math.exp(-b * (t ** (1 / n) - 1)), 0, 50, limit=400)[0]
    outer = quad(lambda t: 2 * math.pi * t * math.exp(-b * (t ** (1 / n) - 1)), 50, np.inf, limit=400)[0]
    assert float(sersic_total(np.array(n), np.array(r_eff))) == pytest.approx((inner + outer) * r_eff**2, rel=1e-4)


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


FUNCTIONS: list[tuple[Callable[..., Any], Callable[..., Any], list[tuple[float, float]]]] = [
    (light._log, np.log, [(1e-6, 1e-3), (0.5, 2), (1, 1e6)]),
    (light._exp, np.exp, [(-80, -10), (-1, 1), (0, 80)]),
    (light._atan2, np.arctan2, [(-1, 1), (-1e-6, 1e-6), (-1e3, 1e3)]),
]


def arguments(function: Callable[..., Any], low: float, high: float) -> np.ndarray:
    n_arguments = function.py_func.__code__.co_argcount  # type: ignore[attr-defined]
    return np.random.default_rng(0).uniform(low, high, (200, n_arguments)).astype(np.float32)


@pytest.mark.parametrize(("function", "numpys", "ranges"), FUNCTIONS)
def test_functions_of_single_precision_are_those_of_numpy(
    function: Callable[..., Any], numpys: Callable[..., Any], ranges: list[tuple[float, float]]
) -> None:
    for limits in ranges:
        for values in arguments(function, *limits):
            assert function(*values) == pytest.approx(numpys(*values.astype(float)), rel=6e-7, abs=3e-7)


@pytest.mark.parametrize(("function", "numpys", "ranges"), FUNCTIONS)
def test_compiled_functions_round_as_written(
    function: Callable[..., Any], numpys: Callable[..., Any], ranges: list[tuple[float, float]]
) -> None:
    """To the last bit. With products and sums in one instruction, it depended on what the compiler had inlined."""
    as_written = function.py_func  # type: ignore[attr-defined]
    for limits in ranges:
        for values in arguments(function, *limits):
            assert function(*values) == as_written(*values)


def test_a_profile_without_gradient_is_the_same_to_the_last_bit() -> None:
    x, y = torch.randn(2, 3, 20, 30)
    shapes = {name: torch.rand(3, 1, 1) + 0.5 for name in ("q", "angle", "n", "r_eff", "intensity")}
    with_gradient = sersic(x.clone().requires_grad_(), y.clone().requires_grad_(), **shapes)
    assert torch.equal(sersic(x, y, **shapes), with_gradient)


def test_light_without_number_stays_so() -> None:
    """So that a camera can refuse it."""
    bright = np.zeros(2, np.float32)
    profile = np.array([1, 0, 0, 1, 0.5, 1.7, np.nan, 0, 0, 0, np.inf], np.float32)
    light._sersic(np.ones(2, np.float32), np.ones(2, np.float32), profile, bright)
    assert np.isnan(bright).all()
