"""Slices in this process and on several."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sublens.errors import DataError
from sublens.parallel.mapper import HERE, in_order, open_processes

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


def test_one_process_is_this_one() -> None:
    with open_processes(1) as mapper:
        assert mapper is HERE
        assert list(mapper(abs, [-1, -2])) == [1, 2]


def test_ctrl_c_ends_the_parent_alone() -> None:
    with open_processes(2) as mapper:
        assert list(mapper(signal.getsignal, [signal.SIGINT])) == [signal.SIG_IGN]


def test_a_worker_that_is_ended_at_work_is_said_to_be_short_of_memory() -> None:
    with pytest.raises(DataError, match="ended from outside; needs memory.*fewer --workers"), open_processes(2) as pool:
        list(pool(end, [1]))


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
