"""Numbers that compiled loops compute deflections from: a general halo's series, and tables of extended subhaloes.

The mass of a subhalo inside a radius is looked up by the exponent and the first bits of the mantissa of the squared
radius, which takes no logarithm, and is linear between entries.
"""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from sublens.lensing import mass
from sublens.lensing.compiled import Single
from sublens.lensing.power_law import n_terms
from sublens.surveys.mass import Subhaloes
from sublens.surveys.priors import Floats

GENERAL = ("halo_x", "halo_y", "halo_power", "power_scale", "cos_3", "sin_3", "cos_4", "sin_4")
"""Columns of `rays.RAYS` for a general halo: its centre; the power of the squared elliptical radius that its deflection
goes with, and its scale; and the multipoles' amplitudes, arcsec, along and across its long axis."""
SINGLE = 1e-8
"""Relative size of a term at which a series in single precision ends."""
FIRST_OCTAVE, LAST_OCTAVE, FRACTION_BITS = -24, 26, 4
"""Powers of two that the squared radius over the scale radius reaches from and to, and bits of its mantissa
that count: 16 entries an octave."""
LEAST_T2, MOST_T2 = Single(2**FIRST_OCTAVE), Single(2**LAST_OCTAVE)
"""Squared radii over the scale radius between which an extended subhalo's table is looked up."""
LEAST_BITS, SHARE_BITS = LEAST_T2.view(np.int32), np.uint32(23 - FRACTION_BITS)
SHARE_MASK, PER_SHARE = np.int32(2 ** (23 - FRACTION_BITS) - 1), Single(2.0 ** (FRACTION_BITS - 23))
"""Bits of the mantissa that say how far a radius is from an entry to the next, and the unit of this number."""
TAU_STEP = 0.03
"""Step of the logarithm of the truncation radius over the scale radius between two tabulated haloes."""


def fill_general(rays: NDArray[np.void], scenes: NDArray[np.void], extra: NDArray[np.void]) -> None:
    """Fill in the columns `GENERAL` of these scenes; extra: as `Truth.extra`."""
    t, q = extra["slope"] - 1, scenes["halo_q"]
    rays["halo_x"], rays["halo_y"], rays["halo_power"] = extra["halo_x"], extra["halo_y"], (1 - t) / 2
    rays["power_scale"] = 2 / (1 + q) * (scenes["halo_theta_e"] * np.sqrt(q)) ** t
    for order in (3, 4):
        amplitude = extra[f"m{order}"] * scenes["theta_e"] / (1 - order**2)
        turn = order * (extra[f"m{order}_angle"] - scenes["halo_angle"])
        rays[f"cos_{order}"], rays[f"sin_{order}"] = amplitude * np.cos(turn), amplitude * np.sin(turn)


def power_law_series(q: float, slope: float) -> NDArray[np.float32]:
    """Coefficients of the powers of exp(2i phi) from 1 on in `power_law.power_law_deflection`, [1, terms].

    The number of terms is a multiple of 4, by which compiled loops take them.
    """
    t, f, n = slope - 1, (1 - q) / (1 + q), np.arange(1, 1 + 4 * -(-n_terms(q, SINGLE) // 4))
    return np.asarray(np.cumprod(-f * (2 * n - 2 + t) / (2 * n + 2 - t)), np.float32)[None]


@cache
def weights_between(parts: int) -> NDArray[np.float32]:
    """Weights of five pixels in a row of which the quartic through them takes its values at parts of the middle one.

    [parts, 5], after Lagrange; at the middles of the parts.
    """
    nodes, places = np.arange(-2.0, 3), (np.arange(parts) + 0.5) / parts - 0.5
    factors = [[(places - other) / (node - other) for other in nodes if other != node] for node in nodes]
    return np.asarray(np.prod(factors, axis=1).T, np.float32, order="C")


def masses_inside(subhaloes: NDArray[np.void], settings: Subhaloes) -> NDArray[np.float32]:
    """Mass of each extended subhalo inside a radius, in the unit of `mass.tnfw_deflection`, [k, entries].

    Between truncations that are tabulated the mass is linear in their logarithm.
    """
    if not len(subhaloes):
        return np.zeros((0, 2), np.float32)
    if settings.truncation is None:
        return np.broadcast_to(_nfw_masses(), (len(subhaloes), len(_nfw_masses())))
    known, masses = _tnfw_masses(settings.truncation.low, settings.truncation.high)
    place = np.interp(np.log(subhaloes["r_t"] / subhaloes["r_s"]), known, np.arange(len(known)))
    below = np.minimum(place.astype(np.int64), len(known) - 2)
    share = (place - below).astype(np.float32)[:, None]
    return np.asarray(masses[below] * (1 - share) + masses[below + 1] * share)


def _squared_radii() -> torch.Tensor:
    """Squared radii over the scale radius at the entries of a table, in double precision."""
    n = 1 << FRACTION_BITS
    entry = torch.arange((LAST_OCTAVE - FIRST_OCTAVE) * n + 2, dtype=torch.float64)
    octave = torch.floor(entry / n)
    return torch.exp2(octave + FIRST_OCTAVE) * (1 + entry / n - octave)


AS_POINT = 5e-6
"""Error of a deflection below which an extended subhalo is a point, arcsec."""


def reach(subhaloes: NDArray[np.void]) -> Floats:
    """Radius from which on each extended subhalo is a point, arcsec, [k]; infinite without truncation.

    The density is below what it tends to far out, rho_s r_s^3 r_t^2 / r^5. So the mass outside a radius r deflects
    by less than alpha_rs r_s r_t^2 / (3 (1 - log 2) r^3).
    """
    per_r3 = subhaloes["alpha_rs"] * subhaloes["r_s"] * subhaloes["r_t"] ** 2 / (3 * (1 - np.log(2)) * AS_POINT)
    return np.where(subhaloes["r_t"] > 0, np.cbrt(per_r3), np.inf)


@cache
def _nfw_masses() -> NDArray[np.float32]:
    t, nought, unit = torch.sqrt(_squared_radii()), torch.zeros(()), torch.ones(())
    alpha = mass.nfw_deflection(t, nought, nought, nought, unit, unit)[0]
    return np.asarray((alpha * t * (1 - np.log(2))).float().numpy())


@cache
def _tnfw_masses(low: float, high: float) -> tuple[Floats, NDArray[np.float32]]:
    """Logarithms of truncation radii over scale radii from low to high [m], and the masses of these haloes."""
    known = np.linspace(np.log(low), np.log(high), 2 + int(np.log(high / low) / TAU_STEP))
    t, tau = torch.sqrt(_squared_radii()), torch.from_numpy(np.exp(known))[:, None]
    nought, unit = torch.zeros(()), torch.ones(())
    alpha = mass.tnfw_deflection(t, nought, nought, nought, unit, unit, tau)[0]
    return known, np.asarray((alpha * t * (1 - np.log(2))).float().numpy())
