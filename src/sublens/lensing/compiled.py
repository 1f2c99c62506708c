"""Loops that torch cannot fuse, compiled by numba; here the blur and the noise, in `mass` and `light` their own.

Compiled code is kept on disk, so only the first run waits for it, some seconds.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from numba import njit
from numpy.random import Generator
from numpy.typing import NDArray

from sublens.surveys.priors import Floats

Reals = NDArray[np.floating[Any]]
Single = np.float32
"""Type of a number of single precision, which stays one only beside others of its kind."""


def _atan_series() -> tuple[np.float32, ...]:
    """Coefficients a_0, a_1, ... of atan(m) / m in powers of m^2 for m from 0 to 1, to 2e-8."""
    series = np.polynomial.Chebyshev.interpolate(lambda m2: np.arctan(np.sqrt(m2)) / np.sqrt(m2), 10, (0, 1))
    return tuple(Single(term) for term in series.convert(kind=np.polynomial.Polynomial).coef)


ATAN = _atan_series()


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
SERIES = tuple((-1.0) ** n / math.factorial(n) for n in range(12))
"""Coefficients of exp(-x), which suffice for double precision up to FINE."""
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
    """The Poisson count of a mean up to FINE whose interval holds u, up to 20."""
    chance, count = SERIES[-1], 0
    for term in SERIES[-2::-1]:
        chance = chance * mean + term
    while u >= chance and count < 20:
        u -= chance
        count += 1
        chance *= mean / count
    return count


@compiled
def _draw_multiples(
    left: Floats, uniform: Floats, counts: NDArray[np.int32], first: NDArray[np.int64], chances: Floats, guides: Any
) -> None:
    """Draw what multiples of COARSE make of each mean, and leave the rest of the mean in `left`."""
    places, n_places = np.empty(left.size, np.uint32), 0
    for i in range(left.size):
        places[n_places] = i  # kept where the next line counts it; a branch would be predicted wrongly
        n_places += left[i] >= COARSE
    for i in places[:n_places]:
        u = uniform[i]
        while left[i] >= COARSE:
            step = np.uint32(min(left[i], COARSEST) / COARSE)
            count, u = _look_up(u, step, chances, guides)
            counts[i] += count + first[step]
            left[i] -= step * COARSE
        uniform[i] = u


@compiled
def _draw_rest(
    left: Floats, uniform: Floats, counts: NDArray[np.int32], first: NDArray[np.int64], chances: Floats, guides: Any
) -> None:
    """Add the draws of means below COARSE; `left` and `uniform` are used up."""
    places, n_places = np.empty(left.size, np.uint32), 0
    for i in range(left.size):
        step = np.uint32(left[i] / FINE)
        count, u = _look_up(uniform[i], step, chances, guides)
        counts[i] += count + first[step]
        rest = left[i] - step * FINE
        left[i], uniform[i], places[n_places] = rest, u, i
        n_places += u >= 1 - rest  # else surely 0 more, as exp(-rest) >= 1 - rest
    for i in places[:n_places]:
        counts[i] += _few(left[i], uniform[i])


def poisson(rng: Generator, rates: Reals) -> NDArray[np.int32]:
    """Exact Poisson draws with these means, shaped like them.

    Poisson numbers add: one of mean 205.3 is the sum of one each of the means 192, 13.25 and
    0.05. The first two have tables, the last is mostly zero; and one uniform number serves all
    three, since its position inside the interval that holds it is uniform again. Exact to double
    precision, with the tables cut 9 standard deviations out. rates: >= 0 and below 1e9; numpy
    draws for those above BRIGHT.
    """
    counts = np.zeros(rates.shape, np.int32)
    left, uniform = rates.ravel().astype(np.float64), rng.random(rates.size)
    bright = rates > BRIGHT if rates.max(initial=0) > BRIGHT else None
    if bright is not None:
        left[bright.ravel()] = 0
    _draw_multiples(left, uniform, counts.ravel(), *_tables(COARSE, COARSEST))
    _draw_rest(left, uniform, counts.ravel(), *_tables(FINE, COARSE))
    if bright is not None:
        counts[bright] = rng.poisson(rates[bright])
    return counts


@compiled
def add_noise(counts: NDArray[np.int32], normal: Floats, rms: float, gain: float) -> None:
    """Turn electrons into counts, once rms times normal numbers of spread 1 is added. gain: electrons a count."""
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
