"""A child process that may not grow, write or hang, for work on untrusted files.

Parent and child exchange length-prefixed messages: a line of JSON, then as many bytes as it announces.
"""

import json
import os
import resource
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

from sublens.errors import SublensError
from sublens.parallel.mapper import ONE_THREAD

START_SECONDS = 120.0
"""Longest time for the child to load a library, which a busy disk makes slow, or to read a catalogue."""
MEMORY_BYTES = 2 * 2**30
"""Memory that the child may address; libraries take a quarter of it before they read anything."""
LIMITS = {"RLIMIT_AS": MEMORY_BYTES, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0}
"""Limits of the child: no more memory than an image needs, no file to write, no core dump."""
Message = dict[str, Any]
"""The line of JSON."""


class ChildError(Exception):
    """The child ended, or takes too long; `what` and `need` are parts of the user's error."""

    def __init__(self, what: str, need: str) -> None:
        super().__init__(what)
        self.what, self.need = what, need


class EndedError(ChildError):
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
    """A process that runs a module of ours and exchanges messages with this one."""

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],  # -P: import nothing from the working folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **ONE_THREAD},
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)
        self._buffer = bytearray()

    @property
    def _output(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, request: Message, data: bytes = b"") -> None:
        """Send a request; a child that has ended is noticed in `receive`."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            send(self._process.stdin, request, data)

    def receive(self, seconds: float) -> Message:
        """The next message, but for the bytes that it announces; raises `ChildError` where none comes in time."""
        deadline = time.monotonic() + seconds
        while (end := self._buffer.find(b"\n")) < 0:
            self._fill(deadline)
        message: Message = json.loads(self._take(end + 1))
        return message

    def receive_bytes(self, n_bytes: int, seconds: float) -> bytearray:
        """The bytes that a message announced; raises `ChildError` where they do not come in time."""
        deadline = time.monotonic() + seconds
        while len(self._buffer) < n_bytes:
            self._fill(deadline)
        return self._take(n_bytes)

    def end(self) -> None:
        """Stop the process, whatever it does."""
        self._selector.close()
        self._process.kill()
        self._process.communicate()

    def _fill(self, deadline: float) -> None:
        if not self._selector.select(max(0.0, deadline - time.monotonic())):
            raise ChildError("took too long to read", "a file that is read in seconds")
        block = os.read(self._output, 2**20)
        if not block:
            raise EndedError(
                "takes more memory than an image may, or is damaged so that reading it fails",
                f"an intact file that is read in {MEMORY_BYTES / 2**30:g} GiB of memory",
            )
        self._buffer += block

    def _take(self, n_bytes: int) -> bytearray:
        head, self._buffer = self._buffer[:n_bytes], self._buffer[n_bytes:]
        return head


def path_to_hex(path: Path) -> str:
    """A path as JSON can hold it, whatever its bytes."""
    return os.fsencode(path).hex()


def path_from_hex(name: str) -> Path:
    """The path behind `path_to_hex`."""
    return Path(os.fsdecode(bytes.fromhex(name)))


def error_fields(err: SublensError) -> Message:
    """The parts of an error, as a message holds them."""
    return {"what": err.what, "need": err.need, "next": err.next, "path": err.path}


@contextmanager
def open_output() -> Iterator[IO[bytes]]:
    """The stream for a child's messages; what libraries print goes elsewhere."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        yield out


def read_requests() -> Iterator[Message]:
    """The requests of the parent, until there are no more; bytes that one announces must be read in between."""
    yield from map(json.loads, sys.stdin.buffer)


def fetch_nothing() -> None:
    """Keep libraries from opening any URL."""
    from urllib import request

    request.install_opener(request.OpenerDirector())  # knows no protocol, not even that of files


def confine(limits: Mapping[str, int] = LIMITS) -> None:
    """Limit this process for good, as far as its system can."""
    for limit, value in limits.items():
        with suppress(ValueError, OSError):  # macOS knows no limit on addresses
            resource.setrlimit(getattr(resource, limit), (value, value))


def send(out: IO[bytes], message: Message, data: bytes | memoryview = b"") -> None:
    """Write a message, and the bytes that it announces."""
    out.write(json.dumps(message).encode() + b"\n")
    out.write(data)
    out.flush()
