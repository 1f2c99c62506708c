import numpy as np
import pytest
import torch
from lenstronomy.LensModel.lens_model import LensModel
from numpy.typing import NDArray

from sublens.lensing import mass
from sublens.modelling import galaxy_light, smooth_lens

AXIS = (np.arange(24) - 11.5) * 0.13
X, Y = np.meshgrid(AXIS, AXIS)
LENS = np.array([np.log(1.2), 0.1, -0.07, 0.02, -0.03, 0.04, -0.05, 0.004, 0.006, -0.007, 0.003])


@pytest.mark.parametrize("slope", [1.8, smooth_lens.SLOPE, 2.3])
def test_halo_and_shear_are_those_of_lenstronomy(slope: float) -> None:
    parameters = LENS.copy()
    parameters[7:] = 0
    theta_e, q, angle = smooth_lens.shape(parameters)
    e1, e2 = (1 - q) / (1 + q) * np.cos(2 * angle), (1 - q) / (1 + q) * np.sin(2 * angle)
    halo = {"theta_E": theta_e, "gamma": slope, "e1": e1, "e2": e2, "center_x": 0.02, "center_y": -0.03}
    known = LensModel(["EPL", "SHEAR"]).alpha(X, Y, [halo, {"gamma1": 0.04, "gamma2": -0.05}])
    assert smooth_lens.deflection(parameters, slope, X, Y) == pytest.approx(np.array(known), abs=2e-4)


def test_the_shear_is_that_of_the_simulator() -> None:
    parameters = np.zeros(11)
    parameters[0], parameters[5:7] = -20, (0.1 * np.cos(0.8), 0.1 * np.sin(0.8))
    x, y, gamma, angle = (torch.as_tensor(value)[None] for value in (X, Y, 0.1, 0.4))
    known = torch.cat(mass.shear_deflection(x, y, gamma, angle)).numpy()
    assert smooth_lens.deflection(parameters, smooth_lens.SLOPE, X, Y) == pytest.approx(known, abs=1e-6)


@pytest.mark.parametrize("number", range(smooth_lens.N_PARAMETERS))
def test_derivatives_are_those_of_the_deflection(number: int) -> None:
    ahead, behind = LENS.copy(), LENS.copy()
    ahead[number] += 2e-3
    behind[number] -= 2e-3
    change = (smooth_lens.deflection(ahead, 2.2, X, Y) - smooth_lens.deflection(behind, 2.2, X, Y)) / 4e-3
    assert smooth_lens.derivatives(LENS, 2.2, X, Y)[number] == pytest.approx(
        change, abs=2e-2 * float(np.abs(change).max()) + 2e-3
    )


def light(form: NDArray[np.float64], amplitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    planes = galaxy_light.planes(form, X, Y, has_harmonics=len(amplitudes) > 12)
    return np.tensordot(amplitudes, planes, 1)


@pytest.mark.parametrize("n", [12, 44])
def test_derivatives_of_the_galaxy_are_those_of_its_light(n: int) -> None:
    amplitudes, form = np.random.default_rng(1).uniform(0, 1, n), np.array([0.03, -0.02, 0.1, 0.05])
    derivatives = galaxy_light.derivatives(form, amplitudes, X, Y)
    for number in range(galaxy_light.N_SHAPE):
        step = np.eye(4)[number] * 1e-3
        change = (light(form + step, amplitudes) - light(form - step, amplitudes)) / 2e-3
        assert derivatives[number] == pytest.approx(change, abs=1e-2 * np.abs(change).max())


def test_the_galaxy_has_the_shape_that_it_is_given() -> None:
    form = np.array([0.1, 0.2, 0.2 * np.cos(1.0), 0.2 * np.sin(1.0)])
    plane = galaxy_light.planes(form, X, Y, has_harmonics=False)[5]
    x, y = (plane * (X - 0.1)).sum() / plane.sum(), (plane * (Y - 0.2)).sum() / plane.sum()
    xx, yy, xy = (
        (plane * a * b).sum() / plane.sum() for a, b in ((X - 0.1, X - 0.1), (Y - 0.2, Y - 0.2), (X - 0.1, Y - 0.2))
    )
    assert (x, y) == pytest.approx((0, 0), abs=1e-3)
    assert np.arctan2(2 * xy, xx - yy) == pytest.approx(1.0, abs=0.01)
    long, short = np.linalg.eigvalsh([[xx, xy], [xy, yy]])[::-1]
    assert np.sqrt(short / long) == pytest.approx(0.8 / 1.2, abs=0.01)


def test_harmonics_have_a_prior_and_gaussians_none() -> None:
    precisions = galaxy_light.precisions(np.full(12, 2.0))
    assert precisions[:12] == pytest.approx(0, abs=1e-9)
    assert precisions[12:] == pytest.approx((0.3 * 2) ** -2)
    assert len(galaxy_light.precisions(None)) == 12
