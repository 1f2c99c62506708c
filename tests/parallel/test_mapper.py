"""Slices in this process and on several."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sublens.errors import DataError
from sublens.parallel.mapper import HERE, ahead, in_order, open_processes

UNGUARDED = """
from sublens.errors import DataError
from sublens.parallel.mapper import open_processes
try:
    with open_processes(2) as mapper:
        print(list(mapper(abs, [-1, -2])))
except DataError as err:
    print(err)
"""


def end(number: int) -> None:
    os._exit(number)


def end_or_wait(is_first: bool) -> None:
    if is_first:
        end(1)
    time.sleep(600)


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_one_process_is_this_one() -> None:
    with open_processes(1) as mapper:
        assert mapper is HERE
        assert list(mapper(abs, [-1, -2])) == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_a_whole_group_is_for_the_parent_alone(number: signal.Signals) -> None:
    with open_processes(2) as mapper:
        workers = set(mapper(pid_after, [0.2] * 4))
        for worker in workers:
            os.kill(worker, number)
        assert len(workers) == 2
        assert set(mapper(pid_after, [0.2] * 4)) == workers


def test_workers_that_only_start_outlive_sigterm_and_the_parents_signals_are_as_before() -> None:
    with open_processes(2) as mapper:
        for child in multiprocessing.active_children():
            assert child.pid
            os.kill(child.pid, signal.SIGTERM)
        assert list(mapper(abs, [-1, -2, -3])) == [1, 2, 3]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_worker_that_is_ended_at_work_is_said_to_be_short_of_memory() -> None:
    with pytest.raises(DataError, match="ended from outside; needs memory.*fewer --workers"), open_processes(2) as pool:
        list(pool(end, [1]))


def test_a_broken_pool_ends_its_workers_and_names_the_callers_remedy() -> None:
    with pytest.raises(DataError, match="Buy some"), open_processes(2, "Buy some.") as pool:
        list(pool(end_or_wait, [True, False]))
    assert not multiprocessing.active_children()


def test_results_are_in_order_and_few_are_pending() -> None:
    pending, most = set[int](), 0

    class Task:
        def __init__(self, number: int) -> None:
            pending.add(number)
            self.number = number

        def result(self) -> int:
            nonlocal most
            most = max(most, len(pending))
            pending.remove(self.number)
            return self.number

    assert list(in_order(map(Task, range(9)), lambda: 3)) == list(range(9))
    assert most == 3


def test_a_script_without_a_main_guard_is_told_to_have_one(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED)
    command = [sys.executable, str(tmp_path / "script.py")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert 'Put what it runs under `if __name__ == "__main__":`' in ended.stdout.splitlines()[-1]
    assert "memory" not in ended.stdout
    assert "Traceback" not in ended.stderr


def test_items_made_ahead_come_in_order_and_their_error_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("the sixth")

    made: list[int] = []
    with pytest.raises(ValueError, match="the sixth"):
        made.extend(ahead(items(), 2, lambda: None))
    assert made == [0, 1, 2, 3, 4]


def test_no_more_items_are_made_ahead_than_allowed_and_none_after_the_end() -> None:
    made, n_running = list[int](), threading.active_count()
    with closing(ahead(map(made.append, range(100)), 2, lambda: None)) as items:
        for number in range(4):
            next(items)
            time.sleep(0.05)
            assert made == list(range(number + 3))
    assert len(made) == 6
    assert threading.active_count() == n_running
