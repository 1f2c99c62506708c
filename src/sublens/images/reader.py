"""Untrusted image files, read in a child process.

The parent sends what to read; the child answers `begin` once it has loaded what it needs, then the images, then `end`.
A file that makes the child end is tried once more in a new one, since a file before it may have damaged
the old one's memory; a file that ends that too, or takes too long, costs one error and a new child. So
does a cutout of a big image; the catalogue that tells where to cut is read by a child of its own.
"""

import importlib
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np

from sublens.errors import DataError, ImageError
from sublens.images import cutouts, formats
from sublens.images.cutouts import Cutout, Positions
from sublens.images.formats import ImageSelector
from sublens.images.pixels import Image
from sublens.parallel.mapper import in_order
from sublens.storage import object_store
from sublens.storage.files import remove
from sublens.storage.object_store import FETCHES, Remote

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]
from sublens.images.sandbox import (
    START_SECONDS,
    Child,
    EndedError,
    Frame,
    Keeper,
    SilentError,
    confine,
    fetch_nothing,
    open_output,
    path_from_hex,
    read_requests,
    send,
)

SECONDS = 5.0
"""That one image may take."""
AHEAD = 8
"""Files that the child is asked for before they are needed."""
MAX_FETCHED_BYTES = 2**32
"""Of one file on an object store, unless cutouts are to be made of it."""
LIBRARIES = {".h5": "h5py", ".hdf5": "h5py", ".zarr": "zarr"}
FITS_LIBRARY = "astropy.io.fits"


class ReadResult(NamedTuple):
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


class Extension(NamedTuple):
    """An extension of a FITS file that holds an image."""

    number: int
    name: str
    shape: tuple[int, ...]


class FetchedCopy(NamedTuple):
    """A file on an object store, and what was fetched of it."""

    path: Remote
    copy: Path


ReadRequest = Path | FetchedCopy | ReadResult | Cutout
"""An image file to read, what is found already, or a cutout to make."""


def locate_positions(path: Path, at: Path, wanted: ImageSelector) -> Positions:
    """Where the positions of the catalogue `at` lie in the big image at `path`, read in a child process.

    Raises `DataError` where the one or the other cannot be used.
    """
    path_here, at_here = object_store.local(path), object_store.local(at)
    child = Child("sublens.images.reader")
    try:
        child.ask(path_here, {"wanted": wanted, "at": os.fsencode(at_here).hex()})
        frame = child.frame(START_SECONDS)
        if frame["kind"] == "end":
            raise DataError(frame["problem"].replace(str(path_here), str(path)).replace(str(at_here), str(at)))
        numbers = np.frombuffer(child.data(frame["bytes"], START_SECONDS), np.float64).reshape(-1, 4)
        ids = child.data(frame["id_bytes"], START_SECONDS).decode().split("\0")
    except SilentError as err:
        raise DataError(f"{at}: {err} Leave out columns, split it, or convert it to CSV.") from err
    finally:
        child.end()
    return Positions(numbers[:, :2], numbers[:, 2:], np.array(ids, np.dtypes.StringDType()), frame["pixel_scale"])


@dataclass
class Reader(Keeper):
    """Reads image files in a child process; use it in a `with` block.

    with Reader() as reader:
        for path, image in reader.read(paths): ...
    """

    wanted: ImageSelector = field(default_factory=ImageSelector)
    seconds: float = SECONDS
    _homes: dict[Path, Path] = field(default_factory=dict, init=False)
    """Where on this machine the big images are."""

    def __enter__(self) -> Self:
        self._child = Child("sublens.images.reader")  # it loads its libraries while others load theirs
        return self

    def read(self, paths: Iterable[ReadRequest], start: tuple[int, int] = (0, 0)) -> Iterator[ReadResult]:
        """Every image of every file, in order; an `ImageError` in place of what cannot be used.

        paths: as `listed` or `Positions.cuts` give them; what is found already is passed on in its
        place. start: the `place` to begin at.
        """
        with object_store.scratch() as folder, ThreadPoolExecutor(FETCHES) as pool:
            self._homes.clear()
            try:
                yield from self._read(_prefetch(islice(paths, start[0], None), folder, pool), start)
            finally:
                pool.shutdown(cancel_futures=True)

    def _read(self, coming: Iterator[ReadRequest], start: tuple[int, int]) -> Iterator[ReadResult]:
        asked, index, n_known = deque[ReadRequest](), *start
        is_retry = False
        try:
            while True:
                if self._child is None:
                    self._child = Child("sublens.images.reader")
                    for waiting in asked:
                        self._ask(self._child, waiting)
                while len(asked) < AHEAD and (path := next(coming, None)) is not None:
                    self._ask(self._child, path)
                    asked.append(path)
                if not asked:
                    return
                try:
                    for number, found in enumerate(self._answers(self._child, asked[0])):
                        if number >= n_known:
                            yield found._replace(place=(index, number))
                            n_known = number + 1
                except EndedError as err:
                    self._end()
                    if not is_retry:
                        is_retry = True
                        continue
                    yield _failed(asked[0], err)._replace(place=(index, n_known))
                done = asked.popleft()
                if isinstance(done, FetchedCopy):
                    remove(done.copy.parent)
                index, n_known, is_retry = index + 1, 0, False
        finally:
            if asked:  # nobody will take its answers
                self._end()

    def extensions(self, path: Path) -> list[Extension]:
        """Those extensions of a FITS file that hold an image; none of any other file, or of one that cannot be read."""
        if not formats.is_fits(path):
            return []
        self._child = self._child or Child("sublens.images.reader")
        try:
            self._child.ask(path, {"wanted": self.wanted, "extensions": True})
            frame, found = self._child.frame(START_SECONDS), []
            while frame["kind"] != "end":
                found = frame.get("extensions", [])
                frame = self._child.frame(self.seconds)
            return [Extension(number, name, tuple(shape)) for number, name, shape in found]
        except SilentError:
            self._end()
            return []

    def _ask(self, child: "Child", asked: ReadRequest) -> None:
        if isinstance(asked, Cutout):
            child.ask(self._here(asked), {"wanted": self.wanted, "cut": (asked.number, asked.xy, asked.size)})
        elif not isinstance(asked, ReadResult):
            child.ask(self._here(asked), {"wanted": self.wanted})

    def _here(self, asked: Path | FetchedCopy | Cutout) -> Path:
        """The file on this machine."""
        if isinstance(asked, FetchedCopy):
            return asked.copy
        path = _path_of(asked)
        if isinstance(path, Remote) and path not in self._homes:
            self._homes[path] = object_store.local(path)
        return self._homes.get(path, path)

    def _told(self, asked: Path | FetchedCopy | Cutout, problem: str) -> ImageError:
        """What the child told of a file on this machine, said of the file that was asked for."""
        return ImageError(problem.replace(str(self._here(asked)), str(_path_of(asked))))

    def _answers(self, child: "Child", asked: ReadRequest) -> Iterator[ReadResult]:
        if isinstance(asked, ReadResult):  # which is done
            yield asked
            return
        path = _path_of(asked)
        try:
            frame = child.frame(START_SECONDS)
            while frame["kind"] != "end":
                if frame["kind"] == "image":
                    pixels = np.frombuffer(child.data(frame["bytes"], self.seconds), np.float64)
                    image = Image(pixels.reshape(frame["shape"]), **frame["about"])
                    yield _with_position(asked, ReadResult(path, image, image.number))
                elif frame["kind"] == "bad":
                    yield _with_position(asked, ReadResult(path, self._told(asked, frame["problem"]), frame["number"]))
                frame = child.frame(self.seconds)
            if frame["problem"]:
                yield _with_position(asked, ReadResult(path, self._told(asked, frame["problem"])))
        except EndedError:
            raise
        except SilentError as err:
            self._end()
            yield _failed(asked, err)


def _prefetch(paths: Iterator[ReadRequest], folder: Path, pool: ThreadPoolExecutor) -> Iterator[ReadRequest]:
    """The same, but what lies on an object store is fetched by threads before it is needed."""
    due = (pool.submit(_fetch, one, folder) if isinstance(one, Remote) else _Ready(one) for one in paths)
    return in_order(due, lambda: FETCHES)


class _Ready(NamedTuple):
    """What does not have to be waited for."""

    one: ReadRequest

    def result(self) -> ReadRequest:
        return self.one


def _fetch(path: Remote, folder: Path) -> ReadRequest:
    try:
        return FetchedCopy(path, object_store.fetch(path, Path(tempfile.mkdtemp(dir=folder)), MAX_FETCHED_BYTES))
    except (FileNotFoundError, OverflowError) as err:
        return ReadResult(path, ImageError(str(err)))


def _path_of(asked: ReadRequest) -> Path:
    return asked if isinstance(asked, Path) else asked.path


def _failed(asked: ReadRequest, err: SilentError) -> ReadResult:
    path = _path_of(asked)
    return _with_position(asked, ReadResult(path, ImageError(f"{path}: {err} Leave this file out, or convert it.")))


def _with_position(asked: ReadRequest, found: ReadResult) -> ReadResult:
    """With what the catalogue tells, where it is a cutout."""
    if not isinstance(asked, Cutout):
        return found
    image = found.image
    if isinstance(image, Image):
        image = replace(image, ra=asked.ra, dec=asked.dec)
    return found._replace(image=image, number=asked.number, id=asked.id, ra=asked.ra, dec=asked.dec)


def main() -> None:
    """Be the child: answer until there are no more requests."""
    with open_output() as out:
        confine()
        fetch_nothing()
        for path, request in read_requests():
            problem, named = None, path_from_hex(request["at"]) if "at" in request else path
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
            send(out, {"kind": "end", "problem": problem})


def _answer(out: IO[bytes], path: Path, request: Frame) -> None:
    """Send all that was asked for, but the end."""
    wanted = ImageSelector(*request["wanted"])
    _load(path)
    if "at" in request:
        _send_positions(out, cutouts.locate_in_mosaic(path, wanted.hdu, path_from_hex(request["at"])))
        return
    if "extensions" in request:
        send(out, {"kind": "begin"})
        send(out, {"kind": "extensions", "extensions": formats.extensions(path)})
        return
    big = cutouts.open_mosaic(path, wanted.hdu) if "cut" in request else None
    send(out, {"kind": "begin"})
    found = iter([big.cut(*request["cut"])]) if big else formats.read_all(path, wanted)
    for number, image in enumerate(found):
        if isinstance(image, Image):
            _send_image(out, image)
        else:
            send(out, {"kind": "bad", "number": number, "problem": str(image)})


def _load(path: Path) -> None:
    """Import what reads this format, before the clock starts."""
    library = LIBRARIES.get(path.suffix.lower(), FITS_LIBRARY if formats.is_fits(path) else None)
    if library:
        importlib.import_module(library)


def _send_image(out: IO[bytes], image: Image) -> None:
    pixels = np.ascontiguousarray(image.pixels)
    about = {key: getattr(image, key) for key in ("is_coarse", "pixel_scale", "ra", "dec", "number", "notes")}
    send(out, {"kind": "image", "shape": pixels.shape, "bytes": pixels.nbytes, "about": about}, pixels.data.cast("B"))


def _send_positions(out: Any, found: Positions) -> None:
    numbers, ids = np.hstack([found.xy, found.sky]), "\0".join(found.ids.tolist()).encode()
    frame = {"kind": "positions", "bytes": numbers.nbytes, "id_bytes": len(ids), "pixel_scale": found.pixel_scale}
    send(out, frame, numbers.tobytes() + ids)


if __name__ == "__main__":
    main()
