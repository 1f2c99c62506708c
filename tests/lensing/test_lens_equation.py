import numpy as np
import pytest
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.Solver.lens_equation_solver import LensEquationSolver

from sublens.lensing.lens_equation import Deflect, images
from sublens.surveys.priors import Floats

HALO = {"theta_E": 1.2, "e1": 0.15, "e2": -0.1, "gamma": 2.1, "center_x": 0.03, "center_y": -0.02}
SHEAR = {"gamma1": 0.05, "gamma2": -0.03}


def power_law() -> tuple[LensModel, list[dict[str, float]]]:
    return LensModel(["EPL", "SHEAR"]), [HALO, SHEAR]


def deflection(model: LensModel, parameters: list[dict[str, float]]) -> Deflect:
    def deflect(x: Floats, y: Floats) -> tuple[Floats, Floats]:
        alpha_x, alpha_y = model.alpha(x.ravel(), y.ravel(), parameters)
        return alpha_x.reshape(x.shape), alpha_y.reshape(x.shape)

    return deflect


def sphere(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    radius = np.maximum(np.hypot(x, y), 1e-12)
    return x / radius, y / radius


@pytest.mark.parametrize("source", [(0.02, 0.01), (0.05, -0.1), (0.2, 0.3), (-0.3, 0.1), (0.119, 0.05), (0.9, 0.2)])
def test_images_are_those_of_lenstronomy(source: tuple[float, float]) -> None:
    model, parameters = power_law()
    found = images(source, deflection(model, parameters), 4)
    theirs = LensEquationSolver(model).image_position_from_source(
        *source, parameters, min_distance=0.01, search_window=8, precision_limit=1e-12, num_iter_max=200
    )
    power = np.abs(model.magnification(*theirs, parameters))
    expected = np.stack([*theirs, power], axis=1)[power > 1e-3]
    np.testing.assert_allclose(found[np.argsort(found[:, 0])], expected[np.argsort(expected[:, 0])], rtol=1e-4)


def test_a_sphere_has_its_two_images_and_magnifications() -> None:
    found = images((0.25, 0), sphere, 4)
    np.testing.assert_allclose(found, [[1.25, 0, 5], [-0.75, 0, 3]], rtol=1e-6, atol=1e-9)


def test_a_source_outside_the_caustics_has_one_image() -> None:
    np.testing.assert_allclose(images((0, 1.5), sphere, 4), [[0, 2.5, 2.5 / 1.5]], rtol=1e-6, atol=1e-9)


def test_images_that_nearly_merge_are_all_there() -> None:
    """The total magnification over a small disc is the area that it is mapped to, over its own."""
    model, parameters = power_law()
    deflect, rng = deflection(model, parameters), np.random.default_rng(1)
    x, y = rng.uniform(-3, 3, (2, 2_000_000))
    alpha = deflect(x, y)
    area = 36 * (np.hypot(x - alpha[0] - 0.09, y - alpha[1] + 0.05) < 0.05).mean()
    radius, angle = 0.05 * rng.random(150) ** 0.5, rng.uniform(0, 2 * np.pi, 150)
    sources = zip(0.09 + radius * np.cos(angle), -0.05 + radius * np.sin(angle), strict=True)
    power = [images(source, deflect, 4)[:, 2].sum() for source in sources]
    assert np.mean(power) == pytest.approx(area / (np.pi * 0.05**2), rel=0.06)
