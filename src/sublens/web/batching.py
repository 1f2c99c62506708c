"""Requests that wait for one network are shown to it together, as many as there are when it is free."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens.inference.predictor import BATCH, BatchPrediction, Predictor
from sublens.web.problem import overloaded

QUEUE_IMAGES = 512
"""That may wait for one network; more are turned away."""

Counts = NDArray[np.uint16]


class BatchResult(NamedTuple):
    """The output for the images of one request, and how long the batch that they shared took."""

    output: BatchPrediction
    seconds: float


@dataclass
class _Job:
    n: int
    prepare: Callable[[], Counts]
    deadline: float
    future: "asyncio.Future[BatchResult]"


class Batcher:
    """A network, a thread that shows it images, and those that wait."""

    def __init__(self, predictor: Predictor, on_batch: Callable[[int], None] = lambda n: None) -> None:
        """on_batch: told the size of every batch."""
        self.predictor = predictor
        self._on_batch = on_batch
        self._jobs: deque[_Job] = deque()
        self._waiting = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images that wait."""
        return self._waiting

    def submit(self, n: int, prepare: Callable[[], Counts], deadline: float) -> "asyncio.Future[BatchResult]":
        """Have n images judged by `deadline`, of `time.monotonic`; cancel the future to take them out.

        prepare: makes their counts [n, h, w]; called in the network's thread. Raises `Problem` 503 where
        too many wait; so does the future where the deadline passes first.
        """
        future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._waiting + n > QUEUE_IMAGES:
                self._forget_cancelled()
            if self._waiting and self._waiting + n > QUEUE_IMAGES:
                raise overloaded(f"{self._waiting} images wait for this network already.")
            self._jobs.append(_Job(n, prepare, deadline, future))
            self._waiting += n
            self._changed.notify()
        return future

    def _forget_cancelled(self) -> None:
        self._jobs = deque(job for job in self._jobs if not job.future.cancelled())
        self._waiting = sum(job.n for job in self._jobs)

    def close(self) -> None:
        """End the thread; what still waits is never answered."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._next():
            self._judge(jobs)

    def _next(self) -> list[_Job]:
        """As many as make a batch, once there are any; none when it is time to end."""
        with self._changed:
            while not self._jobs and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return []
            taken = [self._jobs.popleft()]
            n = taken[0].n
            while self._jobs and n + self._jobs[0].n <= BATCH:
                taken.append(self._jobs.popleft())
                n += taken[-1].n
            self._waiting -= n
        return taken

    def _judge(self, jobs: list[_Job]) -> None:
        ready: list[tuple[_Job, Counts]] = []
        for job in jobs:
            if job.future.cancelled():
                continue
            try:
                if time.monotonic() > job.deadline:
                    raise overloaded("The answer would have come after the request's deadline.")
                ready.append((job, job.prepare()))
            except Exception as err:
                _settle(job, err)
        if not ready:
            return
        try:
            self._show(ready)
        except Exception as err:
            for job, _ in ready:
                _settle(job, err)

    def _show(self, ready: list[tuple[_Job, Counts]]) -> None:
        counts = np.concatenate([counts for _, counts in ready]) if len(ready) > 1 else ready[0][1]
        start = time.perf_counter()
        output = self.predictor.forward(counts)
        seconds = time.perf_counter() - start
        self._on_batch(len(counts))
        first = 0
        for job, own in ready:
            _settle(job, BatchResult(output.take(slice(first, first + len(own))), seconds))
            first += len(own)


def _settle(job: _Job, answer: BatchResult | Exception) -> None:
    """From the thread into the loop that waits."""

    def tell() -> None:
        if job.future.done():  # nobody waits any more
            return
        if isinstance(answer, Exception):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)

    job.future.get_loop().call_soon_threadsafe(tell)
