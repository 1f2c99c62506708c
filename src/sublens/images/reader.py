"""Untrusted image files, read in a child process.

For each request the child answers `begin` once it has loaded the library, then the images, then `end`.
A file that makes the child end is tried once more in a new one, since a file before it may have damaged
the old one's memory; a file that ends that too, or takes too long, costs one error and a new child. The
same holds for a cutout of a big image; a catalogue of positions is read by a child of its own.
"""

import importlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple, Self

import numpy as np

from sublens.errors import DataError, ImageError
from sublens.images import cutouts, fits_image, formats
from sublens.images.catalogue import WHOLE, CatalogueSelector
from sublens.images.cutouts import Cutout, Positions, position_name
from sublens.images.formats import ImageSelector, image_name
from sublens.images.limits import too_much_memory, unreadable_file
from sublens.images.pixels import Image, TangentPlane
from sublens.images.sandbox import (
    START_SECONDS,
    Child,
    ChildError,
    EndedError,
    Keeper,
    Message,
    confine,
    error_fields,
    fetch_nothing,
    open_output,
    path_from_hex,
    path_to_hex,
    read_requests,
    send,
)
from sublens.parallel.mapper import in_order
from sublens.storage import object_store, scratch
from sublens.storage.files import remove
from sublens.storage.object_store import FETCHES, Remote

SECONDS = 5.0
"""Longest time to read one image."""
AHEAD = 8
"""Files that are requested before they are needed."""
MAX_FETCHED_BYTES = 2**32
"""Largest size of one file on an object store, unless cutouts are made of it."""
LIBRARIES = {".h5": "h5py", ".hdf5": "h5py", ".zarr": "zarr", ".tif": "tifffile", ".tiff": "tifffile"}
"""Module that reads a format, by the end of the name."""
FITS_LIBRARY = "astropy.io.fits"


class ReadResult(NamedTuple):
    """One image of a file, or its error."""

    path: Path
    image: Image | ImageError
    number: int | None = None
    """Index in a file that holds many images, or in the catalogue."""
    source_index: tuple[int, int] = (0, 0)
    """Index of the input, and of the image in it."""
    id: str = ""
    """Name in the catalogue, where the image is a cutout and has one."""
    ra: float | None = None
    """Right ascension, degrees, where the catalogue or the big image gives it."""
    dec: float | None = None
    """Declination, degrees, where the catalogue or the big image gives it."""


class Extension(NamedTuple):
    """An extension of a FITS file that holds an image."""

    number: int
    name: str
    shape: tuple[int, ...]


class FetchedCopy(NamedTuple):
    """A file on an object store, and its copy on this machine."""

    path: Remote
    copy: Path


ReadRequest = Path | FetchedCopy | ReadResult | Cutout
"""An image file to read, a cutout to make, or a result that needs no reading."""


def locate_positions(path: Path, at: Path, selector: ImageSelector, columns: CatalogueSelector = WHOLE) -> Positions:
    """The positions of the catalogue `at` in the big image at `path`, read in a child process.

    Raises `DataError` where the one or the other cannot be used.
    """
    copy, catalogue = object_store.local(path), object_store.local(at)
    child = Child("sublens.images.reader")
    try:
        child.send({"path": path_to_hex(copy), "selector": selector, "at": path_to_hex(catalogue), "columns": columns})
        message = child.receive(START_SECONDS)
        if message["kind"] == "end":
            problem = message["problem"]
            named = {str(copy): path, str(catalogue): at}[problem["path"]]
            raise DataError(problem["what"], need=problem["need"], next=problem["next"], path=named)
        numbers = np.frombuffer(child.receive_bytes(message["bytes"], START_SECONDS), np.float64).reshape(-1, 4)
        ids = child.receive_bytes(message["id_bytes"], START_SECONDS).decode().split("\0")
    except ChildError as err:
        advice = "Leave out columns, split it, or convert it to CSV."
        raise DataError(err.what, need=err.need, next=advice, path=at) from err
    finally:
        child.end()
    names = np.array(ids, np.dtypes.StringDType())
    return Positions(numbers[:, :2], numbers[:, 2:], names, message["pixel_scale"], message["note"])


@dataclass
class Reader(Keeper):
    """Reads image files in a child process; use it in a `with` block.

    with Reader() as reader:
        for path, image in reader.read(paths): ...
    """

    selector: ImageSelector = field(default_factory=ImageSelector)
    """Choice of an extension or array."""
    seconds: float = SECONDS
    """Longest time to read one image."""
    _copies: dict[Path, Path] = field(default_factory=dict, init=False)
    """The big images on this machine, by their path on the store."""

    def __enter__(self) -> Self:
        self._child = Child("sublens.images.reader")  # it loads its libraries while others load theirs
        return self

    def read(self, paths: Iterable[ReadRequest], start: tuple[int, int] = (0, 0)) -> Iterator[ReadResult]:
        """Every image of every file, in order; an `ImageError` in place of what cannot be used.

        paths: as `list_images` or `Positions.cuts` give them; a result that needs no reading is passed on.
        start: the `source_index` to begin at.
        """
        with ExitStack() as stack, ThreadPoolExecutor(FETCHES) as pool:
            folder = cache(lambda: stack.enter_context(scratch.folder()))  # none where nothing is fetched
            self._copies.clear()
            try:
                yield from self._read(_prefetch(islice(paths, start[0], None), folder, pool), start)
            finally:
                pool.shutdown(cancel_futures=True)

    def _read(self, requests: Iterator[ReadRequest], start: tuple[int, int]) -> Iterator[ReadResult]:
        pending, index, n_known = deque[ReadRequest](), *start
        is_retry = False
        try:
            while True:
                child = self._running_child(pending)
                for request in islice(requests, AHEAD - len(pending)):
                    self._send(child, request)
                    pending.append(request)
                if not pending:
                    return
                try:
                    for number, result in enumerate(self._results(child, pending[0])):
                        if number >= n_known:
                            yield result._replace(source_index=(index, number))
                            n_known = number + 1
                except EndedError as err:
                    self._end()
                    if not is_retry:
                        is_retry = True
                        continue
                    yield _failed(pending[0], err)._replace(source_index=(index, n_known))
                done = pending.popleft()
                if isinstance(done, FetchedCopy):
                    remove(done.copy.parent)
                index, n_known, is_retry = index + 1, 0, False
        finally:
            if pending:  # or the next caller would receive their results
                self._end()

    def _running_child(self, pending: Iterable[ReadRequest]) -> Child:
        """The child; a new one is sent the pending requests again."""
        if self._child is None:
            self._child = Child("sublens.images.reader")
            for request in pending:
                self._send(self._child, request)
        return self._child

    def extensions(self, path: Path) -> list[Extension]:
        """The extensions of a FITS file that hold an image; none for any other file, or one that cannot be read."""
        if not formats.is_fits(path):
            return []
        child = self._running_child(())
        try:
            child.send({"path": path_to_hex(path), "selector": self.selector, "extensions": True})
            message, extensions = child.receive(START_SECONDS), []
            while message["kind"] != "end":
                extensions = message.get("extensions", [])
                message = child.receive(self.seconds)
            return [Extension(number, name, tuple(shape)) for number, name, shape in extensions]
        except ChildError:
            self._end()
            return []

    def _send(self, child: Child, request: ReadRequest) -> None:
        if isinstance(request, ReadResult):
            return
        message: Message = {"path": path_to_hex(self._local(request)), "selector": self.selector}
        if isinstance(request, Cutout):
            message["cut"] = (request.number, request.xy, request.size)
        child.send(message)

    def _local(self, request: Path | FetchedCopy | Cutout) -> Path:
        """The file on this machine."""
        if isinstance(request, FetchedCopy):
            return request.copy
        path = _path_of(request)
        if isinstance(path, Remote) and path not in self._copies:
            self._copies[path] = object_store.local(path)
        return self._copies.get(path, path)

    def _results(self, child: Child, request: ReadRequest) -> Iterator[ReadResult]:
        if isinstance(request, ReadResult):
            yield request
            return
        path = _path_of(request)
        try:
            message = child.receive(START_SECONDS)
            while message["kind"] != "end":
                if message["kind"] == "image":
                    image = _image(message, child.receive_bytes(message["bytes"], self.seconds))
                    yield _with_position(request, ReadResult(path, image, image.number))
                elif message["kind"] == "bad":
                    yield _unusable(request, message["problem"], message["number"])
                message = child.receive(self.seconds)
            if message["problem"]:
                yield _unusable(request, message["problem"])
        except EndedError:
            raise
        except ChildError as err:
            self._end()
            yield _failed(request, err)


def _prefetch(
    requests: Iterator[ReadRequest], folder: Callable[[], Path], pool: ThreadPoolExecutor
) -> Iterator[ReadRequest]:
    """The same requests; files on an object store are fetched by threads before they are needed, into that folder."""
    futures = (
        pool.submit(_fetch, request, folder()) if isinstance(request, Remote) else _Ready(request)
        for request in requests
    )
    return in_order(futures, lambda: FETCHES)


class _Ready(NamedTuple):
    """A request without anything to fetch."""

    request: ReadRequest

    def result(self) -> ReadRequest:
        return self.request


def _fetch(path: Remote, folder: Path) -> ReadRequest:
    try:
        return FetchedCopy(path, object_store.fetch(path, Path(tempfile.mkdtemp(dir=folder)), MAX_FETCHED_BYTES))
    except FileNotFoundError:
        error = ImageError("no such file or folder", need="an address of one", next="Check the address.", path=path)
    except OverflowError:
        limit = f"at most {MAX_FETCHED_BYTES:,} bytes"
        error = ImageError("is too large to fetch", need=limit, next="Cut out what you need.", path=path)
    return ReadResult(path, error)


def _path_of(request: ReadRequest) -> Path:
    return request if isinstance(request, Path) else request.path


def _name_of(request: ReadRequest, number: int | None) -> str:
    """Name in errors of an image that was requested, with its index in a stack or a catalogue."""
    if isinstance(request, Cutout):
        return position_name(request.path, request.number)
    return image_name(_path_of(request), number)


def _unusable(request: ReadRequest, problem: Message, number: int | None = None) -> ReadResult:
    """The result for an image with that problem, which the child named by its path on this machine."""
    error = ImageError(problem["what"], need=problem["need"], next=problem["next"], path=_name_of(request, number))
    return _with_position(request, ReadResult(_path_of(request), error, number))


def _failed(request: ReadRequest, err: ChildError) -> ReadResult:
    """The result for a file that the child could not read to its end."""
    advice = "Leave this file out, or convert it."
    error = ImageError(err.what, need=err.need, next=advice, path=_name_of(request, None))
    return _with_position(request, ReadResult(_path_of(request), error))


def _with_position(request: ReadRequest, result: ReadResult) -> ReadResult:
    """The result, with the entries of the catalogue for a cutout."""
    if not isinstance(request, Cutout):
        return result
    image = result.image
    if isinstance(image, Image):
        notes = (*image.notes, request.note) if request.note else image.notes
        image = replace(image, ra=request.ra, dec=request.dec, notes=notes)
    return result._replace(image=image, number=request.number, id=request.id, ra=request.ra, dec=request.dec)


def main() -> None:
    """Be the child: answer until there are no more requests."""
    with open_output() as out:
        confine()
        fetch_nothing()
        for request in read_requests():
            send(out, {"kind": "end", "problem": _answer(out, request)})


def _answer(out: IO[bytes], request: Message) -> Message | None:
    """Send all of an answer but its end; returns the fields of the error that ended it, if any."""
    path = path_from_hex(request["path"])
    subject = path_from_hex(request["at"]) if "at" in request else path
    try:
        _send_answer(out, path, request)
    except (DataError, ImageError) as err:
        return error_fields(err)
    except (MemoryError, RecursionError):
        return error_fields(too_much_memory().about(subject))
    except OSError as err:
        return error_fields(unreadable_file(err).about(subject))
    return None


def _send_answer(out: IO[bytes], path: Path, request: Message) -> None:
    selector = ImageSelector(*request["selector"])
    _load(path)
    if "at" in request:
        subject = path_from_hex(request["at"])
        _send_positions(
            out, cutouts.locate_in_mosaic(path, selector.hdu, subject, CatalogueSelector(*request["columns"]))
        )
        return
    if "extensions" in request:
        send(out, {"kind": "begin"})
        send(out, {"kind": "extensions", "extensions": fits_image.extensions(path)})
        return
    mosaic = cutouts.open_mosaic(path, selector.hdu) if "cut" in request else None
    send(out, {"kind": "begin"})
    images = [mosaic.cut(*request["cut"])] if mosaic else formats.read_all(path, selector)
    for number, image in enumerate(images):
        if isinstance(image, Image):
            _send_image(out, image.flipped() if selector.flip_y else image)
        else:
            send(out, {"kind": "bad", "number": number, "problem": error_fields(image)})


def _load(path: Path) -> None:
    """Import the library for this format, before the clock starts."""
    library = LIBRARIES.get(path.suffix.lower(), FITS_LIBRARY if formats.is_fits(path) else None)
    if library:
        importlib.import_module(library)


def _send_image(out: IO[bytes], image: Image) -> None:
    """Send an image: its pixels as float64, then the bits of its mask where it has one."""
    pixels = np.ascontiguousarray(image.pixels)
    mask = b"" if image.mask is None else np.packbits(image.mask).tobytes()
    about = {key: getattr(image, key) for key in ("is_coarse", "pixel_scale", "ra", "dec", "number", "notes", "plane")}
    message = {"kind": "image", "shape": image.pixels.shape, "bytes": pixels.nbytes + len(mask), "about": about}
    send(out, message, pixels.data.cast("B"))
    out.write(mask)


def _image(message: Message, data: bytearray) -> Image:
    """The image behind `_send_image`."""
    shape = message["shape"]
    size = shape[0] * shape[1]
    pixels = np.frombuffer(data, np.float64, size).reshape(shape)
    bits = np.frombuffer(data, np.uint8, offset=pixels.nbytes)
    mask = np.unpackbits(bits, count=size).astype(bool).reshape(shape) if bits.size else None
    image = Image(pixels, **message["about"], mask=mask)
    return replace(image, plane=TangentPlane(*image.plane) if image.plane else None)


def _send_positions(out: IO[bytes], positions: Positions) -> None:
    numbers, ids = np.hstack([positions.xy, positions.sky]), "\0".join(positions.ids.tolist()).encode()
    sizes = {"bytes": numbers.nbytes, "id_bytes": len(ids)}
    send(
        out,
        {"kind": "positions", "pixel_scale": positions.pixel_scale, "note": positions.note, **sizes},
        numbers.tobytes() + ids,
    )


if __name__ == "__main__":
    main()
