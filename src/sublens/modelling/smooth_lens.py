"""The smooth lens of a fit: a power law, multipoles and shear.

Parameters, in this order: ln theta_e (arcsec), e1 and e2 as in `models.macro`, the centre x and y (arcsec), the shear's
two components, and the two of each multipole, m = 3 then 4, over theta_e. Deflections are linear in the last six. The
density slope stands apart, since no descent may choose it.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sublens.lensing import power_law
from sublens.lensing.compiled import Reals
from sublens.lensing.mass import Field

Floats = NDArray[np.float64]

N_PARAMETERS = 11
LOG_THETA_E, E1, E2, X, Y, SHEAR = 0, 1, 2, 3, 4, 5
ORDERS = 3, 4
"""Orders of the multipoles."""
SLOPE = 2.05
"""Mean of the density slope, which one image hardly tells: near the mean of SLACS, 2.08 (Auger et al. 2010,
arXiv:1007.2880), and the 2 of the isothermal models that are published."""
SLOPE_SIGMA = 0.16
"""Scatter of the slope, that of Auger et al."""
SIGMAS = np.array([np.nan, np.nan, np.nan, 0.03, 0.03, 0.05, 0.05, 0.007, 0.007, 0.008, 0.008])
"""Standard deviations of the parameters before a fit, around 0, of the centre around that of the light; those that
are not numbers depend on what is known of the lens."""
LARGEST_E = 0.6
"""Greatest (1 - q) / (1 + q)."""
STEP = 4e-3
"""Half of the step over which derivatives are taken, of the parameters' own units."""
_TERMS = power_law.n_terms((1 - LARGEST_E) / (1 + LARGEST_E), 1e-5)


def shape(parameters: Floats) -> tuple[float, float, float]:
    """Einstein radius, arcsec, axis ratio and position angle, radians."""
    e1, e2 = parameters[E1 : E2 + 1]
    e = min(np.hypot(e1, e2), LARGEST_E)
    return float(np.exp(parameters[LOG_THETA_E])), float((1 - e) / (1 + e)), float(np.arctan2(e2, e1) / 2)


def deflection(parameters: Floats, slope: float, x: Reals, y: Reals) -> Reals:
    """Deflection at places x, y [n, n], arcsec, [2, n, n]."""
    linear = parameters[SHEAR:]
    total = _halo(parameters, slope, x, y)
    for number in map(int, np.flatnonzero(linear)):
        total = total + linear[number] * _linear(parameters, number, x, y)
    return total.astype(np.float32)


def derivatives(parameters: Floats, slope: float, x: Reals, y: Reals) -> Reals:
    """Derivatives of the deflection by each parameter, [N_PARAMETERS, 2, n, n]."""
    planes = [(slope - 1) * _halo(parameters, slope, x, y)]
    for number in (E1, E2, X, Y):
        ahead, behind = parameters.copy(), parameters.copy()
        ahead[number] += STEP
        behind[number] -= STEP
        planes.append((_halo(ahead, slope, x, y) - _halo(behind, slope, x, y)) / (2 * STEP))
    planes += [_linear(parameters, number, x, y) for number in range(N_PARAMETERS - SHEAR)]
    return np.stack(planes).astype(np.float32)


def _halo(parameters: Floats, slope: float, x: Reals, y: Reals) -> Reals:
    theta_e, q, angle = shape(parameters)
    dx, dy = _from_centre(parameters, x, y)
    numbers = scalar(theta_e), scalar(q), scalar(angle), scalar(slope)
    return planes_of(power_law.power_law_deflection(dx, dy, *numbers, _TERMS))


def _linear(parameters: Floats, number: int, x: Reals, y: Reals) -> Reals:
    """Deflection by one of the parameters from the shear on, where it is 1."""
    if number < 2:
        return np.stack([x, -y] if number == 0 else [y, x])
    order, turn = ORDERS[(number - 2) // 2], number % 2 * np.pi / 2
    theta_e, (dx, dy) = float(np.exp(parameters[LOG_THETA_E])), _from_centre(parameters, x, y)
    return planes_of(power_law.multipole_deflection(dx, dy, order, scalar(theta_e), scalar(turn / order)))


def _from_centre(parameters: Floats, x: Reals, y: Reals) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(x - parameters[X])[None], torch.from_numpy(y - parameters[Y])[None]


def scalar(value: float) -> Tensor:
    """A number as the lens models take it, for any number of places."""
    return torch.full((1, 1, 1), value, dtype=torch.float64)


def planes_of(field: Field) -> Reals:
    """The two components of a deflection [1, n, n] as one array, [2, n, n]."""
    return np.concatenate([plane.numpy() for plane in field])
