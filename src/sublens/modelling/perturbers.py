"""What may bend light beside the smooth lens: one subhalo, or the string of one vortex.

Priors are as wide as the populations of `hst-acs`; masses count by the deflection that they cause, which needs no
redshift.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sublens.lensing.compiled import Reals
from sublens.lensing.mass import string_deflection
from sublens.modelling.smooth_lens import planes_of, scalar

Floats = NDArray[np.float64]


class Perturber(NamedTuple):
    """A kind of substructure with a handful of parameters, of which the first two are its place x and y, arcsec."""

    deflection: Callable[[Floats, Floats, Floats], Reals]
    """From parameters [k] and places x, y [n, n] to the deflection there, arcsec, [2, n, n]."""
    prior: Callable[[float], tuple[Floats, Floats]]
    """From the Einstein radius of the lens, arcsec, to means and standard deviations of the parameters, [k] each; the
    place counts from the lens' centre."""
    starts: Callable[[float], Floats]
    """From that radius to parameters that a search begins with, [m, k]; places count from the lens' centre."""
    mass_share: Callable[[Floats, float], float]
    """From parameters and that radius to the share of the mass within the ring that the substructure takes over."""
    steps: Floats
    """Half of the steps over which derivatives are taken, [k]."""

    def derivatives(self, parameters: Floats, x: Floats, y: Floats) -> Reals:
        """Derivatives of the deflection by each parameter, [k, 2, n, n]."""
        planes = []
        for offset in np.diag(self.steps):
            ahead, behind = (self.deflection(parameters + side * offset, x, y) for side in (1, -1))
            planes.append((ahead - behind) / (2 * offset.sum()))
        return np.stack(planes).astype(np.float32)


RINGS, PLACES = (0.85, 1.0, 1.15), 20
"""Einstein radii at which subhaloes are looked for, and how many places on each."""
LOG_STRENGTH, LOG_SIZE = (float(np.log(0.04)), 0.9), (float(np.log(0.3)), 0.6)
"""Means and standard deviations of ln b and ln a, arcsec."""
STRINGS, STRING_SEED = 120, 1
"""Number of strings that are looked for, and the seed that they are drawn by."""
LOG_SHARE, HALF_LENGTH, LEAST_HALF = (float(np.log(0.06)), 0.45), (1.25, 0.5), 0.2
"""Means and standard deviations of ln of a string's share of the mass within the ring, and of half its length, arcsec;
and the least half length."""
OFFSET = 0.3
"""Standard deviation of a string's middle from the lens' centre along either axis, arcsec."""
ANYWHERE = 9.0
"""Standard deviation, arcsec or radians, of what may be anywhere."""


def _subhalo_deflection(parameters: Floats, x: Floats, y: Floats) -> Reals:
    """b (r + a - sqrt(r^2 + a^2)) / r away from a truncated isothermal sphere; x, y, ln b, ln a (Jaffe 1983)."""
    dx, dy, (strength, size) = x - parameters[0], y - parameters[1], np.exp(parameters[2:])
    r = np.sqrt(dx * dx + dy * dy + 1e-6)
    over_r = strength * (r + size - np.sqrt(r * r + size * size)) / (r * r)
    return np.stack([over_r * dx, over_r * dy]).astype(np.float32)


def _subhalo_prior(theta_e: float) -> tuple[Floats, Floats]:
    means, sigmas = zip((0.0, ANYWHERE), (0.0, ANYWHERE), LOG_STRENGTH, LOG_SIZE, strict=True)
    return np.array(means), np.array(sigmas)


def _subhalo_starts(theta_e: float) -> Floats:
    starts = []
    for number, ring in enumerate(RINGS):
        angle = 2 * np.pi * (np.arange(PLACES) + number / len(RINGS)) / PLACES
        place = ring * theta_e * np.stack([np.cos(angle), np.sin(angle)])
        starts.append(np.stack([*place, *np.broadcast_to([[LOG_STRENGTH[0]], [LOG_SIZE[0]]], (2, PLACES))], axis=1))
    return np.concatenate(starts)


def _string_deflection(parameters: Floats, x: Floats, y: Floats) -> Reals:
    """x, y, angle, half of its length, ln of the squared Einstein radius of all its mass."""
    points = (torch.from_numpy(np.ascontiguousarray(plane))[None] for plane in (x, y))
    half, theta_e = max(float(parameters[3]), LEAST_HALF), float(np.exp(parameters[4] / 2))
    field = string_deflection(*points, *map(scalar, (*parameters[:3], half, theta_e)))
    return planes_of(field).astype(np.float32)


def _string_prior(theta_e: float) -> tuple[Floats, Floats]:
    log_strength = LOG_SHARE[0] + 2 * np.log(theta_e), LOG_SHARE[1]
    means, sigmas = zip((0.0, OFFSET), (0.0, OFFSET), (0.0, ANYWHERE), HALF_LENGTH, log_strength, strict=True)
    return np.array(means), np.array(sigmas)


def _string_starts(theta_e: float) -> Floats:
    rng, (means, sigmas) = np.random.default_rng(STRING_SEED), _string_prior(theta_e)
    starts = rng.normal(means, sigmas, (STRINGS, len(means)))
    starts[:, 2], starts[:, 3] = rng.uniform(0, np.pi, STRINGS), rng.uniform(0.5, 2, STRINGS)
    return starts


SUBHALO = Perturber(
    deflection=_subhalo_deflection,
    prior=_subhalo_prior,
    starts=_subhalo_starts,
    mass_share=lambda parameters, theta_e: 0.0,
    steps=np.array([0.01, 0.01, 0.05, 0.05]),
)
STRING = Perturber(
    deflection=_string_deflection,
    prior=_string_prior,
    starts=_string_starts,
    mass_share=lambda parameters, theta_e: float(np.exp(parameters[4]) / theta_e**2),
    steps=np.array([0.01, 0.01, 0.02, 0.02, 0.05]),
)
PERTURBERS = {"string": STRING, "subhalo": SUBHALO}
"""All that is looked for, in this order."""
