import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammainc
from torch import Tensor

from sublens.sim.light import sersic, sersic_b


def at(x: float, y: float, source: tuple[float, float, float, float], n: float = 1.5, r_eff: float = 0.5) -> float:
    place: tuple[Tensor, Tensor] = torch.full((1, 1, 1), x), torch.full((1, 1, 1), y)
    return float(sersic(*place, torch.tensor([source]), n=n, r_eff=r_eff, intensity=100))


@given(st.floats(0.6, 8))
def test_b_puts_half_the_light_inside_the_effective_radius(n: float) -> None:
    assert gammainc(2 * n, sersic_b(n)) == pytest.approx(0.5, abs=1e-4)


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
    assert ratio == pytest.approx(math.exp(-sersic_b(1)), rel=1e-5)


def test_the_centre_is_finite_and_brightest() -> None:
    assert at(0.2, 0.1, (0.2, 0.1, 0.5, 1)) == pytest.approx(100 * math.exp(sersic_b(1.5)), rel=1e-5)
