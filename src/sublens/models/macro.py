"""The macromodel of a lens, which the macro head measures: Einstein radius, axis ratio and position angle.

The head's outputs [n, 7] are the estimates of ln theta_e (arcsec), e1 and e2, the logarithms of their standard
deviations, and the logit of an image being a contaminant, that is no lens. (e1, e2) is (1 - q) / (1 + q) times the
cosine and sine of twice the position angle, which turns counter-clockwise from the image's x axis to the long axis.
theta_e is the radius of a circle with the area of the critical ellipse, as in `lensing.mass.sie_deflection`.
Knows no torch.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Scales = tuple[float, float, float]

N_OUTPUTS = 7
"""Outputs of the macro head."""
CONTAMINANT = -1
"""Label of images that are no lens, outside of all classes, and position of their logit in the outputs."""
LOG_SIGMAS = (-6.0, 2.0)
"""Least and greatest logarithm of a standard deviation."""
COVERED = 0.6827
"""Share of values within one standard deviation of a Gaussian."""
WIDEST_ANGLE = 180 / np.sqrt(12)
"""Standard deviation of a position angle of which nothing is known, degrees."""
COLUMNS = ("theta_e", "theta_e_sigma", "axis_ratio", "axis_ratio_sigma", "position_angle", "position_angle_sigma")
"""Columns of measured macromodels: arcsec, then none, then degrees in [0, 180)."""
UNITS = ("arcsec", "arcsec", "", "", "deg", "deg")


class FittedLens(NamedTuple):
    """How well a smooth lens fits an image, and what the logarithm of its evidence gains by substructure beside it."""

    chi2: float
    """Mean squared residual of the smooth lens in units of the noise."""
    string_gain: float
    """By one string."""
    subhalo_gain: float
    """By one subhalo."""


def lenses(scenes: NDArray[np.void]) -> tuple[Floats, Floats, Floats]:
    """Einstein radius, arcsec, axis ratio and position angle, radians, of the scenes [n] of a truth table."""
    return scenes["theta_e"], scenes["halo_q"], scenes["halo_angle"]


def targets(theta_e: Floats, q: Floats, angle: Floats) -> Floats:
    """What the head learns, (ln theta_e, e1, e2), [n, 3]; all 0 where theta_e is 0. angle: radians."""
    logs = np.log(theta_e, out=np.zeros(len(theta_e)), where=theta_e > 0)
    ellipticity = np.where(theta_e > 0, (1 - q) / (1 + q), 0)
    return np.stack([logs, ellipticity * np.cos(2 * angle), ellipticity * np.sin(2 * angle)], 1)


def values(theta_e: Floats, q: Floats, angle: Floats) -> Floats:
    """Einstein radius, axis ratio and position angle as in `COLUMNS`, [n, 3]. angle: radians."""
    return np.stack([theta_e, q, np.degrees(angle) % 180], 1)


def measured(outputs: Floats, scales: Scales = (1.0, 1.0, 1.0)) -> Floats:
    """The `COLUMNS` [n, 6] of the head's outputs [n, 7].

    scales: factors of the standard deviations of Einstein radius, axis ratio and position angle. They come from those
    of the outputs to first order; that of the angle grows as a lens becomes round, up to `WIDEST_ANGLE`.
    """
    log_theta, e1, e2 = outputs[:, :3].T
    sigma, sigma1, sigma2 = np.exp(outputs[:, 3:6].clip(*LOG_SIGMAS)).T
    theta_e, e = np.exp(log_theta), np.hypot(e1, e2).clip(1e-6, 1 - 1e-6)
    along = np.hypot(e1 * sigma1, e2 * sigma2) / e
    across = np.degrees(np.hypot(e2 * sigma1, e1 * sigma2) / e**2) / 2
    angle = np.degrees(np.arctan2(e2, e1)) / 2 % 180
    columns = [theta_e, theta_e * sigma * scales[0], (1 - e) / (1 + e), 2 * along / (1 + e) ** 2 * scales[1]]
    return np.stack([*columns, angle, (across * scales[2]).clip(max=WIDEST_ANGLE)], 1)


def differences(columns: Floats, true: Floats) -> Floats:
    """Measured less true values, [n, 3], of `COLUMNS` [n, 6] and `values` [n, 3]; angles in [-90, 90)."""
    off = columns[:, ::2] - true
    off[:, 2] = (off[:, 2] + 90) % 180 - 90
    return off


def fit_scales(outputs: Floats, true: Floats) -> Scales:
    """The scales at which a share `COVERED` of new lenses lies within one standard deviation.

    Split conformal prediction on outputs [n, 7] of lenses that nothing was fitted to, and their true `values` [n, 3]:
    the (n + 1) COVERED-th of their differences, each in its own standard deviation.
    """
    columns = measured(outputs)
    ratios = np.sort(np.abs(differences(columns, true)) / columns[:, 1::2], axis=0)
    rank = min(int(np.ceil((len(ratios) + 1) * COVERED)), len(ratios))
    theta_e, axis_ratio, angle = map(float, ratios[rank - 1])
    return theta_e, axis_ratio, angle


def score(columns: Floats, true: Floats) -> dict[str, dict[str, float]]:
    """Quality of measured `COLUMNS` [n, 6] against true `values` [n, 3], by quantity.

    Median and 90th percentile of the absolute difference, relative for theta_e, and the share within one standard
    deviation.
    """
    off = np.abs(differences(columns, true))
    coverage = (off <= columns[:, 1::2]).mean(0)
    off[:, 0] /= true[:, 0]
    rows = zip(COLUMNS[::2], np.median(off, 0), np.quantile(off, 0.9, axis=0), coverage, strict=True)
    return {name: {"median": float(a), "p90": float(b), "coverage": float(c)} for name, a, b, c in rows}
