"""Numbers that `light.shine` traces the rays of a scene with, in single precision."""

import numpy as np
from numpy.typing import NDArray

from sublens.lensing.compiled import Reals, Single
from sublens.lensing.light import sersic_b
from sublens.lensing.mass import ROUNDEST
from sublens.lensing.tabulated import GENERAL, fill_general
from sublens.surveys.priors import Floats

RAYS = np.dtype(
    [
        *((f"halo_{name}", Single) for name in ("cos", "sin", "q", "f", "scale")),
        *((f"string_{name}", Single) for name in ("x", "y", "cos", "sin", "half", "scale")),
        *((name, Single) for name in ("gamma_1", "gamma_2", "source_x", "source_y")),
        *((name, Single, 7) for name in ("source", "lens")),
        *((name, Single) for name in GENERAL),
    ]
)
"""What the light of one scene is computed from. halo_f: root of 1 - q^2; halo_scale: theta_e times the root of q.
string_scale: theta_e^2 / (2 half). gamma: the shear's components. source, lens: Sersic profiles, see `_profile`.
For the others see `tabulated.GENERAL`."""
Masses = tuple[Reals, Reals, Reals, Reals]
"""Masses of one scene beside its string: x, y and Einstein radius of each point mass [k, 3]; the series of a general
halo, see `tabulated.power_law_series`, [1, terms], or [0, 0] for an isothermal ellipsoid; x, y, Einstein radius,
1 / r_s^2, alpha_rs / ((1 - log 2) r_s) and the radius from which on it is a point of each extended subhalo [m, 6]; and
their tables, see `tabulated.masses_inside`, [m, entries]."""
Rays = tuple[Reals, np.void, Masses, bool]
"""Positions along a side of the grid, a scene of dtype RAYS, its masses, and whether the lens galaxy shines."""


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
    rays["source"] = _profile(scenes, "source", scenes["source_q"], scenes["source_angle"])
    rays["lens"] = _profile(scenes, "lens", scenes["halo_q"], scenes["halo_angle"])
    return rays


def _profile(scenes: NDArray[np.void], what: str, q: Floats, angle: Floats) -> Floats:
    """Sersic profiles, [n, 7].

    The matrix ux, uy, vx, vy that makes of the ellipse that holds half of the light a circle of radius 1; 1 / (2 n);
    b_n; and the logarithm of the intensity in the middle, -690 where there is no light.
    """
    is_bright = scenes[f"{what}_intensity"] > 0
    n, r_eff = (np.where(is_bright, scenes[f"{what}_{name}"], 1) for name in ("n", "r_eff"))
    cos, sin, stretch, b = np.cos(angle) / r_eff, np.sin(angle) / r_eff, np.sqrt(q), sersic_b(n)
    log = np.log(np.where(is_bright, scenes[f"{what}_intensity"], 1e-300)) + b
    return np.stack([stretch * cos, stretch * sin, -sin / stretch, cos / stretch, 0.5 / n, b, log], axis=1)
