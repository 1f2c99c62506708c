"""Reduced deflection of each kind of mass.

Conventions: positions and deflections are arcsec, as a pair of planes (x, y), each of a shape
that broadcasts to [b, h, w]; parameters are [b]; angles are radians, counter-clockwise from x.
Every deflection is the gradient of a lensing potential, so deflections add up.
"""

import torch
from torch import Tensor

Field = tuple[Tensor, Tensor]
"""A vector at every pixel: its x and its y component."""

TINY = 1e-12
"""The least (squared) distance, arcsec: keeps a mass on a pixel centre finite."""


def plane(parameter: Tensor) -> Tensor:
    """[b] -> [b, 1, 1], to meet planes of pixels."""
    return parameter[:, None, None]


def sis(x: Tensor, y: Tensor, theta_e: Tensor) -> Field:
    """Singular isothermal sphere at the origin.

    theta_e: Einstein radii, arcsec, >= 0. The deflection has length theta_e everywhere but at
    the origin, where it is 0. Source: Keeton 2001, arXiv:astro-ph/0102341, with his b as theta_e.
    """
    scale = plane(theta_e) * torch.rsqrt(x * x + y * y + TINY)
    return scale * x, scale * y


def external_shear(x: Tensor, y: Tensor, gamma: Tensor, angle: Tensor) -> Field:
    """External shear about the origin; a ring is drawn out along `angle`.

    gamma: strength, 0 <= gamma < 1. Source: Schneider, Kochanek & Wambsganss 2006, part 1,
    eq. 55, with gamma_1 = gamma cos 2 angle and gamma_2 = gamma sin 2 angle.
    """
    g1, g2 = plane(gamma * torch.cos(2 * angle)), plane(gamma * torch.sin(2 * angle))
    return g1 * x + g2 * y, g2 * x - g1 * y


def points(x: Tensor, y: Tensor, masses: Tensor) -> Field:
    """Point masses: the sum of theta_e^2 (x - x_i) / |x - x_i|^2.

    masses: [b, n, 3] of position x, position y and Einstein radius, arcsec; a radius of 0 adds
    exactly nothing, so rows of unequal number are padded with zeros. One mass at a time is
    added: a block [b, n, h, w] would not fit the processor's cache.
    """
    shape = torch.broadcast_shapes(x.shape, y.shape, (len(masses), 1, 1))  # type: ignore[no-untyped-call]
    alpha_x, alpha_y = masses.new_zeros(shape), masses.new_zeros(shape)
    for x_i, y_i, theta_e in masses.permute(1, 2, 0):
        dx, dy = x - plane(x_i), y - plane(y_i)
        weight = plane(theta_e * theta_e) / (dx * dx + (dy * dy + TINY))
        alpha_x.addcmul_(weight, dx)
        alpha_y.addcmul_(weight, dy)
    return alpha_x, alpha_y


def string(x: Tensor, y: Tensor, segment: Tensor) -> Field:
    """A straight uniform string, the continuous limit of point masses along a segment.

    segment: [b, 5] of centre x, centre y, angle, half-length (> 0) and the Einstein radius of
    its whole mass. With w = (z - z_c) e^(-i angle) and half-length L, the conjugate deflection
    is theta_e^2 e^(-i angle) / 2L log((w + L) / (w - L)), the integral of the point mass's
    theta_e^2 / (z - z_i) along the segment. It jumps by pi theta_e^2 / L across the string.
    """
    x_c, y_c, angle, half, theta_e = (plane(column) for column in segment.unbind(1))
    cos, sin = torch.cos(angle), torch.sin(angle)
    dx, dy = x - x_c, y - y_c
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    v = torch.where(v.abs() < TINY, TINY, v)
    scale = theta_e * theta_e / (2 * half)
    along = scale * 0.5 * torch.log(((u + half).square() + v * v) / ((u - half).square() + v * v))
    across = scale * (torch.atan((u + half) / v) - torch.atan((u - half) / v))
    return cos * along - sin * across, sin * along + cos * across
