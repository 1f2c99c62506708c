"""One image file, read safely -> pixels, and pixels -> counts."""

import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sublens.errors import ImageError
from sublens.files import NPY_ERRORS

SUFFIXES = (".npy", ".png", ".jpg", ".jpeg", ".fits")
MAX_SIDE = 4096
"""Pixels; larger images are refused before they are decoded."""
QUANTISED_PEAK = 65535
"""Peak of an image whose photon counts are unknown and which was scaled to 16 bits instead."""
MAX_PEAK = 20000
"""Photon counts are looked for up to this many above the minimum."""
INTEGER_TOLERANCE = 1e-3
NPY_MAGIC = b"\x93NUMPY"
FITS_MAGIC = b"SIMPLE  ="
MAX_ARCHIVE_BYTES = 2**31


def read(path: Path) -> NDArray[np.float64]:
    """Pixels [h, w] of one image file: .npy (h, w) or (1, h, w), PNG, JPEG, or FITS.

    Of a FITS file the first extension that holds an image is taken.

    Raises `ImageError`, naming the file, for anything else, and for an image that holds NaN or
    infinity or has one value everywhere. Object arrays are refused, never unpickled.
    """
    return usable(_raw(path), str(path))


def read_counts(path: Path) -> NDArray[np.uint16]:
    """Counts above the minimum [h, w] of one image file; raises as `read` does.

    The levels of an 8-bit picture are too coarse to be photons, so it is scaled to 16 bits.
    """
    raw = _raw(path)
    pixels = usable(raw, str(path))
    is_coarse = path.suffix.lower() not in (".npy", ".fits") and raw.dtype == np.uint8
    return stretched(pixels) if is_coarse else counts_above_minimum(pixels)


def read_archive(path: Path) -> NDArray[np.uint16]:
    """Counts above the minimum [n, h, w] of an .npz file's array `counts`; raises `ImageError`."""
    if not path.is_file():
        raise ImageError(f"{path}: no such file. Check the path.")
    try:
        with zipfile.ZipFile(path) as archive:
            n_bytes = archive.getinfo("counts.npy").file_size  # known before it is unpacked
        if n_bytes > MAX_ARCHIVE_BYTES:
            raise ImageError(f"{path}: unpacks to {n_bytes:,} bytes; {MAX_ARCHIVE_BYTES:,} are allowed. Split it.")
        with np.load(path, allow_pickle=False) as arrays:
            counts = arrays["counts"]
    except (*NPY_ERRORS, KeyError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error) as err:
        raise ImageError(f"{path}: damaged, or holds no plain array `counts`. Save one with numpy.savez.") from err
    if counts.ndim != 3 or counts.dtype.kind not in "ui" or not len(counts):
        raise ImageError(f"{path}: `counts` is {counts.dtype} {counts.shape}; needs whole numbers (n, height, width).")
    counts = counts.astype(np.int64) - counts.min(axis=(1, 2), keepdims=True).astype(np.int64)
    if counts.max() > QUANTISED_PEAK or not counts.any(axis=(1, 2)).all():
        raise ImageError(
            f"{path}: an image has {counts.max():,} counts above its minimum, or none; needs 1 to {QUANTISED_PEAK:,}."
        )
    return np.asarray(counts, dtype=np.uint16)


def usable(pixels: NDArray[np.generic], name: str) -> NDArray[np.float64]:
    """`pixels` as float64 [h, w], or an `ImageError` that says what is wrong with the image `name`."""
    if pixels.ndim == 3 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.ndim != 2 or min(pixels.shape) < 2:
        raise ImageError(
            f"{name}: has shape {pixels.shape}; needs (height, width) or (1, height, width). Save one image a file."
        )
    if pixels.dtype.kind not in "fiub":
        raise ImageError(f"{name}: holds {pixels.dtype} values; needs real numbers. Save it as float or integer.")
    values = pixels.astype(np.float64)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ImageError(
            f"{name}: {bad} of {values.size} pixels are NaN or infinite; needs finite pixels. Fill or cut them out."
        )
    if values.min() == values.max():
        raise ImageError(f"{name}: every pixel is {values.flat[0]:g}; there is nothing to see. Leave this image out.")
    return values


def counts_above_minimum(pixels: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Photon counts above the minimum behind `pixels` [h, w], whatever linear scale they were saved in.

    Simulated images are min-max scaled counts, so every pixel is a whole multiple of a smallest
    step; dividing by it gives the counts back exactly. Where there is no such step up to
    `MAX_PEAK`, the image is scaled to 0..`QUANTISED_PEAK` instead.
    """
    scaled = _minmax(pixels)
    gaps = np.diff(np.unique(scaled))
    step = gaps[gaps > 0.5 / MAX_PEAK].min(initial=1.0)
    for divisor in (1, 2, 3):  # the smallest gap present may be a few counts wide
        counts = scaled * round(divisor / step)
        if counts.max() <= MAX_PEAK and np.abs(counts - counts.round()).max() < INTEGER_TOLERANCE:
            return np.asarray(counts.round(), dtype=np.uint16)
    return stretched(pixels)


def stretched(pixels: NDArray[np.float64]) -> NDArray[np.uint16]:
    """`pixels` scaled to 0..`QUANTISED_PEAK`: for images whose photon counts are unknown."""
    return np.asarray((_minmax(pixels) * QUANTISED_PEAK).round(), dtype=np.uint16)


def _minmax(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((pixels - pixels.min()) / (pixels.max() - pixels.min()))


def _raw(path: Path) -> NDArray[np.generic]:
    if not path.is_file():
        raise ImageError(f"{path}: no such file. Check the path.")
    if path.suffix.lower() not in SUFFIXES:
        raise ImageError(f"{path}: sublens reads {', '.join(SUFFIXES)} images. Convert it to one of these.")
    readers = {".npy": _read_npy, ".fits": _read_fits}
    return readers.get(path.suffix.lower(), _read_picture)(path)


def _read_npy(path: Path) -> NDArray[np.generic]:
    damaged = f"{path}: truncated, or not a .npy file. Copy or make it again."
    try:
        with path.open("rb") as file:
            if file.read(len(NPY_MAGIC)) != NPY_MAGIC:
                raise ImageError(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (*NPY_ERRORS, Warning) as err:
        if "Python objects" in str(err):
            raise ImageError(
                f"{path}: a pickled object array, which could run code when opened, so it was not. "
                "Save it again as a plain float array."
            ) from err
        raise ImageError(damaged) from err
    if max(array.shape, default=0) > MAX_SIDE:
        raise ImageError(
            f"{path}: has shape {array.shape}; a side may have {MAX_SIDE} pixels at most. Cut out the lens."
        )
    return np.array(array)


def _read_picture(path: Path) -> NDArray[np.generic]:
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            if max(picture.size) > MAX_SIDE:
                raise ImageError(
                    f"{path}: has {picture.size[0]} x {picture.size[1]} pixels; a side may have "
                    f"{MAX_SIDE} at most. Cut out the lens."
                )
            grey = picture if picture.mode in ("L", "I", "I;16", "F") else picture.convert("L")
            return np.asarray(grey)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise ImageError(f"{path}: truncated, or not a PNG or JPEG picture. Copy or make it again.") from err


def _read_fits(path: Path) -> NDArray[np.generic]:
    from astropy.io import fits  # slow to import

    damaged = f"{path}: truncated, or not a FITS file. Copy or make it again."
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("error")
            if not file.read(len(FITS_MAGIC)) == FITS_MAGIC:
                raise ImageError(damaged)
            file.seek(0)
            with fits.open(file, memmap=False, lazy_load_hdus=True) as hdus:
                for hdu in hdus:
                    if hdu.is_image and hdu.header.get("NAXIS", 0) >= 2:
                        return _fits_pixels(path, hdu)
    except ImageError:
        raise
    except Exception as err:  # astropy raises of every kind for damaged files
        raise ImageError(damaged) from err
    raise ImageError(f"{path}: holds no image, only tables or headers. Name a file with an image in it.")


def _fits_pixels(path: Path, hdu: Any) -> NDArray[np.generic]:
    sides = [hdu.header[f"NAXIS{axis + 1}"] for axis in range(hdu.header["NAXIS"])]
    if max(sides[:2]) > MAX_SIDE or int(np.prod(sides, dtype=float)) > MAX_SIDE**2:  # known before it is read
        raise ImageError(
            f"{path}: has {' x '.join(map(str, sides))} pixels; a side may have {MAX_SIDE} at most. Cut out the lens."
        )
    pixels: NDArray[np.generic] = np.array(hdu.data)
    return pixels
