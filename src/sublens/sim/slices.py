"""Simulate in slices, wherever they are computed; they come back in order."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sublens.parallel.mapper import Mapper
from sublens.sim.population import Split, Truth
from sublens.sim.render import Maps, maps, simulate
from sublens.sim.survey import Survey

SLICE_PIXELS = 500 * 150 * 150
"""Pixels a slice, about."""


def slice_length(survey: Survey) -> int:
    """Images a slice: what bounds the memory, and what an interruption loses at most."""
    return int(np.clip(SLICE_PIXELS // survey.camera.n_pixels**2, 1, 500))


Slice = tuple[Truth, NDArray[np.uint16], Maps]


class Wish(NamedTuple):
    """A slice that is to be simulated."""

    survey: Survey
    seed: int
    split: Split
    indices: range
    with_maps: bool


def slices(
    survey: Survey, seed: int, split: Split, n: int, mapper: Mapper, *, with_maps: bool = False, n_done: int = 0
) -> Iterator[Slice]:
    """The first `n` images of a split, `slice_length` at a time: truth, counts above the minimum, maps.

    mapper: where they are computed. n_done: slices to leave out at the start. Every slice is computed
    on one thread, so the images do not depend on where that is.
    """
    length = slice_length(survey)
    ranges = (range(start, min(start + length, n)) for start in range(n_done * length, n, length))
    return mapper(simulated, (Wish(survey, seed, split, indices, with_maps) for indices in ranges))


def simulated(wish: Wish) -> Slice:
    """One slice, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        truth, counts = simulate(wish.survey, wish.seed, wish.split, wish.indices)
        return truth, counts, maps(truth, wish.survey) if wish.with_maps else {}
    finally:
        torch.set_num_threads(threads)
