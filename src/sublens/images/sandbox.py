"""A child process that may not grow, write or hang, for work on untrusted files.

Parent and child exchange length-prefixed messages: a line of JSON, then as many bytes as it announces.
"""

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from sublens.parallel.mapper import ONE_THREAD

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


START_SECONDS = 120.0
"""That the child may take to load a library, which a busy disk makes slow, or to read a catalogue."""
MEMORY_BYTES = 2 * 2**30
"""That the child may address; libraries take a quarter of it before they read anything."""
LIMITS = {"RLIMIT_AS": MEMORY_BYTES, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0}
"""No more memory than an image needs, no file to write, no core dump."""
Frame = dict[str, Any]


class SilentError(Exception):
    """The child ended, or takes too long; the text says which."""


class EndedError(SilentError):
    """The child ended."""


@dataclass
class Keeper:
    """Keeps a child process, which may be replaced, no longer than a `with` block lasts."""

    _child: "Child | None" = field(default=None, init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


class Child:
    """A process that runs a module of ours and speaks in frames, seen from its parent."""

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],  # -P: import nothing from the working folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **ONE_THREAD},
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self._waiting = selectors.DefaultSelector()
        self._waiting.register(self._output, selectors.EVENT_READ)
        self._buffer = bytearray()

    @property
    def _output(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def ask(self, path: Path, request: Frame, data: bytes = b"") -> None:
        """Have a file dealt with; the child may have ended, which shows when it does not answer."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            send(self._process.stdin, {"path": os.fsencode(path).hex(), **request}, data)

    def frame(self, seconds: float) -> Frame:
        """The next frame's first line, waited for so long."""
        deadline = time.monotonic() + seconds
        while (end := self._buffer.find(b"\n")) < 0:
            self._fill(deadline)
        line = self._taken(end + 1)
        frame: Frame = json.loads(line)
        return frame

    def data(self, n_bytes: int, seconds: float) -> bytearray:
        """The bytes that a frame announced."""
        deadline = time.monotonic() + seconds
        while len(self._buffer) < n_bytes:
            self._fill(deadline)
        return self._taken(n_bytes)

    def end(self) -> None:
        """Stop it, whatever it does."""
        self._waiting.close()
        self._process.kill()
        self._process.communicate()

    def _fill(self, deadline: float) -> None:
        if not self._waiting.select(max(0.0, deadline - time.monotonic())):
            raise SilentError("took too long to read.")
        block = os.read(self._output, 2**20)
        if not block:
            raise EndedError("needs more memory than an image may, or is damaged so that reading it fails.")
        self._buffer += block

    def _taken(self, n_bytes: int) -> bytearray:
        taken, self._buffer = self._buffer[:n_bytes], self._buffer[n_bytes:]
        return taken


def path_from_hex(name: str) -> Path:
    return Path(os.fsdecode(bytes.fromhex(name)))


@contextmanager
def open_output() -> Iterator[IO[bytes]]:
    """Where a child writes its frames; what libraries print does not get between them."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        yield out


def read_requests() -> Iterator[tuple[Path, Frame]]:
    """What the parent asks of a child, until there is no more; data that it announces must be read in between."""
    for line in sys.stdin.buffer:
        request = json.loads(line)
        yield path_from_hex(request.pop("path")), request


def fetch_nothing() -> None:
    """Have no library open an address."""
    from urllib import request

    request.install_opener(request.OpenerDirector())  # that knows no protocol, not even of files


def confine(limits: Mapping[str, int] = LIMITS) -> None:
    """Limit this process for good, as far as its system can."""
    if resource is None:
        return
    for limit, value in limits.items():
        with suppress(ValueError, OSError):  # macOS knows no limit of addresses
            resource.setrlimit(getattr(resource, limit), (value, value))


def send(out: IO[bytes], frame: Frame, data: bytes | memoryview = b"") -> None:
    """Write a frame, and the bytes that it announces."""
    out.write(json.dumps(frame).encode() + b"\n")
    out.write(data)
    out.flush()
