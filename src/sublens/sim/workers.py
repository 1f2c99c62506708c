"""Simulate on several processes; the slices come back in order."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray

from sublens.sim.population import Split, Truth
from sublens.sim.render import Maps, maps, simulate
from sublens.sim.survey import Survey

SLICE = 500
"""Images a slice."""


Slice = tuple[Truth, NDArray[np.uint16], Maps]


def slices(
    survey: Survey, seed: int, split: Split, n: int, workers: int, *, with_maps: bool = False, n_done: int = 0
) -> Iterator[Slice]:
    """The first `n` images of a split, `SLICE` at a time: truth, counts above the minimum, maps.

    n_done: slices to leave out at the start. Every process computes on one thread, so the images
    do not depend on `workers`. At most two slices a worker are under way, which bounds the memory.
    """
    ranges = [range(start, min(start + SLICE, n)) for start in range(n_done * SLICE, n, SLICE)]
    if workers == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from (_slice(survey, seed, split, indices, with_maps) for indices in ranges)
        finally:
            torch.set_num_threads(threads)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        pending: deque[Future[Slice]] = deque()
        try:
            for indices in ranges:
                pending.append(pool.submit(_slice, survey, seed, split, indices, with_maps))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)  # do not compute on after Ctrl-C


def _slice(survey: Survey, seed: int, split: Split, indices: range, with_maps: bool) -> Slice:
    truth, counts = simulate(survey, seed, split, indices)
    return truth, counts, maps(truth, survey) if with_maps else {}
