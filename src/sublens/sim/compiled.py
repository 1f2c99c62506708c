"""Loops that torch cannot fuse, compiled by numba: light of a scene on a processor, blur, Poisson draws.

Compiled code is kept on disk, so only the first run waits for it, some seconds. Numbers of single precision stay so
only beside others of single precision, hence `Single`.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from numba import njit
from numpy.random import Generator
from numpy.typing import NDArray

from sublens.sim.survey import Floats

Reals = NDArray[np.floating[Any]]


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A loop of plain numbers, compiled; functions that it calls must stand in its file, or changes go unnoticed."""
    options["error_model"] = "numpy"  # else a division is not vectorised
    try:
        fast = njit(function, cache=True, **options)
    except RuntimeError:  # no folder to keep it in can be written
        fast = njit(function, **options)
    return fast  # type: ignore[no-any-return]


contracted = partial(compiled, fastmath={"contract"})
"""As `compiled`; a product and a sum become one instruction, which rounds once, as torch's do."""


FINE, COARSE, COARSEST = 0.125, 64.0, 1024.0
"""Steps and limits of the tabulated means: multiples of FINE up to COARSE, and of COARSE up to COARSEST."""
BRIGHT = 4096.0
"""Greatest mean drawn from the tables; larger ones would take too many steps of COARSEST."""
GUIDES = 256
"""Entries of a guide table, each the start of a search in a distribution's table."""


@cache
def _tables(step: float, top: float) -> tuple[NDArray[np.int64], Floats, NDArray[np.uint8]]:
    """Poisson distributions of the means 0, step, ... top.

    Returns the count that each begins at [n]; the chances of lesser counts [n, m], from 0 up to
    1; and for each i the last of those that is not above i / GUIDES [n, GUIDES].
    """
    from scipy.special import pdtr

    means = np.arange(0, top + step, step)
    reach = 9 * np.sqrt(means)
    first = np.floor(means - reach).clip(0).astype(np.int64)
    n_counts = int((2 * reach + 30).max())
    chances = np.ones((len(means), n_counts + 1))
    chances[:, 0] = 0
    chances[:, 1:-1] = pdtr(first[:, None] + np.arange(n_counts - 1), means[:, None])
    guides = [np.searchsorted(row, np.arange(GUIDES) / GUIDES, side="right") - 1 for row in chances]
    return first, chances, np.array(guides, np.uint8 if n_counts < 256 else np.uint16)


NEXT = np.uint32(1)
"""Step to the next entry of a table; unsigned, as an index that may be negative takes more instructions."""


@compiled
def _look_up(u: float, mean: np.uint32, chances: Floats, guides: NDArray[np.uint8]) -> tuple[np.uint32, float]:
    """The count whose interval holds u, and the position of u in it, which is a uniform number again."""
    entry = np.uint32(guides[mean, np.uint32(u * GUIDES)])
    entry += u >= chances[mean, entry + NEXT]  # most often enough, and no branch to be predicted wrongly
    while u >= chances[mean, entry + NEXT]:
        entry += NEXT
    low = chances[mean, entry]
    return entry, (u - low) / (chances[mean, entry + NEXT] - low)


@compiled
def _few(mean: float, u: float) -> int:
    """The Poisson count of a small mean whose interval holds u, up to 20."""
    chance, count = math.exp(-mean), 0
    while u >= chance and count < 20:
        u -= chance
        count += 1
        chance *= mean / count
    return count


@compiled
def _draw(
    rates: Reals,
    uniform: Floats,
    counts: NDArray[np.int32],
    fine_first: NDArray[np.int64],
    fine: Floats,
    fine_guides: NDArray[np.uint8],
    coarse_first: NDArray[np.int64],
    coarse: Floats,
    coarse_guides: NDArray[np.uint8],
) -> None:
    """Fill `counts` for rates up to BRIGHT; `uniform` is used up."""
    places, rests, n_rests = np.empty(rates.size, np.uint32), np.empty(rates.size), 0
    for i in range(rates.size):
        left, total, u = float(rates[i]), 0, uniform[i]
        if left > BRIGHT:
            continue
        while left >= COARSE:
            step = np.uint32(min(left, COARSEST) / COARSE)
            count, u = _look_up(u, step, coarse, coarse_guides)
            total += count + coarse_first[step]
            left -= step * COARSE
        step = np.uint32(left / FINE)
        count, u = _look_up(u, step, fine, fine_guides)
        counts[i] = total + (count + fine_first[step])
        left -= step * FINE
        uniform[i], places[n_rests], rests[n_rests] = u, i, left  # kept where the next line counts it
        n_rests += u >= 1 - left  # else surely 0, as exp(-left) >= 1 - left
    for place, left in zip(places[:n_rests], rests[:n_rests]):
        counts[place] += _few(left, uniform[place])


def poisson(rng: Generator, rates: Reals) -> NDArray[np.int32]:
    """Exact Poisson draws with these means, shaped like them.

    Poisson numbers add: one of mean 205.3 is the sum of one each of the means 192, 13.25 and
    0.05. The first two have tables, the last is mostly zero; and one uniform number serves all
    three, since its position inside the interval that holds it is uniform again. Exact to double
    precision, with the tables cut 9 standard deviations out. rates: >= 0 and below 1e9; numpy
    draws for those above BRIGHT.
    """
    counts = np.empty(rates.shape, np.int32)
    uniform = rng.random(rates.size)
    _draw(rates.ravel(), uniform, counts.ravel(), *_tables(FINE, COARSE), *_tables(COARSE, COARSEST))
    if rates.max(initial=0) > BRIGHT:
        bright = rates > BRIGHT
        counts[bright] = rng.poisson(rates[bright])
    return counts


@compiled
def add_noise(counts: NDArray[np.int32], normal: Floats, rms: float, gain: float) -> None:
    """Make counts of electrons, with noise of normal numbers of the spread 1 times rms added; gain: electrons a count."""
    for i in range(counts.size):
        counts[i] = np.rint((counts[i] + rms * normal[i]) / gain)


@contracted
def _add(total: Reals, terms: Reals, weight: np.floating[Any]) -> None:
    for i in range(total.size):
        total[i] += terms[i] * weight


@contracted
def blur(image: Reals, weights: Reals, parts: int, blurred: Reals) -> None:
    """Fill `blurred` [b, h, w] with images [b, h * parts, w * parts], blurred along both axes with the weights [k].

    Light outside the image equals that of the nearest edge. All are of one precision.
    """
    height, width = image.shape[1:]
    reach = (len(weights) - parts) // 2
    down = np.empty(width + 2 * reach, image.dtype)
    middle = down[reach : reach + width]
    columns = np.empty((parts, len(down) // parts + 1), image.dtype)  # without strides, which are slow to add
    for b in range(len(image)):
        for row in range(blurred.shape[1]):
            middle[:] = 0
            for k in range(len(weights)):
                _add(middle, image[b, min(max(row * parts + k - reach, 0), height - 1)], weights[k])
            down[:reach], down[reach + width :] = middle[0], middle[-1]
            for part in range(parts):
                columns[part, : len(down[part::parts])] = down[part::parts]
            blurred[b, row] = 0
            for k in range(len(weights)):
                _add(blurred[b, row], columns[k % parts, k // parts :], weights[k])


Single = np.float32
TINY = Single(1e-12)
"""Least squared distance, arcsec^2: keeps a mass on a pixel centre finite."""
NOUGHT, HALF, ONE, TWO, MOST_POWER = Single(0), Single(0.5), Single(1), Single(2), Single(87)
ODD = tuple(Single(1 / n) for n in range(3, 15, 2))
"""Coefficients of the series of atanh and, with alternating signs, of atan: 1/3, 1/5 and so on."""
EXP = tuple(Single(1 / math.factorial(n)) for n in range(8))
"""Coefficients of the exponential series."""
LOG_2, PER_LOG_2, PI = Single(math.log(2)), Single(1 / math.log(2)), Single(math.pi)
ROOT_HALF_BITS, MANTISSA_BITS, EXPONENT_OF_ONE = np.int32(0x3F3504F3), np.int32(23), np.int32(127)
"""Single precision's bits of the root of 1/2, the number of bits of the mantissa, and the exponent of 1."""


def _atan_series() -> tuple[np.float32, ...]:
    """Coefficients a_0, a_1, ... of atan(m) / m in powers of m^2 for m from 0 to 1, to 2e-8."""
    series = np.polynomial.Chebyshev.interpolate(lambda m2: np.arctan(np.sqrt(m2)) / np.sqrt(m2), 10, (0, 1))
    return tuple(Single(term) for term in series.convert(kind=np.polynomial.Polynomial).coef)


ATAN = _atan_series()


@contracted
def _log(x: Single) -> Single:
    """Natural logarithm of a normal number above 0, to 1e-7; that of 0 comes as -88."""
    bits = Single(x).view(np.int32)
    exponent = (bits - ROOT_HALF_BITS) >> MANTISSA_BITS
    mantissa = np.int32(bits - (exponent << MANTISSA_BITS)).view(Single)  # 0.7 to 1.4
    z = (mantissa - ONE) / (mantissa + ONE)
    z2 = z * z
    return Single(exponent) * LOG_2 + TWO * z * (ONE + z2 * (ODD[0] + z2 * (ODD[1] + z2 * ODD[2])))


@contracted
def _exp(x: Single) -> Single:
    """Exponential function, to a relative 3e-7; beyond -87 and 87 that of these."""
    power = min(max(x, -MOST_POWER), MOST_POWER)
    whole = np.floor(power * PER_LOG_2 + HALF)
    r = power - whole * LOG_2
    series = EXP[4] + r * (EXP[5] + r * (EXP[6] + r * EXP[7]))
    series = EXP[0] + r * (EXP[1] + r * (EXP[2] + r * (EXP[3] + r * series)))
    return series * np.int32((np.int32(whole) + EXPONENT_OF_ONE) << MANTISSA_BITS).view(Single)


@contracted
def _atan2(y: Single, x: Single) -> Single:
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
        (name, Single)
        for name in (
            *("halo_cos", "halo_sin", "halo_q", "halo_f", "halo_scale", "gamma_1", "gamma_2"),
            *("string_x", "string_y", "string_cos", "string_sin", "string_half", "string_scale"),
            *("source_x", "source_y"),
            *(f"{what}_{name}" for what in ("source", "lens") for name in ("ux", "uy", "vx", "vy", "power", "b", "log")),
        )
    ]
)
"""What the light of one scene is computed from. halo_f: root of 1 - q^2; halo_scale: theta_e times the root of q.
gamma: the shear's components. string_scale: theta_e^2 / (2 half). Of source and lens galaxy, each a Sersic profile: the
matrix that makes a circle of their ellipse of half of the light, radius one; power: 1 / (2 n); b: b_n; log: logarithm
of the intensity in the middle."""
ROUND = Single(0.3)
"""Value of halo_f below which series stand for atan and atanh: their closed forms, divided by it, lose digits."""


@contracted
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


@contracted
def _point(x: Reals, y: Reals, mass: Reals, alpha_x: Reals, alpha_y: Reals) -> None:
    """Add the deflection of a point mass of x, y and Einstein radius, as `mass.point_deflection`."""
    x_0, y_0, strength = mass[0], mass[1], mass[2] * mass[2]
    for i in range(x.size):
        dx, dy = x[i] - x_0, y[i] - y_0
        weight = strength / (dx * dx + (dy * dy + TINY))
        alpha_x[i] += weight * dx
        alpha_y[i] += weight * dy


@contracted
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


@contracted
def _sersic(
    x: Reals, y: Reals, ux: Single, uy: Single, vx: Single, vy: Single, power: Single, b: Single, log: Single, light: Reals
) -> None:
    """Add the light of a Sersic profile at the positions x, y from its middle, as `light.sersic`."""
    for i in range(x.size):
        u, v = ux * x[i] + uy * y[i], vx * x[i] + vy * y[i]
        exponent = log - b * _exp(power * _log(u * u + v * v))
        light[i] += _exp(exponent) + NOUGHT * exponent  # NaN stays NaN


@contracted
def _shine(
    x: Reals, y: Reals, scene: Any, points: Reals, has_lens_light: bool, beta_x: Reals, beta_y: Reals, light: Reals
) -> None:
    """Set `light` to that at the positions x, y; beta_x, beta_y are room for the same number of positions."""
    s = scene
    _halo(x, y, s, beta_x, beta_y)
    for point in points:
        _point(x, y, point, beta_x, beta_y)
    if s.string_scale > 0:
        _string(x, y, s, beta_x, beta_y)
    for i in range(x.size):
        beta_x[i] = (x[i] - s.source_x) - beta_x[i]
        beta_y[i] = (y[i] - s.source_y) - beta_y[i]
    light[:] = 0
    _sersic(
        beta_x, beta_y, s.source_ux, s.source_uy, s.source_vx, s.source_vy, s.source_power, s.source_b, s.source_log, light
    )
    if has_lens_light:
        _sersic(x, y, s.lens_ux, s.lens_uy, s.lens_vx, s.lens_vy, s.lens_power, s.lens_b, s.lens_log, light)


@contracted
def shine(axis: Reals, scene: Any, points: Reals, has_lens_light: bool, light: Reals) -> None:
    """Set `light` [n, n] to that of one scene, of dtype RAYS, on the square grid of these positions along each side [n].

    points: x, y and Einstein radius of each point mass, [k, 3]. All but positions of pixels is of single precision.
    """
    y, beta_x, beta_y = np.empty_like(axis), np.empty_like(axis), np.empty_like(axis)
    for row in range(len(axis)):
        y[:] = axis[row]
        _shine(axis, y, scene, points, has_lens_light, beta_x, beta_y, light[row])


CHUNK = 972
"""Finer points at which light is computed together: those of 12 parts of 81, or of 108 of 9."""


@contracted
def refine(
    parts: NDArray[np.int64], within: Reals, axis: Reals, scene: Any, points: Reals, has_lens_light: bool, light: Reals
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
        _shine(x[:end], y[:end], scene, points, has_lens_light, beta_x[:end], beta_y[:end], bright[:end])
        for k in range(len(chosen)):
            light[chosen[k] // n, chosen[k] % n] = bright[k * fine : (k + 1) * fine].mean()


@contracted
def _mark(steep: NDArray[np.uint8], row: int, column: int, level: int) -> None:
    for i in range(max(row - 1, 0), min(row + 2, len(steep))):
        for j in range(max(column - 1, 0), min(column + 2, len(steep))):
            steep[i, j] = max(steep[i, j], level)


@contracted
def steepness(light: Reals, sky: Single, per_error: Single, limits: Reals, steep: NDArray[np.uint8]) -> None:
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


@contracted
def mark_points(points: Reals, axis: Reals, level: int, steep: NDArray[np.uint8]) -> None:
    """Raise `steep` [n, n] to this level in the parts that hold point masses, and in their neighbours."""
    n = len(axis)
    step = (axis[-1] - axis[0]) / Single(n - 1)
    for i in range(len(points)):
        column, row = (int(np.floor((points[i, 0] - axis[0]) / step + HALF)), int(np.floor((points[i, 1] - axis[0]) / step + HALF)))
        if 0 <= row < n and 0 <= column < n:
            _mark(steep, row, column, level)
