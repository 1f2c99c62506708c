"""Surface brightness: of profiles, and of whole scenes along rays that compiled loops trace through the lens.

Positions are arcsec; parameters broadcast against them.
"""

import math
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sublens.lensing.compiled import Reals, Single, compiled, contracted
from sublens.lensing.mass import TINY
from sublens.lensing.tabulated import FIRST_OCTAVE, FRACTION_BITS, LAST_OCTAVE
from sublens.surveys.light import PixelatedSource
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
) -> Tensor:
    """Elliptical Sersic profile at the positions x, y from its centre.

    q: axis ratio, 0 < q <= 1. angle: of the long axis. n: index. The radius is
    circularised, r^2 = q u^2 + v^2 / q with u along the long axis. intensity: the result at r_eff.
    Source: Sersic 1963, as written by Graham & Driver 2005, arXiv:astro-ph/0503176, eq. 1.
    """
    cos, sin = torch.cos(angle) / r_eff, torch.sin(angle) / r_eff
    stretch, b = torch.sqrt(q), sersic_b(n)
    r2 = _squared_radius(x, y, (stretch * cos, stretch * sin, -sin / stretch, cos / stretch))
    # exp(log r / n), not r ** (1 / n): torch's pow depends on a pixel's place in the batch, in the last bit.
    steep = (torch.log(r2) * (0.5 / n)).exp_()
    return torch.addcmul(torch.log(intensity) + b, -b, steep).exp_()


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


@cache
def picture(source: PixelatedSource) -> Tensor:
    """A pixelated source's pixels [h, w] in double precision, the brightest 1."""
    pixels = source.pixels()
    return torch.from_numpy(pixels / pixels.max())


def pixelated(x: Tensor, y: Tensor, pixels: Tensor, *, scale: float, angle: Tensor, intensity: Tensor) -> Tensor:
    """A picture as the source, linear between its pixels and dark outside.

    x, y: positions from its middle, [b, h, w]. pixels: [h, w], rows along y; the x axis lies along
    `angle`. scale: arcsec a pixel. intensity: of a pixel that is 1.
    """
    cos, sin = torch.cos(angle), torch.sin(angle)
    height, width = pixels.shape
    u = (cos * x + sin * y) * (2 / (scale * (width - 1)))
    v = (cos * y - sin * x) * (2 / (scale * (height - 1)))
    grid = torch.stack([u, v], dim=-1)
    stack = pixels.to(x).expand(len(grid), 1, -1, -1)
    inside = (grid.abs() <= 1).all(dim=-1)  # grid_sample would fade over half a pixel more
    return intensity * F.grid_sample(stack, grid, align_corners=True)[:, 0] * inside


NOUGHT, HALF, ONE, TWO, MOST_POWER = Single(0), Single(0.5), Single(1), Single(2), Single(87)
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


THREE, FOUR = Single(3), Single(4)
NEXT = np.uint32(1)
"""Step to the next entry of a table; unsigned, as an index that may be negative takes more instructions."""
LEAST_T2, MOST_T2 = Single(2**FIRST_OCTAVE), Single(2**LAST_OCTAVE)
"""Squared radii over the scale radius between which an extended subhalo's table is looked up."""
LEAST_BITS, SHARE_BITS = LEAST_T2.view(np.int32), np.uint32(23 - FRACTION_BITS)
SHARE_MASK, PER_SHARE = np.int32(2 ** (23 - FRACTION_BITS) - 1), Single(2.0 ** (FRACTION_BITS - 23))
"""Bits of the mantissa that say how far a radius is from an entry to the next, and the unit of this number."""
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
def _general_halo(x: Reals, y: Reals, scene: Any, series: Reals, alpha_x: Reals, alpha_y: Reals, room: Reals) -> None:
    """Set alpha_x, alpha_y to the deflection of an elliptical power law, of multipoles and of shear.

    series: [1, k], see `tabulated.power_law_series`. Its sum over powers of z = exp(2i phi) is Clenshaw's.
    """
    cos, sin, q, power, scale = scene.halo_cos, scene.halo_sin, scene.halo_q, scene.halo_power, scene.power_scale
    x_0, y_0, gamma_1, gamma_2 = scene.halo_x, scene.halo_y, scene.gamma_1, scene.gamma_2
    cos_3, sin_3, cos_4, sin_4 = scene.cos_3, scene.sin_3, scene.cos_4, scene.sin_4
    double, last, before = room[0], room[1], room[2]
    for i in range(x.size):
        dx, dy = x[i] - x_0, y[i] - y_0
        u, v = q * (cos * dx + sin * dy), cos * dy - sin * dx
        double[i] = TWO - FOUR * (v * v / (u * u + v * v + TINY))
        last[i] = before[i] = NOUGHT
    for k in range(series.shape[1] - 4, -1, -4):
        c_0, c_1, c_2, c_3 = series[0, k], series[0, k + 1], series[0, k + 2], series[0, k + 3]
        for i in range(x.size):
            twice = double[i]
            third = c_3 + twice * last[i] - before[i]
            second = c_2 + twice * third - last[i]
            before[i] = c_1 + twice * second - third
            last[i] = c_0 + twice * before[i] - second
    for i in range(x.size):
        dx, dy = x[i] - x_0, y[i] - y_0
        along, v = cos * dx + sin * dy, cos * dy - sin * dx
        u = q * along
        r2 = u * u + v * v + TINY
        weight, shrink = scale * _exp(power * _log(r2)), ONE / np.sqrt(r2)
        u, c = u * shrink, v * shrink
        real, imaginary = ONE + double[i] * HALF * last[i] - before[i], TWO * u * c * last[i]
        alpha_u, alpha_v = weight * (u * real - c * imaginary), weight * (u * imaginary + c * real)
        shrink = ONE / np.sqrt(along * along + v * v + TINY)
        a, b = along * shrink, v * shrink
        a_2, b_2 = a * a - b * b, TWO * a * b
        a_3, b_3, a_4, b_4 = a * a_2 - b * b_2, a * b_2 + b * a_2, a_2 * a_2 - b_2 * b_2, TWO * a_2 * b_2
        radial = cos_3 * a_3 + sin_3 * b_3 + (cos_4 * a_4 + sin_4 * b_4)
        around = THREE * (sin_3 * a_3 - cos_3 * b_3) + FOUR * (sin_4 * a_4 - cos_4 * b_4)
        alpha_u += a * radial - b * around
        alpha_v += b * radial + a * around
        alpha_x[i] = cos * alpha_u - sin * alpha_v + gamma_1 * x[i] + gamma_2 * y[i]
        alpha_y[i] = sin * alpha_u + cos * alpha_v + gamma_2 * x[i] - gamma_1 * y[i]


@compiled
def _extended(x: Reals, y: Reals, subhalo: Reals, table: Reals, alpha_x: Reals, alpha_y: Reals, room: Reals) -> None:
    """Add the deflection of an extended subhalo, as `mass.tnfw_deflection`, by its table of masses."""
    x_0, y_0, per_r_s2, strength = subhalo[0], subhalo[1], subhalo[3], subhalo[4]
    t2, inside, bits = room[0], room[1], room[2].view(np.int32)
    for i in range(x.size):
        dx, dy = x[i] - x_0, y[i] - y_0
        t2[i] = max((dx * dx + dy * dy) * per_r_s2, LEAST_T2)
        bits[i] = Single(min(t2[i], MOST_T2)).view(np.int32) - LEAST_BITS
    for i in range(x.size):  # alone, since looking up keeps a loop from being vectorised
        entry = np.uint32(bits[i]) >> SHARE_BITS
        share = Single(bits[i] & SHARE_MASK) * PER_SHARE
        inside[i] = table[entry] + share * (table[entry + NEXT] - table[entry])
    for i in range(x.size):
        weight = strength * inside[i] / t2[i]
        alpha_x[i] += weight * (x[i] - x_0)
        alpha_y[i] += weight * (y[i] - y_0)


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
    """Add the light of a `_profile` at the positions x, y from its middle, as `sersic`."""
    ux, uy, vx, vy = profile[0], profile[1], profile[2], profile[3]
    power, b, log = profile[4], profile[5], profile[6]
    for i in range(x.size):
        u, v = ux * x[i] + uy * y[i], vx * x[i] + vy * y[i]
        exponent = log - b * _exp(power * _log(u * u + v * v))
        light[i] += _exp(exponent) + NOUGHT * exponent  # NaN stays NaN


@compiled
def _shine(x: Reals, y: Reals, scene: Any, masses: Any, has_lens_light: bool, light: Reals, room: Reals) -> None:
    """Set `light` to that at the positions x [n], y [n]; room: [5, n or more] of any content."""
    beta_x, beta_y, room = room[0, : x.size], room[1, : x.size], room[2:]
    points, series, extended, tables = masses
    if len(series):
        _general_halo(x, y, scene, series, beta_x, beta_y, room)
    else:
        _halo(x, y, scene, beta_x, beta_y)
    for point in points:
        _point(x, y, point, beta_x, beta_y)
    for i in range(len(extended)):
        away = max(y[0] - extended[i, 1], extended[i, 1] - y[-1])  # all rows lie between the first and the last
        if away > extended[i, 5]:
            _point(x, y, extended[i], beta_x, beta_y)
        else:
            _extended(x, y, extended[i], tables[i], beta_x, beta_y, room)
    if scene.string_scale > 0:
        _string(x, y, scene, beta_x, beta_y)
    for i in range(x.size):
        beta_x[i] = (x[i] - scene.source_x) - beta_x[i]
        beta_y[i] = (y[i] - scene.source_y) - beta_y[i]
    light[:] = 0
    _sersic(beta_x, beta_y, scene.source, light)
    if has_lens_light:
        _sersic(x, y, scene.lens, light)


@compiled
def shine(axis: Reals, scene: Any, masses: Any, has_lens_light: bool, light: Reals) -> None:
    """Set `light` [n, n] to that of a scene of dtype `rays.RAYS` on the square grid of these positions along a side.

    masses: of type `rays.Masses`. All is of single precision, and no product is joined with a sum: the last bit depends
    neither on the processor's instructions nor on what the compiler has inlined.
    """
    y, room = np.empty_like(axis), np.empty((5, len(axis)), Single)
    for row in range(len(axis)):
        y[:] = axis[row]
        _shine(axis, y, scene, masses, has_lens_light, light[row], room)


CHUNK = 972
"""Finer points at which light is computed together: those of 12 parts of 81, or of 108 of 9."""


@compiled
def refine(
    parts: NDArray[np.int64], within: Reals, axis: Reals, scene: Any, masses: Any, has_lens_light: bool, light: Reals
) -> None:
    """Set the light [n, n] in some parts of pixels to the mean over finer points; see `shine`.

    parts: their places in the flattened grid [k]. within: finer positions along each side of a part, from its middle.
    """
    n, fine = len(axis), len(within) ** 2
    most = CHUNK // fine
    room = np.empty((8, most * fine), Single)
    x, y, bright = room[5], room[6], room[7]  # unpacked they would not be vectorised
    across, down = np.empty(fine, Single), np.empty(fine, Single)
    for i in range(fine):
        across[i], down[i] = within[i % len(within)], within[i // len(within)]
    for start in range(0, len(parts), most):
        chosen = parts[start : start + most]
        for k in range(len(chosen)):
            x[k * fine : (k + 1) * fine] = axis[chosen[k] % n] + across
            y[k * fine : (k + 1) * fine] = axis[chosen[k] // n] + down
        end = len(chosen) * fine
        _shine(x[:end], y[:end], scene, masses, has_lens_light, bright[:end], room)
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
