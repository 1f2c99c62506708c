"""Image files that nobody vouches for, read in a child process that may not grow, write or hang.

Parent and child speak in frames: a line of JSON, then as many bytes as it announces. The parent sends
what to read; the child answers `begin` once it has loaded what it needs, then the images, then `end`.
A file that makes the child end, or takes it too long, costs one error and a new child. So does a cutout
of a big image; the catalogue that tells where to cut is read by a child of its own.
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
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from sublens import images, mosaic
from sublens.errors import DataError, ImageError
from sublens.images import Image, Wanted
from sublens.mosaic import Cut, Positions

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

SECONDS = 5.0
"""That one image may take."""
START_SECONDS = 120.0
"""That the child may take to load a library, which a busy disk makes slow, or to read a catalogue."""
MEMORY_BYTES = 2 * 2**30
"""That the child may address; libraries take a quarter of it before they read anything."""
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
    id: str = ""
    """Name in the catalogue, where the image is a cutout and has one."""
    ra: float | None = None
    dec: float | None = None
    """Degrees, where the catalogue or the big image tells."""


Asked = Path | Found | Cut
"""An image file to read, what is found already, or a cutout to make."""


def surveyed(path: Path, at: Path, wanted: Wanted) -> Positions:
    """Where the positions of the catalogue `at` lie in the big image at `path`, read in a child process.

    Raises `DataError` where the one or the other cannot be used.
    """
    child = _Child()
    try:
        child.request(path, wanted, at=os.fsencode(at).hex())
        frame = child.frame(START_SECONDS)
        if frame["kind"] == "end":
            raise DataError(frame["problem"])
        numbers = np.frombuffer(child.data(frame["bytes"], START_SECONDS), np.float64).reshape(-1, 4)
        ids = child.data(frame["id_bytes"], START_SECONDS).decode().split("\0")
    except _SilentError as err:
        raise DataError(f"{at}: {err} Leave out columns, split it, or convert it to CSV.") from err
    finally:
        child.end()
    return Positions(numbers[:, :2], numbers[:, 2:], np.array(ids, np.dtypes.StringDType()), frame["pixel_scale"])


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


class _SilentError(Exception):
    """The child ended, or takes too long; the text says which."""


@dataclass
class Reader:
    """Reads image files in a child process; use it in a `with` block.

    with Reader() as reader:
        for path, image in reader.read(paths): ...
    """

    wanted: Wanted = field(default_factory=Wanted)
    seconds: float = SECONDS
    _child: "_Child | None" = None

    def __enter__(self) -> Self:
        self._child = _Child()  # it loads its libraries while others load theirs
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def read(self, paths: Iterable[Asked], start: tuple[int, int] = (0, 0)) -> Iterator[Found]:
        """Every image of every file, in order; an `ImageError` in place of what cannot be used.

        paths: as `listed` or `Positions.cuts` give them; what is found already is passed on in its
        place. start: the `place` to begin at.
        """
        asked, coming, index = deque[Asked](), islice(paths, start[0], None), start[0]
        try:
            while True:
                if self._child is None:
                    self._child = _Child()
                    for waiting in asked:
                        self._child.ask(waiting, self.wanted)
                while len(asked) < AHEAD and (path := next(coming, None)) is not None:
                    self._child.ask(path, self.wanted)
                    asked.append(path)
                if not asked:
                    return
                first, n_known = asked[0], start[1] if index == start[0] else 0
                answers = self._answers(self._child, first)
                for number, found in enumerate(answers):
                    if number >= n_known:
                        yield found._replace(place=(index, number))
                asked.popleft()
                index += 1
        finally:
            if asked:  # nobody will take its answers
                self._end()

    def _answers(self, child: "_Child", asked: Asked) -> Iterator[Found]:
        if isinstance(asked, Found):
            yield asked
        elif isinstance(asked, Cut):
            for found in self._images(child, asked.path):
                image, ra, dec = found.image, asked.ra, asked.dec
                image = replace(image, ra=ra, dec=dec) if isinstance(image, Image) else image
                yield found._replace(image=image, number=asked.number, id=asked.id, ra=ra, dec=dec)
        else:
            yield from self._images(child, asked)

    def _images(self, child: "_Child", path: Path) -> Iterator[Found]:
        try:
            frame = child.frame(START_SECONDS)
            while frame["kind"] != "end":
                if frame["kind"] == "image":
                    pixels = np.frombuffer(child.data(frame["bytes"], self.seconds), np.float64)
                    image = Image(pixels.reshape(frame["shape"]), **frame["about"])
                    yield Found(path, image, image.number)
                elif frame["kind"] == "bad":
                    yield Found(path, ImageError(frame["problem"]), frame["number"])
                frame = child.frame(self.seconds)
            if frame["problem"]:
                yield Found(path, ImageError(frame["problem"]))
        except _SilentError as err:
            self._end()
            yield Found(path, ImageError(f"{path}: {err} Leave this file out, or convert it."))

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


class _Child:
    """The process that reads, seen from its parent."""

    def __init__(self) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sublens.reading"],
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

    def ask(self, asked: Asked, wanted: Wanted) -> None:
        """Have a file read or a cutout made, unless that is done."""
        if isinstance(asked, Cut):
            self.request(asked.path, wanted, cut=(asked.number, asked.xy, asked.size))
        elif isinstance(asked, Path):
            self.request(asked, wanted)

    def request(self, path: Path, wanted: Wanted, **more: Any) -> None:
        """Send what is asked for; the child may have ended, which shows when it does not answer."""
        assert self._process.stdin is not None
        line = json.dumps({"path": os.fsencode(path).hex(), "wanted": wanted, **more})
        with suppress(BrokenPipeError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

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
            raise _SilentError("took too long to read.")
        block = os.read(self._output, 2**20)
        if not block:
            raise _SilentError("needs more memory than an image may, or is damaged so that reading it fails.")
        self._buffer += block

    def _taken(self, n_bytes: int) -> bytearray:
        taken, self._buffer = self._buffer[:n_bytes], self._buffer[n_bytes:]
        return taken


def main() -> None:
    """Be the child: answer until there are no more requests."""
    _confine()
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # libraries may print; it must not get between the frames
        for line in sys.stdin.buffer:
            request = json.loads(line)
            path, problem = _path(request["path"]), None
            named = _path(request["at"]) if "at" in request else path
            try:
                _answer(out, path, request)
            except (DataError, ImageError) as err:
                problem = str(err)
            except (MemoryError, RecursionError):
                problem = f"{named}: needs more memory than an image may. Leave this file out, or convert it."
            except OSError as err:
                problem = (
                    f"{err.filename or named}: cannot be read ({err.strerror or err}). Check it and its permissions."
                )
            _send(out, {"kind": "end", "problem": problem})


def _path(name: str) -> Path:
    return Path(os.fsdecode(bytes.fromhex(name)))


def _answer(out: Any, path: Path, request: dict[str, Any]) -> None:
    """Send all that was asked for, but the end."""
    wanted = Wanted(*request["wanted"])
    _load(path)
    if "at" in request:
        _send_positions(out, mosaic.survey(path, wanted.hdu, _path(request["at"])))
        return
    big = mosaic.opened(path, wanted.hdu) if "cut" in request else None
    _send(out, {"kind": "begin"})
    found = iter([big.cut(*request["cut"])]) if big else images.read_all(path, wanted)
    for number, image in enumerate(found):
        if isinstance(image, Image):
            _send_image(out, image)
        else:
            _send(out, {"kind": "bad", "number": number, "problem": str(image)})


def _confine() -> None:
    """No more memory than an image needs, no file to write, no core dump, nothing fetched from elsewhere."""
    from urllib import request

    request.install_opener(request.OpenerDirector())  # that knows no protocol, not even of files
    if resource is None:
        return
    for limit, value in (("RLIMIT_AS", MEMORY_BYTES), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        with suppress(ValueError, OSError):  # macOS knows no limit of addresses
            resource.setrlimit(getattr(resource, limit), (value, value))


def _load(path: Path) -> None:
    """Import what reads this format, before the clock starts."""
    library = LIBRARIES.get(path.suffix.lower(), FITS_LIBRARY if images.is_fits(path) else None)
    if library:
        importlib.import_module(library)


def _send(out: Any, frame: Frame, data: bytes | memoryview = b"") -> None:
    out.write(json.dumps(frame).encode() + b"\n")
    out.write(data)
    out.flush()


def _send_image(out: Any, image: Image) -> None:
    pixels = np.ascontiguousarray(image.pixels)
    about = {key: getattr(image, key) for key in ("is_coarse", "pixel_scale", "ra", "dec", "number", "notes")}
    _send(out, {"kind": "image", "shape": pixels.shape, "bytes": pixels.nbytes, "about": about}, pixels.data.cast("B"))


def _send_positions(out: Any, found: Positions) -> None:
    numbers, ids = np.hstack([found.xy, found.sky]), "\0".join(found.ids.tolist()).encode()
    frame = {"kind": "positions", "bytes": numbers.nbytes, "id_bytes": len(ids), "pixel_scale": found.pixel_scale}
    _send(out, frame, numbers.tobytes() + ids)


if __name__ == "__main__":
    main()
