import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammainc

from sublens.lensing import light
from sublens.lensing.rays import profiles
from sublens.lensing.sersic import sersic, sersic_b, sersic_total


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


def test_a_profile_without_gradient_is_the_same_to_the_last_bit() -> None:
    x, y = torch.randn(2, 3, 20, 30)
    shapes = {name: torch.rand(3, 1, 1) + 0.5 for name in ("q", "angle", "n", "r_eff", "intensity")}
    with_gradient = sersic(x.clone().requires_grad_(), y.clone().requires_grad_(), **shapes)
    assert torch.equal(sersic(x, y, **shapes), with_gradient)


SHAPE = {"q": 0.6, "angle": 0.4, "n": 2.0, "r_eff": 0.5, "intensity": 10.0}


def boxed(x: float, y: float, boxiness: float) -> float:
    shape = {name: torch.tensor(value, dtype=torch.float64) for name, value in (SHAPE | {"angle": 0}).items()}
    place = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    return float(sersic(*place, **shape, boxiness=torch.tensor(boxiness)))


def test_boxy_isophotes_reach_farther_between_their_axes() -> None:
    along, across, between = (0.5 / 0.6**0.5, 0), (0, 0.5 * 0.6**0.5), (0.125**0.5 / 0.6**0.5, 0.125**0.5 * 0.6**0.5)
    assert boxed(*between, 0.02) > 10 > boxed(*along, 0.02) == pytest.approx(boxed(*across, 0.02))
    assert boxed(*between, -0.02) < 10 < boxed(*along, -0.02)


def test_boxiness_is_the_fourth_cosine_of_an_isophote() -> None:
    """Towards an axis, the isophote of a boxiness of 1 % is 1 % closer."""
    assert boxed(0.99 * 0.5 / 0.6**0.5, 0, 0.01) == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize("boxiness", [0, 0.03, -0.03])
def test_compiled_profiles_are_those_of_torch(boxiness: float) -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 300)).astype(np.float32)
    table = {name: np.array([value]) for name, value in SHAPE.items()}
    (profile,) = profiles(**table, x=0.1, y=-0.2, boxiness=boxiness).astype(np.float32)
    bright = np.zeros(300, np.float32)
    light._sersic(x, y, profile, bright)
    shape = {name: torch.tensor(value) for name, value in SHAPE.items()} | {"boxiness": torch.tensor(boxiness)}
    expected = sersic(torch.from_numpy(x) - 0.1, torch.from_numpy(y) + 0.2, **shape)
    np.testing.assert_allclose(bright, expected.numpy(), rtol=1e-4)
