"""Work on many slices: in this process, on several, or on a cluster; the results come in order.

A `Mapper` is all that a stage knows of where its slices are computed. The work must be pure:
a slice may be computed twice, and is when a worker is lost.
"""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import count
from multiprocessing import parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from threading import Thread
from typing import Protocol, TypeVar

from sublens.errors import DataError

A = TypeVar("A")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

AHEAD = 2
"""Slices under way for each worker, which bounds the memory."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""The environment of a process that shares its machine with others like it."""
PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that terminals and clusters send to a whole process group, and that workers leave to their parent."""


class Mapper:
    """Computes slices somewhere: this one in this process, one after the other."""

    def __call__(self, work: Callable[[A], R], slices: Iterable[A]) -> Iterator[R]:
        """The result of `work`, a function of some module, for each slice, in order."""
        return map(work, slices)

    def status(self) -> str:
        """A few words on the progress, if there are any."""
        return ""


HERE = Mapper()


class _Processes(Mapper):
    def __init__(self, pool: ProcessPoolExecutor, n: int) -> None:
        self._pool, self._n = pool, n

    def __call__(self, work: Callable[[A], R], slices: Iterable[A]) -> Iterator[R]:
        return in_order((_submit(self._pool, work, task) for task in slices), lambda: AHEAD * self._n)


def _submit(pool: ProcessPoolExecutor, work: Callable[..., R], *task: object) -> "Future[R]":
    """The pending result of some work; a worker that starts for it holds back the parent's signals from the first."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
    try:
        return pool.submit(work, *task)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker(SpawnProcess):
    def terminate(self) -> None:
        """End a worker of a broken pool, which ignores SIGTERM."""
        self.kill()


class _Workers(SpawnContext):
    Process = _Worker


@contextmanager
def open_processes(n: int, remedy: str = "Use fewer --workers if memory is short.") -> Iterator[Mapper]:
    """A mapper on n processes of this machine, for the length of a `with` block; on this one where n is 1.

    Raises `DataError` where one of them is ended from outside, with the remedy to try next, or as it starts.
    Signals to the whole process group are for this process alone to follow.
    """
    if n == 1:
        yield HERE
        return
    with ProcessPoolExecutor(n, _Workers(), _follow_parent) as pool:
        first = _start_worker(pool)
        try:
            yield _Processes(pool, n)
        except BrokenProcessPool as err:
            raise _broken_pool(n, first, remedy) from err
        finally:
            pool.shutdown(cancel_futures=True)  # do not compute on after Ctrl-C


def _start_worker(pool: ProcessPoolExecutor) -> "Future[int]":
    """The first result of a pool; quits where this process is itself a worker that only just imports its script."""
    try:
        return _submit(pool, int)
    except RuntimeError as err:
        if "bootstrapping phase" not in str(err):
            raise
        sys.exit(1)  # the parent says what to do


def _broken_pool(n: int, first: "Future[int]", remedy: str) -> DataError:
    if first.exception():
        return DataError(
            f"{n} worker processes ended as they started",
            need="a script that workers can import",
            next='Put what it runs under `if __name__ == "__main__":`.',
        )
    return DataError(
        f"one of {n} worker processes was ended from outside",
        need="memory for all of them",
        next=remedy,
    )


class Pending(Protocol[R_co]):
    """A result that is being computed."""

    def result(self) -> R_co:
        """Wait for it."""


def in_order(futures: Iterable[Pending[R]], n_ahead: Callable[[], int]) -> Iterator[R]:
    """Results in order, at most `n_ahead()` of them pending; the limit is asked anew for each."""
    pending: deque[Pending[R]] = deque()
    for future in futures:
        pending.append(future)
        while len(pending) >= n_ahead():
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def ahead(items: Iterable[A], n: int, begin: Callable[[], object]) -> Generator[A, None, None]:
    """The items in order, up to n of them made by a thread while the last is used.

    begin: called in that thread first. Errors of making an item are raised in its place.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "ahead", begin) as thread:
        try:
            for item in in_order((thread.submit(next, iterator, end) for _ in count()), lambda: n + 1):
                if item is end:
                    return
                yield item  # type: ignore[misc]
        finally:
            thread.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Have a worker end as soon as the process that it works for is gone, which alone minds signals."""
    for number in PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS_SIGNALS)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    Thread(target=follow, daemon=True).start()
