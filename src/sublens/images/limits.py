"""Limits on what is read of an image file, and the errors beyond them."""

import bz2
import gzip
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sublens.errors import ImageError

MAX_SIDE = 4096
"""Longest side, pixels; larger images are refused before they are decoded."""
MAX_UNPACKED_BYTES = 2**28
"""Largest size of one compressed file or array, unpacked."""
MAX_RATIO = 200
"""Largest factor by which compressed data may grow, beyond `FREE_BYTES`."""
FREE_BYTES = 2**24
"""Bytes that may be unpacked at any ratio."""
PACKERS: dict[bytes, tuple[str, Callable[[IO[bytes]], Any]]] = {
    b"\x1f\x8b": ("a gzip file", gzip.open),
    b"BZh": ("a bzip2 file", bz2.open),
}
"""Names and readers of compressed files, by their first bytes."""


def check_exists(path: Path) -> None:
    """Raise `ImageError` where there is no such file or folder."""
    if not path.exists():
        raise ImageError("no such file", need="an image file", next="Check the path.", path=path)


def check_growth(n_bytes: float, n_packed: int) -> None:
    """Raise `ImageError` where that many packed bytes cannot be an image of `n_bytes`."""
    if n_bytes > FREE_BYTES + MAX_RATIO * n_packed:
        raise ImageError(
            f"grows more than {MAX_RATIO}-fold when unpacked, as no image does",
            need="data that are less compressed",
            next="Unpack it yourself if you trust it.",
        )


def check_sides(sides: tuple[int, ...]) -> None:
    """Raise `ImageError` where a side of the image is too long."""
    if max(sides, default=0) > MAX_SIDE:
        raise ImageError(
            f"has {' x '.join(map(str, sides))} pixels",
            need=f"sides of at most {MAX_SIDE}",
            next="Cut out the lens.",
        )


def damaged_file(kind: str) -> ImageError:
    """The error of a file that is no `kind`."""
    return ImageError(f"truncated, or not {kind}", need="an intact file", next="Copy or make it again.")


def unreadable_file(err: OSError) -> ImageError:
    """The error of a file that the operating system does not let us read."""
    return ImageError(
        f"cannot be read ({err.strerror or err})",
        need="a file that you may read",
        next="Check it and its permissions.",
    )


@contextmanager
def name_errors(path: str | Path) -> Iterator[None]:
    """Have an `ImageError` that names no image name the file."""
    try:
        yield
    except ImageError as err:
        if err.path:
            raise
        raise err.about(path) from err


@contextmanager
def translate_errors(kind: str) -> Iterator[None]:
    """Turn the exceptions of a library about a damaged file into an `ImageError`.

    No library documents which these are, and `benchmarks/fuzz.py` has brought up twenty types. So all
    are taken, around calls of the library and nothing else.
    """
    try:
        yield
    except ImageError:
        raise
    except (PermissionError, IsADirectoryError) as err:
        raise unreadable_file(err) from err
    except MemoryError as err:
        raise too_much_memory() from err
    except Exception as err:
        raise damaged_file(kind) from err


def too_much_memory() -> ImageError:
    """The error of a file that cannot be read within the limit on memory."""
    return ImageError(
        "takes more memory than an image may", need="a smaller file", next="Leave this file out, or convert it."
    )


def cube_error(shape: Sequence[int]) -> ImageError:
    """The error of an image with too many dimensions or pixels."""
    return ImageError(f"has shape {tuple(shape)}, a cube", need="(height, width)", next="Save one image a file.")


def unpack(path: Path) -> IO[bytes]:
    """The file's content, unpacked within the limits where it is compressed; raises `ImageError`."""
    file = path.open("rb")
    magic = file.read(3)
    file.seek(0)
    for first, (kind, reader) in PACKERS.items():
        if magic.startswith(first):
            with file, translate_errors(kind):
                return _unpacked(reader(file), path.stat().st_size)
    return file


def _unpacked(file: IO[bytes], n_packed: int) -> IO[bytes]:
    whole = io.BytesIO()
    while block := file.read(2**20):
        whole.write(block)
        check_growth(whole.tell(), n_packed)
        if whole.tell() > MAX_UNPACKED_BYTES:
            raise ImageError(
                "unpacks to too many bytes", need=f"at most {MAX_UNPACKED_BYTES:,}", next="Unpack it first."
            )
    whole.seek(0)
    return whole
