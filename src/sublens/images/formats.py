"""One image file of any format, read within limits -> images.

What is read is bounded while it is read: bytes unpacked, and pixels before they are decoded. Limits
on time and memory are those of the child process in `sandbox`.
"""

import gzip
import io
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from sublens.errors import ImageError
from sublens.images.pixels import QUANTISED_PEAK, Image, RawImage, fill_missing

MAX_SIDE = 4096
"""Pixels; larger images are refused before they are decoded."""
MAX_UNPACKED_BYTES = 2**28
"""Of one compressed file or array."""
MAX_ARCHIVE_BYTES = 2**31
"""Of the images that `read_archive` takes at once."""
MAX_RATIO = 200
"""Times that compressed data may grow, beyond `FREE_BYTES`."""
FREE_BYTES = 2**24
BLOCK_BYTES = 2**26
"""Of a stack's images that are read at once, where chunks hold many."""
MAX_STACK = 10_000_000
"""Images in one file."""
FITS_MAGIC = b"SIMPLE  ="
PICTURES = ("PNG", "JPEG", "TIFF")
ARCSEC_A_DEGREE = 3600.0


class ImageSelector(NamedTuple):
    """Which of the things in a file is meant, where it holds several."""

    hdu: str | None = None
    """Number or name of a FITS extension; the first that holds an image if none."""
    array: str | None = None
    """Name of an array in an .npz, HDF5 or zarr file; the only one if none."""


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
        raise ImageError(f"{path}: holds a stack of images; needs one. Save one image a file.")
    return first


def read_all(path: Path, wanted: ImageSelector | None = None) -> Iterator[Image | ImageError]:
    """The images in one file, one by one.

    .npy (h, w) or (1, h, w); FITS, also in gzip or tile-compressed; PNG, TIFF and JPEG, of which
    colour is turned to grey. An array of an .npz, HDF5 or zarr file may also be a stack (n, h, w).
    A few NaN pixels are given the median of the others, and a note says so.

    Raises `ImageError`, naming the file, for anything else, and for an image that holds infinity or
    has one value everywhere; yields it where that is one of a stack. Object arrays are refused, never
    unpickled.
    """
    if not path.exists():
        raise ImageError(f"{path}: no such file. Check the path.")
    if not is_image(path):
        raise ImageError(f"{path}: sublens reads {', '.join(READERS)} images. Convert it to one of these.")
    for raw in READERS[_suffix(path)](path, wanted or ImageSelector()):
        if raw.number is None:
            yield fill_missing(raw, str(path))
        else:
            try:
                yield fill_missing(raw, f"{path}, image {raw.number}")
            except ImageError as err:
                yield err


def read_counts(path: Path) -> NDArray[np.uint16]:
    """Counts above the minimum [h, w] of a file that holds one image; raises as `read` does."""
    return read(path).counts()


def read_archive(path: Path) -> NDArray[np.uint16]:
    """Counts above the minimum [n, h, w] of an .npz file's array `counts`; raises `ImageError`."""
    if not path.is_file():
        raise ImageError(f"{path}: no such file. Check the path.")
    counts = _npz_array(path, "counts", MAX_ARCHIVE_BYTES)
    if counts.ndim != 3 or counts.dtype.kind not in "ui" or not len(counts):
        raise ImageError(f"{path}: `counts` is {counts.dtype} {counts.shape}; needs whole numbers (n, height, width).")
    counts = counts.astype(np.int64) - counts.min(axis=(1, 2), keepdims=True).astype(np.int64)
    if counts.max() > QUANTISED_PEAK or not counts.any(axis=(1, 2)).all():
        raise ImageError(
            f"{path}: an image has {counts.max():,} counts above its minimum, or none; needs 1 to {QUANTISED_PEAK:,}."
        )
    return np.asarray(counts, dtype=np.uint16)


def _suffix(path: Path) -> str:
    """The end of the name that tells the format: .npy, .fits.gz ..."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def damaged_file(path: Path, kind: str) -> ImageError:
    """What to say of a file that is no `kind`."""
    return ImageError(f"{path}: truncated, or not {kind}. Copy or make it again.")


@contextmanager
def _translate_errors(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a library raises for a damaged file into an `ImageError`.

    No library documents what that is, and `benchmarks/fuzz.py` has brought up twenty types, with
    `TokenError`, `zlib.error`, `VerifyError`, `UnicodeDecodeError` and `SystemError` among them. So all
    are taken, around what calls the library and nothing else.
    """
    try:
        yield
    except ImageError:
        raise
    except (PermissionError, IsADirectoryError) as err:
        reason = os.strerror(err.errno or 0)
        raise ImageError(f"{path}: cannot be read ({reason}). Check it and its permissions.") from err
    except MemoryError as err:
        raise ImageError(f"{path}: needs more memory than an image may. Leave this file out, or convert it.") from err
    except Exception as err:
        raise damaged_file(path, kind) from err


def _read_npy(path: Path, wanted: ImageSelector) -> Iterator[RawImage]:
    with _translate_errors(path, "a .npy file"), path.open("rb") as file:
        array = npy_array(file, path, MAX_SIDE**2 * 16)
    yield RawImage(array)


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Shape, whether it is in Fortran's order, and dtype of the array that follows in `file`; raises as numpy does."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, is_fortran, dtype = header[np.lib.format.read_magic(file)](file)
    return shape, is_fortran, dtype


def npy_array(file: IO[bytes], path: Path, max_bytes: int) -> NDArray[np.generic]:
    """The array that follows in `file`, in the .npy format; its size is known before it is read."""
    shape, is_fortran, dtype = npy_header(file)
    if dtype.hasobject:
        raise ImageError(
            f"{path}: a pickled object array, which could run code when opened, so it was not. "
            "Convert it with `sublens import-legacy`, or save it again as a plain float array."
        )
    _check_sides(path, shape[-2:])
    n_bytes = math.prod(shape, start=dtype.itemsize)
    if n_bytes > max_bytes:
        raise ImageError(f"{path}: unpacks to {n_bytes:,} bytes; {max_bytes:,} are allowed. Split it.")
    data = file.read(max(n_bytes, 0))
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def _read_npz(path: Path, wanted: ImageSelector) -> Iterator[RawImage]:
    return _stack(path, _npz_array(path, wanted.array, MAX_UNPACKED_BYTES))


def _npz_array(path: Path, name: str | None, max_bytes: int) -> NDArray[np.generic]:
    """An array of an .npz file: the named one, or the only one."""
    with _translate_errors(path, "an .npz file"), zipfile.ZipFile(path) as archive:
        names = [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]
        member = archive.getinfo(f"{_choose_array(path, names, name)}.npy")
        _check_growth(path, member.file_size, member.compress_size)
        with archive.open(member) as file:
            return npy_array(file, path, max_bytes)


def _choose_array(path: Path, names: list[str], wanted: str | None) -> str:
    """The array that is meant."""
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        known = ", ".join(sorted(names)[:20]) or "none"
        told = f"has no array {wanted!r}" if wanted else "holds several arrays, or none"
        raise ImageError(f"{path}: {told}; name one with --array. It has: {known}.")
    return wanted


def _check_growth(path: Path, n_bytes: float, n_packed: int) -> None:
    if n_bytes > FREE_BYTES + MAX_RATIO * n_packed:
        raise ImageError(
            f"{path}: grows more than {MAX_RATIO}-fold when unpacked, as no image does. "
            "Unpack it yourself if you trust it."
        )


def _check_sides(path: Path, sides: tuple[int, ...]) -> None:
    if max(sides, default=0) > MAX_SIDE:
        shape = " x ".join(map(str, sides))
        raise ImageError(f"{path}: has {shape} pixels; a side may have {MAX_SIDE} at most. Cut out the lens.")


def _stack(path: Path, array: Any) -> Iterator[RawImage]:
    """Images of an array that can be sliced: one, or a stack (n, h, w) or (n, 1, h, w)."""
    if array.dtype.kind not in "fiub":
        raise ImageError(f"{path}: holds {array.dtype} values; needs real numbers. Save them as float or integer.")
    _check_sides(path, tuple(array.shape[-2:]))
    chunk = getattr(array, "chunks", None) or (1,)  # of HDF5 and zarr: what is unpacked at once
    if math.prod(chunk) * array.dtype.itemsize > MAX_UNPACKED_BYTES:
        raise ImageError(f"{path}: has chunks of {chunk} pixels, too large to unpack. Write it in smaller chunks.")
    if len(array.shape) == 2:
        yield RawImage(np.asarray(array[()]))
    elif len(array.shape) == 3 or (len(array.shape) == 4 and array.shape[1] == 1):
        yield from _one_by_one(path, array, chunk[0])
    else:
        raise ImageError(f"{path}: the array has shape {array.shape}; needs (height, width) or (n, height, width).")


def _one_by_one(path: Path, stack: Any, n_together: int) -> Iterator[RawImage]:
    """The images of a stack, of which chunks hold `n_together`."""
    n_images, n_bytes = stack.shape[0], math.prod(stack.shape[1:], start=stack.dtype.itemsize)
    if not 0 < n_images <= MAX_STACK:
        raise ImageError(f"{path}: holds {n_images:,} images; needs 1 to {MAX_STACK:,}. Split it, or leave it out.")
    step = max(1, min(n_together, BLOCK_BYTES // max(n_bytes, 1)))
    for start in range(0, n_images, step):
        for number, pixels in enumerate(np.asarray(stack[start : start + step]), start):
            yield RawImage(pixels, number)


def _read_picture(path: Path, wanted: ImageSelector) -> Iterator[RawImage]:
    with _translate_errors(path, "a PNG, TIFF or JPEG picture"), _picture(path) as picture:
        _check_sides(path, picture.size[::-1])
        grey = picture if picture.mode in ("L", "F") or picture.mode.startswith("I") else picture.convert("L")
        pixels = np.asarray(grey)
    yield RawImage(pixels, is_picture=True)


def _picture(path: Path) -> Picture.Image:
    try:
        return Picture.open(path, formats=PICTURES)
    except Picture.DecompressionBombError as err:
        raise ImageError(f"{path}: too many pixels; a side may have {MAX_SIDE} at most. Cut out the lens.") from err


def _read_fits(path: Path, wanted: ImageSelector) -> Iterator[RawImage]:
    with _translate_errors(path, "a FITS file"), _hdus(path) as hdus:
        hdu = choose_hdu(path, hdus, wanted.hdu)
        sides = [hdu.header[f"NAXIS{axis + 1}"] for axis in range(hdu.header["NAXIS"])]
        _check_sides(path, tuple(sides[:2]))
        if math.prod(sides) > MAX_SIDE**2:  # known before it is read
            raise ImageError(f"{path}: has shape {sides[::-1]}, a cube. Save one image a file.")
        raw = RawImage(np.array(hdu.data), place=_wcs_values(hdu.header))
    yield raw


@contextmanager
def _hdus(path: Path) -> Iterator[Any]:
    """The extensions of a FITS file; what astropy only warns of is an error."""
    from astropy.io import fits  # slow to import

    with warnings.catch_warnings(), unpack(path) as file:
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Invalid 'BLANK'")  # of many surveys, and without harm
        if file.read(len(FITS_MAGIC)) != FITS_MAGIC:
            raise ValueError("does not begin as a FITS file does")
        file.seek(0)
        with fits.open(file, memmap=False, lazy_load_hdus=True) as hdus:
            yield hdus


def extensions(path: Path) -> list[tuple[int, str, tuple[int, ...]]]:
    """Number, name and shape of each extension of a FITS file that holds an image; raises `ImageError`."""
    with _translate_errors(path, "a FITS file"), _hdus(path) as hdus:
        found = [(number, str(hdu.name), tuple(hdu.shape)) for number, hdu in enumerate(hdus) if _has_image(hdu)]
    return found


def _has_image(hdu: Any) -> bool:
    return bool(hdu.is_image and hdu.header.get("NAXIS", 0) >= 2)


def unpack(path: Path) -> IO[bytes]:
    """The file's content, unpacked as far as the limits allow where it is compressed; raises `ImageError`."""
    if not path.name.lower().endswith(".gz"):
        return path.open("rb")
    whole, packed = io.BytesIO(), path.stat().st_size
    with _translate_errors(path, "a gzip file"), gzip.open(path) as file:
        while block := file.read(2**20):
            whole.write(block)
            _check_growth(path, whole.tell(), packed)
            if whole.tell() > MAX_UNPACKED_BYTES:
                raise ImageError(f"{path}: unpacks to over {MAX_UNPACKED_BYTES:,} bytes. Unpack it first.")
    whole.seek(0)
    return whole


def choose_hdu(path: Path, hdus: Any, wanted: str | None) -> Any:
    """The extension that is meant: named, numbered, or the first that holds an image; raises `ImageError`."""
    if wanted is None:
        for hdu in hdus:
            if _has_image(hdu):
                return hdu
        raise ImageError(f"{path}: holds no image, only tables or headers. Name a file with an image in it.")
    try:
        hdu = hdus[int(wanted) if wanted.isdecimal() else wanted]
    except (KeyError, IndexError) as err:
        raise ImageError(f"{path}: has no extension {wanted}; it has {_extensions(hdus)}.") from err
    if not _has_image(hdu):
        raise ImageError(f"{path}: extension {wanted} holds no image; name one with --hdu. It has {_extensions(hdus)}.")
    return hdu


def _extensions(hdus: Any) -> str:
    return ", ".join(f"{number}: {hdu.name or 'unnamed'}" for number, hdu in enumerate(hdus))


def _wcs_values(header: Any) -> tuple[float | None, float | None, float | None]:
    """Arcsec a pixel, and right ascension and declination of the centre in degrees, where the header tells."""
    wcs = celestial(header)
    if wcs is None:
        return pixel_scale(header, wcs), None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        centre = wcs.pixel_to_world((header["NAXIS1"] - 1) / 2, (header["NAXIS2"] - 1) / 2).icrs
    ra, dec = float(centre.ra.deg), float(centre.dec.deg)
    is_known = np.isfinite(ra + dec)
    return pixel_scale(header, wcs), ra if is_known else None, dec if is_known else None


def celestial(header: Any) -> Any:
    """The WCS of a FITS header's first two axes, None where they do not lie on the sky."""
    if not str(header.get("CTYPE1", "")).startswith(("RA", "DEC", "GLON", "GLAT", "ELON", "ELAT")):
        return None
    from astropy.wcs import WCS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what astropy mends in a header, it also tells
        wcs = WCS(header, naxis=2)
        return wcs if wcs.has_celestial else None


def pixel_scale(header: Any, wcs: Any) -> float | None:
    """Arcsec along the side of a pixel, by the celestial `wcs` or else by axes in arcsec; None if there are none."""
    if wcs is None:
        is_told = header.get("CUNIT1") == "arcsec" and "CDELT1" in header
        scale = abs(float(header["CDELT1"])) if is_told else 0.0
    else:
        from astropy.wcs.utils import proj_plane_pixel_scales

        scale = float(np.sqrt(np.prod(proj_plane_pixel_scales(wcs)))) * ARCSEC_A_DEGREE
    return scale if 0 < scale < np.inf else None


def _read_hdf5(path: Path, wanted: ImageSelector) -> Iterator[RawImage]:
    import h5py

    with _translate_errors(path, "an HDF5 file"), h5py.File(path, "r") as file:
        dataset = file[_choose_array(path, _hdf5_datasets(file), wanted.array)]
        if dataset.external or dataset.is_virtual:
            raise _external_data(path)
        _check_growth(path, dataset.nbytes, dataset.id.get_storage_size())
        yield from _stack(path, dataset)


def _external_data(path: Path) -> ImageError:
    return ImageError(f"{path}: its data lie in other files, which are not opened. Copy them into one.")


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


def _read_zarr(path: Path, wanted: ImageSelector) -> Iterator[RawImage]:
    import zarr

    with _translate_errors(path, "a zarr store"):
        n_packed = _store_bytes(path)
        top = zarr.open(str(path), mode="r", use_consolidated=False)  # or its index could name another store
        arrays = {"": top} if isinstance(top, zarr.Array) else dict(top.arrays())
        array = arrays[_choose_array(path, list(arrays), wanted.array)]
        _check_growth(path, array.nbytes, n_packed)
        yield from _stack(path, array)


def _store_bytes(store: Path) -> int:
    """Bytes of all files in a zarr store, none of which may be a link."""
    n_bytes = 0
    for folder, below, names in os.walk(store):
        for name in (*below, *names):
            status = Path(folder, name).lstat()
            if stat.S_ISLNK(status.st_mode):
                raise _external_data(store)
            n_bytes += status.st_size
    return n_bytes


READERS: dict[str, Callable[[Path, ImageSelector], Iterator[RawImage]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    **dict.fromkeys((".fits", ".fit", ".fts", ".fz", ".fits.gz", ".fit.gz"), _read_fits),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff"), _read_picture),
    **dict.fromkeys((".h5", ".hdf5"), _read_hdf5),
    ".zarr": _read_zarr,
}
"""How a file is read, by the end of its name."""
