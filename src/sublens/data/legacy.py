"""Pickled object arrays of older DeepLense files, taken apart in a child process -> plain arrays.

DeepLenseSim saves an image of the class `axion` as np.array([image, number]): counts or floats (h, w),
and the mass of the axion in eV, or its logarithm in later models; others save the two in a dictionary, an
image as a list of its rows, or numbers one by one. NumPy pickles such an array, and unpickling runs whatever
the file names. Here a file can name a few stand-ins of ours only, which check the arguments that numpy would
be given; numpy is never called with them. The child that does so receives bytes and returns bytes; it can
open no file and start no process.
"""

import csv
import io
import math
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens.errors import ImageError
from sublens.images import arrays, listing, reader
from sublens.images.limits import MAX_SIDE, MAX_UNPACKED_BYTES, check_exists, too_much_memory, unreadable_file
from sublens.images.reader import ReadResult
from sublens.parallel import sandbox
from sublens.parallel.sandbox import Child, ChildError, Keeper, Output
from sublens.progress import Bar, Count, silent
from sublens.storage import files

MAX_FILE_BYTES = MAX_UNPACKED_BYTES
"""Largest file that is read."""
VALUES = "legacy.csv"
"""Name of the table of the numbers beside images, with the columns path and value."""
LIMITS = {**sandbox.LIMITS, "RLIMIT_NOFILE": 0, "RLIMIT_NPROC": 0}
"""Limits of the child: those of the reader, and no file to open or process to start."""
NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
"""Numpy's names of real dtypes."""
OBJECTS = ("O", "O4", "O8")
"""Numpy's names of the dtype of objects, by the size of a pointer."""
ORDERS = ("<", ">", "|", "=")
"""Numpy's signs of byte orders."""


class Plain(NamedTuple):
    """Content of a file."""

    array: NDArray[np.generic]
    """Real numbers; the image alone of an object array, floats [h, w]."""
    value: float | None = None
    """The number beside the image of an object array."""


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
    on_error: called with the error of each file that cannot be converted.

    Returns the number of files, and of those that failed. Raises `ImageError` where all did, and
    `DataError` where `out` cannot be written.
    """
    files.refuse_overlap(out, *listing.named(inputs))
    with files.whole_folder(out, kind=files.Kind.ARRAYS, force=force) as folder:
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
            raise ImageError(
                f"none of {n_failed} files could be converted", need="one at least", next="The lines above say why."
            )
        _save_values(folder / VALUES, values)
    return len(planned), n_failed


def _planned(inputs: Sequence[Path]) -> Iterator[tuple[Path, Path | ReadResult]]:
    """The target of each file below the new folder, and its source."""
    for top in inputs:
        for source in listing.list_images([top]):
            path = source.path if isinstance(source, ReadResult) else source
            target = path.relative_to(top) if top.is_dir() else Path(path.name)
            is_below = top.is_dir() and len(inputs) > 1
            yield Path(top.resolve().name) / target if is_below else target, source


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
        raise ImageError(
            "two files have this name, of which the first was converted",
            need="a name of its own for each",
            next="Name them apart.",
            path=path.name,
        ) from err


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
        """The content of the file; raises `ImageError` where that is not numbers alone."""
        data = _read_bytes(path)
        try:
            if self._child is None:
                self._child = Child("sublens.data.legacy")
                self._child.receive(sandbox.START_SECONDS)
            self._child.send({"bytes": len(data)}, data)
            message = self._child.receive(self.seconds)
            if problem := message["problem"]:
                raise ImageError(problem["what"], need=problem["need"], next=problem["next"], path=path)
            numbers = self._child.receive_bytes(message["bytes"], self.seconds)
            return Plain(np.frombuffer(numbers, message["dtype"]).reshape(message["shape"]), message["value"])
        except ChildError as err:
            self.end()
            raise ImageError(err.what, need=err.need, next="Leave this file out.", path=path) from err


def _read_bytes(path: Path) -> bytes:
    if path.suffix.lower() != ".npy":
        raise ImageError(
            "is not a .npy file", need="one to convert", next="Copy it beside the others if need be.", path=path
        )
    check_exists(path)
    try:
        if (n_bytes := path.stat().st_size) > MAX_FILE_BYTES:
            raise ImageError(f"has {n_bytes:,} bytes", need=f"at most {MAX_FILE_BYTES:,}", next="Split it.", path=path)
        return path.read_bytes()
    except OSError as err:
        raise unreadable_file(err).about(path) from err


def main() -> None:
    """Be the child: take files apart until there are no more."""
    with sandbox.open_output() as out:
        sandbox.confine(LIMITS)
        out.send({"kind": "begin"})
        for request in sandbox.read_requests():
            try:
                _send(out, _parse(sys.stdin.buffer.read(request["bytes"])))
            except ImageError as err:
                out.send({"problem": sandbox.error_fields(err)})


def _send(out: Output, plain: Plain) -> None:
    about = {"dtype": plain.array.dtype.str, "shape": plain.array.shape, "value": plain.value}
    out.send({"problem": None, **about}, memoryview(plain.array.tobytes()))


def _parse(data: bytes) -> Plain:
    """The content of a file of these bytes; raises `ImageError`."""
    file = io.BytesIO(data)
    try:
        if arrays.npy_header(file)[-1].hasobject:
            return _plain(_Unpickler(file).load())
        file.seek(0)
        array = arrays.npy_array(file, MAX_FILE_BYTES)
    except ImageError:
        raise
    except MemoryError as err:
        raise too_much_memory() from err
    except Exception as err:  # damaged pickles raise of every kind
        raise ImageError(
            "truncated, or not an array of numbers", need="an intact file", next="Copy it again, or leave it out."
        ) from err
    if array.dtype.kind not in "fiub":
        raise ImageError(f"holds {array.dtype} values", need="real numbers", next="Save it as float or integer.")
    return Plain(array)


def _plain(top: object) -> Plain:
    """The numbers of an object array: image and number as DeepLenseSim writes them, or all of one shape."""
    match top:
        case _Array(content=[_Array(content=np.ndarray() as pixels), (float() | int()) as value]):
            return _image(pixels, value)
        case _Array(content=[dict() as fields]) if len(fields) == 2:
            return _plain(_Array(sorted(fields.values(), key=lambda field: not isinstance(field, _Array))))
        case _Array(content=[*items], shape=(_, _, *_) as shape) if all(
            isinstance(item, float | int) for item in items
        ):
            return Plain(np.array(items, np.float64).reshape(shape))
        case _Array(content=[*items], shape=shape) if rows := _rows(items):
            if len({row.shape for row in rows}) == 1:
                return Plain(np.stack(rows).reshape(*shape, *rows[0].shape))
            if rows[-1].size == 1 and len({row.shape for row in rows[:-1]}) == 1 == rows[0].ndim:
                return _image(np.stack(rows[:-1]), rows[-1].item())
    raise ImageError(
        "an object array that is not one image and one number, nor numbers of one shape",
        need="the one, as DeepLenseSim writes it, or the other",
        next="Save its image as a plain float array.",
    )


def _rows(items: Sequence[object]) -> list[NDArray[np.generic]]:
    """The items, if all are arrays of numbers; else none."""
    rows = [item.content for item in items if isinstance(item, _Array) and isinstance(item.content, np.ndarray)]
    return rows if len(rows) == len(items) else []


def _image(pixels: NDArray[Any], value: float) -> Plain:
    shape = pixels.shape[1:] if pixels.ndim == 3 and len(pixels) == 1 else pixels.shape
    if len(shape) == 2 and min(shape) >= 2 and max(shape) <= MAX_SIDE:
        return Plain(pixels.reshape(shape).astype(np.result_type(pixels, np.float32)), float(value))
    raise ImageError(
        f"its image has shape {pixels.shape}",
        need=f"(height, width), a side of 2 to {MAX_SIDE} pixels",
        next="Cut out the lens.",
    )


class _Unpickler(pickle.Unpickler):
    """Knows numpy's names of arrays and numbers, and replaces them by stand-ins; knows no other name."""

    def find_class(self, module: str, name: str) -> "_Known":
        """The stand-in; raises `ImageError` for any other name."""
        if (module, name) not in KNOWN:
            raise ImageError(
                f"names {f'{module}.{name}'[:80]!r}, which could run code, so it was not opened",
                need="an array of numbers",
                next="Leave this file out.",
            )
        return KNOWN[module, name]


class _Known:
    """Stands for a class or function that a pickle may name; it can be called, and cannot be changed."""

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
    """Stands for a numpy array: numbers, or the list of the items of an object array and its shape."""

    __slots__ = ("content", "shape")

    def __init__(self, content: NDArray[np.generic] | list[object] | None = None) -> None:
        self.content = content
        self.shape: tuple[int, ...] = ()

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        if dtype.name not in OBJECTS:
            self.content = _numbers(data, dtype, shape, "F" if is_fortran else "C")
        elif type(data) is list and type(shape) is tuple and math.prod(shape) == len(data):
            self.content, self.shape = data, shape
        else:
            raise TypeError(shape)


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    if kind is not NDARRAY or shape != (0,) or code != b"b":
        raise TypeError(kind)
    return _Array()


def _from_buffer(data: Any, dtype: _Dtype, shape: Any, order: Any) -> _Array:
    return _Array(_numbers(data, dtype, shape, order))


def _scalar(dtype: _Dtype, data: Any) -> float:
    return float(_numbers(data, dtype, (), "C"))


def _numbers(data: Any, dtype: _Dtype, shape: Any, order: Any) -> NDArray[np.generic]:
    """An array on these bytes; raises `TypeError` or `ValueError` where they do not fit its dtype and shape."""
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
"""The stand-in for each name in numpy's pickles of numbers."""

if __name__ == "__main__":
    main()
