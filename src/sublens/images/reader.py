"""Untrusted image files, read in child processes.

For each request a child answers `begin` once it has loaded the library, then the images, then `end`.
A file that makes the child end is tried once more in a new one, since a file before it may have damaged
the old one's memory; a file that ends that too, or takes too long, costs one error and a new child. The
same holds for a cutout of a big image; a catalogue of positions is read by a child of its own.
Pixels come through memory that a child shares with its parent, or through a pipe where they do not fit.
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
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sublens.errors import DataError, ImageError
from sublens.images import cutouts, fits_image, formats
from sublens.images.catalogue import WHOLE, CatalogueSelector
from sublens.images.cutouts import Cutout, Positions, position_name
from sublens.images.formats import CompanionFiles, ImageSelector, image_name
from sublens.images.limits import too_much_memory, unreadable_file
from sublens.images.pixels import NO_COMPANIONS, Companions, Image, TangentPlane
from sublens.parallel.mapper import in_order
from sublens.parallel.sandbox import (
    START_SECONDS,
    Child,
    ChildError,
    EndedError,
    Lane,
    Message,
    Output,
    confine,
    error_fields,
    fetch_nothing,
    line,
    open_output,
    path_from_hex,
    path_to_hex,
    read_requests,
)
from sublens.storage import object_store, scratch
from sublens.storage.files import remove
from sublens.storage.object_store import FETCHES, Remote

SECONDS = 5.0
"""Longest time to read one image."""
AHEAD = 64
"""Most files that a child is asked for before they are needed."""
PATIENCE = 0.2
"""Seconds of waiting for images after which one more child helps, where there are cores."""
MAX_FETCHED_BYTES = 2**32
"""Largest size of one file on an object store, unless cutouts are made of it."""
LIBRARIES = {".h5": "h5py", ".hdf5": "h5py", ".zarr": "zarr", ".tif": "tifffile", ".tiff": "tifffile"}
"""Module that reads a format, by the end of the name."""
FITS_LIBRARY = "astropy.wcs"


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
        numbers = np.frombuffer(child.receive_block(message, START_SECONDS), np.float64).reshape(-1, 4)
        ids = child.receive_block(child.receive(START_SECONDS), START_SECONDS).decode().split("\0")
    except ChildError as err:
        advice = "Leave out columns, split it, or convert it to CSV."
        raise DataError(err.what, need=err.need, next=advice, path=at) from err
    finally:
        child.end()
    names = np.array(ids, np.dtypes.StringDType())
    return Positions(numbers[:, :2], numbers[:, 2:], names, message["pixel_scale"], message["note"])


@dataclass
class Reader:
    """Reads image files in child processes; use it in a `with` block.

    with Reader() as reader:
        for path, image in reader.read(paths): ...
    """

    selector: ImageSelector = field(default_factory=ImageSelector)
    """Choice of an extension or array."""
    companions: CompanionFiles | None = None
    """Files with noise, point-spread function and mask; None where the pixels alone are read."""
    seconds: float = SECONDS
    """Longest time to read one image."""
    n_children: int = 1
    """Most child processes; each after the first starts once images have been waited for."""
    _lanes: list[Lane[ReadRequest]] = field(default_factory=lambda: [_lane()], init=False)
    _copies: dict[Path, Path] = field(default_factory=dict, init=False)
    """The big images on this machine, by their path on the store."""

    def __enter__(self) -> Self:
        self._lanes[0].child()  # it loads its libraries while others load theirs
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lane in self._lanes:
            lane.end()

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
        lanes, index, n_known = deque[Lane[ReadRequest]](), *start
        is_retry = False
        try:
            while True:
                self._send_ahead(requests, lanes)
                if not lanes:
                    return
                lane = lanes[0]
                try:
                    for number, result in enumerate(self._results(lane)):
                        if number >= n_known:
                            yield result._replace(source_index=(index, number))
                            n_known = number + 1
                except EndedError as err:
                    lane.end()
                    if not is_retry:
                        is_retry = True
                        continue
                    yield _failed(lane.pending[0][0], err)._replace(source_index=(index, n_known))
                done = lanes.popleft().remove_first()
                if isinstance(done, FetchedCopy):
                    remove(done.copy.parent)
                index, n_known, is_retry = index + 1, 0, False
        finally:
            for lane in self._lanes:
                lane.clear()

    def _send_ahead(self, requests: Iterator[ReadRequest], lanes: deque[Lane[ReadRequest]]) -> None:
        """Send requests while a lane has room, and note which lane has each."""
        while (lane := self._free_lane()) and (request := next(requests, None)) is not None:
            lane.add(request, self._data(request))
            lanes.append(lane)
            if self._is_short_of_children():
                self._lanes.append(_lane())
                self._lanes[-1].warm_up(self._data(request, is_warm_up=True))

    def _free_lane(self) -> Lane[ReadRequest] | None:
        """The lane with the fewest pending requests, if it has room; lanes but the first must be warm."""
        first, *others = self._lanes
        lane = min([first, *(other for other in others if other.is_warm())], key=lambda lane: len(lane.pending))
        is_remote = bool(lane.pending) and isinstance(lane.pending[-1][0], FetchedCopy)
        return lane if lane.has_room() and len(lane.pending) < (FETCHES if is_remote else AHEAD) else None

    def _is_short_of_children(self) -> bool:
        """Whether images are waited for that one more child could have read meanwhile."""
        n = len(self._lanes)
        return n < self.n_children and sum(lane.waited for lane in self._lanes) > n * PATIENCE

    def extensions(self, path: Path) -> list[Extension]:
        """The extensions of a FITS file that hold an image; none for any other file, or one that cannot be read."""
        if not formats.is_fits(path):
            return []
        child = self._lanes[0].child()
        try:
            child.send({"path": path_to_hex(path), "selector": self.selector, "extensions": True})
            message, extensions = child.receive(START_SECONDS), []
            while message["kind"] != "end":
                extensions = message.get("extensions", [])
                message = child.receive(self.seconds)
            return [Extension(number, name, tuple(shape)) for number, name, shape in extensions]
        except ChildError:
            self._lanes[0].end()
            return []

    def _data(self, request: ReadRequest, *, is_warm_up: bool = False) -> bytes:
        """A request as a child is sent it; nothing for one that needs no reading."""
        if isinstance(request, ReadResult):
            return b""
        message: Message = {"path": path_to_hex(self._local(request)), "selector": self.selector}
        if self.companions is not None:
            message["companions"] = self.companions
        if is_warm_up:
            message["warm_up"] = True
        elif isinstance(request, Cutout):
            message["cut"] = (request.number, request.xy, request.size, self.companions is not None)
        return line(message)

    def _local(self, request: Path | FetchedCopy | Cutout) -> Path:
        """The file on this machine."""
        if isinstance(request, FetchedCopy):
            return request.copy
        path = _path_of(request)
        if isinstance(path, Remote) and path not in self._copies:
            self._copies[path] = object_store.local(path)
        return self._copies.get(path, path)

    def _results(self, lane: Lane[ReadRequest]) -> Iterator[ReadResult]:
        """The results of a lane's first request."""
        request, _ = lane.pending[0]
        if isinstance(request, ReadResult):
            yield request
            return
        path = _path_of(request)
        try:
            message, child = lane.receive_first(), lane.child()
            while message["kind"] != "end":
                if message["kind"] == "image":
                    image = _image(message, child.receive_block(message, self.seconds))
                    yield _with_position(request, ReadResult(path, image, image.number))
                elif message["kind"] == "bad":
                    yield _unusable(request, message["problem"], message["number"])
                message = child.receive(self.seconds)
            if message["problem"]:
                yield _unusable(request, message["problem"])
        except EndedError:
            raise
        except ChildError as err:
            lane.end()
            yield _failed(request, err)


def _lane() -> Lane[ReadRequest]:
    return Lane("sublens.images.reader")


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
            out.send({"kind": "end", "problem": _answer(out, request)})


def _answer(out: Output, request: Message) -> Message | None:
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


def _send_answer(out: Output, path: Path, request: Message) -> None:
    selector = ImageSelector(*request["selector"])
    _load(path)
    if "at" in request:
        _send_positions(out, path, request)
    elif "warm_up" not in request:
        _send_content(out, path, selector, request)


def _send_content(out: Output, path: Path, selector: ImageSelector, request: Message) -> None:
    """Send the extensions, the cutout, or all images of a file."""
    mosaic = cutouts.open_mosaic(path, selector.hdu) if "cut" in request else None
    out.send({"kind": "begin"})
    if "extensions" in request:
        out.send({"kind": "extensions", "extensions": fits_image.extensions(path)})
        return
    own = CompanionFiles(*request["companions"]) if "companions" in request else None
    images = [mosaic.cut(*request["cut"])] if mosaic else formats.read_all(path, selector, own)
    for number, image in enumerate(images):
        if isinstance(image, Image):
            _send_image(out, image.flipped() if selector.flip_y else image)
        else:
            out.send({"kind": "bad", "number": number, "problem": error_fields(image)})


def _load(path: Path) -> None:
    """Import the library for this format, before the clock starts."""
    library = LIBRARIES.get(path.suffix.lower(), FITS_LIBRARY if formats.is_fits(path) else None)
    if library:
        importlib.import_module(library)


def _send_image(out: Output, image: Image) -> None:
    """Send an image: pixels, noise and PSF as float64, then the bits of its mask, as far as it has them."""
    own = image.companions
    planes = {"pixels": image.pixels, "noise": own.noise, "psf": own.psf}
    blocks = {name: np.ascontiguousarray(plane, np.float64) for name, plane in planes.items() if plane is not None}
    about = {key: getattr(image, key) for key in ("is_coarse", "pixel_scale", "ra", "dec", "number", "notes", "plane")}
    shapes = {name: block.shape for name, block in blocks.items()}
    message: Message = {"kind": "image", "planes": shapes, "about": about}
    if own is not NO_COMPANIONS:
        message["companions"] = own._replace(noise=None, psf=None)
    bits = [] if image.mask is None else [np.packbits(image.mask).data]
    out.send(message, *(block.data.cast("B") for block in blocks.values()), *bits, is_last=image.number is not None)


def _image(message: Message, data: bytearray) -> Image:
    """The image behind `_send_image`."""
    about, planes, start = message["about"], dict[str, NDArray[np.float64]](), 0
    for name, (height, width) in message["planes"].items():
        planes[name] = np.frombuffer(data, np.float64, height * width, start).reshape(height, width)
        start += planes[name].nbytes
    pixels, bits = planes["pixels"], np.frombuffer(data, np.uint8, offset=start)
    own = Companions(*message["companions"]) if "companions" in message else NO_COMPANIONS
    own = own._replace(noise=planes.get("noise"), psf=planes.get("psf"))
    about["plane"] = TangentPlane(*about["plane"]) if about["plane"] else None
    mask = np.unpackbits(bits, count=pixels.size).astype(bool).reshape(pixels.shape) if bits.size else None
    return Image(pixels, **about, mask=mask, companions=own)


def _send_positions(out: Output, path: Path, request: Message) -> None:
    """Send where the positions of a catalogue lie in a big image: numbers, then names."""
    hdu, columns = ImageSelector(*request["selector"]).hdu, CatalogueSelector(*request["columns"])
    positions = cutouts.locate_in_mosaic(path, hdu, path_from_hex(request["at"]), columns)
    ids = memoryview("\0".join(positions.ids.tolist()).encode())
    about = {"kind": "positions", "pixel_scale": positions.pixel_scale, "note": positions.note}
    out.send(about, memoryview(np.hstack([positions.xy, positions.sky]).tobytes()))
    out.send({"kind": "ids"}, ids)


if __name__ == "__main__":
    main()
