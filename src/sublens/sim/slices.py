"""Simulation in slices, by any mapper; results are in order."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens.parallel.mapper import Mapper
from sublens.parallel.threads import torch_threads
from sublens.sim.population import Split
from sublens.sim.render import Maps, maps, simulate
from sublens.surveys.contaminants import Contaminants
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth

SLICE_PIXELS = 500 * 150 * 150
"""Approximate number of pixels in a slice."""


def slice_length(survey: Survey) -> int:
    """Images a slice, which bounds the memory and the loss at an interruption."""
    return int(np.clip(SLICE_PIXELS // survey.camera.n_pixels**2, 1, 500))


Slice = tuple[Truth, NDArray[np.uint16], Maps]
"""Truth, counts above the minimum [n, h, w] and maps of consecutive images."""


class Task(NamedTuple):
    """A slice to be simulated."""

    survey: Survey
    seed: int
    split: Split
    indices: range
    with_maps: bool
    contaminants: Contaminants | None = None
    is_matched: bool = False
    """Whether sets of images, one of each class, share their scene."""


def slices(
    survey: Survey, seed: int, split: Split, n: int, mapper: Mapper, *, with_maps: bool = False, n_done: int = 0
) -> Iterator[Slice]:
    """The first `n` images of a split, `slice_length` at a time: truth, counts above the minimum, maps.

    mapper: processes that compute them. n_done: slices to leave out at the start. Every slice is computed
    on one thread, so the images do not depend on the mapper.
    """
    length = slice_length(survey)
    ranges = (range(start, min(start + length, n)) for start in range(n_done * length, n, length))
    return mapper(simulated, (Task(survey, seed, split, indices, with_maps) for indices in ranges))


def simulated(task: Task) -> Slice:
    """One slice, on one thread."""
    survey, seed, split, indices, with_maps, contaminants, is_matched = task
    with torch_threads(1):
        truth, counts = simulate(survey, seed, split, indices, contaminants=contaminants, is_matched=is_matched)
        return truth, counts, maps(truth, survey) if with_maps else {}
