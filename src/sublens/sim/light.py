"""Surface brightness. Positions are arcsec; parameters broadcast against them."""

from functools import cache
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sublens.sim.survey import Floats, PixelatedSource

Real = TypeVar("Real", Floats, Tensor)


def sersic_b(n: Real) -> Real:
    """b_n, which puts half of a Sersic profile's light inside its effective radius.

    Source: Ciotti & Bertin 1999, arXiv:astro-ph/9911078, eq. 18. Its relative error
    is 2e-4 at n = 0.6, 2e-5 at 1 and 1e-6 from 2 on.
    """
    series = (-2194697 / 30690717750, 131 / 1148175, 46 / 25515, 4 / 405)
    total = 0 * n
    for term in series:
        total = (total + term) / n
    return total + (2 * n - 1 / 3)


def sersic_total(n: Floats, r_eff: Floats) -> Floats:
    """All light of a Sersic profile over its intensity at r_eff, in the square of r_eff's unit.

    Source: Graham & Driver 2005, arXiv:astro-ph/0503176, eq. 4 with x to infinity; with a
    circularised r_eff it holds for every axis ratio.
    """
    from scipy.special import gamma

    b = sersic_b(n)
    return np.asarray(r_eff**2 * 2 * np.pi * n * np.exp(b) * b ** (-2 * n) * gamma(2 * n))


def sersic(
    x: Tensor,
    y: Tensor,
    *,
    q: Tensor,
    angle: Tensor,
    n: Tensor,
    r_eff: Tensor,
    intensity: Tensor,
) -> Tensor:
    """Elliptical Sersic profile at the positions x, y from its centre.

    q: axis ratio, 0 < q <= 1. angle: of the long axis. n: index. The radius is
    circularised, r^2 = q u^2 + v^2 / q with u along the long axis. intensity: the result at r_eff.
    Source: Sersic 1963, as written by Graham & Driver 2005, arXiv:astro-ph/0503176, eq. 1.
    """
    cos, sin = torch.cos(angle) / r_eff, torch.sin(angle) / r_eff
    stretch, b = torch.sqrt(q), sersic_b(n)
    u = torch.addcmul((stretch * cos) * x, stretch * sin, y)
    v = torch.addcmul((cos / stretch) * y, -sin / stretch, x)
    # exp(log r / n), not r ** (1 / n): torch's pow depends on a pixel's place in the batch, in the last bit.
    steep = torch.exp(torch.log(torch.addcmul(u * u, v, v)) * (0.5 / n))
    return torch.exp(torch.addcmul(torch.log(intensity) + b, -b, steep))


@cache
def picture(source: PixelatedSource) -> Tensor:
    """A pixelated source's pixels [h, w] in double precision, the brightest 1."""
    pixels = source.pixels()
    return torch.from_numpy(pixels / pixels.max())


def pixelated(x: Tensor, y: Tensor, pixels: Tensor, *, scale: float, angle: Tensor, intensity: Tensor) -> Tensor:
    """A picture as the source, linear between its pixels and dark outside.

    x, y: positions from its middle, [b, h, w]. pixels: [h, w], rows along y; the x axis lies along
    `angle`. scale: arcsec a pixel. intensity: of a pixel that is 1.
    """
    cos, sin = torch.cos(angle), torch.sin(angle)
    height, width = pixels.shape
    u = (cos * x + sin * y) * (2 / (scale * (width - 1)))
    v = (cos * y - sin * x) * (2 / (scale * (height - 1)))
    grid = torch.stack([u, v], dim=-1)
    stack = pixels.to(x).expand(len(grid), 1, -1, -1)
    inside = (grid.abs() <= 1).all(dim=-1)  # grid_sample would fade over half a pixel more
    return intensity * F.grid_sample(stack, grid, align_corners=True)[:, 0] * inside
