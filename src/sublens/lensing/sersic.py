"""Surface brightness of Sersic profiles.

Positions are arcsec; parameters broadcast against them.
"""

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sublens.lensing.compiled import Reals, compiled, contracted
from sublens.lensing.mass import TINY
from sublens.surveys.priors import Floats

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
    boxiness: Tensor | None = None,
) -> Tensor:
    """Elliptical Sersic profile at the positions x, y from its centre.

    q: axis ratio, 0 < q <= 1. angle: of the long axis. n: index. The radius is
    circularised, r^2 = q u^2 + v^2 / q with u along the long axis. intensity: the result at r_eff. boxiness: see
    `boxed`. Source: Sersic 1963, as written by Graham & Driver 2005, arXiv:astro-ph/0503176, eq. 1.
    """
    cos, sin = torch.cos(angle) / r_eff, torch.sin(angle) / r_eff
    stretch, b = torch.sqrt(q), sersic_b(n)
    turn = stretch * cos, stretch * sin, -sin / stretch, cos / stretch
    r2 = _squared_radius(x, y, turn) if boxiness is None else boxed(x, y, turn, boxiness)
    # exp(log r / n), not r ** (1 / n): torch's pow depends on a pixel's place in the batch, in the last bit.
    steep = (torch.log(r2) * (0.5 / n)).exp_()
    return torch.addcmul(torch.log(intensity) + b, -b, steep).exp_()


def boxed(x: Tensor, y: Tensor, turn: tuple[Tensor, Tensor, Tensor, Tensor], boxiness: Tensor) -> Tensor:
    """The square of the elliptical radius of the isophote through (x, y), whose shape departs from an ellipse.

    boxiness: -a4 / a, where the isophote's radius is 1 + (a4 / a) cos 4t times the ellipse's in the direction t,
    counted in the plane in which the ellipse is a circle; to the first order, to which the total light stays.
    Source: Bender, Doebereiner & Moellenhoff 1988, A&AS 74, 385, for the sign and the sizes of a4 / a.
    """
    u, v = turn[0] * x + turn[1] * y, turn[2] * x + turn[3] * y
    u2, v2 = u * u, v * v
    r2 = u2 + v2
    return r2 * (1 + 2 * boxiness * (1 - 8 * u2 * v2 / (r2 * r2 + TINY * TINY)))


def _squared_radius(x: Tensor, y: Tensor, turn: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """The square of the length of (x, y) multiplied by a matrix, row by row."""
    if x.device.type == "cpu" and not x.requires_grad and x.ndim == 3 and x.shape == y.shape:
        r2 = torch.empty_like(x)
        matrices = torch.cat([entry.expand(len(x), 1, 1) for entry in turn], dim=2)[:, 0].to(x.dtype)
        _add_squares(x.numpy(), y.numpy(), matrices.numpy(), r2.numpy())
        return r2
    u = torch.addcmul(turn[0] * x, turn[1], y)
    v = torch.addcmul(turn[3] * y, turn[2], x)
    return torch.addcmul(u * u, v, v)


@contracted
def _times_added(total: Any, factor: Any, other: Any) -> Any:
    """The sum of a number and a product, rounded once."""
    return total + factor * other


@compiled
def _add_squares(x: Reals, y: Reals, matrices: Reals, r2: Reals) -> None:
    """Set r2 [b, h, w] to the squared length of (x, y) multiplied by each image's matrix [b, 4], as torch rounds it."""
    for b in range(len(x)):
        ux, uy, vx, vy = matrices[b, 0], matrices[b, 1], matrices[b, 2], matrices[b, 3]
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                u = _times_added(ux * x[b, row, column], uy, y[b, row, column])
                v = _times_added(vy * y[b, row, column], vx, x[b, row, column])
                r2[b, row, column] = _times_added(u * u, v, v)
