import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lenstronomy.LensModel.lens_model import LensModel
from torch import Tensor

from sublens.lensing import mass, power_law
from sublens.lensing.power_law import n_terms


def grid(n: int = 24, half: float = 3.0) -> tuple[Tensor, Tensor]:
    """Positions [n, n] in double precision, none of them at the origin."""
    axis = torch.linspace(-half, half, n, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def numbers(*values: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def deflection(x: Tensor, y: Tensor, halo: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    theta_e, q, angle, slope = numbers(*halo)
    return power_law.power_law_deflection(x, y, theta_e, q, angle, slope, n_terms(halo[1]))


def potential(x: Tensor, y: Tensor, halo: tuple[float, ...]) -> Tensor:
    theta_e, q, angle, slope = numbers(*halo)
    return power_law.power_law_potential(x, y, theta_e, q, angle, slope, n_terms(halo[1]))


HALOES = [tuple(np.random.default_rng(n).uniform((0.3, 0.2, 0, 1.3), (2, 1, 6, 2.7))) for n in range(100)]
"""Einstein radius, axis ratio, angle and slope."""


def in_lenstronomy(theta_e: float, q: float, angle: float, slope: float) -> list[dict[str, float]]:
    e = (1 - q) / (1 + q)
    return [{"theta_E": theta_e, "gamma": slope, "e1": e * math.cos(2 * angle), "e2": e * math.sin(2 * angle)}]


def test_power_laws_agree_with_lenstronomy() -> None:
    lens, (x, y) = LensModel(["EPL"]), grid()
    for halo in HALOES:
        at, theirs, ours = (x.numpy(), y.numpy()), in_lenstronomy(*halo), numbers(*halo)
        np.testing.assert_allclose(torch.stack(deflection(x, y, halo)), np.stack(lens.alpha(*at, theirs)), atol=1e-8)
        np.testing.assert_allclose(potential(x, y, halo), lens.potential(*at, theirs), rtol=1e-8)
        np.testing.assert_allclose(power_law.power_law_convergence(x, y, *ours), lens.kappa(*at, theirs), rtol=1e-8)


@pytest.mark.parametrize("order", [3, 4])
@given(st.floats(0.001, 0.1), st.floats(0, 2 * math.pi))
def test_multipoles_are_lenstronomys_circular_ones(order: int, amplitude: float, angle: float) -> None:
    lens, (x, y), ours = LensModel(["MULTIPOLE"]), grid(), numbers(amplitude, angle)
    at, theirs = (x.numpy(), y.numpy()), [{"m": order, "a_m": amplitude, "phi_m": angle, "center_x": 0, "center_y": 0}]
    alpha = power_law.multipole_deflection(x, y, order, *ours)
    np.testing.assert_allclose(torch.stack(alpha), np.stack(lens.alpha(*at, theirs)), atol=1e-9)
    np.testing.assert_allclose(
        power_law.multipole_potential(x, y, order, *ours), lens.potential(*at, theirs), atol=1e-9
    )
    np.testing.assert_allclose(power_law.multipole_convergence(x, y, order, *ours), lens.kappa(*at, theirs), atol=1e-9)


@given(st.floats(0.2, 1), st.floats(0, math.pi))
def test_a_slope_of_2_is_the_isothermal_ellipsoid(q: float, angle: float) -> None:
    x, y = grid()
    ours = deflection(x, y, (1.1, q, angle, 2))
    np.testing.assert_allclose(
        torch.stack(ours), torch.stack(mass.sie_deflection(x, y, *numbers(1.1, q, angle))), atol=1e-7
    )


@pytest.mark.parametrize("halo", HALOES[:10])
def test_the_mean_convergence_inside_a_power_laws_ring_is_1(halo: tuple[float, ...]) -> None:
    """By Gauss's theorem: the mean radial deflection on the circle is its radius."""
    theta_e, q, _, slope = halo
    ring = float(power_law.power_law_ring(np.array(theta_e), np.array(q), np.array(slope)))
    phi = torch.arange(2000, dtype=torch.float64) * (2 * math.pi / 2000)
    x, y = torch.cos(phi), torch.sin(phi)
    alpha_x, alpha_y = deflection(ring * x, ring * y, halo)
    assert float((alpha_x * x + alpha_y * y).mean()) == pytest.approx(ring, rel=1e-8)


def test_the_ring_of_a_slope_of_2_is_the_isothermal_one() -> None:
    theta_e, q = np.array([1.0, 1.3]), np.array([0.3, 1.0])
    ring = power_law.power_law_ring(theta_e, q, np.full(2, 2.0))
    np.testing.assert_allclose(ring, mass.sie_ring(theta_e, q), rtol=1e-12)


def test_a_multipole_draws_contours_out_by_its_share() -> None:
    """Where the convergence of a sphere with a multipole of order 4 is 1/2, along its angle and between."""
    for phi, expected in ((0.7, 1.02), (0.7 + math.pi / 4, 0.98)):
        x, y = numbers(expected * math.cos(phi), expected * math.sin(phi))
        kappa = mass.sis_convergence(x, y, torch.tensor(1.0))
        kappa = kappa + power_law.multipole_convergence(x, y, 4, *numbers(0.02, 0.7))
        assert float(kappa) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("slope", [1.6, 2.0, 2.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_halo_without_mass_bends_no_ray(slope: float, dtype: torch.dtype) -> None:
    x, y, theta_e, q, angle, own = (torch.tensor(value, dtype=dtype) for value in (0.3, 0.0, 0.0, 0.7, 0.2, slope))
    assert [alpha.item() for alpha in power_law.power_law_deflection(x, y, theta_e, q, angle, own, 20)] == [0, 0]


def test_the_compiled_series_is_torchs_to_the_last_bit() -> None:
    x, y = grid()
    halo = numbers(1.2, 0.5, 0.3, 2.1)
    theta_e, q, angle, slope = (number.expand(2, 1, 1) for number in halo)
    both = power_law.power_law_deflection(x, y, theta_e, q, angle, slope, n_terms(0.5))
    for alone, beside in zip(deflection(x, y, (1.2, 0.5, 0.3, 2.1)), both, strict=True):
        assert torch.equal(alone, beside[1])
