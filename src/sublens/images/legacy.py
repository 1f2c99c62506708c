"""Pickled object arrays of older DeepLense files, taken apart in a child process -> plain arrays.

DeepLenseSim saves an image of the class `axion` as np.array([image, number]): counts or floats (h, w),
and the mass of the axion in eV, or the logarithm of it in later models. NumPy pickles such an array,
and what unpickles it runs what the file asks for. Here a file can name a few stand-ins of ours only:
they check what numpy's own would be given and are called with, and numpy never sees the rest. The
child that does so is sent bytes and returns bytes; it can open no file and start no process.
"""

import csv
import io
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens.errors import ImageError
from sublens.images import formats, listing, reader, sandbox
from sublens.images.reader import ReadResult
from sublens.images.sandbox import Child, Keeper, SilentError
from sublens.progress import Bar, Count, silent
from sublens.storage import files

MAX_FILE_BYTES = formats.MAX_UNPACKED_BYTES
VALUES = "legacy.csv"
"""Table of the numbers that were found beside images: columns path and value."""
LIMITS = {**sandbox.LIMITS, "RLIMIT_NOFILE": 0, "RLIMIT_NPROC": 0}
"""As for images; nor is there a file to open, or a process to start."""
NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
OBJECTS = ("O", "O4", "O8")
"""What numpy calls the dtype of objects, by the size of a pointer."""
ORDERS = ("<", ">", "|", "=")


class Plain(NamedTuple):
    """What a file held."""

    array: NDArray[np.generic]
    """Real numbers; of an object array the image alone, floats [h, w]."""
    value: float | None = None
    """The number beside the image."""


def convert(
    inputs: Sequence[Path],
    out: Path,
    *,
    on_error: Callable[[ImageError], object],
    force: bool = False,
    bar: Bar = silent,
) -> tuple[int, int]:
    """Write the arrays of .npy files, pickled or plain, as plain .npy files in a new folder `out`.

    inputs: files, folders and patterns. Folders are kept as they are below the only input, or below
    the name of each input where there are several. The numbers beside images go into `VALUES`.
    on_error: called with what is wrong with each file that cannot be converted.

    Returns the numbers of files, and of those that failed. Raises `ImageError` where all did, and
    `DataError` where `out` cannot be written.
    """
    for given in inputs:
        files.refuse_overlap(out, given)
    with files.whole_folder(out, force=force) as folder:
        planned, values, n_failed = list(_planned(inputs)), list[tuple[str, float]](), 0
        with bar("converting", len(planned)) as advance, Opener() as opener:
            count = Count(advance)
            for target, source in planned:
                try:
                    plain = _translate(opener, source)
                    _save(folder / target, plain.array)
                    values += [] if plain.value is None else [(target.as_posix(), plain.value)]
                except ImageError as err:
                    n_failed += 1
                    on_error(err)
                count.add(1)
        if n_failed == len(planned):
            raise ImageError(f"None of {n_failed} files could be converted; the lines above say why.")
        _save_values(folder / VALUES, values)
    return len(planned), n_failed


def _planned(inputs: Sequence[Path]) -> Iterator[tuple[Path, Path | ReadResult]]:
    """The place of each file in the result, and where it lies."""
    for given in inputs:
        for source in listing.list_images([given]):
            path = source.path if isinstance(source, ReadResult) else source
            target = path.relative_to(given) if given.is_dir() else Path(path.name)
            is_below = given.is_dir() and len(inputs) > 1
            yield Path(given.resolve().name) / target if is_below else target, source


def _translate(opener: "Opener", source: Path | ReadResult) -> Plain:
    if not isinstance(source, ReadResult):
        return opener.open(source)
    assert isinstance(source.image, ImageError)
    raise source.image


def _save(path: Path, array: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            np.save(file, array, allow_pickle=False)
    except FileExistsError as err:
        raise ImageError(f"{path.name}: two files have this name; the first was converted. Name them apart.") from err


def _save_values(path: Path, values: list[tuple[str, float]]) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "value"])
        table.writerows((name, repr(value)) for name, value in values)


@dataclass
class Opener(Keeper):
    """Opens .npy files in a child process; use it in a `with` block."""

    seconds: float = reader.SECONDS

    def open(self, path: Path) -> Plain:
        """What the file holds; raises `ImageError` where that is not numbers alone."""
        data = _bytes(path)
        try:
            if self._child is None:
                self._child = Child("sublens.images.legacy")
                self._child.frame(sandbox.START_SECONDS)
            self._child.ask(path, {"bytes": len(data)}, data)
            frame = self._child.frame(self.seconds)
            if frame["problem"]:
                raise ImageError(frame["problem"])
            numbers = self._child.data(frame["bytes"], self.seconds)
            return Plain(np.frombuffer(numbers, frame["dtype"]).reshape(frame["shape"]), frame["value"])
        except SilentError as err:
            self._end()
            raise ImageError(f"{path}: {err} Leave this file out.") from err


def _bytes(path: Path) -> bytes:
    if path.suffix.lower() != ".npy":
        raise ImageError(f"{path}: is not a .npy file; no other is converted. Copy it beside the others if need be.")
    if not path.is_file():
        raise ImageError(f"{path}: no such file. Check the path.")
    try:
        if (n_bytes := path.stat().st_size) > MAX_FILE_BYTES:
            raise ImageError(f"{path}: has {n_bytes:,} bytes; {MAX_FILE_BYTES:,} are allowed. Split it.")
        return path.read_bytes()
    except OSError as err:
        raise ImageError(f"{path}: cannot be read ({err.strerror}). Check it and its permissions.") from err


def main() -> None:
    """Be the child: take files apart until there are no more."""
    with sandbox.open_output() as out:
        sandbox.confine(LIMITS)
        sandbox.send(out, {"kind": "begin"})
        for path, request in sandbox.read_requests():
            try:
                _send(out, _taken_apart(path, sys.stdin.buffer.read(request["bytes"])))
            except ImageError as err:
                sandbox.send(out, {"problem": str(err)})


def _send(out: IO[bytes], plain: Plain) -> None:
    data = plain.array.tobytes()
    about = {"dtype": plain.array.dtype.str, "shape": plain.array.shape, "value": plain.value}
    sandbox.send(out, {"problem": "", "bytes": len(data), **about}, data)


def _taken_apart(path: Path, data: bytes) -> Plain:
    """What the file `path`, which has these bytes, holds; raises `ImageError`."""
    file = io.BytesIO(data)
    try:
        if formats.npy_header(file)[-1].hasobject:
            return _image(path, _Unpickler(file, path).load())
        file.seek(0)
        array = formats.npy_array(file, path, MAX_FILE_BYTES)
    except ImageError:
        raise
    except MemoryError as err:
        raise ImageError(f"{path}: needs more memory than an image may. Leave this file out.") from err
    except Exception as err:  # damaged pickles raise of every kind
        raise ImageError(f"{path}: truncated, or not an array of numbers. Copy it again, or leave it out.") from err
    if array.dtype.kind not in "fiub":
        raise ImageError(f"{path}: holds {array.dtype} values; needs real numbers. Save it as float or integer.")
    return Plain(array)


def _image(path: Path, top: object) -> Plain:
    """The image and the number of an object array as DeepLenseSim writes it."""
    match top:
        case _Array(content=[_Array(content=np.ndarray() as pixels), (float() | int()) as value]):
            shape = pixels.shape[1:] if pixels.ndim == 3 and len(pixels) == 1 else pixels.shape
            if len(shape) == 2 and min(shape) >= 2 and max(shape) <= formats.MAX_SIDE:
                return Plain(pixels.reshape(shape).astype(np.result_type(pixels, np.float32)), float(value))
            raise ImageError(
                f"{path}: its image has shape {pixels.shape}; needs (height, width), "
                f"a side of 2 to {formats.MAX_SIDE} pixels. Cut out the lens."
            )
    raise ImageError(
        f"{path}: an object array that is not one image and one number; needs these two, as DeepLenseSim writes "
        "them. Save its image as a plain float array."
    )


class _Unpickler(pickle.Unpickler):
    """Knows the names that numpy gives to arrays and numbers, and makes stand-ins of them; no others."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> "_Known":
        """The stand-in; raises `ImageError` for any other name."""
        if (module, name) not in KNOWN:
            raise ImageError(
                f"{self._path}: asks for {f'{module}.{name}'[:80]!r}, which no array of numbers needs and which "
                "could run code, so it was not opened. Leave this file out."
            )
        return KNOWN[module, name]


class _Known:
    """Stands for what a pickle may name: it can be called, and cannot be changed."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., object]) -> None:
        self._make = make

    def __call__(self, *arguments: object) -> object:
        return self._make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise TypeError("a name has no state")


class _Dtype:
    """Stands for a numpy dtype, of real numbers or of objects."""

    __slots__ = ("name", "order")

    def __init__(self, name: str, align: object = False, copy: object = False) -> None:
        if name not in NUMBERS + OBJECTS:
            raise TypeError(name)
        self.name, self.order = name, "|"

    def __setstate__(self, state: Any) -> None:
        _, order, subarray, names, fields, *_ = state
        if order not in ORDERS or (subarray, names, fields) != (None, None, None):
            raise TypeError(order)
        self.order = order


class _Array:
    """Stands for a numpy array: of numbers, or the list of what an object array holds."""

    __slots__ = ("content",)
    content: NDArray[np.generic] | list[object]

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        if dtype.name not in OBJECTS:
            self.content = _numbers(data, dtype, shape, "F" if is_fortran else "C")
        elif type(data) is list and shape == (len(data),):
            self.content = data
        else:
            raise TypeError(shape)


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    if kind is not NDARRAY or shape != (0,) or code != b"b":
        raise TypeError(kind)
    return _Array()


def _from_buffer(data: Any, dtype: _Dtype, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.content = _numbers(data, dtype, shape, order)
    return array


def _scalar(dtype: _Dtype, data: Any) -> float:
    return float(_numbers(data, dtype, (), "C"))


def _numbers(data: Any, dtype: _Dtype, shape: Any, order: Any) -> NDArray[np.generic]:
    """An array on these bytes, which must be as many as it has; raises where they are not."""
    if dtype.name not in NUMBERS or order not in ("C", "F"):
        raise TypeError(dtype)
    return np.frombuffer(data, np.dtype(dtype.order + dtype.name)).reshape(shape, order=order)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise TypeError(encoding)
    return text.encode("latin1")


def _never(*arguments: object) -> object:
    raise TypeError("numpy's pickles name this class and do not call it")


NDARRAY = _Known(_never)
KNOWN = {
    ("_codecs", "encode"): _Known(_encode),
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): _Known(_Dtype),
    **{
        (f"numpy.{package}.{module}", name): _Known(make)
        for package in ("core", "_core")  # before and since numpy 2
        for module, name, make in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
"""What stands for each name that numpy's pickles of numbers hold."""

if __name__ == "__main__":
    main()
