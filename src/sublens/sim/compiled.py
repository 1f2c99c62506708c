"""Loops that torch cannot fuse, compiled by numba; the Poisson draws are one.

Compiled code is kept on disk, so only the first run waits for it, a few seconds.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.random import Generator
from numpy.typing import NDArray

from sublens.sim.survey import Floats

Reals = NDArray[np.floating[Any]]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A loop of plain numbers, compiled; functions that it calls must stand in its file, or changes go unnoticed."""
    try:
        fast = njit(function, cache=True, error_model="numpy")  # numpy's: else a division is not vectorised
    except RuntimeError:  # no folder to keep it in can be written
        fast = njit(function, error_model="numpy")
    return fast  # type: ignore[no-any-return]


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


@compiled
def _look_up(u: float, mean: int, chances: Floats, guides: NDArray[np.uint8]) -> tuple[int, float]:
    """The count whose interval holds u, and the position of u in it, which is a uniform number again."""
    entry = int(guides[mean, int(u * GUIDES)])
    entry += u >= chances[mean, entry + 1]  # most often enough, and no branch to be predicted wrongly
    while u >= chances[mean, entry + 1]:
        entry += 1
    low = chances[mean, entry]
    return entry, (u - low) / (chances[mean, entry + 1] - low)


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
    for i in range(rates.size):
        left, total, u = float(rates[i]), 0, uniform[i]
        while left >= COARSE:
            step = int(min(left, COARSEST) / COARSE)
            count, u = _look_up(u, step, coarse, coarse_guides)
            total += count + coarse_first[step]
            left -= step * COARSE
        step = int(left / FINE)
        count, u = _look_up(u, step, fine, fine_guides)
        total += count + fine_first[step]
        left -= step * FINE
        if u >= 1 - left:  # else surely 0, as exp(-left) >= 1 - left
            chance, more = math.exp(-left), 0
            while u >= chance and more < 20:
                u -= chance
                more += 1
                chance *= left / more
            total += more
        counts[i] = total


def poisson(rng: Generator, rates: Reals) -> NDArray[np.int32]:
    """Exact Poisson draws with these means, shaped like them.

    Poisson numbers add: one of mean 205.3 is the sum of one each of the means 192, 13.25 and
    0.05. The first two have tables, the last is mostly zero; and one uniform number serves all
    three, since its position inside the interval that holds it is uniform again. Exact to double
    precision, with the tables cut 9 standard deviations out. rates: >= 0 and below 1e9; numpy
    draws for those above BRIGHT.
    """
    counts = np.empty(rates.shape, np.int32)
    bright = rates > BRIGHT
    faint = np.where(bright, 0, rates) if bright.any() else rates
    uniform = rng.random(rates.size)
    _draw(faint.ravel(), uniform, counts.ravel(), *_tables(FINE, COARSE), *_tables(COARSE, COARSEST))
    counts[bright] = rng.poisson(rates[bright])
    return counts
