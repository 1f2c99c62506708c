"""Simulate on several processes; the slices come back in order."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray

from sublens.config import SimConfig
from sublens.sim.population import Split, Truth
from sublens.sim.render import simulate

SLICE = 500
"""Images a slice."""


def slices(
    config: SimConfig, seed: int, split: Split, n: int, workers: int
) -> Iterator[tuple[Truth, NDArray[np.uint16]]]:
    """The first `n` images of a split, `SLICE` at a time: truth and counts above the minimum.

    Every process computes on one thread, so the images do not depend on `workers`. At most two
    slices a worker are under way, which bounds the memory.
    """
    ranges = [range(start, min(start + SLICE, n)) for start in range(0, n, SLICE)]
    if workers == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from (simulate(config, seed, split, indices) for indices in ranges)
        finally:
            torch.set_num_threads(threads)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        pending: deque[Future[tuple[Truth, NDArray[np.uint16]]]] = deque()
        for indices in ranges:
            pending.append(pool.submit(simulate, config, seed, split, indices))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
