import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sublens.sim import mass

angles = st.floats(0, 2 * math.pi)
radii = st.floats(0.05, 2)


def grid(n: int = 24, half: float = 3.0) -> tuple[Tensor, Tensor]:
    """Positions [1, n, n] in double precision, none of them at the origin."""
    axis = torch.linspace(-half, half, n, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x[None], y[None]


def one(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def convergence_and_curl(deflect: object, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Half the divergence, and the curl, of a deflection field, by automatic differentiation."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    alpha_x, alpha_y = deflect(x, y)  # type: ignore[operator]
    xx, xy = torch.autograd.grad(alpha_x.sum(), (x, y), retain_graph=True)
    yx, yy = torch.autograd.grad(alpha_y.sum(), (x, y))
    return (xx + yy) / 2, yx - xy


@given(radii)
def test_sis_bends_every_ray_by_theta_e(theta_e: float) -> None:
    alpha_x, alpha_y = mass.sis(*grid(), one(theta_e)[0])
    torch.testing.assert_close(torch.hypot(alpha_x, alpha_y), torch.full_like(alpha_x, theta_e))


def test_sis_points_outwards() -> None:
    x, y = grid()
    alpha_x, alpha_y = mass.sis(x, y, one(1)[0])
    assert ((alpha_x * x + alpha_y * y) > 0).all()


def test_sis_is_zero_at_the_origin() -> None:
    zero = torch.zeros(1, 1, 1)
    assert torch.cat(mass.sis(zero, zero, torch.ones(1))).tolist() == [[[0]], [[0]]]


def test_sis_has_the_convergence_of_its_definition() -> None:
    x, y = grid()
    kappa, _ = convergence_and_curl(lambda x, y: mass.sis(x, y, one(1.3)[0]), x, y)
    torch.testing.assert_close(kappa, 1.3 / (2 * torch.hypot(x, y)))


@given(st.floats(0, 0.5), angles)
def test_shear_has_no_convergence_and_no_curl(gamma: float, angle: float) -> None:
    shear = one(gamma)[0], one(angle)[0]
    kappa, curl = convergence_and_curl(lambda x, y: mass.external_shear(x, y, *shear), *grid())
    assert kappa.abs().max() < 1e-12
    assert curl.abs().max() < 1e-12


@given(st.floats(0.01, 0.5), angles)
def test_shear_draws_images_out_along_its_angle(gamma: float, angle: float) -> None:
    x, y = (torch.full((1, 1, 1), f(angle), dtype=torch.float64) for f in (math.cos, math.sin))
    alpha_x, alpha_y = mass.external_shear(x, y, one(gamma)[0], one(angle)[0])
    assert float(alpha_x * x + alpha_y * y) == pytest.approx(gamma)
    assert float(alpha_y * x - alpha_x * y) == pytest.approx(0, abs=1e-12)


@given(radii, st.floats(-1, 1), st.floats(-1, 1))
def test_a_point_bends_by_theta_e_squared_over_distance(theta_e: float, x_0: float, y_0: float) -> None:
    x, y = grid()
    distance = torch.hypot(x - x_0, y - y_0)
    assume(distance.min() > 1e-3)  # nearer, TINY keeps the deflection finite instead
    alpha_x, alpha_y = mass.points(x, y, one(x_0, y_0, theta_e)[None])
    torch.testing.assert_close(torch.hypot(alpha_x, alpha_y), theta_e**2 / distance, rtol=1e-5, atol=1e-9)


def test_points_have_no_convergence_elsewhere_and_no_curl() -> None:
    masses = torch.tensor([[[0.11, 0.2, 0.5], [-1.07, 0.3, 0.2]]], dtype=torch.float64)
    kappa, curl = convergence_and_curl(lambda x, y: mass.points(x, y, masses), *grid())
    assert kappa.abs().max() < 1e-8
    assert curl.abs().max() < 1e-8


def test_points_add_up() -> None:
    x, y = grid()
    two = torch.tensor([[[0.1, 0.2, 0.5], [-1.0, 0.3, 0.2]]], dtype=torch.float64)
    both = mass.points(x, y, two)
    apart = [mass.points(x, y, two[:, i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(both[0], apart[0][0] + apart[1][0])
    torch.testing.assert_close(both[1], apart[0][1] + apart[1][1])


def test_a_massless_point_adds_exactly_nothing() -> None:
    x, y = grid()
    padded = torch.tensor([[[0.1, 0.2, 0.5], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    for with_padding, without in zip(mass.points(x, y, padded), mass.points(x, y, padded[:, :1]), strict=True):
        assert torch.equal(with_padding, without)


def test_a_point_on_a_pixel_centre_is_finite() -> None:
    zero = torch.zeros(1, 1, 1)
    alpha_x, alpha_y = mass.points(zero, zero, torch.tensor([[[0.0, 0.0, 1.0]]]))
    assert alpha_x == 0
    assert alpha_y == 0


segments = st.tuples(st.floats(-1, 1), st.floats(-1, 1), angles, st.floats(0.3, 2), st.floats(0.05, 0.5))


@settings(max_examples=30)
@given(segments)
def test_the_string_is_the_limit_of_many_points(segment: tuple[float, ...]) -> None:
    x_c, y_c, angle, half, theta_e = segment
    x, y = grid()
    n = 4000
    along = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 * half - half
    cos, sin = math.cos(angle), math.sin(angle)
    beads = torch.stack([x_c + along * cos, y_c + along * sin, torch.full_like(along, theta_e / math.sqrt(n))], dim=1)
    across = (y - y_c) * cos - (x - x_c) * sin
    far = across.abs() > 0.02
    for ours, expected in zip(mass.string(x, y, one(*segment)), mass.points(x, y, beads[None]), strict=True):
        torch.testing.assert_close(ours[far], expected[far], rtol=1e-3, atol=2e-5)


@given(segments)
def test_far_away_a_string_is_a_point(segment: tuple[float, ...]) -> None:
    x_c, y_c, _, half, theta_e = segment
    x, y = (torch.full((1, 1, 1), value * half, dtype=torch.float64) for value in (300, 400))
    ours = mass.string(x, y, one(*segment))
    point = mass.points(x, y, one(x_c, y_c, theta_e)[None])
    torch.testing.assert_close(torch.cat(ours), torch.cat(point), rtol=1e-4, atol=1e-12)


def test_the_string_has_no_convergence_elsewhere_and_no_curl() -> None:
    segment = one(0.21, -0.1, 0.4, 1.1, 0.3)
    kappa, curl = convergence_and_curl(lambda x, y: mass.string(x, y, segment), *grid())
    assert kappa.abs().max() < 1e-10
    assert curl.abs().max() < 1e-10


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0, -1.0])
def test_a_pixel_on_the_string_or_its_end_is_finite(place: float) -> None:
    x, y = torch.full((1, 1, 1), place), torch.zeros(1, 1, 1)
    for alpha in mass.string(x, y, torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.3]])):
        assert torch.isfinite(alpha).all()


def test_crossing_the_string_jumps_by_its_line_density() -> None:
    segment = one(0, 0, 0, 1.0, 0.3)
    above, below = (
        mass.string(torch.zeros(1, 1, 1), torch.full((1, 1, 1), side), segment)[1] for side in (1e-7, -1e-7)
    )
    assert float(above - below) == pytest.approx(math.pi * 0.3**2 / 1.0, rel=1e-5)


@given(segments, angles)
def test_turning_a_string_turns_its_deflection(segment: tuple[float, ...], turn: float) -> None:
    x_c, y_c, angle, half, theta_e = segment
    cos, sin = math.cos(turn), math.sin(turn)
    x, y = grid()
    turned = one(cos * x_c - sin * y_c, sin * x_c + cos * y_c, angle + turn, half, theta_e)
    alpha_x, alpha_y = mass.string(x, y, one(*segment))
    across = (y - y_c) * math.cos(angle) - (x - x_c) * math.sin(angle)
    far = across.abs() > 1e-6
    ours_x, ours_y = mass.string(cos * x - sin * y, sin * x + cos * y, turned)
    torch.testing.assert_close(ours_x[far], (cos * alpha_x - sin * alpha_y)[far], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours_y[far], (sin * alpha_x + cos * alpha_y)[far], rtol=1e-6, atol=1e-9)
