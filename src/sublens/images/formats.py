"""One image file of any format, read within limits -> images.

Limits hold while a file is read: on bytes as they are unpacked, on pixels before they are decoded. Limits
on time and memory are those of the child process in `sandbox`. Errors name the file in `read_all`, not before.
"""

import math
import os
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from sublens.errors import ImageError
from sublens.images import fits_image, wcs
from sublens.images.limits import (
    MAX_SIDE,
    MAX_UNPACKED_BYTES,
    check_exists,
    check_growth,
    check_sides,
    name_errors,
    translate_errors,
)
from sublens.images.pixels import QUANTISED_PEAK, Image, RawImage, fill_field, fill_missing

MAX_ARCHIVE_BYTES = 2**31
"""Largest size of the images that `read_archive` reads at once, unpacked."""
BLOCK_BYTES = 2**26
"""Largest part of a stack that is read at once, where chunks hold many images."""
MAX_STACK = 10_000_000
"""Most images in one file."""
PACKED_FITS = (".fits.gz", ".fit.gz", ".fits.bz2", ".fit.bz2")
PICTURES = ("PNG", "JPEG", "TIFF")


class ImageSelector(NamedTuple):
    """Choice of an image in a file that holds several extensions or arrays."""

    hdu: str | None = None
    """Number or name of a FITS extension; None is the one that holds the sky."""
    array: str | None = None
    """Name of an array in an .npz, HDF5 or zarr file; None is the only one."""
    flip_y: bool = False
    """Whether the first row of the file is the top of the image; else it is the bottom."""


def is_image(path: Path) -> bool:
    """Whether the name is that of an image file."""
    return _suffix(path) in READERS


def is_fits(path: Path) -> bool:
    """Whether the name is that of a FITS file."""
    return READERS.get(_suffix(path)) is _read_fits


def read(path: Path) -> Image:
    """The one image of a file that holds one; raises as `read_all` does."""
    first = next(read_all(path), None)
    if not isinstance(first, Image) or first.number is not None:
        raise ImageError("holds a stack of images", need="a single image", next="Save one image a file.", path=path)
    return first


def read_all(path: Path, selector: ImageSelector | None = None) -> Iterator[Image | ImageError]:
    """The images in one file, one by one.

    .npy (h, w) or (1, h, w); FITS, also in gzip or bzip2 or tile-compressed; PNG, TIFF and JPEG, of which
    colour is turned to grey. An array of an .npz, HDF5 or zarr file may also be a stack (n, h, w).
    Missing pixels have the median of the others, and `mask` says which these are.

    Raises `ImageError`, naming the file, for anything else, and for an image that holds infinity or
    has one value everywhere; yields it instead for an image of a stack. Object arrays are refused, never
    unpickled.
    """
    check_exists(path)
    if not is_image(path):
        raise ImageError(
            f"{path.suffix or 'no ending'} is no format that sublens reads",
            need=f"one of {', '.join(READERS)}",
            next="Convert it to one of these.",
            path=path,
        )
    with name_errors(path):
        for raw in READERS[_suffix(path)](path, selector or ImageSelector()):
            yield _fill_missing(raw, path)


def _fill_missing(raw: RawImage, path: Path) -> Image | ImageError:
    """The image, or the error of an image of a stack that cannot be used."""
    if raw.number is None:
        return fill_missing(raw, str(path))
    try:
        return fill_missing(raw, image_name(path, raw.number))
    except ImageError as err:
        return err


def image_name(path: Path, number: int | None) -> str:
    """Name of an image in errors: of its file, and its index in a stack."""
    return str(path) if number is None else f"{path}, image {number}"


def read_counts(path: Path) -> NDArray[np.uint16]:
    """Counts above the minimum [h, w] of a file that holds one image; raises as `read_filled` does."""
    return read_filled(path).counts()


def read_filled(path: Path) -> Image:
    """The one image of a file, its missing pixels filled; raises as `read` does, and where too many are missing."""
    with name_errors(path):
        image = read(path)
        height, width = image.pixels.shape
        return fill_field(image, (slice(0, height), slice(0, width)))


def read_archive(path: Path) -> NDArray[np.uint16]:
    """Counts above the minimum [n, h, w] of an .npz file's array `counts`; raises `ImageError`."""
    check_exists(path)
    with name_errors(path):
        counts = _npz_array(path, "counts", MAX_ARCHIVE_BYTES)
        if counts.ndim != 3 or counts.dtype.kind not in "ui" or not len(counts):
            raise ImageError(
                f"`counts` is {counts.dtype} {counts.shape}",
                need="whole numbers (n, height, width)",
                next="Save the photon counts under that name.",
            )
        counts = counts.astype(np.int64) - counts.min(axis=(1, 2), keepdims=True).astype(np.int64)
        if counts.max() > QUANTISED_PEAK or not counts.any(axis=(1, 2)).all():
            raise ImageError(
                f"an image has {counts.max():,} counts above its minimum, or none",
                need=f"1 to {QUANTISED_PEAK:,}",
                next="Leave it out.",
            )
    return np.asarray(counts, dtype=np.uint16)


def _suffix(path: Path) -> str:
    """The end of the name, which decides the format: .npy, .fits.gz ..."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] in ([".gz"], [".bz2"]) else "".join(suffixes[-1:])


def _read_npy(path: Path, selector: ImageSelector) -> Iterator[RawImage]:
    with translate_errors("a .npy file"), path.open("rb") as file:
        array = npy_array(file, MAX_SIDE**2 * 16)
    yield RawImage(array)


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Shape, whether it is in Fortran's order, and dtype of the array that follows in `file`; raises as numpy does."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, is_fortran, dtype = header[np.lib.format.read_magic(file)](file)
    return shape, is_fortran, dtype


def npy_array(file: IO[bytes], max_bytes: int) -> NDArray[np.generic]:
    """The array that follows in `file`, in the .npy format; its size is known before it is read."""
    shape, is_fortran, dtype = npy_header(file)
    if dtype.hasobject:
        raise ImageError(
            "a pickled object array, which could run code when opened, so it was not",
            need="plain numbers",
            next="Convert it with `sublens import-legacy`, or save it again as a plain float array.",
        )
    check_sides(shape[-2:])
    n_bytes = math.prod(shape, start=dtype.itemsize)
    if n_bytes > max_bytes:
        raise ImageError(f"unpacks to {n_bytes:,} bytes", need=f"at most {max_bytes:,}", next="Split it.")
    data = file.read(max(n_bytes, 0))
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def _read_npz(path: Path, selector: ImageSelector) -> Iterator[RawImage]:
    return _stack(_npz_array(path, selector.array, MAX_UNPACKED_BYTES))


def _npz_array(path: Path, name: str | None, max_bytes: int) -> NDArray[np.generic]:
    """An array of an .npz file: the named one, or the only one."""
    with translate_errors("an .npz file"), zipfile.ZipFile(path) as archive:
        names = [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]
        member = archive.getinfo(f"{_choose_array(names, name)}.npy")
        check_growth(member.file_size, member.compress_size)
        with archive.open(member) as file:
            return npy_array(file, max_bytes)


def _choose_array(names: list[str], name: str | None) -> str:
    """The named array, or the only one."""
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        raise ImageError(
            f"has no array {name!r}" if name else "holds several arrays, or none",
            need=f"one of {', '.join(sorted(names)[:20])}" if names else "an array of numbers",
            next="Name it with --array." if names else "Check the file.",
        )
    return name


def _stack(array: Any) -> Iterator[RawImage]:
    """Images of an array that can be sliced: one, or a stack (n, h, w) or (n, 1, h, w)."""
    if array.dtype.kind not in "fiub":
        raise ImageError(f"holds {array.dtype} values", need="real numbers", next="Save them as float or integer.")
    check_sides(tuple(array.shape[-2:]))
    chunk = getattr(array, "chunks", None) or (1,)  # of HDF5 and zarr: the part that is unpacked at once
    if math.prod(chunk) * array.dtype.itemsize > MAX_UNPACKED_BYTES:
        raise ImageError(
            f"has chunks of {chunk} pixels, too large to unpack",
            need=f"chunks of at most {MAX_UNPACKED_BYTES:,} bytes",
            next="Write it in smaller chunks.",
        )
    if len(array.shape) == 2:
        yield RawImage(np.asarray(array[()]))
    elif len(array.shape) == 3 or (len(array.shape) == 4 and array.shape[1] == 1):
        yield from _one_by_one(array, chunk[0])
    else:
        raise ImageError(
            f"the array has shape {array.shape}",
            need="(height, width) or (n, height, width)",
            next="Save images of one band.",
        )


def _one_by_one(stack: Any, n_together: int) -> Iterator[RawImage]:
    """The images of a stack whose chunks hold `n_together`."""
    n_images, n_bytes = stack.shape[0], math.prod(stack.shape[1:], start=stack.dtype.itemsize)
    if not 0 < n_images <= MAX_STACK:
        raise ImageError(f"holds {n_images:,} images", need=f"1 to {MAX_STACK:,}", next="Split it, or leave it out.")
    step = max(1, min(n_together, BLOCK_BYTES // max(n_bytes, 1)))
    for start in range(0, n_images, step):
        for number, pixels in enumerate(np.asarray(stack[start : start + step]), start):
            yield RawImage(pixels, number)


def _read_picture(path: Path, selector: ImageSelector) -> Iterator[RawImage]:
    with translate_errors("a PNG, TIFF or JPEG picture"), _picture(path) as picture:
        check_sides(picture.size[::-1])
        grey = picture if picture.mode in ("L", "F") or picture.mode.startswith("I") else picture.convert("L")
        pixels = np.asarray(grey)
    yield RawImage(pixels, is_picture=True)


def _picture(path: Path) -> Picture.Image:
    try:
        return Picture.open(path, formats=PICTURES)
    except Picture.DecompressionBombError as err:
        raise ImageError("has too many pixels", need=f"sides of at most {MAX_SIDE}", next="Cut out the lens.") from err


def _read_fits(path: Path, selector: ImageSelector) -> Iterator[RawImage]:
    yield fits_image.read_image(path, selector.hdu)


def _read_hdf5(path: Path, selector: ImageSelector) -> Iterator[RawImage]:
    import h5py

    with translate_errors("an HDF5 file"), h5py.File(path, "r") as file:
        dataset = file[_choose_array(_hdf5_datasets(file), selector.array)]
        if dataset.external or dataset.is_virtual:
            raise _external_data()
        check_growth(dataset.nbytes, dataset.id.get_storage_size())
        scale, notes = _hdf5_scale(dataset)
        for raw in _stack(dataset):
            yield raw._replace(wcs=(scale, None, None), notes=notes)


def _hdf5_scale(dataset: Any) -> tuple[float | None, tuple[str, ...]]:
    """Pixel scale by the attributes of an HDF5 array, its group or its file, and a note on its origin."""
    for node in (dataset, dataset.parent, dataset.file):
        plain = {}
        for name in wcs.ATTRIBUTES:
            if name in node.attrs:
                entry = node.attrs.get_id(name)
                if entry.dtype.kind in "fiu" and math.prod(entry.shape) <= 4:
                    plain[name] = node.attrs[name]
        if (scale := wcs.attribute_scale(plain))[0]:
            return scale
    return None, ()


def _external_data() -> ImageError:
    return ImageError(
        "its data lie in other files, which are not opened", need="all data in one file", next="Copy them into one."
    )


def _hdf5_datasets(group: Any, prefix: str = "") -> list[str]:
    """Names of the arrays that lie in the file itself: no link is followed."""
    import h5py

    names = []
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            kind = group.get(name, getclass=True)
            if kind is h5py.Dataset:
                names.append(prefix + name)
            elif kind is h5py.Group and prefix.count("/") < 8:  # a group may hold itself
                names += _hdf5_datasets(group[name], f"{prefix}{name}/")
    return names


def _read_zarr(path: Path, selector: ImageSelector) -> Iterator[RawImage]:
    import zarr

    with translate_errors("a zarr store"):
        n_packed = _store_bytes(path)
        top = zarr.open(str(path), mode="r", use_consolidated=False)  # or its index could name another store
        arrays = {"": top} if isinstance(top, zarr.Array) else dict(top.arrays())
        array = arrays[_choose_array(list(arrays), selector.array)]
        check_growth(array.nbytes, n_packed)
        yield from _stack(array)


def _store_bytes(store: Path) -> int:
    """Bytes of all files in a zarr store, none of which may be a link."""
    n_bytes = 0
    for folder, below, names in os.walk(store):
        for name in (*below, *names):
            status = Path(folder, name).lstat()
            if stat.S_ISLNK(status.st_mode):
                raise _external_data()
            n_bytes += status.st_size
    return n_bytes


READERS: dict[str, Callable[[Path, ImageSelector], Iterator[RawImage]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    **dict.fromkeys((".fits", ".fit", ".fts", ".fz", *PACKED_FITS), _read_fits),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff"), _read_picture),
    **dict.fromkeys((".h5", ".hdf5"), _read_hdf5),
    ".zarr": _read_zarr,
}
"""Function that reads a file, by the end of its name."""
