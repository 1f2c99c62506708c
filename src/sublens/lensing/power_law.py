"""Haloes of any slope and shape: the elliptical power law, and multipoles of its convergence.

Conventions are those of `sublens.lensing.mass`; positions count from the halo's centre.
"""

import math

import numpy as np
import torch
from torch import Tensor

from sublens.lensing.compiled import compiled
from sublens.lensing.mass import TINY, Field
from sublens.surveys.priors import Floats

PRECISION = 1e-10
"""Relative size of a term at which the series of `power_law_deflection` ends."""


def n_terms(q: float, precision: float = PRECISION) -> int:
    """Number of terms that the series of `power_law_deflection` needs for axis ratios down to q."""
    return max(1, math.ceil(math.log(precision) / math.log(max((1 - q) / (1 + q), precision))))


def power_law_deflection(
    x: Tensor, y: Tensor, theta_e: Tensor, q: Tensor, angle: Tensor, slope: Tensor, terms: int
) -> Field:
    """Elliptical power law, whose density falls as r^-slope, 1 < slope < 3.

    theta_e: Einstein radius of the circle that holds as much mass as the critical ellipse. q: axis ratio of
    the convergence, 0 < q <= 1. angle: of the long axis. terms: of the series, see `n_terms`. A slope of 2 is
    `mass.sie_deflection`. Source: Tessore & Metcalf 2015, arXiv:1507.01819, eqs. 13 and 23, with slope - 1
    as t and theta_e sqrt(q) as b.
    """
    t, b, f = slope - 1, theta_e * torch.sqrt(q), (1 - q) / (1 + q)
    cos, sin = torch.cos(angle), torch.sin(angle)
    u, v = q * (cos * x + sin * y), cos * y - sin * x
    radius = torch.sqrt(u * u + v * v + TINY)
    u, v = u / radius, v / radius
    twice = 2 * torch.arange(1, terms + 1).to(t).reshape(-1, *[1] * t.ndim)
    factors = -f * (twice - 2 + t) / (twice + 2 - t)
    along, across = _series(u, v, factors)
    scale = 2 * b / (1 + q) * torch.exp((t - 1) * torch.log(b.clamp_min(TINY) / radius))
    return scale * (cos * along - sin * across), scale * (sin * along + cos * across)


def _series(u: Tensor, v: Tensor, factors: Tensor) -> Field:
    """Real and imaginary sum of terms from u + iv on, of which each is the one before times (u + iv)^2 and a factor.

    factors: [terms, ...], to meet u and v.
    """
    is_plain = u.device.type == "cpu" and u.dtype == torch.float64 and not (u.requires_grad or factors.requires_grad)
    if is_plain and factors.numel() == len(factors):
        along, across = (torch.empty(plane.shape, dtype=plane.dtype) for plane in (u, v))
        planes = (plane.contiguous().numpy().ravel() for plane in (u, v))
        _add_terms(*planes, factors.numpy().ravel(), along.view(-1).numpy(), across.view(-1).numpy())
        return along, across
    double_u, double_v = u * u - v * v, 2 * u * v
    along, across, term_u, term_v = u, v, u, v
    for factor in factors:
        term_u, term_v = (
            factor * (term_u * double_u - term_v * double_v),
            factor * (term_u * double_v + term_v * double_u),
        )
        along, across = along + term_u, across + term_v
    return along, across


@compiled
def _add_terms(u: Floats, v: Floats, factors: Floats, along: Floats, across: Floats) -> None:
    """`_series` of one scene, to the last bit."""
    for i in range(u.size):
        double_u, double_v = u[i] * u[i] - v[i] * v[i], 2 * u[i] * v[i]
        term_u, term_v, along[i], across[i] = u[i], v[i], u[i], v[i]
        for factor in factors:
            term_u, term_v = (
                factor * (term_u * double_u - term_v * double_v),
                factor * (term_u * double_v + term_v * double_u),
            )
            along[i] += term_u
            across[i] += term_v


def power_law_potential(
    x: Tensor, y: Tensor, theta_e: Tensor, q: Tensor, angle: Tensor, slope: Tensor, terms: int
) -> Tensor:
    """Elliptical power law; see `power_law_deflection`."""
    alpha_x, alpha_y = power_law_deflection(x, y, theta_e, q, angle, slope, terms)
    return (x * alpha_x + y * alpha_y) / (3 - slope)


def power_law_convergence(x: Tensor, y: Tensor, theta_e: Tensor, q: Tensor, angle: Tensor, slope: Tensor) -> Tensor:
    """Elliptical power law; see `power_law_deflection`."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    u, v = cos * x + sin * y, cos * y - sin * x
    r2 = q * u * u + v * v / q + TINY
    return (3 - slope) / 2 * torch.exp((slope - 1) * (torch.log(theta_e) - torch.log(r2) / 2))


def power_law_ring(theta_e: Floats, q: Floats, slope: Floats) -> Floats:
    """Radius of the circle in which the mean convergence of an elliptical power law is 1, arcsec.

    theta_e times P^(1 / t), with t = slope - 1 and P the mean of (q cos^2 + sin^2 / q)^(-t / 2) over all
    directions, which is the Legendre function of degree -t / 2 at (q + 1 / q) / 2 (Laplace's integral).
    """
    from scipy.special import hyp2f1

    t = slope - 1
    mean = hyp2f1(t / 2, 1 - t / 2, 1, -((1 - q) ** 2) / (4 * q))
    return np.asarray(theta_e * mean ** (1 / t))


def multipole_deflection(x: Tensor, y: Tensor, order: int, amplitude: Tensor, angle: Tensor) -> Field:
    """Multipole whose convergence is amplitude / (2 r) cos(order (phi - angle)), of order 2 or above.

    amplitude: arcsec; a times theta_e draws the contours of an isothermal sphere out by a share a towards `angle`.
    The circular multipole of Xu et al. 2015, arXiv:1307.4220, eq. B12, not the elliptical one. It depends on the
    direction alone, and has no mass.
    """
    cos, sin, radial, tangential = _multipole(x, y, order, amplitude, angle)
    return cos * radial - sin * tangential, sin * radial + cos * tangential


def multipole_potential(x: Tensor, y: Tensor, order: int, amplitude: Tensor, angle: Tensor) -> Tensor:
    """Multipole of the convergence; see `multipole_deflection`."""
    return torch.hypot(x, y) * _multipole(x, y, order, amplitude, angle)[2]


def multipole_convergence(x: Tensor, y: Tensor, order: int, amplitude: Tensor, angle: Tensor) -> Tensor:
    """Multipole of the convergence; see `multipole_deflection`."""
    phi = torch.atan2(y, x)
    return amplitude / 2 * torch.rsqrt(x * x + (y * y + TINY)) * torch.cos(order * (phi - angle))


def _multipole(x: Tensor, y: Tensor, order: int, amplitude: Tensor, angle: Tensor) -> tuple[Tensor, ...]:
    """Direction (cos, sin) of each position, and the radial and the tangential part of the deflection there."""
    phi = torch.atan2(y, x)
    scale, turned = amplitude / (1 - order**2), order * (phi - angle)
    return torch.cos(phi), torch.sin(phi), scale * torch.cos(turned), -order * scale * torch.sin(turned)
