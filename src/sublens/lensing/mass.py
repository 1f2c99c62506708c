"""Each kind of mass: lensing potential, reduced deflection and convergence.

Conventions: positions, Einstein radii and deflections are arcsec; angles are radians,
counter-clockwise from x. Positions are planes that broadcast to [b, h, w], parameters are
numbers or tensors that broadcast against them. Every deflection is the gradient of a
potential, so deflections add up; convergence is half its divergence. A function ending in
`_potential` gives arcsec^2, `_deflection` the x and y components, `_convergence` a number
without unit. Where a closed form is not elementary it is left out.
"""

import math
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sublens.lensing.compiled import Reals, compiled
from sublens.surveys.priors import Floats

Field = tuple[Tensor, Tensor]
"""A vector at every pixel: its x and its y component."""

TINY = cast(float, np.float32(1e-12))
"""Least squared distance, arcsec^2: keeps a mass on a pixel centre finite. In single precision, as
`add_points` would compute in double precision with anything else."""
ONE = np.float32(1)
ROUNDEST = 1 - 1e-9
"""Greatest axis ratio of an ellipsoid; its formulae divide by zero at 1."""


def sis_potential(x: Tensor, y: Tensor, theta_e: Tensor) -> Tensor:
    """Singular isothermal sphere at the origin; see `sis_deflection`."""
    return theta_e * torch.hypot(x, y)


def sis_deflection(x: Tensor, y: Tensor, theta_e: Tensor) -> Field:
    """Singular isothermal sphere at the origin.

    theta_e: Einstein radius, >= 0. The deflection has length theta_e everywhere but at the
    origin, where it is 0. Source: Keeton 2001, arXiv:astro-ph/0102341, with his b as theta_e.
    """
    scale = theta_e * torch.rsqrt(x * x + (y * y + TINY))
    return scale * x, scale * y


def sis_convergence(x: Tensor, y: Tensor, theta_e: Tensor) -> Tensor:
    """Singular isothermal sphere at the origin; see `sis_deflection`."""
    return theta_e / 2 * torch.rsqrt(x * x + (y * y + TINY))


def sie_potential(x: Tensor, y: Tensor, theta_e: Tensor, q: Tensor, angle: Tensor) -> Tensor:
    """Singular isothermal ellipsoid at the origin; see `sie_deflection`."""
    alpha_x, alpha_y = sie_deflection(x, y, theta_e, q, angle)
    return x * alpha_x + y * alpha_y


def sie_deflection(x: Tensor, y: Tensor, theta_e: Tensor, q: Tensor, angle: Tensor) -> Field:
    """Singular isothermal ellipsoid at the origin.

    theta_e: Einstein radius of the circle that holds as much mass as the critical ellipse.
    q: axis ratio of the convergence, 0 < q <= 1. angle: of the long axis. Source: Kormann,
    Schneider & Bartelmann 1994, A&A 284, 285, with the axes named as in Keeton 2001.
    """
    q = torch.clamp(torch.as_tensor(q, dtype=torch.float64), max=ROUNDEST)
    f = torch.sqrt((1 - q) * (1 + q))  # in double precision: q may be near 1
    scale, f, q = (theta_e * torch.sqrt(q) / f).to(x.dtype), f.to(x.dtype), q.to(x.dtype)
    u, v = _along_across(f * x, f * y, angle)
    across = v / f
    psi = torch.sqrt(torch.addcmul(across * across + TINY, (q / f) ** 2 * u, u))
    return _turned(torch.atan2(u, psi), torch.atanh(v / psi), (scale, scale), angle)


def sie_convergence(x: Tensor, y: Tensor, theta_e: Tensor, q: Tensor, angle: Tensor) -> Tensor:
    """Singular isothermal ellipsoid at the origin; see `sie_deflection`."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    u, v = cos * x + sin * y, cos * y - sin * x
    return theta_e / 2 * torch.rsqrt(q * u * u + v * v / q + TINY)


def sie_ring(theta_e: Floats, q: Floats) -> Floats:
    """Radius of the circle in which the mean convergence of a singular isothermal ellipsoid is 1, arcsec.

    Close to theta_e: the circle holds a little less than the ellipse of the same area, theta_e times
    2 sqrt(q) K(1 - q^2) / pi with the complete elliptic integral K; see `sie_deflection`.
    """
    from scipy.special import ellipkm1

    return np.asarray(theta_e * 2 / np.pi * np.sqrt(q) * ellipkm1(q * q))


def shear_potential(x: Tensor, y: Tensor, gamma: Tensor, angle: Tensor) -> Tensor:
    """External shear about the origin; see `shear_deflection`."""
    g1, g2 = gamma * torch.cos(2 * angle), gamma * torch.sin(2 * angle)
    return g1 / 2 * (x * x - y * y) + g2 * x * y


def shear_deflection(x: Tensor, y: Tensor, gamma: Tensor, angle: Tensor) -> Field:
    """External shear about the origin; a ring is drawn out along `angle`. It has no convergence.

    gamma: strength, 0 <= gamma < 1. Source: Schneider, Kochanek & Wambsganss 2006, part 1,
    eq. 55, with gamma_1 = gamma cos 2 angle and gamma_2 = gamma sin 2 angle.
    """
    g1, g2 = gamma * torch.cos(2 * angle), gamma * torch.sin(2 * angle)
    return g1 * x + g2 * y, g2 * x - g1 * y


def point_potential(x: Tensor, y: Tensor, x_0: Tensor, y_0: Tensor, theta_e: Tensor) -> Tensor:
    """Point mass at (x_0, y_0); see `point_deflection`."""
    dx, dy = x - x_0, y - y_0
    return theta_e * theta_e / 2 * torch.log(dx * dx + dy * dy + TINY)


def point_deflection(x: Tensor, y: Tensor, x_0: Tensor, y_0: Tensor, theta_e: Tensor) -> Field:
    """Point mass at (x_0, y_0): theta_e^2 over the distance, outwards.

    theta_e: Einstein radius; 0 adds exactly nothing. No convergence but at the point, where
    the deflection is 0. Plain arithmetic, so that `add_points` can use it number by number.
    Source: Schneider, Kochanek & Wambsganss 2006, part 1, eq. 20.
    """
    dx, dy = x - x_0, y - y_0
    weight = theta_e * theta_e / (dx * dx + (dy * dy + TINY))
    return weight * dx, weight * dy


_compiled_point_deflection = compiled(point_deflection)


@compiled
def add_points(
    axis_x: Reals, axis_y: Reals, masses: Reals, ends: NDArray[np.int64], alpha_x: Reals, alpha_y: Reals
) -> None:
    """Add the deflection of point masses to alpha_x and alpha_y, [b, h, w].

    axis_x [w], axis_y [h]: pixel positions. masses: [n, 3] of x, y and Einstein radius, in the
    order of the images; those of image b end before ends[b].
    """
    start = 0
    for b in range(alpha_x.shape[0]):
        for row in range(alpha_x.shape[1]):
            row_x, row_y = alpha_x[b, row], alpha_y[b, row]
            for i in range(start, ends[b]):
                x_0, y_0, theta_e = masses[i, 0], masses[i, 1], masses[i, 2]
                for column in range(alpha_x.shape[2]):  # innermost, so that it is vectorised
                    dx, dy = _compiled_point_deflection(axis_x[column], axis_y[row], x_0, y_0, theta_e)
                    row_x[column] += dx
                    row_y[column] += dy
        start = ends[b]


def sphere_in_shear(x: Tensor, y: Tensor, theta_e: Tensor, gamma: Tensor, angle: Tensor) -> Field:
    """Sum of `sis_deflection` and `shear_deflection` on a grid of axes x [1, 1, w], y [1, h, 1], to the last bit.

    The parameters are [b, 1, 1]. No gradients.
    """
    parameters = torch.cat([theta_e, gamma * torch.cos(2 * angle), gamma * torch.sin(2 * angle)], dim=2)[:, 0]
    alpha = torch.empty(2, len(parameters), y.shape[1], x.shape[2], dtype=x.dtype)
    _fill_sphere_in_shear(x[0, 0].numpy(), y[0, :, 0].numpy(), parameters.numpy(), alpha[0].numpy(), alpha[1].numpy())
    return alpha[0], alpha[1]


@compiled
def _fill_sphere_in_shear(axis_x: Reals, axis_y: Reals, parameters: Reals, alpha_x: Reals, alpha_y: Reals) -> None:
    for b in range(len(parameters)):
        theta_e, g1, g2 = parameters[b, 0], parameters[b, 1], parameters[b, 2]
        for row in range(len(axis_y)):
            y = axis_y[row]
            y2, across, along = y * y + TINY, g2 * y, g1 * y
            for column in range(len(axis_x)):
                x = axis_x[column]
                scale = theta_e * (ONE / np.sqrt(x * x + y2))
                alpha_x[b, row, column] = scale * x + (g1 * x + across)
                alpha_y[b, row, column] = scale * y + (g2 * x - along)


def nfw_potential(x: Tensor, y: Tensor, x_0: Tensor, y_0: Tensor, alpha_rs: Tensor, r_s: Tensor) -> Tensor:
    """NFW halo at (x_0, y_0), 0 at its centre; see `nfw_deflection`."""
    t = torch.sqrt((x - x_0) ** 2 + ((y - y_0) ** 2 + TINY)) / r_s
    log_half = torch.log(t / 2)
    inner = torch.arccosh(1 / t.clamp(max=1)) ** 2
    outer = torch.arccos(1 / t.clamp(min=1)) ** 2
    h = log_half**2 + torch.where(t < 1, -inner, outer)
    return alpha_rs * r_s / (2 * (1 - math.log(2))) * h


def nfw_deflection(x: Tensor, y: Tensor, x_0: Tensor, y_0: Tensor, alpha_rs: Tensor, r_s: Tensor) -> Field:
    """NFW halo at (x_0, y_0).

    r_s: scale radius. alpha_rs: deflection there, arcsec, >= 0. With t = r / r_s the length is
    alpha_rs / (1 - ln 2) g(t) / t and g = ln(t/2) + F(t), F as in `_nfw_f`.
    Source: Wright & Brainerd 2000, ApJ 534, 34, eq. 13; Golse & Kneib 2002, eq. 7.
    """
    dx, dy = x - x_0, y - y_0
    t2 = (dx * dx + (dy * dy + TINY)) / (r_s * r_s)
    t = torch.sqrt(t2)
    g = torch.where(t < SMALL, _nfw_g_near(t), torch.log(t / 2) + _nfw_f(t))
    weight = alpha_rs / ((1 - math.log(2)) * r_s) * g / t2
    return weight * dx, weight * dy


def nfw_convergence(x: Tensor, y: Tensor, x_0: Tensor, y_0: Tensor, alpha_rs: Tensor, r_s: Tensor) -> Tensor:
    """NFW halo at (x_0, y_0), infinite at its centre; see `nfw_deflection`."""
    t = torch.sqrt((x - x_0) ** 2 + ((y - y_0) ** 2 + TINY)) / r_s
    t = torch.where((t - 1).abs() < NEAR_ONE, 1 + NEAR_ONE, t)  # 0/0 at 1, where the limit is 1/3
    return alpha_rs / (2 * (1 - math.log(2)) * r_s) * (1 - _nfw_f(t)) / (t * t - 1)


SMALL = 1e-2
"""Radius over the scale radius below which a series is used: the closed form cancels there."""
NEAR_ONE = 1e-5
"""Distance of r / r_s from 1 below which convergences are evaluated at 1 + NEAR_ONE: they are 0/0 at 1."""


def _nfw_f(t: Tensor) -> Tensor:
    """arccosh(1/t) / sqrt(1 - t^2) inside the scale radius, arccos(1/t) / sqrt(t^2 - 1) outside."""
    inside, outside = t.clamp(max=1 - 1e-7), t.clamp(min=1 + 1e-7)
    near = torch.log((1 + torch.sqrt((1 - inside) * (1 + inside))) / inside) / torch.sqrt((1 - inside) * (1 + inside))
    far = torch.atan2(torch.sqrt((outside - 1) * (outside + 1)), torch.ones_like(outside)) / torch.sqrt(
        (outside - 1) * (outside + 1)
    )
    return torch.where(t < 1, near, far)


def _nfw_g_near(t: Tensor) -> Tensor:
    """ln(t/2) + F(t) for t below `SMALL`, to a relative 1e-8: the terms up to t^4 of its series."""
    t2, log_2 = t * t, torch.log(2 / t)
    return t2 * ((2 * log_2 - 1) / 4 + t2 * (12 * log_2 - 7) / 32)


def tnfw_deflection(
    x: Tensor, y: Tensor, x_0: Tensor, y_0: Tensor, alpha_rs: Tensor, r_s: Tensor, r_t: Tensor
) -> Field:
    """NFW halo at (x_0, y_0) whose density is truncated by r_t^2 / (r^2 + r_t^2).

    r_t: truncation radius. alpha_rs: deflection at r_s of the same halo without truncation.
    Source: Baltz, Marshall & Oguri 2009, arXiv:0705.0682, eqs. A.8 and A.11, with their n = 1.
    """
    dx, dy = x - x_0, y - y_0
    t2 = (dx * dx + (dy * dy + TINY)) / (r_s * r_s)
    weight = alpha_rs / ((1 - math.log(2)) * r_s) * _tnfw_mass(torch.sqrt(t2), r_t / r_s) / t2
    return weight * dx, weight * dy


def tnfw_convergence(
    x: Tensor, y: Tensor, x_0: Tensor, y_0: Tensor, alpha_rs: Tensor, r_s: Tensor, r_t: Tensor
) -> Tensor:
    """Truncated NFW halo at (x_0, y_0); see `tnfw_deflection`."""
    t = torch.sqrt((x - x_0) ** 2 + ((y - y_0) ** 2 + TINY)) / r_s
    t = torch.where((t - 1).abs() < NEAR_ONE, 1 + NEAR_ONE, t)
    tau = r_t / r_s
    tau2, t2, f = tau * tau, t * t, _nfw_f(t)
    root = torch.sqrt(tau2 + t2)
    log_term = torch.log(t / (root + tau))
    bracket = (tau2 + 1) / (t2 - 1) * (1 - f) + 2 * f - math.pi / root + (tau2 - 1) / (tau * root) * log_term
    return alpha_rs / (2 * (1 - math.log(2)) * r_s) * tau2 / (tau2 + 1) ** 2 * bracket


def _tnfw_mass(t: Tensor, tau: Tensor) -> Tensor:
    """Mass inside the projected radius t r_s over 4 pi rho_s r_s^3, truncated at tau r_s."""
    tau2, t2 = tau * tau, t * t
    root = torch.sqrt(tau2 + t2)
    return (
        tau2
        / (tau2 + 1) ** 2
        * (
            (tau2 + 2 * t2 - 1) * _nfw_f(t)
            + tau * math.pi
            + (tau2 - 1) * torch.log(tau)
            + root * (-math.pi + (tau2 - 1) / tau * torch.log(t / (root + tau)))
        )
    )


def tnfw_share(tau: Floats, concentration: Floats) -> Floats:
    """Whole mass of a truncated NFW halo over the M200 that it has without truncation.

    tau: truncation radius over the scale radius. concentration: r_200 over the scale radius. Source: Baltz,
    Marshall & Oguri 2009, arXiv:0705.0682, eq. A.4.
    """
    tau2 = tau * tau
    whole = tau2 / (tau2 + 1) ** 2 * ((tau2 - 1) * np.log(tau) + tau * np.pi - (tau2 + 1))
    return np.asarray(whole / (np.log1p(concentration) - concentration / (1 + concentration)))


def string_potential(
    x: Tensor, y: Tensor, x_0: Tensor, y_0: Tensor, angle: Tensor, half: Tensor, theta_e: Tensor
) -> Tensor:
    """Straight uniform string; see `string_deflection`. The integral of the point's potential."""
    u, v = _along_across(x - x_0, y - y_0, angle)
    total = -2 * half * torch.ones_like(u)
    for end, sign in ((half, 1), (-half, -1)):
        total = total + sign * ((u + end) * torch.log((u + end) ** 2 + (v * v + TINY)) / 2)
    total = total + v * torch.atan2(2 * half * v, (u + half) * (u - half) + v * v)
    return theta_e * theta_e / (2 * half) * total


def string_deflection(
    x: Tensor, y: Tensor, x_0: Tensor, y_0: Tensor, angle: Tensor, half: Tensor, theta_e: Tensor
) -> Field:
    """A straight uniform string, the continuous limit of point masses along a segment.

    x_0, y_0: its middle. half: half of its length, > 0. theta_e: Einstein radius of its whole
    mass. With w = (z - z_0) e^(-i angle), the conjugate deflection is theta_e^2 e^(-i angle)
    / 2 half log((w + half) / (w - half)): the integral of the point's theta_e^2 / (z - z_i)
    along the segment. It jumps by pi theta_e^2 / half across the string, and has no convergence
    elsewhere. The imaginary part is the angle that the string subtends.
    """
    u, v = _along_across(x - x_0, y - y_0, angle)
    left, right = u + half, u - half
    v2 = v * v + TINY
    log_ratio = torch.log(torch.addcmul(v2, left, left) / torch.addcmul(v2, right, right))
    subtended = torch.atan2((2 * half) * v, torch.addcmul(v2, left, right))
    scale = theta_e * theta_e / (2 * half)
    return _turned(log_ratio, subtended, (scale / 2, scale), angle)


def _along_across(x: Tensor, y: Tensor, angle: Tensor) -> Field:
    """The components of (x, y) along a direction and across it."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _turned(along: Tensor, across: Tensor, scales: Field, angle: Tensor) -> Field:
    """The x and y components of a vector of these components, each times its scale."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    x = torch.addcmul((scales[0] * cos) * along, -scales[1] * sin, across)
    return x, torch.addcmul((scales[0] * sin) * along, scales[1] * cos, across)
