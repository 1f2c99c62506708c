import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from caustics.lenses import func
from hypothesis import given, settings
from hypothesis import strategies as st
from lenstronomy.LensModel.lens_model import LensModel
from torch import Tensor

from sublens.lensing import mass

Numbers = tuple[float, ...]
angles = st.floats(0, 2 * math.pi)
radii = st.floats(0.05, 2)
places = st.floats(-1, 1)


def grid(n: int = 24, half: float = 3.0) -> tuple[Tensor, Tensor]:
    """Positions [1, n, n] in double precision, none of them at the origin."""
    axis = torch.linspace(-half, half, n, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x[None], y[None]


def numbers(*values: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def ellipticity(q: float, angle: float) -> dict[str, float]:
    """As lenstronomy has it."""
    e = (1 - q) / (1 + q)
    return {"e1": e * math.cos(2 * angle), "e2": e * math.sin(2 * angle)}


class Model(NamedTuple):
    """One kind of mass of ours, and the same in lenstronomy."""

    parameters: st.SearchStrategy[Numbers]
    theirs: str
    translate: Callable[..., dict[str, float]]
    has_potential: bool = True
    has_convergence: bool = True


MODELS = {
    "sis": Model(st.tuples(radii), "SIS", lambda t: {"theta_E": t, "center_x": 0, "center_y": 0}),
    "sie": Model(
        st.tuples(radii, st.floats(0.2, 0.999), angles),
        "SIE",
        lambda t, q, a: {"theta_E": t, **ellipticity(q, a), "center_x": 0, "center_y": 0},
    ),
    "shear": Model(
        st.tuples(st.floats(0.01, 0.5), angles),
        "SHEAR",
        lambda g, a: {"gamma1": g * math.cos(2 * a), "gamma2": g * math.sin(2 * a)},
        has_convergence=False,
    ),
    "point": Model(
        st.tuples(places, places, radii),
        "POINT_MASS",
        lambda x, y, t: {"theta_E": t, "center_x": x, "center_y": y},
        has_convergence=False,
    ),
    "nfw": Model(
        st.tuples(places, places, radii, radii),
        "NFW",
        lambda x, y, a, r: {"alpha_Rs": a, "Rs": r, "center_x": x, "center_y": y},
    ),
    "tnfw": Model(
        st.tuples(places, places, radii, radii, st.floats(0.2, 20)),
        "TNFW",
        lambda x, y, a, r, t: {"alpha_Rs": a, "Rs": r, "r_trunc": t, "center_x": x, "center_y": y},
        has_potential=False,
    ),
}
STRINGS = st.tuples(places, places, angles, st.floats(0.3, 2), st.floats(0.05, 0.5))
KINDS = {name: model.parameters for name, model in MODELS.items()} | {"string": STRINGS}


def ours(name: str, what: str, x: Tensor, y: Tensor, parameters: Numbers) -> Any:
    return getattr(mass, f"{name}_{what}")(x, y, *numbers(*parameters))


def distance(name: str, x: Tensor, y: Tensor, parameters: Numbers) -> Tensor:
    """From the point, ring or line where a kind of mass is singular."""
    if name in ("sis", "sie", "shear"):
        return torch.hypot(x, y)
    if name != "string":
        return torch.hypot(x - parameters[0], y - parameters[1])
    x_0, y_0, angle, half, _ = parameters
    dx, dy = x - x_0, y - y_0
    along = (dx * math.cos(angle) + dy * math.sin(angle)).clamp(-half, half)
    return torch.hypot(dx - along * math.cos(angle), dy - along * math.sin(angle))


def random_parameters(name: str, n: int) -> list[Numbers]:
    """Parameters over the same ranges as hypothesis's, uniformly."""
    rng = np.random.default_rng(7)
    ends: dict[str, list[tuple[float, float]]] = {
        "sis": [(0.05, 2)],
        "sie": [(0.05, 2), (0.2, 0.999), (0, 6.28)],
        "shear": [(0.01, 0.5), (0, 6.28)],
        "point": [(-1, 1), (-1, 1), (0.05, 2)],
        "nfw": [(-1, 1), (-1, 1), (0.05, 2), (0.05, 2)],
        "tnfw": [(-1, 1), (-1, 1), (0.05, 2), (0.05, 2), (0.2, 20)],
    }
    return [tuple(rng.uniform(low, high) for low, high in ends[name]) for _ in range(n)]


@pytest.mark.parametrize("name", MODELS)
def test_a_thousand_deflections_agree_with_lenstronomy(name: str) -> None:
    """To 1e-7 of the deflection's peak, in double precision, as the simulator promises."""
    model, (x, y) = MODELS[name], grid()
    lens = LensModel([model.theirs])
    worst = 0.0
    for parameters in random_parameters(name, 1000):
        expected = np.stack(lens.alpha(x[0].numpy(), y[0].numpy(), [model.translate(*parameters)]))
        got = torch.cat(ours(name, "deflection", x, y, parameters)).numpy()
        worst = max(worst, np.abs(got - expected).max() / np.hypot(*expected).max())
    assert worst < 1e-7


BY_CAUSTICS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "sis": lambda x, y, t: func.reduced_deflection_angle_sis(0, 0, t, x, y),
    "sie": lambda x, y, t, q, a: func.reduced_deflection_angle_sie(*numbers(0, 0), *numbers(q, a, t), x, y),
    "shear": lambda x, y, g, a: func.reduced_deflection_angle_external_shear(
        0, 0, g * math.cos(2 * a), g * math.sin(2 * a), x, y
    ),
    "point": lambda x, y, x_0, y_0, t: func.reduced_deflection_angle_point(x_0, y_0, t, x, y),
}


@pytest.mark.parametrize("name", BY_CAUSTICS)
def test_deflections_agree_with_caustics(name: str) -> None:
    x, y = grid()
    for parameters in random_parameters(name, 100):
        expected = torch.cat(BY_CAUSTICS[name](x, y, *parameters))
        got = torch.cat(ours(name, "deflection", x, y, parameters))
        assert (got - expected).abs().max() < 1e-7 * expected.abs().max()


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.has_convergence])
def test_convergence_agrees_with_lenstronomy(name: str) -> None:
    model, (x, y) = MODELS[name], grid()
    sie = {"gamma": 2} if name == "sie" else {}  # by its power law: of its SIE lenstronomy takes differences
    lens = LensModel(["EPL" if name == "sie" else model.theirs])
    for parameters in random_parameters(name, 100):
        expected = lens.kappa(x[0].numpy(), y[0].numpy(), [model.translate(*parameters) | sie])
        np.testing.assert_allclose(ours(name, "convergence", x, y, parameters)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.has_potential])
def test_potential_agrees_with_lenstronomy_up_to_a_constant(name: str) -> None:
    model, (x, y) = MODELS[name], grid()
    lens = LensModel([model.theirs])
    for parameters in random_parameters(name, 100):
        expected = lens.potential(x[0].numpy(), y[0].numpy(), [model.translate(*parameters)])
        got = ours(name, "potential", x, y, parameters)[0].numpy()
        np.testing.assert_allclose(got - got[0, 0], expected - expected[0, 0], rtol=1e-6, atol=1e-7)


def gradients(value: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value.sum(), (x, y), retain_graph=True)


def away(name: str, x: Tensor, y: Tensor, parameters: Numbers) -> Tensor:
    """Where derivatives are neither infinite nor, at an NFW halo's scale radius, 0 / 0.

    And where the core that `TINY` gives a mass holds no convergence to speak of: below
    theta_E^2 TINY / r^4 = 4e-8.
    """
    far = distance(name, x, y, parameters) > 0.1
    if name in ("nfw", "tnfw"):
        far &= (distance(name, x, y, parameters) / parameters[3] - 1).abs() > 1e-3
    return far


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=25)
@given(data=st.data())
def test_half_the_divergence_is_the_convergence_and_there_is_no_curl(name: str, data: st.DataObject) -> None:
    parameters = data.draw(KINDS[name])
    x, y = (plane.requires_grad_() for plane in grid(12))
    alpha_x, alpha_y = ours(name, "deflection", x, y, parameters)
    (xx, xy), (yx, yy) = gradients(alpha_x, x, y), gradients(alpha_y, x, y)
    is_thin = name in ("shear", "point", "string")
    kappa = torch.zeros_like(xx) if is_thin else ours(name, "convergence", x, y, parameters)
    far = away(name, x, y, parameters)
    torch.testing.assert_close(((xx + yy) / 2)[far], kappa[far].detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(xy[far], yx[far], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "tnfw"])
@settings(max_examples=25)
@given(data=st.data())
def test_the_deflection_is_the_gradient_of_the_potential(name: str, data: st.DataObject) -> None:
    parameters = data.draw(KINDS[name])
    x, y = (plane.requires_grad_() for plane in grid(12))
    slope = gradients(ours(name, "potential", x, y, parameters), x, y)
    far = away(name, x, y, parameters)
    for of_potential, component in zip(slope, ours(name, "deflection", x, y, parameters), strict=True):
        torch.testing.assert_close(of_potential[far], component[far].detach(), rtol=1e-5, atol=1e-6)


@given(radii)
def test_sis_bends_every_ray_by_theta_e(theta_e: float) -> None:
    alpha_x, alpha_y = ours("sis", "deflection", *grid(), (theta_e,))
    torch.testing.assert_close(torch.hypot(alpha_x, alpha_y), torch.full_like(alpha_x, theta_e))


def test_sis_points_outwards() -> None:
    x, y = grid()
    alpha_x, alpha_y = ours("sis", "deflection", x, y, (1.0,))
    assert ((alpha_x * x + alpha_y * y) > 0).all()


@given(radii, angles)
def test_a_round_ellipsoid_is_a_sphere(theta_e: float, angle: float) -> None:
    x, y = grid()
    for component, expected in zip(
        ours("sie", "deflection", x, y, (theta_e, 1.0, angle)), ours("sis", "deflection", x, y, (theta_e,)), strict=True
    ):
        torch.testing.assert_close(component, expected, rtol=1e-6, atol=1e-6)


def test_a_widely_truncated_halo_is_an_nfw_halo() -> None:
    x, y = grid()
    for component, expected in zip(
        ours("tnfw", "deflection", x, y, (0.1, 0.2, 0.5, 0.4, 4000.0)),
        ours("nfw", "deflection", x, y, (0.1, 0.2, 0.5, 0.4)),
        strict=True,
    ):
        torch.testing.assert_close(component, expected, rtol=1e-4, atol=1e-5)


def test_nfw_has_its_deflection_at_its_scale_radius() -> None:
    x, y = torch.tensor([0.4, 0.4 * (1 + 1e-9)], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    alpha_x, _ = ours("nfw", "deflection", x, y, (0.0, 0.0, 0.3, 0.4))
    torch.testing.assert_close(alpha_x, torch.full_like(alpha_x, 0.3), rtol=1e-6, atol=0)


@given(st.floats(0.01, 0.5), angles)
def test_shear_draws_images_out_along_its_angle(gamma: float, angle: float) -> None:
    x, y = numbers(math.cos(angle), math.sin(angle))
    alpha_x, alpha_y = ours("shear", "deflection", x, y, (gamma, angle))
    assert float(alpha_x * x + alpha_y * y) == pytest.approx(gamma)
    assert float(alpha_y * x - alpha_x * y) == pytest.approx(0, abs=1e-12)


MASSLESS = {
    "sis": (0.0,),
    "sie": (0.0, 0.5, 0.3),
    "shear": (0.0, 0.3),
    "point": (0.1, 0.2, 0.0),
    "nfw": (0.1, 0.2, 0.0, 0.4),
    "tnfw": (0.1, 0.2, 0.0, 0.4, 2.0),
    "string": (0.1, 0.2, 0.3, 1.0, 0.0),
}


@pytest.mark.parametrize(("name", "parameters"), MASSLESS.items())
def test_nothing_bends_nothing(name: str, parameters: Numbers) -> None:
    for component in ours(name, "deflection", *grid(), parameters):
        assert not component.any()


CENTRED = {
    "sis": (1.0,),
    "sie": (1.0, 0.5, 0.3),
    "point": (0.0, 0.0, 1.0),
    "nfw": (0.0, 0.0, 1.0, 0.4),
    "tnfw": (0.0, 0.0, 1.0, 0.4, 2.0),
    "string": (0.0, 0.0, 0.0, 1.0, 0.3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "parameters"), CENTRED.items())
def test_a_mass_on_a_pixel_centre_is_finite(name: str, parameters: Numbers, dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 1.0, -1.0, 1e-30], dtype=dtype)
    values = [torch.tensor(value, dtype=dtype) for value in parameters]
    alpha_x, alpha_y = getattr(mass, f"{name}_deflection")(x, torch.zeros_like(x), *values)
    assert torch.isfinite(alpha_x).all()
    assert torch.isfinite(alpha_y).all()
    assert float(alpha_x[0]) == pytest.approx(0, abs=1e-5)


@settings(max_examples=30)
@given(STRINGS)
def test_the_string_is_the_limit_of_many_points(segment: Numbers) -> None:
    x_0, y_0, angle, half, theta_e = segment
    x, y = grid()
    n = 4000
    along = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 * half - half
    expected_x, expected_y = torch.zeros_like(x), torch.zeros_like(y)
    for offset in along.tolist():
        bead = (x_0 + offset * math.cos(angle), y_0 + offset * math.sin(angle), theta_e / math.sqrt(n))
        dx, dy = mass.point_deflection(x, y, *bead)  # type: ignore[arg-type]
        expected_x += dx
        expected_y += dy
    far = distance("string", x, y, segment) > 0.02
    for got, expected in zip(ours("string", "deflection", x, y, segment), (expected_x, expected_y), strict=True):
        torch.testing.assert_close(got[far], expected[far], rtol=1e-3, atol=2e-5)


@given(STRINGS)
def test_far_away_a_string_is_a_point(segment: Numbers) -> None:
    x_0, y_0, _, half, theta_e = segment
    x, y = numbers(300 * half, 400 * half)
    string = torch.stack(ours("string", "deflection", x, y, segment))
    point = torch.stack(ours("point", "deflection", x, y, (x_0, y_0, theta_e)))
    torch.testing.assert_close(string, point, rtol=1e-4, atol=1e-12)


def test_crossing_the_string_jumps_by_its_line_density() -> None:
    x, y = numbers(0, 0)[0], torch.tensor([1e-7, -1e-7], dtype=torch.float64)
    above, below = ours("string", "deflection", x, y, (0, 0, 0, 1.0, 0.3))[1]
    assert float(above - below) == pytest.approx(math.pi * 0.3**2 / 1.0, rel=1e-5)


TURNING: dict[str, Callable[[Numbers, float], Numbers]] = {
    "sie": lambda p, t: (p[0], p[1], p[2] + t),
    "shear": lambda p, t: (p[0], p[1] + t),
    "string": lambda p, t: (*turned(p[0], p[1], t), p[2] + t, *p[3:]),
    "nfw": lambda p, t: (*turned(p[0], p[1], t), *p[2:]),
}


def turned(x: Any, y: Any, turn: float) -> tuple[Any, Any]:
    return math.cos(turn) * x - math.sin(turn) * y, math.sin(turn) * x + math.cos(turn) * y


@pytest.mark.parametrize("name", TURNING)
@settings(max_examples=25)
@given(data=st.data(), turn=angles)
def test_turning_a_mass_turns_its_deflection(name: str, data: st.DataObject, turn: float) -> None:
    parameters, (x, y) = data.draw(KINDS[name]), grid()
    alpha_x, alpha_y = ours(name, "deflection", x, y, parameters)
    expected = turned(alpha_x, alpha_y, turn)
    turned_x, turned_y = turned(x, y, turn)
    got = ours(name, "deflection", turned_x, turned_y, TURNING[name](parameters, turn))
    far = distance(name, x, y, parameters) > 1e-3
    for component, turned_component in zip(got, expected, strict=True):
        torch.testing.assert_close(component[far], turned_component[far], rtol=1e-6, atol=1e-8)


def test_a_sphere_in_shear_is_the_sum_of_both_to_the_last_bit() -> None:
    x, y = torch.linspace(-3, 3, 50)[None, None, :], torch.linspace(-2, 2, 41)[None, :, None]
    theta_e, gamma, angle = torch.rand(3, 4, 1, 1)
    sphere, shear = mass.sis_deflection(x, y, theta_e), mass.shear_deflection(x, y, gamma, angle)
    for component, a, b in zip(mass.sphere_in_shear(x, y, theta_e, gamma, angle), sphere, shear, strict=True):
        assert torch.equal(component, a + b)
