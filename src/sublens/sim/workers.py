"""Simulate on several processes; the slices come back in order."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread

import numpy as np
import torch
from numpy.typing import NDArray

from sublens.errors import DataError
from sublens.sim.population import Split, Truth
from sublens.sim.render import Maps, maps, simulate
from sublens.sim.survey import Survey

SLICE_PIXELS = 500 * 150 * 150
"""Pixels a slice, about."""


def slice_length(survey: Survey) -> int:
    """Images a slice: what bounds the memory, and what an interruption loses at most."""
    return int(np.clip(SLICE_PIXELS // survey.camera.n_pixels**2, 1, 500))


Slice = tuple[Truth, NDArray[np.uint16], Maps]


def slices(
    survey: Survey, seed: int, split: Split, n: int, workers: int, *, with_maps: bool = False, n_done: int = 0
) -> Iterator[Slice]:
    """The first `n` images of a split, `slice_length` at a time: truth, counts above the minimum, maps.

    n_done: slices to leave out at the start. Every process computes on one thread, so the images
    do not depend on `workers`. At most two slices a worker are under way, which bounds the memory.
    """
    length = slice_length(survey)
    ranges = [range(start, min(start + length, n)) for start in range(n_done * length, n, length)]
    if workers == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from (_slice(survey, seed, split, indices, with_maps) for indices in ranges)
        finally:
            torch.set_num_threads(threads)
        return
    with _explained(workers), ProcessPoolExecutor(workers, get_context("spawn"), _serve) as pool:
        pending: deque[Future[Slice]] = deque()
        try:
            for indices in ranges:
                pending.append(pool.submit(_slice, survey, seed, split, indices, with_maps))
                if len(pending) >= 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)  # do not compute on after Ctrl-C


def _slice(survey: Survey, seed: int, split: Split, indices: range, with_maps: bool) -> Slice:
    truth, counts = simulate(survey, seed, split, indices)
    return truth, counts, maps(truth, survey) if with_maps else {}


def _serve() -> None:
    """Set a worker up: one thread, and an end as soon as the process that it works for is gone."""
    torch.set_num_threads(1)
    master = parent_process()
    assert master is not None

    def follow() -> None:
        master.join()
        os._exit(1)

    Thread(target=follow, daemon=True).start()


@contextmanager
def _explained(workers: int) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as err:
        raise DataError(
            f"One of {workers} worker processes was ended from outside; is memory short? Use fewer --workers."
        ) from err
