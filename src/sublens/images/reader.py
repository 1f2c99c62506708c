"""Image files that nobody vouches for, read in a child process that may not grow, write or hang.

Parent and child speak in frames: a line of JSON, then as many bytes as it announces. The parent sends
what to read; the child answers `begin` once it has loaded what it needs, then the images, then `end`.
A file that makes the child end is tried once more in a new one, since a file before it may have damaged
the old one's memory; a file that ends that too, or takes too long, costs one error and a new child. So
does a cutout of a big image; the catalogue that tells where to cut is read by a child of its own.

`Child`, `answers`, `confine` and `send` serve any module of ours that runs as such a child.
"""

import glob
import importlib
import json
import os
import re
import selectors
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import numpy as np

from sublens.errors import DataError, ImageError
from sublens.images import cutouts, formats
from sublens.images.cutouts import Cut, Positions
from sublens.images.formats import Wanted
from sublens.images.pixels import Image
from sublens.parallel.mapper import ONE_THREAD, in_order
from sublens.storage import object_store
from sublens.storage.files import remove
from sublens.storage.object_store import FETCHES, Remote

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
LIMITS = {"RLIMIT_AS": MEMORY_BYTES, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0}
"""No more memory than an image needs, no file to write, no core dump."""
AHEAD = 8
"""Files that the child is asked for before they are needed."""
MAX_FETCHED_BYTES = 2**32
"""Of one file on an object store, unless cutouts are to be made of it."""
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


class Extension(NamedTuple):
    """An extension of a FITS file that holds an image."""

    number: int
    name: str
    shape: tuple[int, ...]


class Copy(NamedTuple):
    """A file on an object store, and what was fetched of it."""

    path: Remote
    copy: Path


Asked = Path | Copy | Found | Cut
"""An image file to read, what is found already, or a cutout to make."""


def surveyed(path: Path, at: Path, wanted: Wanted) -> Positions:
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


def listed(inputs: Iterable[Path]) -> Iterator[Path | Found]:
    """The files behind files, folders and patterns, sorted, in the order given.

    Of a folder, all images in and below it, but no link that leads out of it: a `Found` says so.
    """
    for given in inputs:
        if isinstance(given, Remote):
            yield from _on_store(given)
        elif given.is_dir() and not formats.is_image(given):
            yield from _within(given)
        elif not given.exists() and any(sign in str(given) for sign in "*?["):
            matching = sorted(glob.glob(str(given), recursive=True))  # noqa: PTH207 - a Path globs below a folder
            yield from map(Path, matching)
            if not matching:
                yield Found(given, ImageError(f"{given}: no file has such a name. Check the pattern."))
        else:
            yield given


def _on_store(given: Remote) -> Iterator[Path | Found]:
    """The same on an object store, where * and ? are all that a pattern has."""
    plain = list(takewhile(lambda part: not any(sign in part for sign in "*?"), given.parts))
    is_pattern = len(plain) < len(given.parts)
    if formats.is_image(given) and not is_pattern:
        yield given
        return
    top, pattern = Remote(*given.parts[: len(plain)]), re.compile(_expression(str(given)) if is_pattern else ".*", re.S)
    matching = [one for one in _images_on_store(top) if pattern.fullmatch(str(one))]
    yield from sorted(matching) if is_pattern else matching
    if not matching:
        yield Found(given, ImageError(f"{given}: holds no {', '.join(formats.READERS)} files. Check the name."))


def _images_on_store(folder: Remote) -> list[Remote]:
    """All images in a folder and below it, in the order of `_within`; a zarr store is one."""
    object_store.refuse_unfinished(folder)
    found: dict[Remote, None] = {}
    for one in folder.files():
        stores = [parent for parent in reversed(one.parents) if parent.suffix == ".zarr"]
        if stores or formats.is_image(one):
            found[stores[0] if stores else one] = None
    return sorted(found, key=lambda one: [*((1, part) for part in one.parts[:-1]), (0, one.name)])


def _expression(pattern: str) -> str:
    """As a regular expression: ** and a slash stand for any folders, * and ? for what is no slash."""
    signs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(signs.get(part) or re.escape(part) for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))


def _within(folder: Path) -> Iterator[Path | Found]:
    real, n_found = folder.resolve(), 0
    for top, below, names in os.walk(folder):
        stores = [name for name in below if formats.is_image(Path(name))]
        below[:] = sorted(set(below) - set(stores))
        for path in sorted(Path(top, name) for name in (*names, *stores) if formats.is_image(Path(name))):
            n_found += 1
            is_inside = path.resolve().is_relative_to(real)
            yield path if is_inside else Found(path, ImageError(f"{path}: a link out of {folder}. Name it by itself."))
    if not n_found:
        yield Found(folder, ImageError(f"{folder}: holds no {', '.join(formats.READERS)} files. Check the folder."))


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


@dataclass
class Reader(Keeper):
    """Reads image files in a child process; use it in a `with` block.

    with Reader() as reader:
        for path, image in reader.read(paths): ...
    """

    wanted: Wanted = field(default_factory=Wanted)
    seconds: float = SECONDS
    _homes: dict[Path, Path] = field(default_factory=dict, init=False)
    """Where on this machine the big images are."""

    def __enter__(self) -> Self:
        self._child = Child("sublens.images.reader")  # it loads its libraries while others load theirs
        return self

    def read(self, paths: Iterable[Asked], start: tuple[int, int] = (0, 0)) -> Iterator[Found]:
        """Every image of every file, in order; an `ImageError` in place of what cannot be used.

        paths: as `listed` or `Positions.cuts` give them; what is found already is passed on in its
        place. start: the `place` to begin at.
        """
        with object_store.scratch() as folder, ThreadPoolExecutor(FETCHES) as pool:
            self._homes.clear()
            try:
                yield from self._read(_fetched(islice(paths, start[0], None), folder, pool), start)
            finally:
                pool.shutdown(cancel_futures=True)

    def _read(self, coming: Iterator[Asked], start: tuple[int, int]) -> Iterator[Found]:
        asked, index, n_known = deque[Asked](), *start
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
                    yield _lost(asked[0], err)._replace(place=(index, n_known))
                done = asked.popleft()
                if isinstance(done, Copy):
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

    def _ask(self, child: "Child", asked: Asked) -> None:
        if isinstance(asked, Cut):
            child.ask(self._here(asked), {"wanted": self.wanted, "cut": (asked.number, asked.xy, asked.size)})
        elif not isinstance(asked, Found):
            child.ask(self._here(asked), {"wanted": self.wanted})

    def _here(self, asked: Path | Copy | Cut) -> Path:
        """The file on this machine."""
        if isinstance(asked, Copy):
            return asked.copy
        path = _path_of(asked)
        if isinstance(path, Remote) and path not in self._homes:
            self._homes[path] = object_store.local(path)
        return self._homes.get(path, path)

    def _told(self, asked: Path | Copy | Cut, problem: str) -> ImageError:
        """What the child told of a file on this machine, said of the file that was asked for."""
        return ImageError(problem.replace(str(self._here(asked)), str(_path_of(asked))))

    def _answers(self, child: "Child", asked: Asked) -> Iterator[Found]:
        if isinstance(asked, Found):  # which is done
            yield asked
            return
        path = _path_of(asked)
        try:
            frame = child.frame(START_SECONDS)
            while frame["kind"] != "end":
                if frame["kind"] == "image":
                    pixels = np.frombuffer(child.data(frame["bytes"], self.seconds), np.float64)
                    image = Image(pixels.reshape(frame["shape"]), **frame["about"])
                    yield _placed(asked, Found(path, image, image.number))
                elif frame["kind"] == "bad":
                    yield _placed(asked, Found(path, self._told(asked, frame["problem"]), frame["number"]))
                frame = child.frame(self.seconds)
            if frame["problem"]:
                yield _placed(asked, Found(path, self._told(asked, frame["problem"])))
        except EndedError:
            raise
        except SilentError as err:
            self._end()
            yield _lost(asked, err)


def _fetched(paths: Iterator[Asked], folder: Path, pool: ThreadPoolExecutor) -> Iterator[Asked]:
    """The same, but what lies on an object store is fetched by threads before it is needed."""
    due = (pool.submit(_fetch, one, folder) if isinstance(one, Remote) else _Due(one) for one in paths)
    return in_order(due, lambda: FETCHES)


class _Due(NamedTuple):
    """What does not have to be waited for."""

    one: Asked

    def result(self) -> Asked:
        return self.one


def _fetch(path: Remote, folder: Path) -> Asked:
    try:
        return Copy(path, object_store.fetch(path, Path(tempfile.mkdtemp(dir=folder)), MAX_FETCHED_BYTES))
    except (FileNotFoundError, OverflowError) as err:
        return Found(path, ImageError(str(err)))


def _path_of(asked: Asked) -> Path:
    return asked if isinstance(asked, Path) else asked.path


def _lost(asked: Asked, err: SilentError) -> Found:
    path = _path_of(asked)
    return _placed(asked, Found(path, ImageError(f"{path}: {err} Leave this file out, or convert it.")))


def _placed(asked: Asked, found: Found) -> Found:
    """With what the catalogue tells, where it is a cutout."""
    if not isinstance(asked, Cut):
        return found
    image = found.image
    if isinstance(image, Image):
        image = replace(image, ra=asked.ra, dec=asked.dec)
    return found._replace(image=image, number=asked.number, id=asked.id, ra=asked.ra, dec=asked.dec)


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


def main() -> None:
    """Be the child: answer until there are no more requests."""
    with answers() as out:
        confine()
        _fetch_nothing()
        for path, request in requests():
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


def path_from_hex(name: str) -> Path:
    return Path(os.fsdecode(bytes.fromhex(name)))


def _answer(out: IO[bytes], path: Path, request: Frame) -> None:
    """Send all that was asked for, but the end."""
    wanted = Wanted(*request["wanted"])
    _load(path)
    if "at" in request:
        _send_positions(out, cutouts.survey(path, wanted.hdu, path_from_hex(request["at"])))
        return
    if "extensions" in request:
        send(out, {"kind": "begin"})
        send(out, {"kind": "extensions", "extensions": formats.extensions(path)})
        return
    big = cutouts.opened(path, wanted.hdu) if "cut" in request else None
    send(out, {"kind": "begin"})
    found = iter([big.cut(*request["cut"])]) if big else formats.read_all(path, wanted)
    for number, image in enumerate(found):
        if isinstance(image, Image):
            _send_image(out, image)
        else:
            send(out, {"kind": "bad", "number": number, "problem": str(image)})


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
        yield path_from_hex(request.pop("path")), request


def _fetch_nothing() -> None:
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


def _load(path: Path) -> None:
    """Import what reads this format, before the clock starts."""
    library = LIBRARIES.get(path.suffix.lower(), FITS_LIBRARY if formats.is_fits(path) else None)
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


def _send_positions(out: Any, found: Positions) -> None:
    numbers, ids = np.hstack([found.xy, found.sky]), "\0".join(found.ids.tolist()).encode()
    frame = {"kind": "positions", "bytes": numbers.nbytes, "id_bytes": len(ids), "pixel_scale": found.pixel_scale}
    send(out, frame, numbers.tobytes() + ids)


if __name__ == "__main__":
    main()
