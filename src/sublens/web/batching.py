"""Dynamic batching: requests that wait for one network share a batch, run by the one thread of that network.

A predictor need not be safe to call from two threads, so nothing else in the service may run one.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens.inference.predictor import BATCH, BatchPrediction, Predictor
from sublens.web.problem import overloaded

QUEUE_IMAGES = 512
"""Images that may wait for one network; more are refused."""

Counts = NDArray[np.uint16]


class BatchResult(NamedTuple):
    """The output for the images of one request."""

    output: BatchPrediction
    seconds: float
    """Time that the network took for the whole batch."""


@dataclass
class _Task:
    n: int
    prepare: Callable[[], Counts]
    deadline: float
    future: "Future[BatchResult]" = field(default_factory=Future)


class Batcher:
    """A network, its thread, and a queue of images."""

    def __init__(self, predictor: Predictor, on_batch: Callable[[int], None] = lambda n: None) -> None:
        """on_batch: called with the number of images of every batch."""
        self.predictor = predictor
        self._on_batch = on_batch
        self._tasks: deque[_Task] = deque()
        self._waiting = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return self._waiting

    def submit(self, n: int, prepare: Callable[[], Counts], deadline: float) -> "Future[BatchResult]":
        """Queue n images, from any thread; the result comes by `deadline`, of `time.monotonic`, or not at all.

        prepare: makes their counts [n, h, w], in the network's thread. n above the number that it makes
        leaves room in the batch; with `BATCH` they share it with no other request. Cancelling the future
        takes them out of the queue. Raises `Problem` 503 where too many wait; the future does where the
        deadline passes first.
        """
        task = _Task(n, prepare, deadline)
        with self._changed:
            self.check_room(n)
            if self._is_closed:
                raise _stopping()
            self._tasks.append(task)
            self._waiting += n
            self._changed.notify()
        return task.future

    def check_room(self, n: int = 1) -> None:
        """Raise `Problem` 503 where n images more would be too many: before their bytes are read, or their pixels."""
        with self._changed:
            if self._waiting + n > QUEUE_IMAGES:
                self._drop_cancelled()
            if self._waiting and self._waiting + n > QUEUE_IMAGES:
                raise overloaded(f"{self._waiting} images wait for this network already")

    def _drop_cancelled(self) -> None:
        self._tasks = deque(task for task in self._tasks if not task.future.cancelled())
        self._waiting = sum(task.n for task in self._tasks)

    def close(self) -> None:
        """End the thread; what still waits is refused."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        for task in self._tasks:
            if task.future.set_running_or_notify_cancel():
                task.future.set_exception(_stopping())

    def _work(self) -> None:
        while tasks := self._next():
            self._predict(tasks)

    def _next(self) -> list[_Task]:
        """The tasks of the next batch, once there are any; none when the batcher is closed."""
        with self._changed:
            while not self._tasks and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return []
            tasks = [self._tasks.popleft()]
            n = tasks[0].n
            while self._tasks and n + self._tasks[0].n <= BATCH:
                tasks.append(self._tasks.popleft())
                n += tasks[-1].n
            self._waiting -= n
        return tasks

    def _predict(self, tasks: list[_Task]) -> None:
        ready: list[tuple[_Task, Counts]] = []
        for task in tasks:
            if not task.future.set_running_or_notify_cancel():
                continue
            try:
                if time.monotonic() > task.deadline:
                    raise overloaded("The request's deadline passed before its turn came")
                ready.append((task, task.prepare()))
            except Exception as err:
                task.future.set_exception(err)
        if not ready:
            return
        try:
            self._forward(ready)
        except Exception as err:
            for task, _ in ready:
                task.future.set_exception(err)

    def _forward(self, ready: list[tuple[_Task, Counts]]) -> None:
        batch = np.concatenate([counts for _, counts in ready]) if len(ready) > 1 else ready[0][1]
        start = time.perf_counter()
        output = self.predictor.forward(batch)
        seconds = time.perf_counter() - start
        self._on_batch(len(batch))
        first = 0
        results = []
        for _, counts in ready:
            results.append(BatchResult(output.take(slice(first, first + len(counts))), seconds))
            first += len(counts)
        for (task, _), result in zip(ready, results, strict=True):
            task.future.set_result(result)


def _stopping() -> Exception:
    return overloaded("The service is stopping")
