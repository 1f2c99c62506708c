"""Light of whole scenes along rays that compiled loops trace through the lens.

Positions are arcsec.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublens.lensing.compiled import Reals, Single, compiled
from sublens.lensing.mass import ROUNDEST, TINY
from sublens.lensing.sersic import sersic_b
from sublens.surveys.priors import Floats

NOUGHT, HALF, ONE, TWO, MOST_POWER = Single(0), Single(0.5), Single(1), Single(2), Single(87)
THREE_QUARTERS, EIGHT, DARK = Single(0.75), Single(8), Single(-600)
ODD = tuple(Single(1 / n) for n in range(3, 15, 2))
"""Coefficients of the series of atanh and, with alternating signs, of atan: 1/3, 1/5 and so on."""
EXP = tuple(Single(1 / math.factorial(n)) for n in range(8))
"""Coefficients of the exponential series."""
LOG_2, PER_LOG_2, PI = Single(math.log(2)), Single(1 / math.log(2)), Single(math.pi)
LOG_2_SHORT, LOG_2_REST = Single(0.693359375), Single(math.log(2) - 0.693359375)
"""Two parts of log 2; products of the first with whole numbers up to 2^14 are exact."""
ROOT_HALF_BITS, MANTISSA_BITS, EXPONENT_OF_ONE = np.int32(0x3F3504F3), np.int32(23), np.int32(127)
"""Single precision's bits of the root of 1/2, the number of bits of the mantissa, and the exponent of 1."""


def _atan_series() -> tuple[np.float32, ...]:
    """Coefficients a_0, a_1, ... of atan(m) / m in powers of m^2 for m from 0 to 1, to 2e-8."""
    series = np.polynomial.Chebyshev.interpolate(lambda m2: np.arctan(np.sqrt(m2)) / np.sqrt(m2), 10, (0, 1))
    return tuple(Single(term) for term in series.convert(kind=np.polynomial.Polynomial).coef)


ATAN = _atan_series()


@compiled
def _log(x: Any) -> Any:
    """Natural logarithm of a normal number above 0, to 1e-7; that of 0 comes as -88."""
    bits = Single(x).view(np.int32)
    exponent = (bits - ROOT_HALF_BITS) >> MANTISSA_BITS
    mantissa = np.int32(bits - (exponent << MANTISSA_BITS)).view(Single)  # 0.7 to 1.4
    z = (mantissa - ONE) / (mantissa + ONE)
    z2 = z * z
    return Single(exponent) * LOG_2 + TWO * z * (ONE + z2 * (ODD[0] + z2 * (ODD[1] + z2 * ODD[2])))


@compiled
def _exp(x: Any) -> Any:
    """Exponential function, to a relative 3e-7; beyond -87 and 87 that of these."""
    power = min(max(x, -MOST_POWER), MOST_POWER)
    whole = np.floor(power * PER_LOG_2 + HALF)
    r = (power - whole * LOG_2_SHORT) - whole * LOG_2_REST
    series = EXP[4] + r * (EXP[5] + r * (EXP[6] + r * EXP[7]))
    series = EXP[0] + r * (EXP[1] + r * (EXP[2] + r * (EXP[3] + r * series)))
    return series * np.int32((np.int32(whole) + EXPONENT_OF_ONE) << MANTISSA_BITS).view(Single)


@compiled
def _atan2(y: Any, x: Any) -> Any:
    """Angle of the point (x, y), to 2e-7; 0 at the origin."""
    long, short = max(abs(x), abs(y)), min(abs(x), abs(y))
    m = short / max(long, TINY * TINY)
    m2 = m * m
    high = ATAN[6] + m2 * (ATAN[7] + m2 * (ATAN[8] + m2 * (ATAN[9] + m2 * ATAN[10])))
    low = ATAN[0] + m2 * (ATAN[1] + m2 * (ATAN[2] + m2 * (ATAN[3] + m2 * (ATAN[4] + m2 * (ATAN[5] + m2 * high)))))
    angle = m * low
    angle = PI / TWO - angle if abs(y) > abs(x) else angle
    angle = PI - angle if x < 0 else angle
    return -angle if y < 0 else angle


RAYS = np.dtype(
    [
        *((f"halo_{name}", Single) for name in ("cos", "sin", "q", "f", "scale")),
        *((f"string_{name}", Single) for name in ("x", "y", "cos", "sin", "half", "scale")),
        *((name, Single) for name in ("gamma_1", "gamma_2", "source_x", "source_y")),
        ("source", Single, 11),
        ("stamp", Single, 5),
    ]
)
"""What the light of one scene is computed from. halo_f: root of 1 - q^2; halo_scale: theta_e times the root of q.
string_scale: theta_e^2 / (2 half). gamma: the shear's components. source: a Sersic profile, see `profiles`. stamp: the
matrix that makes pixels of a stamp of arcsec, and electrons a pixel where the stamp is 1."""
Rays = tuple[Reals, np.void, Reals, Reals, Reals]
"""Positions along a side of the grid, a scene of dtype RAYS, its point masses, profiles of its galaxies that are not
lensed [k, 11], and the stamp of its source, of no pixels where it has none."""
ROUND = Single(0.3)
"""Value of halo_f below which series stand for atan and atanh: their closed forms, divided by it, lose digits."""


@compiled
def _halo(x: Reals, y: Reals, scene: Any, alpha_x: Reals, alpha_y: Reals) -> None:
    """Set alpha_x, alpha_y to the deflection of an isothermal ellipsoid, as `mass.sie_deflection`, and shear."""
    cos, sin, q2, f, scale = scene.halo_cos, scene.halo_sin, scene.halo_q * scene.halo_q, scene.halo_f, scene.halo_scale
    for i in range(x.size):
        u, v = cos * x[i] + sin * y[i], cos * y[i] - sin * x[i]
        psi = np.sqrt(q2 * u * u + v * v + TINY)
        if f < ROUND:
            a, c = u / psi, v / psi
            a2, c2 = f * f * a * a, f * f * c * c
            even = ODD[0] - a2 * (ODD[1] - a2 * (ODD[2] - a2 * (ODD[3] - a2 * (ODD[4] - a2 * ODD[5]))))
            odd = ODD[0] + c2 * (ODD[1] + c2 * (ODD[2] + c2 * (ODD[3] + c2 * (ODD[4] + c2 * ODD[5]))))
            along, across = a - a * a2 * even, c + c * c2 * odd
        else:
            along, across = _atan2(f * u, psi) / f, HALF * _log((psi + f * v) / (psi - f * v)) / f
        alpha_x[i] = scale * (cos * along - sin * across) + scene.gamma_1 * x[i] + scene.gamma_2 * y[i]
        alpha_y[i] = scale * (sin * along + cos * across) + scene.gamma_2 * x[i] - scene.gamma_1 * y[i]


@compiled
def _point(x: Reals, y: Reals, mass: Reals, alpha_x: Reals, alpha_y: Reals) -> None:
    """Add the deflection of a point mass of x, y and Einstein radius, as `mass.point_deflection`."""
    x_0, y_0, strength = mass[0], mass[1], mass[2] * mass[2]
    for i in range(x.size):
        dx, dy = x[i] - x_0, y[i] - y_0
        weight = strength / (dx * dx + (dy * dy + TINY))
        alpha_x[i] += weight * dx
        alpha_y[i] += weight * dy


@compiled
def _string(x: Reals, y: Reals, scene: Any, alpha_x: Reals, alpha_y: Reals) -> None:
    """Add the deflection of a string, as `mass.string_deflection`."""
    cos, sin, half, scale = scene.string_cos, scene.string_sin, scene.string_half, scene.string_scale
    for i in range(x.size):
        dx, dy = x[i] - scene.string_x, y[i] - scene.string_y
        u, v = cos * dx + sin * dy, cos * dy - sin * dx
        left, right, v2 = u + half, u - half, v * v + TINY
        along = HALF * _log((left * left + v2) / (right * right + v2))
        across = _atan2(TWO * half * v, left * right + v2)
        alpha_x[i] += scale * (cos * along - sin * across)
        alpha_y[i] += scale * (sin * along + cos * across)


@compiled
def _sersic(x: Reals, y: Reals, profile: Reals, light: Reals) -> None:
    """Add the light of one of `profiles` at the positions x, y, as `sersic`."""
    ux, uy, vx, vy, x_0, y_0 = profile[0], profile[1], profile[2], profile[3], profile[7], profile[8]
    power, b, log, boxiness = profile[4], profile[5], profile[6], profile[9]
    for i in range(x.size):
        dx, dy = x[i] - x_0, y[i] - y_0
        u, v = ux * dx + uy * dy, vx * dx + vy * dy
        r2 = u * u + v * v
        if boxiness != 0:
            r2 *= ONE + TWO * boxiness * (ONE - EIGHT * (u * u) * (v * v) / (r2 * r2 + TINY * TINY))
        exponent = log - b * _exp(power * _log(r2))
        light[i] += _exp(exponent) + NOUGHT * exponent  # NaN stays NaN


@compiled
def _stamp(x: Reals, y: Reals, matrix: Reals, stamp: Reals, light: Reals) -> None:
    """Add the light of a stamp at the positions x, y from its middle, as `stamps.smooth_stamp`."""
    height, width = stamp.shape
    middle, centre = Single(width - 1) * HALF, Single(height - 1) * HALF
    right, top = Single(width) - ONE - HALF, Single(height) - ONE - HALF
    for i in range(x.size):
        u, v = matrix[0] * x[i] + matrix[1] * y[i] + middle, matrix[2] * x[i] + matrix[3] * y[i] + centre
        if HALF < u < right and HALF < v < top:
            column, row = int(u + HALF), int(v + HALF)
            a, b = u - Single(column), v - Single(row)
            left, mid, end = HALF * (HALF - a) * (HALF - a), THREE_QUARTERS - a * a, HALF * (HALF + a) * (HALF + a)
            down = left * stamp[row - 1, column - 1] + mid * stamp[row - 1, column] + end * stamp[row - 1, column + 1]
            here = left * stamp[row, column - 1] + mid * stamp[row, column] + end * stamp[row, column + 1]
            up = left * stamp[row + 1, column - 1] + mid * stamp[row + 1, column] + end * stamp[row + 1, column + 1]
            total = HALF * (HALF - b) * (HALF - b) * down + (THREE_QUARTERS - b * b) * here
            light[i] += matrix[4] * (total + HALF * (HALF + b) * (HALF + b) * up)


@compiled
def _unlensed(x: Reals, y: Reals, galaxies: Reals, light: Reals) -> None:
    """Add the light of galaxies at the positions x, y, where each but the widest ends in a box around it.

    Positions ascend in rows, and the box is cut along their order: those between the first and the last in it have the
    galaxy's faintest light as well.
    """
    lowest, highest = y[0], y[-1]
    for galaxy in galaxies:
        x_0, y_0, reach = galaxy[7], galaxy[8], galaxy[10]
        if y_0 - reach > highest or y_0 + reach < lowest:
            continue
        first, end = 0, x.size
        while first < end and abs(x[first] - x_0) > reach:
            first += 1
        while end > first and abs(x[end - 1] - x_0) > reach:
            end -= 1
        if first < end:
            _sersic(x[first:end], y[first:end], galaxy, light[first:end])


@compiled
def _shine(
    x: Reals,
    y: Reals,
    scene: Any,
    points: Reals,
    galaxies: Reals,
    stamp: Reals,
    beta_x: Reals,
    beta_y: Reals,
    light: Reals,
) -> None:
    """Set `light` to that at the positions x, y; beta_x, beta_y are room for the same number of positions."""
    _halo(x, y, scene, beta_x, beta_y)
    for point in points:
        _point(x, y, point, beta_x, beta_y)
    if scene.string_scale > 0:
        _string(x, y, scene, beta_x, beta_y)
    for i in range(x.size):
        beta_x[i] = (x[i] - scene.source_x) - beta_x[i]
        beta_y[i] = (y[i] - scene.source_y) - beta_y[i]
    light[:] = 0
    if scene.source[6] > DARK:
        _sersic(beta_x, beta_y, scene.source, light)
    if stamp.size:
        _stamp(beta_x, beta_y, scene.stamp, stamp, light)
    _unlensed(x, y, galaxies, light)


@compiled
def shine(axis: Reals, scene: Any, points: Reals, galaxies: Reals, stamp: Reals, light: Reals) -> None:
    """Set `light` [n, n] to that of a scene, of dtype RAYS, on the square grid of these positions along a side [n].

    points: x, y and Einstein radius of each point mass, [k, 3]. galaxies, stamp: see `Rays`. All is of single
    precision, and no product is joined with a sum: the last bit depends neither on the processor's instructions nor on
    what the compiler has inlined.
    """
    y, beta_x, beta_y = np.empty_like(axis), np.empty_like(axis), np.empty_like(axis)
    for row in range(len(axis)):
        y[:] = axis[row]
        _shine(axis, y, scene, points, galaxies, stamp, beta_x, beta_y, light[row])


CHUNK = 972
"""Finer points at which light is computed together: those of 12 parts of 81, or of 108 of 9."""


@compiled
def refine(
    parts: NDArray[np.int64],
    within: Reals,
    axis: Reals,
    scene: Any,
    points: Reals,
    galaxies: Reals,
    stamp: Reals,
    light: Reals,
) -> None:
    """Set the light [n, n] in some parts of pixels to the mean over finer points; see `shine`.

    parts: their places in the flattened grid [k]. within: finer positions along each side of a part, from its middle.
    """
    n, fine = len(axis), len(within) ** 2
    most = CHUNK // fine
    room = np.empty((5, most * fine), Single)
    x, y, beta_x, beta_y, bright = room[0], room[1], room[2], room[3], room[4]  # unpacked they would not be vectorised
    across, down = np.empty(fine, Single), np.empty(fine, Single)
    for i in range(fine):
        across[i], down[i] = within[i % len(within)], within[i // len(within)]
    for start in range(0, len(parts), most):
        chosen = parts[start : start + most]
        for k in range(len(chosen)):
            x[k * fine : (k + 1) * fine] = axis[chosen[k] % n] + across
            y[k * fine : (k + 1) * fine] = axis[chosen[k] // n] + down
        end = len(chosen) * fine
        _shine(x[:end], y[:end], scene, points, galaxies, stamp, beta_x[:end], beta_y[:end], bright[:end])
        for k in range(len(chosen)):
            light[chosen[k] // n, chosen[k] % n] = bright[k * fine : (k + 1) * fine].mean()


@compiled
def _mark(steep: NDArray[np.uint8], row: int, column: int, level: int) -> None:
    for i in range(max(row - 1, 0), min(row + 2, len(steep))):
        for j in range(max(column - 1, 0), min(column + 2, len(steep))):
            steep[i, j] = max(steep[i, j], level)


@compiled
def mark_steep(light: Reals, sky: Single, per_error: Single, limits: Reals, steep: NDArray[np.uint8]) -> None:
    """Raise `steep` [n, n] to the number of limits that a part's error, or its neighbours', is above.

    The error is the sum of the second differences of light along both axes over per_error and the square root of
    light + sky.
    """
    n = len(light)
    wide, error = np.empty(n + 2, Single), np.empty(n, Single)
    for row in range(n):
        up, here, down = light[max(row - 1, 0)], light[row], light[min(row + 1, n - 1)]
        wide[0], wide[1:-1], wide[-1] = here[0], here, here[-1]
        left, right = wide[:-2], wide[2:]
        for i in range(n):
            curved = abs(up[i] + down[i] - TWO * here[i]) + abs(left[i] + right[i] - TWO * here[i])
            error[i] = curved / (per_error * np.sqrt(here[i] + sky))
        for i in range(n):
            if error[i] > limits[0]:
                _mark(steep, row, i, (error[i] > limits).sum())


@compiled
def _place(position: Single, axis: Reals) -> int:
    """Number of the part of a pixel along an axis that holds a position."""
    step = (axis[-1] - axis[0]) / Single(len(axis) - 1)
    return int(np.floor((position - axis[0]) / step + HALF))


@compiled
def mark_points(points: Reals, axis: Reals, level: int, steep: NDArray[np.uint8]) -> None:
    """Raise `steep` [n, n] to this level in the parts that hold point masses, and in their neighbours."""
    for i in range(len(points)):
        row, column = _place(points[i, 1], axis), _place(points[i, 0], axis)
        if 0 <= row < len(axis) and 0 <= column < len(axis):
            _mark(steep, row, column, level)


def rays(scenes: NDArray[np.void]) -> NDArray[np.void]:
    """What compiled loops compute the light of these scenes from, [n] of dtype RAYS."""
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
    source = {name: scenes[f"source_{name}"] for name in ("q", "angle", "n", "r_eff", "intensity")}
    rays["source"] = profiles(**source)
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
    b_n; the logarithm of the intensity in the middle, below DARK where there is no light; the centre x, y; boxiness;
    and half of the side of the box around the centre that light is confined to.
    """
    is_bright = (intensity > 0) & (n > 0)
    q, n, r_eff = (np.where(is_bright, values, 1) for values in (q, n, r_eff))
    cos, sin, stretch, b = np.cos(angle) / r_eff, np.sin(angle) / r_eff, np.sqrt(q), sersic_b(n)
    log = np.log(np.where(is_bright, intensity, 1e-300)) + b
    columns = stretch * cos, stretch * sin, -sin / stretch, cos / stretch, 0.5 / n, b, log, x, y, boxiness, reach
    return np.stack(np.broadcast_arrays(*columns), axis=1)


def stamp_matrices(angle: Floats, mirror: Floats, scale: Floats) -> Floats:
    """Matrices [n, 4] that make pixels of a stamp, along columns and rows, of arcsec.

    angle: of the stamp's rows against x. mirror: -1 where its columns are mirrored, else 1. scale: arcsec a pixel.
    """
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    return np.stack([mirror * cos, mirror * sin, -sin, cos], axis=1)
