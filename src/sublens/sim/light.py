"""Surface brightness of sources. Positions are source-plane arcsec; parameters are [b]."""

import torch
from torch import Tensor

from sublens.sim.mass import plane


def sersic_b(n: float) -> float:
    """b_n, which puts half of a Sersic profile's light inside its effective radius.

    Source: Ciotti & Bertin 1999, arXiv:astro-ph/9911078, eq. 18; good to 1e-6 for n > 0.5.
    """
    series = (2, -1 / 3, 4 / 405, 46 / 25515, 131 / 1148175, -2194697 / 30690717750)
    return sum(term * n ** (1 - power) for power, term in enumerate(series))


def sersic(x: Tensor, y: Tensor, source: Tensor, *, n: float, r_eff: float, intensity: float) -> Tensor:
    """Elliptical Sersic profile at the positions x, y [b, h, w].

    source: [b, 4] of centre x, centre y, axis ratio q (0 < q <= 1) and position angle of the
    long axis. The radius is circularised, r^2 = q u^2 + v^2 / q with u along the long axis.
    r_eff: arcsec. intensity: counts at r_eff. Returns counts, [b, h, w].
    Source: Sersic 1963, as written by Graham & Driver 2005, arXiv:astro-ph/0503176, eq. 1.
    """
    x_s, y_s, q, angle = (plane(column) for column in source.unbind(1))
    cos, sin = torch.cos(angle), torch.sin(angle)
    dx, dy = x - x_s, y - y_s
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    log_radius = 0.5 * torch.log((q * u * u + v * v / q) / r_eff**2)
    # exp(log r / n), not r ** (1 / n): torch's pow depends on a pixel's place in the batch, in the last bit.
    return intensity * torch.exp(-sersic_b(n) * (torch.exp(log_radius / n) - 1))
