"""Numbers that `light.shine` traces the rays of a scene with, in single precision."""

import numpy as np
from numpy.typing import NDArray

from sublens.lensing.compiled import Reals, Single
from sublens.lensing.mass import ROUNDEST
from sublens.lensing.sersic import sersic_b
from sublens.lensing.tabulated import GENERAL, fill_general
from sublens.surveys.priors import Floats

RAYS = np.dtype(
    [
        *((f"halo_{name}", Single) for name in ("cos", "sin", "q", "f", "scale")),
        *((f"string_{name}", Single) for name in ("x", "y", "cos", "sin", "half", "scale")),
        *((name, Single) for name in ("gamma_1", "gamma_2", "source_x", "source_y")),
        ("source", Single, 11),
        ("stamp", Single, 5),
        *((name, Single) for name in GENERAL),
    ]
)
"""What the light of one scene is computed from. halo_f: root of 1 - q^2; halo_scale: theta_e times the root of q.
string_scale: theta_e^2 / (2 half). gamma: the shear's components. source: a Sersic profile, see `profiles`.
stamp: the matrix that makes pixels of a stamp of arcsec, and electrons a pixel where the stamp is 1. For the others see
`tabulated.GENERAL`."""
Masses = tuple[Reals, Reals, Reals, Reals]
"""Masses of one scene beside its string: x, y and Einstein radius of each point mass [k, 3]; the series of a general
halo, see `tabulated.power_law_series`, [1, terms], or [0, 0] for an isothermal ellipsoid; x, y, Einstein radius,
1 / r_s^2, alpha_rs / ((1 - log 2) r_s) and the radius from which on it is a point of each extended subhalo [m, 6]; and
their tables, see `tabulated.masses_inside`, [m, entries]."""
Lights = tuple[Reals, Reals]
"""Light of one scene beside the profile of its source: profiles of galaxies that are not lensed, [k, 11]; and the stamp
of its source, of no pixels where it has none."""
Rays = tuple[Reals, np.void, Masses, Lights]
"""Positions along a side of the grid, a scene of dtype RAYS, its masses and its lights."""


def rays_of(scenes: NDArray[np.void], extra: NDArray[np.void] | None) -> NDArray[np.void]:
    """What compiled loops compute the light of these scenes from, [n] of dtype RAYS. extra: as `Truth.extra`."""
    rays = np.zeros(len(scenes), RAYS)
    q = np.minimum(scenes["halo_q"], ROUNDEST)
    rays["halo_q"], rays["halo_f"] = q, np.sqrt((1 - q) * (1 + q))
    rays["halo_scale"] = scenes["halo_theta_e"] * np.sqrt(q)
    for name in ("halo", "string"):
        rays[f"{name}_cos"], rays[f"{name}_sin"] = np.cos(scenes[f"{name}_angle"]), np.sin(scenes[f"{name}_angle"])
    for name in ("string_x", "string_y", "source_x", "source_y"):
        rays[name] = scenes[name]
    half, theta_e2 = scenes["string_half_length"], scenes["string_theta_e"] ** 2
    rays["string_half"] = half
    rays["string_scale"] = np.divide(theta_e2, 2 * half, out=np.zeros_like(half), where=half > 0)
    double = 2 * scenes["shear_angle"]
    rays["gamma_1"], rays["gamma_2"] = scenes["gamma"] * np.cos(double), scenes["gamma"] * np.sin(double)
    if extra is not None:
        fill_general(rays, scenes, extra)
        rays["stamp"] = stamps_of(scenes, extra)
    rays["source"] = profiles(**{name: scenes[f"source_{name}"] for name in ("q", "angle", "n", "r_eff", "intensity")})
    return rays


def profiles(
    *,
    q: Floats,
    angle: Floats,
    n: Floats,
    r_eff: Floats,
    intensity: Floats,
    x: Floats | float = 0,
    y: Floats | float = 0,
    boxiness: Floats | float = 0,
    reach: Floats | float = np.inf,
) -> Floats:
    """Sersic profiles as compiled loops take them, [n, 11].

    The matrix ux, uy, vx, vy that makes of the ellipse that holds half of the light a circle of radius 1; 1 / (2 n);
    b_n; the logarithm of the intensity in the middle, below `light.DARK` where there is no light; the centre x, y;
    boxiness; and half of the side of the box around the centre that light is confined to.
    """
    is_bright = (intensity > 0) & (n > 0)
    q, n, r_eff = (np.where(is_bright, values, 1) for values in (q, n, r_eff))
    cos, sin, stretch, b = np.cos(angle) / r_eff, np.sin(angle) / r_eff, np.sqrt(q), sersic_b(n)
    log = np.log(np.where(is_bright, intensity, 1e-300)) + b
    columns = stretch * cos, stretch * sin, -sin / stretch, cos / stretch, 0.5 / n, b, log, x, y, boxiness, reach
    return np.stack(np.broadcast_arrays(*columns), axis=1)


def stamps_of(scenes: NDArray[np.void], extra: NDArray[np.void]) -> Floats:
    """Matrices that make pixels of a stamp, along columns and rows, of arcsec, and the light where it is 1, [n, 5]."""
    scale = np.where(extra["source_scale"] > 0, extra["source_scale"], 1)
    cos, sin = np.cos(scenes["source_angle"]) / scale, np.sin(scenes["source_angle"]) / scale
    mirror = extra["source_mirror"]
    return np.stack([mirror * cos, mirror * sin, -sin, cos, extra["stamp_intensity"]], axis=1)
