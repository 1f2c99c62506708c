"""Ctrl-C, SIGTERM and SIGUSR1 as requests to a training, which ends or writes a checkpoint between steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

ENDING = (signal.SIGINT, signal.SIGTERM)
KEEPING = (signal.SIGUSR1,)
"""Signals at which a training writes a checkpoint and goes on; at those of `ENDING` it writes one and ends."""
ECHO_SECONDS = 2.0
"""Time within which a repeated signal counts as the first: torchrun repeats the signals of its process group."""


@dataclass
class Requests:
    """Requests that signals have made of a training."""

    to_end: bool = False
    to_keep: bool = False
    """Whether a checkpoint is to be written."""


@contextmanager
def graceful_stop() -> Iterator[Requests]:
    """Turn Ctrl-C, SIGTERM and SIGUSR1 into requests; a second Ctrl-C or SIGTERM interrupts at once.

    A signal that is ignored, as in a script's background, stays ignored.
    """
    requests, first_times = Requests(), dict[int, float]()

    def record(number: int, frame: object) -> None:
        if monotonic() - first_times.setdefault(number, monotonic()) > ECHO_SECONDS and number in ENDING:
            raise KeyboardInterrupt
        if number in ENDING:
            requests.to_end = True
        else:
            requests.to_keep = True

    if threading.current_thread() is not threading.main_thread():  # where signals do not arrive
        yield requests
        return
    current = {number: signal.getsignal(number) for number in (*ENDING, *KEEPING)}
    replaced = {number: handler for number, handler in current.items() if handler not in (None, signal.SIG_IGN)}
    for number in replaced:
        signal.signal(number, record)
    try:
        yield requests
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
