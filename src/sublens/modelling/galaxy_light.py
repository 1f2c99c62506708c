"""The lens galaxy's own light in a fit: concentric Gaussians of one shape, with harmonics of small amplitude.

Sums of Gaussians stand for any smooth profile (Cappellari 2002, arXiv:astro-ph/0201430); harmonics of m = 2 and 4 for
twists, discs and boxes. Images are linear in the amplitudes.
"""

import numpy as np
from numpy.typing import NDArray

from sublens.lensing.compiled import Reals

Floats = NDArray[np.float64]

SIGMAS = np.geomspace(0.03, 6, 12)
"""Standard deviations of the Gaussians, arcsec; the widest takes what sky is left as well."""
WITH_HARMONICS = slice(2, 10)
"""Gaussians that have harmonics."""
ORDERS = 2, 4
HARMONIC_SHARE = 0.3
"""Standard deviation of a harmonic's amplitude, over that of its Gaussian."""
LEAST_AMPLITUDE = 1e-6
"""Amplitude of a Gaussian below which that share does not fall, in units of the median noise."""
N_SHAPE = 4
"""Parameters of the shape: the centre x and y, arcsec, and e1 and e2 as in `smooth_lens`."""
SHAPE_SIGMAS = np.array([0.1, 0.1, 0.2, 0.2])
"""Standard deviations of the changes of the shape in one step of a fit."""
LARGEST_E = 0.5


def planes(form: Floats, x: Reals, y: Reals, *, has_harmonics: bool) -> Reals:
    """Light at places x, y [n, n] of each Gaussian, and of each harmonic of those that have them, [k, n, n]."""
    e1, e2 = form[2:]
    e, angle = min(np.hypot(e1, e2), LARGEST_E), np.arctan2(e2, e1) / 2
    q, dx, dy = (1 - e) / (1 + e), x - form[0], y - form[1]
    along, across = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
    radius2 = (q * along**2 + across**2 / q).astype(np.float32)
    gaussians = np.exp(radius2 * (-0.5 / SIGMAS**2).astype(np.float32)[:, None, None])
    if not has_harmonics:
        return np.asarray(gaussians)
    azimuth = np.arctan2(dy, dx).astype(np.float32)
    waves = [wave(order * azimuth) for order in ORDERS for wave in (np.cos, np.sin)]
    return np.concatenate([gaussians, *(gaussians[WITH_HARMONICS] * wave for wave in waves)])


def precisions(amplitudes: Floats | None) -> Floats:
    """Inverse variances of the amplitudes before a fit, those of `planes`; amplitudes: of the Gaussians before, [12].

    None where there are no harmonics.
    """
    free = np.full(len(SIGMAS), 1e-12)
    if amplitudes is None:
        return free
    least = max(1e-6 * float(np.abs(amplitudes).max()), LEAST_AMPLITUDE)
    widths = HARMONIC_SHARE * np.abs(amplitudes[WITH_HARMONICS]).clip(least)
    return np.concatenate([free, np.tile(widths**-2, 2 * len(ORDERS))])


def derivatives(form: Floats, amplitudes: Floats, x: Reals, y: Reals) -> Reals:
    """Derivatives of the whole light by each parameter of its shape, [N_SHAPE, n, n]."""
    has_harmonics, step, changes = len(amplitudes) > len(SIGMAS), 2e-3, []
    for number in range(N_SHAPE):
        sides = []
        for sign in (1, -1):
            moved = form.copy()
            moved[number] += sign * step
            sides.append(
                np.tensordot(amplitudes.astype(np.float32), planes(moved, x, y, has_harmonics=has_harmonics), 1)
            )
        changes.append((sides[0] - sides[1]) / (2 * step))
    return np.stack(changes)
