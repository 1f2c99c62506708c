"""A child process that may not grow, write or hang, for work on untrusted files.

Parent and child exchange length-prefixed messages: a line of JSON, then as many bytes as it announces. A child may
leave these bytes in memory that both share instead.
"""

import fcntl
import json
import mmap
import os
import resource
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, Self, TypeVar

from sublens.errors import SublensError
from sublens.parallel.mapper import ONE_THREAD

START_SECONDS = 120.0
"""Longest time for the child to load a library, which a busy disk makes slow, or to read a catalogue."""
MEMORY_BYTES = 2 * 2**30
"""Memory that the child may address; libraries take a quarter of it before they read anything."""
LIMITS = {"RLIMIT_AS": MEMORY_BYTES, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0}
"""Limits of the child: no more memory than an image needs, no file to write, no core dump."""
REGION_BYTES = 2**23
"""Memory that parent and child share, bytes."""
AHEAD_BYTES = 2**14
"""Bytes of requests from which on no more are sent: a pipe holds them all, as a child that waits to answer reads none.
"""
TAKEN_BYTES = 64
"""Length of its beginning, where the parent says how far it has taken the rest; blocks are aligned to as much."""
R = TypeVar("R")
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**27)}
"""Environment in which glibc hands no memory of an image back to the system, to take it again for the next one."""
Message = dict[str, Any]
"""The line of JSON."""


class ChildError(Exception):
    """The child ended, or takes too long; `what` and `need` are parts of the user's error."""

    def __init__(self, what: str, need: str) -> None:
        super().__init__(what)
        self.what, self.need = what, need


class EndedError(ChildError):
    """The child ended, or sent what no child sends."""

    def __init__(self) -> None:
        super().__init__(
            "takes more memory than an image may, or is damaged so that reading it fails",
            f"an intact file that is read in {MEMORY_BYTES / 2**30:g} GiB of memory",
        )


class Region:
    """Memory that a parent shares with one child: a ring of blocks, which the child puts and the parent takes in order.

    It has no name and keeps its size, so nothing is left of it when both are gone, and neither can pull it from under
    the other. The parent believes nothing that is written in it.
    """

    def __init__(self, fd: int) -> None:
        """fd: descriptor of `REGION_BYTES`, which is closed."""
        self._memory = memoryview(mmap.mmap(fd, REGION_BYTES))
        os.close(fd)
        self._taken = self._memory[:8].cast("Q")
        self._ring = self._memory[TAKEN_BYTES:]
        self._n_put = 0

    def put(self, blocks: Sequence[memoryview]) -> Message | None:
        """Put blocks as one; returns what tells the parent where, or None where there is no room now."""
        n_bytes, size = sum(block.nbytes for block in blocks), len(self._ring)
        start = self._n_put + -self._n_put % TAKEN_BYTES
        if start % size + n_bytes > size:  # a block does not go around the end
            start += -start % size
        if start + n_bytes > self._taken[0] + size:
            return None
        self._n_put, offset = start + n_bytes, start % size
        for block in blocks:
            self._ring[offset : offset + block.nbytes] = block
            offset += block.nbytes
        return {"start": start, "bytes": n_bytes}

    def take(self, start: object, n_bytes: object) -> bytearray:
        """A copy of the bytes that were put, whose place may be put to use again; raises `EndedError` for no place."""
        size = len(self._ring)
        if not (isinstance(start, int) and isinstance(n_bytes, int) and 0 <= start < 2**62 and n_bytes >= 0):
            raise EndedError
        offset = start % size
        if offset + n_bytes > size:
            raise EndedError
        block = bytearray(self._ring[offset : offset + n_bytes])
        self._taken[0] = start + n_bytes
        return block


def _region_fd() -> int | None:
    """A descriptor of memory without a name, which nobody can resize; None where the system has no such memory."""
    if sys.platform != "linux":
        return None
    try:
        fd = os.memfd_create("sublens", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return None
    os.ftruncate(fd, REGION_BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


@dataclass
class Keeper:
    """Keeps a child process, which may be replaced, no longer than a `with` block lasts."""

    _child: "Child | None" = field(default=None, init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """End the child, whatever it does."""
        if self._child is not None:
            self._child.end()
            self._child = None


class Child:
    """A process that runs a module of ours and exchanges messages with this one."""

    def __init__(self, module: str, *, is_sharing: bool = False) -> None:
        """is_sharing: whether the module knows to put bytes in a `Region`, whose descriptor is its argument."""
        fd = _region_fd() if is_sharing else None
        shared = () if fd is None else (fd,)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *map(str, shared)],  # -P: import nothing from the working folder
            pass_fds=shared,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **ONE_THREAD, **KEEP_MEMORY},
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)
        self._buffer = bytearray()
        self._region = None if fd is None else Region(fd)
        self.waited = 0.0
        """Seconds that were waited for it."""

    @property
    def _output(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, request: Message, data: bytes = b"") -> None:
        """Send a request; a child that has ended is noticed in `receive`."""
        self.write(line(request) + data)

    def write(self, data: bytes) -> None:
        """Send requests as bytes."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def has_answer(self) -> bool:
        """Whether `receive` has something to read by now."""
        return bool(self._buffer or self._selector.select(0))

    def receive(self, seconds: float) -> Message:
        """The next message, but for the bytes that it announces; raises `ChildError` where none comes in time."""
        deadline = time.monotonic() + seconds
        while (end := self._buffer.find(b"\n")) < 0:
            self._fill(deadline)
        text = bytes(self._take(end + 1))
        if text in PLAIN_LINES:
            return {**PLAIN_LINES[text]}
        message: Message = json.loads(text.decode())
        return message

    def receive_bytes(self, n_bytes: int, seconds: float) -> bytearray:
        """The bytes that a message announced; raises `ChildError` where they do not come in time."""
        deadline = time.monotonic() + seconds
        while len(self._buffer) < n_bytes:
            self._fill(deadline)
        return self._take(n_bytes)

    def receive_block(self, message: Message, seconds: float) -> bytearray:
        """The bytes that a message announced, wherever they are; raises `ChildError` where there are none."""
        if "start" in message and self._region:
            return self._region.take(message["start"], message["bytes"])
        return self.receive_bytes(message["bytes"], seconds)

    def end(self) -> None:
        """Stop the process, whatever it does."""
        self._selector.close()
        self._process.kill()
        self._process.communicate()

    def _fill(self, deadline: float) -> None:
        clock = time.monotonic()
        is_ready = self._selector.select(max(0.0, deadline - clock))
        self.waited += time.monotonic() - clock
        if not is_ready:
            raise ChildError("took too long to read", "a file that is read in seconds")
        block = os.read(self._output, 2**20)
        if not block:
            raise EndedError
        self._buffer += block

    def _take(self, n_bytes: int) -> bytearray:
        head = self._buffer[:n_bytes]
        del self._buffer[:n_bytes]
        return head


@dataclass
class Lane(Keeper, Generic[R]):
    """A child process, and the requests that it has not answered."""

    module: str
    """The module that the child runs, which shares memory."""
    pending: deque[tuple[R, bytes]] = field(default_factory=deque)
    """Each request, and as the child is sent it."""
    _n_bytes: int = field(default=0, init=False)
    """Bytes of the pending requests."""
    _is_warm: bool = field(default=False, init=False)
    """Whether the child has answered before, so that it has its libraries."""

    @property
    def waited(self) -> float:
        """Seconds that were waited for answers, but for a child's first."""
        return self._child.waited if self._child and self._is_warm else 0.0

    def child(self) -> Child:
        """The child; a new one is sent the pending requests again."""
        if self._child is None:
            self._child, self._is_warm = Child(self.module, is_sharing=True), False
            self._child.write(b"".join(data for _, data in self.pending))
        return self._child

    def receive_first(self) -> Message:
        """The first message of an answer; raises `ChildError` where there is none."""
        child = self.child()
        message = child.receive(START_SECONDS)
        if not self._is_warm:
            self._is_warm, child.waited = True, 0.0
        return message

    def is_warm(self) -> bool:
        """Whether the child has its libraries, of which `warm_up` made sure, or has ended."""
        if not self._is_warm and self.child().has_answer():
            try:
                self.receive_first()
            except ChildError:
                self.end()
                self._is_warm = True
        return self._is_warm

    def warm_up(self, data: bytes) -> None:
        """Have the child load what it needs for a request."""
        self.child().write(data)

    def has_room(self) -> bool:
        """Whether the child may be sent another request."""
        return self._n_bytes < AHEAD_BYTES

    def add(self, request: R, data: bytes) -> None:
        """Send the child a request; one without data needs no answer of it."""
        if data:
            self.child().write(data)
        self.pending.append((request, data))
        self._n_bytes += len(data)

    def remove_first(self) -> R:
        """The first request, which has been answered."""
        request, data = self.pending.popleft()
        self._n_bytes -= len(data)
        return request

    def clear(self) -> None:
        """End the child where it has requests to answer, which nobody waits for."""
        if self.pending:  # or the next caller would receive their results
            self.end()
            self.pending.clear()
            self._n_bytes = 0


def path_to_hex(path: Path) -> str:
    """A path as JSON can hold it, whatever its bytes."""
    return os.fsencode(path).hex()


def path_from_hex(name: str) -> Path:
    """The path behind `path_to_hex`."""
    return Path(os.fsdecode(bytes.fromhex(name)))


def error_fields(err: SublensError) -> Message:
    """The parts of an error, as a message holds them."""
    return {"what": err.what, "need": err.need, "next": err.next, "path": err.path}


@dataclass(frozen=True)
class Output:
    """The way for a child's messages to its parent."""

    stream: IO[bytes]
    region: Region | None

    def send(self, message: Message, *blocks: memoryview, is_last: bool = True) -> None:
        """Send a message and the bytes that belong to it, which it need not announce.

        is_last: whether no other follows at once, so that it must not wait for that.
        """
        place = self.region.put(blocks) if self.region and blocks else None
        if blocks:
            message = {**message, **(place or {"bytes": sum(block.nbytes for block in blocks)})}
        self.stream.write(line(message))
        for block in () if place else blocks:
            self.stream.write(block)
        if is_last:
            self.stream.flush()


@contextmanager
def open_output() -> Iterator[Output]:
    """The way for a child's messages; what libraries print goes elsewhere."""
    with os.fdopen(os.dup(1), "wb") as stream:
        os.dup2(2, 1)
        yield Output(stream, Region(int(sys.argv[1])) if len(sys.argv) > 1 else None)


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


def line(message: Message) -> bytes:
    """A message, but for the bytes that it announces."""
    return json.dumps(message).encode() + b"\n"


PLAIN_LINES = {line(message): message for message in ({"kind": "begin"}, {"kind": "end", "problem": None})}
"""Messages that come with every file, as bytes."""
