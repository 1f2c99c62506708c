"""Light of whole scenes along rays that compiled loops trace through the lens.

Positions are arcsec.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublens.lensing.compiled import ATAN, Reals, Single, compiled
from sublens.lensing.mass import TINY
from sublens.lensing.tabulated import LEAST_BITS, LEAST_T2, MOST_T2, PER_SHARE, SHARE_BITS, SHARE_MASK

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
    """Add the light of one of `rays.profiles` at the positions x, y, as `sersic.sersic`."""
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
    """Add the light of a stamp at positions x, y from its middle, which are used up; see `pictures.smooth_stamp`."""
    height, width = stamp.shape
    middle, centre = Single(width - 1) * HALF, Single(height - 1) * HALF
    right, top = Single(width) - ONE - HALF, Single(height) - ONE - HALF
    for i in range(x.size):  # alone, since looking up keeps a loop from being vectorised
        x[i], y[i] = matrix[0] * x[i] + matrix[1] * y[i] + middle, matrix[2] * x[i] + matrix[3] * y[i] + centre
    for i in range(x.size):
        u, v = x[i], y[i]
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
def _deflect(x: Reals, y: Reals, scene: Any, masses: Any, alpha_x: Reals, alpha_y: Reals, room: Reals) -> None:
    """Set alpha_x, alpha_y [n] to the deflection of halo and extended subhaloes; room: any, [3, n or more]."""
    _, series, extended, tables = masses
    if len(series):
        _general_halo(x, y, scene, series, alpha_x, alpha_y, room)
    else:
        _halo(x, y, scene, alpha_x, alpha_y)
    for i in range(len(extended)):
        away = max(y[0] - extended[i, 1], extended[i, 1] - y[-1])  # all rows lie between the first and the last
        if away > extended[i, 5]:
            _point(x, y, extended[i], alpha_x, alpha_y)
        else:
            _extended(x, y, extended[i], tables[i], alpha_x, alpha_y, room)


@compiled
def _lensed(
    x: Reals, y: Reals, scene: Any, points: Reals, stamp: Reals, alpha_x: Reals, alpha_y: Reals, light: Reals
) -> None:
    """Add the light of the source at the positions x, y [n], given what `_deflect` has there, which is used up."""
    for point in points:
        _point(x, y, point, alpha_x, alpha_y)
    if scene.string_scale > 0:
        _string(x, y, scene, alpha_x, alpha_y)
    for i in range(x.size):
        alpha_x[i] = (x[i] - scene.source_x) - alpha_x[i]
        alpha_y[i] = (y[i] - scene.source_y) - alpha_y[i]
    if scene.source[6] > DARK:
        _sersic(alpha_x, alpha_y, scene.source, light)
    if stamp.size:
        _stamp(alpha_x, alpha_y, scene.stamp, stamp, light)


@compiled
def _shine(x: Reals, y: Reals, scene: Any, masses: Any, glow: Any, light: Reals, room: Reals) -> None:
    """Set `light` to that at the positions x [n], y [n]; room: [5, n or more] of any content."""
    alpha_x, alpha_y, (galaxies, stamp) = room[0, : x.size], room[1, : x.size], glow
    _deflect(x, y, scene, masses, alpha_x, alpha_y, room[2:])
    light[:] = 0
    _lensed(x, y, scene, masses[0], stamp, alpha_x, alpha_y, light)
    _unlensed(x, y, galaxies, light)


@compiled
def shine(axis: Reals, scene: Any, masses: Any, glow: Any, light: Reals) -> None:
    """Set `light` [n, n] to that of a scene, of dtype `rays.RAYS`, on the square grid of positions along a side [n].

    masses, glow: of types `rays.Masses` and `rays.Lights`. All is of single precision, and no product is joined with a
    sum: the last bit depends neither on the processor's instructions nor on what the compiler has inlined.
    """
    y, room = np.empty_like(axis), np.empty((5, len(axis)), Single)
    for row in range(len(axis)):
        y[:] = axis[row]
        _shine(axis, y, scene, masses, glow, light[row], room)


@compiled
def sample(axis: Reals, scene: Any, masses: Any, glow: Any, fields: Reals) -> None:
    """Set `fields` [3, n, n] to what changes slowly, on the square grid of positions along a side [n].

    The deflection of halo and extended subhaloes along x and y, 0 without a source, and light that is not lensed.
    """
    y, room, (galaxies, stamp) = np.empty_like(axis), np.empty((3, len(axis)), Single), glow
    is_lit = scene.source[6] > DARK or (stamp.size > 0 and scene.stamp[4] > 0)
    fields[:] = 0
    for row in range(len(axis)):
        y[:] = axis[row]
        if is_lit:
            _deflect(axis, y, scene, masses, fields[0, row], fields[1, row], room)
        _unlensed(axis, y, galaxies, fields[2, row])


@compiled
def _between(field: Reals, row: int, weights: Reals, down: Reals, line: Reals) -> None:
    """Set `line` [parts * n] to values of a field at a row of parts of pixels, all first parts, then all second ones.

    weights: see `tabulated.weights_between`. down: room for a row of the field.
    """
    n, parts = field.shape[1] - 4, len(weights)
    w = weights[row % parts]
    v, w, x, y, z = w[0], w[1], w[2], w[3], w[4]
    top = row // parts
    a, b, c, d, e = field[top], field[top + 1], field[top + 2], field[top + 3], field[top + 4]
    for i in range(n + 4):
        down[i] = v * a[i] + w * b[i] + x * c[i] + y * d[i] + z * e[i]
    for part in range(parts):
        w = weights[part]
        v, w, x, y, z = w[0], w[1], w[2], w[3], w[4]
        own = line[part * n : (part + 1) * n]
        for i in range(n):
            own[i] = v * down[i] + w * down[i + 1] + x * down[i + 2] + y * down[i + 3] + z * down[i + 4]


@compiled
def _in_rough(rough: NDArray[np.bool_], axis: Reals, scene: Any, masses: Any, galaxies: Reals) -> Reals:
    """The fields of `sample` in all parts of rough pixels [n, n], [3, k], row of parts by row of parts."""
    parts, k = len(axis) // len(rough), 0
    exact = np.empty((3, np.count_nonzero(rough) * parts * parts), Single)
    x, y, room = np.empty_like(exact[0]), np.empty_like(exact[0]), np.empty((3, CHUNK), Single)
    for row in range(len(axis)):
        for column in np.flatnonzero(rough[row // parts]):
            for part in range(parts):
                x[k], y[k] = axis[column * parts + part], axis[row]
                k += 1
    exact[2] = 0
    for start in range(0, k, CHUNK):
        here = slice(start, min(start + CHUNK, k))
        _deflect(x[here], y[here], scene, masses, exact[0, here], exact[1, here], room)
        _unlensed(x[here], y[here], galaxies, exact[2, here])
    return exact


@compiled
def shine_between(
    fields: Reals, rough: NDArray[np.bool_], weights: Reals, axis: Reals, scene: Any, masses: Any, glow: Any, light: Any
) -> None:
    """As `shine`, from the fields of `sample` at pixel centres and two more beyond each edge, [3, n + 4, n + 4].

    Between these, fields are interpolated, except in `rough` pixels [n, n]. weights: see `tabulated.weights_between`,
    one row a part of a pixel.
    """
    n, parts, (galaxies, stamp), start = len(rough), len(weights), glow, 0
    exact = _in_rough(rough, axis, scene, masses, galaxies)
    x, y, line, room = (
        np.empty_like(axis),
        np.empty_like(axis),
        np.empty((3, len(axis)), Single),
        np.empty(n + 4, Single),
    )
    for part in range(parts):
        x[part * n : (part + 1) * n] = axis[part::parts]
    for row in range(len(axis)):
        y[:] = axis[row]
        for i in range(3):
            _between(fields[i], row, weights, room, line[i])
        for column in np.flatnonzero(rough[row // parts]):
            for i in range(3):
                for part in range(parts):
                    line[i, part * n + column] = exact[i, start + part]
            start += parts
        _lensed(x, y, scene, masses[0], stamp, line[0], line[1], line[2])
        for part in range(parts):
            light[row, part::parts] = line[2, part * n : (part + 1) * n]


@compiled
def _within(fields: Reals, row: int, column: int, weights: Reals, values: Reals, start: int) -> None:
    """Set `values` [3, start...] to fields at k x k finer points of a part of a pixel; weights: [parts, k, 5]."""
    parts, n = weights.shape[0], weights.shape[1]
    top, left = row // parts, column // parts
    down, across = weights[row - top * parts], weights[column - left * parts]
    for field in range(3):
        nodes, own = fields[field, top : top + 5, left : left + 5], values[field]
        a, b, c, d, e = nodes[0], nodes[1], nodes[2], nodes[3], nodes[4]
        for i in range(n):
            v, w, x, y, z = down[i, 0], down[i, 1], down[i, 2], down[i, 3], down[i, 4]
            first = v * a[0] + w * b[0] + x * c[0] + y * d[0] + z * e[0]
            second = v * a[1] + w * b[1] + x * c[1] + y * d[1] + z * e[1]
            third = v * a[2] + w * b[2] + x * c[2] + y * d[2] + z * e[2]
            fourth = v * a[3] + w * b[3] + x * c[3] + y * d[3] + z * e[3]
            fifth = v * a[4] + w * b[4] + x * c[4] + y * d[4] + z * e[4]
            for j in range(n):
                shares, place = across[j], start + i * n + j
                own[place] = shares[0] * first + shares[1] * second + shares[2] * third + shares[3] * fourth
                own[place] += shares[4] * fifth


CHUNK = 972
"""Finer points at which light is computed together: those of 12 parts of 81, or of 108 of 9."""


@compiled
def refine(
    parts: NDArray[np.int64],
    within: Reals,
    axis: Reals,
    scene: Any,
    masses: Any,
    glow: Any,
    light: Reals,
    fields: Reals,
    weights: Reals,
) -> None:
    """Set the light [n, n] in some parts of pixels to the mean over finer points; see `shine`.

    parts: their places in the flattened grid [k]. within: finer positions along each side of a part, from its middle.
    fields: those that are interpolated, see `shine_between`, none for exact ones. weights: see `_within`.
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
            row = chosen[k] // n
            column = chosen[k] - row * n
            for i in range(fine):
                x[k * fine + i], y[k * fine + i] = axis[column] + across[i], axis[row] + down[i]
            if fields.size:
                _within(fields, row, column, weights, room, k * fine)
        end = len(chosen) * fine
        if fields.size:
            bright[:end] = room[2, :end]
            _lensed(x[:end], y[:end], scene, masses[0], glow[1], room[0, :end], room[1, :end], bright[:end])
        else:
            _shine(x[:end], y[:end], scene, masses, glow, bright[:end], room)
        for k in range(len(chosen)):
            light[chosen[k] // n, chosen[k] % n] = bright[k * fine : (k + 1) * fine].mean()
