"""Image files that nobody vouches for, read in a child process that may not grow, write or hang.

Parent and child speak in frames: a line of JSON, then as many bytes as it announces. The parent sends
what to read; the child answers `begin` once it has loaded what it needs, then the images, then `end`.
A file that makes the child end, or takes it too long, costs one error and a new child.

`Child`, `answers`, `confine` and `send` serve any module of ours that runs as such a child.
"""

import glob
import importlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import numpy as np

from sublens import images
from sublens.errors import ImageError
from sublens.images import Image, Wanted

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

SECONDS = 5.0
"""That one image may take."""
START_SECONDS = 120.0
"""That the child may take to load a library, which a busy disk makes slow."""
MEMORY_BYTES = 2 * 2**30
"""That the child may address; libraries take a quarter of it before they read anything."""
LIMITS = {"RLIMIT_AS": MEMORY_BYTES, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0}
"""No more memory than an image needs, no file to write, no core dump."""
AHEAD = 8
"""Files that the child is asked for before they are needed."""
LIBRARIES = {".h5": "h5py", ".hdf5": "h5py", ".zarr": "zarr"}
FITS_LIBRARY = "astropy.io.fits"

Frame = dict[str, Any]


class Found(NamedTuple):
    """What became of one image of a file."""

    path: Path
    image: Image | ImageError
    number: int | None = None
    """Place in a file that holds many."""
    place: tuple[int, int] = (0, 0)
    """Number of the input, and of what came of it."""


def listed(inputs: Iterable[Path]) -> Iterator[Path | Found]:
    """The files behind files, folders and patterns, sorted, in the order given.

    Of a folder, all images in and below it, but no link that leads out of it: a `Found` says so.
    """
    for given in inputs:
        if given.is_dir() and not images.is_image(given):
            yield from _within(given)
        elif not given.exists() and any(sign in str(given) for sign in "*?["):
            matching = sorted(glob.glob(str(given), recursive=True))  # noqa: PTH207 - a Path globs below a folder
            yield from map(Path, matching)
            if not matching:
                yield Found(given, ImageError(f"{given}: no file has such a name. Check the pattern."))
        else:
            yield given


def _within(folder: Path) -> Iterator[Path | Found]:
    real, n_found = folder.resolve(), 0
    for top, below, names in os.walk(folder):
        stores = [name for name in below if images.is_image(Path(name))]
        below[:] = sorted(set(below) - set(stores))
        for path in sorted(Path(top, name) for name in (*names, *stores) if images.is_image(Path(name))):
            n_found += 1
            is_inside = path.resolve().is_relative_to(real)
            yield path if is_inside else Found(path, ImageError(f"{path}: a link out of {folder}. Name it by itself."))
    if not n_found:
        yield Found(folder, ImageError(f"{folder}: holds no {', '.join(images.READERS)} files. Check the folder."))


class SilentError(Exception):
    """The child ended, or takes too long; the text says which."""


@dataclass
class Reader:
    """Reads image files in a child process; use it in a `with` block.

    with Reader() as reader:
        for path, image in reader.read(paths): ...
    """

    wanted: Wanted = field(default_factory=Wanted)
    seconds: float = SECONDS
    _child: "Child | None" = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def read(self, paths: Iterable[Path | Found], start: tuple[int, int] = (0, 0)) -> Iterator[Found]:
        """Every image of every file, in order; an `ImageError` in place of what cannot be used.

        paths: as `listed` gives them; what is found already is passed on in its place. start: the
        `place` to begin at.
        """
        asked, coming, index = deque[Path | Found](), islice(paths, start[0], None), start[0]
        try:
            while True:
                if self._child is None:
                    self._child = Child("sublens.reading")
                    for waiting in asked:
                        self._ask(self._child, waiting)
                while len(asked) < AHEAD and (path := next(coming, None)) is not None:
                    self._ask(self._child, path)
                    asked.append(path)
                if not asked:
                    return
                first, n_known = asked[0], start[1] if index == start[0] else 0
                answers = iter([first]) if isinstance(first, Found) else self._answers(self._child, first)
                for number, found in enumerate(answers):
                    if number >= n_known:
                        yield found._replace(place=(index, number))
                asked.popleft()
                index += 1
        finally:
            if asked:  # nobody will take its answers
                self._end()

    def _ask(self, child: "Child", path: Path | Found) -> None:
        if not isinstance(path, Found):  # which is done
            child.ask(path, self.wanted._asdict())

    def _answers(self, child: "Child", path: Path) -> Iterator[Found]:
        try:
            child.frame(START_SECONDS)
            while (frame := child.frame(self.seconds))["kind"] != "end":
                if frame["kind"] == "image":
                    pixels = np.frombuffer(child.data(frame["bytes"], self.seconds), np.float64)
                    image = Image(pixels.reshape(frame["shape"]), **frame["about"])
                    yield Found(path, image, image.number)
                else:
                    yield Found(path, ImageError(frame["problem"]), frame["number"])
            if frame["problem"]:
                yield Found(path, ImageError(frame["problem"]))
        except SilentError as err:
            self._end()
            yield Found(path, ImageError(f"{path}: {err} Leave this file out, or convert it."))

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


class Child:
    """A process that runs a module of ours and speaks in frames, seen from its parent."""

    def __init__(self, module: str) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],  # -P: import nothing from the working folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **threads},
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
            raise SilentError("needs more memory than an image may, or is damaged so that reading it fails.")
        self._buffer += block

    def _taken(self, n_bytes: int) -> bytearray:
        taken, self._buffer = self._buffer[:n_bytes], self._buffer[n_bytes:]
        return taken


def main() -> None:
    """Be the child: answer until there are no more requests."""
    with answers() as out:
        confine()
        for path, request in requests():
            problem = None
            try:
                _load(path)
                send(out, {"kind": "begin"})
                for number, image in enumerate(images.read_all(path, Wanted(**request))):
                    if isinstance(image, Image):
                        _send_image(out, image)
                    else:
                        send(out, {"kind": "bad", "number": number, "problem": str(image)})
            except ImageError as err:
                problem = str(err)
            except (MemoryError, RecursionError):
                problem = f"{path}: needs more memory than an image may. Leave this file out, or convert it."
            except OSError as err:
                problem = f"{path}: cannot be read ({err.strerror or err}). Check it and its permissions."
            send(out, {"kind": "end", "problem": problem})


@contextmanager
def answers() -> Iterator[IO[bytes]]:
    """Where a child writes its frames; what libraries print does not get between them."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        yield out


def requests() -> Iterator[tuple[Path, Frame]]:
    """What the parent asks of a child, until there is no more; data that it announces must be read in between."""
    for line in sys.stdin.buffer:
        request = json.loads(line)
        yield Path(os.fsdecode(bytes.fromhex(request.pop("path")))), request


def confine(limits: Mapping[str, int] = LIMITS) -> None:
    """Limit this process for good, as far as its system can."""
    if resource is None:
        return
    for limit, value in limits.items():
        with suppress(ValueError, OSError):  # macOS knows no limit of addresses
            resource.setrlimit(getattr(resource, limit), (value, value))


def _load(path: Path) -> None:
    """Import what reads this format, before the clock starts."""
    library = LIBRARIES.get(path.suffix.lower(), FITS_LIBRARY if images.is_fits(path) else None)
    if library:
        importlib.import_module(library)


def send(out: IO[bytes], frame: Frame, data: bytes | memoryview = b"") -> None:
    """Write a frame, and the bytes that it announces."""
    out.write(json.dumps(frame).encode() + b"\n")
    out.write(data)
    out.flush()


def _send_image(out: IO[bytes], image: Image) -> None:
    pixels = np.ascontiguousarray(image.pixels)
    about = {key: getattr(image, key) for key in ("is_coarse", "pixel_scale", "ra", "dec", "number", "notes")}
    send(out, {"kind": "image", "shape": pixels.shape, "bytes": pixels.nbytes, "about": about}, pixels.data.cast("B"))


if __name__ == "__main__":
    main()
