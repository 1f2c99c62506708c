"""Work on many slices: in this process, on several, or on a cluster; the answers come in order.

A `Mapper` is all that a stage knows of where its slices are computed. What it is handed must be pure:
a slice may be computed twice, and is when a worker is lost.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Protocol, TypeVar

from sublens.errors import DataError

A = TypeVar("A")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

AHEAD = 2
"""Slices that are under way for each worker, which bounds the memory."""


ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""The environment of a process that shares its machine with others like it."""


class Mapper:
    """Computes slices somewhere: this one in this process, one after the other."""

    def __call__(self, work: Callable[[A], R], slices: Iterable[A]) -> Iterator[R]:
        """The answer of `work`, a function of some module, for each slice, in order."""
        return map(work, slices)

    def told(self) -> str:
        """A few words on how it goes, if there are any."""
        return ""


HERE = Mapper()


class _Processes(Mapper):
    def __init__(self, pool: ProcessPoolExecutor, n: int) -> None:
        self._pool, self._n = pool, n

    def __call__(self, work: Callable[[A], R], slices: Iterable[A]) -> Iterator[R]:
        return in_order((self._pool.submit(work, one) for one in slices), lambda: AHEAD * self._n)


@contextmanager
def open_processes(n: int) -> Iterator[Mapper]:
    """On n processes of this machine; on this one where n is 1.

    Raises `DataError` where one of them is ended from outside.
    """
    if n == 1:
        yield HERE
        return
    with _translate_errors(n), ProcessPoolExecutor(n, get_context("spawn"), _follow_parent) as pool:
        try:
            yield _Processes(pool, n)
        finally:
            pool.shutdown(cancel_futures=True)  # do not compute on after Ctrl-C


class Pending(Protocol[R_co]):
    """An answer that is on its way."""

    def result(self) -> R_co:
        """Wait for it."""


def in_order(asked: Iterable[Pending[R]], n_ahead: Callable[[], int]) -> Iterator[R]:
    """Answers as they come due, with so many asked for and not yet taken, which may change."""
    pending: deque[Pending[R]] = deque()
    for future in asked:
        pending.append(future)
        while len(pending) >= n_ahead():
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _follow_parent() -> None:
    """Have a worker end as soon as the process that it works for is gone."""
    master = parent_process()
    assert master is not None

    def follow() -> None:
        master.join()
        os._exit(1)

    Thread(target=follow, daemon=True).start()


@contextmanager
def _translate_errors(n: int) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as err:
        raise DataError(
            f"One of {n} worker processes was ended from outside; is memory short? Use fewer --workers."
        ) from err
