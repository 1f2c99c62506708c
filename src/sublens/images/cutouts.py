"""One big FITS image and a catalogue of positions -> a cutout around each.

No more of the image is read than the rows of one cutout, so it may be larger than the memory. Both are read in the
child process of `reader`, which limits time and memory.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sublens.errors import DataError, ImageError
from sublens.images import catalogue, fits_image, formats, wcs
from sublens.images.catalogue import ID, NEED, PIXELS, SKY, WHOLE, CatalogueSelector, Column, Table
from sublens.images.fits_image import Missing
from sublens.images.limits import (
    MAX_UNPACKED_BYTES,
    check_exists,
    cube_error,
    damaged_file,
    name_errors,
    translate_errors,
    unpack,
)
from sublens.images.pixels import MAX_MISSING, NO_COMPANIONS, Companions, Image, RawImage, fill_missing
from sublens.storage import object_store
from sublens.storage.files import sha256

FITS_BLOCK = 2880
"""Bytes that the parts of a FITS file are padded to, though not all programs pad the last one."""
DESCRIPTOR_BYTES = 8
"""Least number of bytes that a compressed tile takes beside its pixels."""
MAX_CATALOGUE_BYTES = 2**28
"""Largest size of a catalogue."""
DECIMALS = 3
"""Decimals of a position in pixels, so that sky and pixel coordinates of one position give the same cutout."""


class Cutout(NamedTuple):
    """A cutout to make from a big image."""

    path: Path
    number: int
    """Index in the catalogue."""
    xy: tuple[float, float]
    """Its centre, pixels counted from 0; NaN where there is none."""
    size: tuple[int, int]
    """Height and width, pixels."""
    id: str = ""
    """Name in the catalogue, where it has one."""
    ra: float | None = None
    dec: float | None = None
    """Its centre on the sky, degrees, where that is known."""
    note: str = ""
    """Words on the columns of the catalogue that it comes from, where their names leave a doubt."""


@dataclass(frozen=True)
class Positions:
    """The positions of a catalogue in a big image, in the catalogue's order."""

    xy: NDArray[np.float64]
    """Pixels [n, 2], counted from 0; NaN where there is none."""
    sky: NDArray[np.float64]
    """Right ascension and declination [n, 2], degrees; NaN where there is none."""
    ids: NDArray[Any]
    """Names [n], empty where the catalogue has none."""
    pixel_scale: float | None
    """Arcsec a pixel of the image, where its header gives it."""
    note: str = ""
    """Words on the columns that were taken, where their names leave a doubt."""

    def cuts(self, path: Path, size: tuple[int, int]) -> "Cutouts":
        """Cutouts of `size` of the image at `path`."""
        return Cutouts(self, path, size)


@dataclass(frozen=True)
class Cutouts:
    """Cutouts of one size, made as they are needed: a million take little memory."""

    positions: Positions
    path: Path
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.positions.xy)

    def __iter__(self) -> Iterator[Cutout]:
        known = self.positions
        for number, (xy, sky) in enumerate(zip(known.xy, known.sky, strict=True)):
            x, y = xy.tolist()
            ra, dec = (value if np.isfinite(value) else None for value in sky.tolist())
            yield Cutout(self.path, number, (x, y), self.size, str(known.ids[number]), ra, dec, known.note)


class Mosaic:
    """A big FITS image, opened but not read, to be closed by a `with` block.

    Opening it raises `ImageError` where the file is missing, damaged or no FITS image.
    """

    def __init__(self, path: Path, hdu: str | None) -> None:
        check_exists(path)
        if not formats.is_fits(path):
            raise ImageError(
                "is no FITS image", need="one, to cut it at positions", next="Convert it to FITS.", path=path
            )
        with name_errors(path):
            self._open(path, hdu)

    def _open(self, path: Path, hdu: str | None) -> None:
        self.path, self._file = path, unpack(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what matters is checked below
                n_bytes = self._file.seek(0, 2)
                self._image = fits_image.choose_image(fits_image.open_hdus(self._file), hdu)
                self._hdu = self._image.hdu
                self.shape = tuple(map(int, self._hdu.shape))
                self._tile = tuple(map(int, getattr(self._hdu, "tile_shape", ())))
                self._check(n_bytes)
                self._image = self._image.decided()
                self.wcs, self.pixel_scale, self.fault, notes = wcs.read_wcs(self._hdu.header)
                self._notes = (*self._image.notes, *notes)
        except Exception as err:  # astropy raises of every kind for damaged files
            self._file.close()
            if isinstance(err, ImageError | MemoryError):
                raise
            raise damaged_file("a FITS file") from err

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _check(self, n_bytes: int) -> None:
        """Raise `ImageError` for a cube, and for an image that a file of that many bytes cannot hold."""
        if len(self.shape) != 2:
            raise cube_error(self.shape)
        start, n_claimed = (self._hdu.fileinfo()[key] for key in ("datLoc", "datSpan"))
        n_least = prod(self._n_tiles(self.shape)) * DESCRIPTOR_BYTES if self._tile else 0
        if min(self.shape) < 1 or n_least > n_claimed or start + n_claimed >= n_bytes + FITS_BLOCK:
            raise damaged_file("a FITS file")

    def _n_tiles(self, size: tuple[int, ...]) -> list[int]:
        return [ceil(pixels / tile) for pixels, tile in zip(size, self._tile, strict=True)]

    def _check_size(self, size: tuple[int, int]) -> None:
        """Raise `ImageError` for cutouts that take too many unpacked bytes."""
        if not self._tile:
            return
        touched = [(n + 1) * tile for n, tile in zip(self._n_tiles(size), self._tile, strict=True)]
        n_bytes = 8 * prod(min(pixels, side) for pixels, side in zip(touched, self.shape, strict=True))
        if n_bytes > MAX_UNPACKED_BYTES:
            raise ImageError(
                f"has tiles of {self._tile} pixels, too large to unpack",
                need=f"at most {MAX_UNPACKED_BYTES:,} bytes around a position",
                next="Unpack it first.",
            )

    def cut(self, number: int, xy: tuple[float, float], size: tuple[int, int], has_companions: bool = False) -> Image:
        """The cutout [h, w] around a position; pixels off the image are missing, as NaN are.

        has_companions: whether noise and point-spread function are read as well. Raises `ImageError` for one that is
        off the image, by its centre or more than `MAX_MISSING` of its pixels, or is constant.
        """
        name = position_name(self.path, number)
        with name_errors(name):
            self._check_position(xy)
            self._check_size(size)
            pixels, missing, share, corner = self._pixels_around(xy, size)
            own = self._companions(corner, size) if has_companions else NO_COMPANIONS
            if share > MAX_MISSING:
                raise ImageError(
                    f"{share:.0%} of the {size[0]} x {size[1]} pixels around it are off the image",
                    need=f"at most {MAX_MISSING:.0%}",
                    next="Leave it out.",
                )
            notes = (*self._notes, *missing.notes)
            if share:
                notes = (*notes, f"{share:.1%} of the pixels were off the image")
            centre = (corner[0] + (size[1] - 1) / 2, corner[1] + (size[0] - 1) / 2)
            plane = wcs.tangent_plane(self.wcs, *centre)
            scale = (self.pixel_scale, None, None)
            return fill_missing(RawImage(pixels, number, False, scale, notes, missing.mask, plane, own), name)

    def _check_position(self, xy: tuple[float, float]) -> None:
        """Raise `ImageError` for a position that is no number or off the image."""
        (x, y), (height, width) = xy, self.shape
        if not np.isfinite(xy).all():
            raise ImageError(
                "is no number, or a point of the sky that the image's projection does not reach",
                need=NEED,
                next="Correct it or leave it out.",
            )
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            raise ImageError(
                f"lies at x {x:.1f}, y {y:.1f}",
                need=f"a position on the {width} x {height} pixels of the image",
                next="Leave it out.",
            )

    def _pixels_around(
        self, xy: tuple[float, float], size: tuple[int, int]
    ) -> tuple[NDArray[np.float64], Missing, float, tuple[int, int]]:
        """The pixels around a position, NaN off the image, those missing, the share off, and x and y of the first."""
        from astropy.nddata import Cutout2D  # slow to import

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                cutout = Cutout2D(self._hdu.section, xy, size, mode="partial", fill_value=0)
                pixels = np.full(size, np.nan)
                pixels[cutout.slices_cutout] = fits_image.linear(cutout.data[cutout.slices_cutout], self._hdu.header)
                missing = self._image.missing(cutout.slices_original)
        except MemoryError:
            raise
        except Exception as err:  # astropy raises of every kind for damaged files
            raise damaged_file("a FITS file") from err
        if missing.mask is not None:
            mask = np.zeros(size, np.bool_)
            mask[cutout.slices_cutout] = missing.mask
            missing = missing._replace(mask=mask)
        share = 1 - prod(part.stop - part.start for part in cutout.slices_cutout) / pixels.size
        pairs = zip(cutout.slices_original, cutout.slices_cutout, strict=True)
        y, x = (of_image.start - of_cutout.start for of_image, of_cutout in pairs)
        return pixels, missing, share, (x, y)

    def _companions(self, corner: tuple[int, int], size: tuple[int, int]) -> Companions:
        """Noise, point-spread function and photometry of a cutout whose first pixel is x, y; noise off it is NaN."""
        spans = [
            (max(first, 0), min(first + length, side))
            for first, length, side in zip(reversed(corner), size, self.shape, strict=True)
        ]
        with translate_errors("a FITS file"):
            own = self._image.beside(tuple(slice(*span) for span in spans))
        if own.noise is None or own.noise.shape != tuple(end - start for start, end in spans):
            return own
        noise = np.full(size, np.nan)
        rows, columns = (slice(a - first, b - first) for first, (a, b) in zip(reversed(corner), spans, strict=True))
        noise[rows, columns] = own.noise
        return own._replace(noise=noise)

    def pixels(self, sky: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixels [n, 2] of points [n, 2] of the sky (ICRS, degrees); NaN for those that have none."""
        from astropy.coordinates import SkyCoord

        xy = np.full(sky.shape, np.nan)
        is_known = np.isfinite(sky).all(axis=1) & (np.abs(sky) <= (360, 90)).all(axis=1)
        if is_known.any():
            points = SkyCoord(*sky[is_known].T, unit="deg")
            pixels = np.stack(self.wcs.world_to_pixel(points), axis=1)
            is_on_plane = np.isfinite(pixels).all(axis=1)
            pixels[~is_on_plane] = np.nan
            back = self.wcs.pixel_to_world(*pixels[is_on_plane].T)  # a projection need not be reversible
            is_off = back.separation(points[is_on_plane]).arcsec > self.pixel_scale
            pixels[np.flatnonzero(is_on_plane)[is_off]] = np.nan
            xy[is_known] = pixels
        return xy

    def sky(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points [n, 2] of the sky (ICRS, degrees) of pixels [n, 2]; NaN for those that have none."""
        sky, is_known = np.full(xy.shape, np.nan), np.isfinite(xy).all(axis=1)
        if self.wcs is not None and is_known.any():
            points = self.wcs.pixel_to_world(*xy[is_known].T).icrs
            sky[is_known] = np.stack([points.ra.deg, points.dec.deg], axis=1)
        return sky


open_mosaic = lru_cache(maxsize=1)(Mosaic)
"""The mosaic at a path; the last one stays open for the next cutout."""


def position_name(path: Path, number: int) -> str:
    """Name of a position of a catalogue in errors: the big image, and the index."""
    return f"{path}, position {number}"


def locate_in_mosaic(path: Path, hdu: str | None, at: Path, selector: CatalogueSelector = WHOLE) -> Positions:
    """The positions of the catalogue `at` in the big image at `path`: by ra, dec, or else by x, y.

    Raises `DataError` where the catalogue, `ImageError` where the image cannot be used.
    """
    with Mosaic(path, hdu) as mosaic, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers that overflow, projections that fail: they become NaN
        columns, note = _read_columns(at, selector)
        if set(SKY) <= columns.keys() and mosaic.wcs is not None:
            sky = _pairs(at, columns, SKY)
            xy = mosaic.pixels(sky)
        elif set(PIXELS) <= columns.keys():
            xy = _pairs(at, columns, PIXELS)
            sky = mosaic.sky(xy)
        else:
            raise DataError(
                f"its position on the sky cannot be read: {mosaic.fault}"
                if mosaic.fault
                else "does not tell where it lies on the sky",
                need="a header with celestial coordinates for ra, dec",
                next="Give x, y in the catalogue: pixels, the first is 0.",
                path=path,
            )
    if not len(xy):
        raise DataError("holds no positions", need="one at least", next="Check it.", path=at)
    ids = columns[ID].texts() if ID in columns else [""] * len(xy)
    return Positions(np.round(xy, DECIMALS), sky, np.array(ids, np.dtypes.StringDType()), mosaic.pixel_scale, note)


def checksum(path: Path) -> str:
    """Hexadecimal sha256 of a catalogue; raises `DataError` where there is none, or it is too large."""
    _check_file(object_store.local(path))
    return sha256(path)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise DataError("no such file", need="a catalogue", next="Check the path.", path=path)
    if (n_bytes := path.stat().st_size) > MAX_CATALOGUE_BYTES:
        raise DataError(f"has {n_bytes:,} bytes", need=f"at most {MAX_CATALOGUE_BYTES:,}", next="Split it.", path=path)


def _read_columns(path: Path, selector: CatalogueSelector) -> tuple[dict[str, Column], str]:
    """The columns of a catalogue by what they hold, ra, dec, x, y or id, and words on which were taken."""
    _check_file(path)
    try:
        tables = catalogue.open_tables(path)
        table = catalogue.choose_table(tables, selector)
        chosen = catalogue.choose_columns(table.fields, selector.columns)
        cells = table.read(list(chosen.values()))
    except (DataError, ImageError) as err:
        raise DataError(err.what, need=err.need, next=err.next, path=path) from err
    except MemoryError:
        raise
    except Exception as err:  # astropy raises of every kind for damaged files
        what = f"truncated, or no {path.suffix} catalogue"
        raise DataError(what, need="an intact file", next="Copy or make it again.", path=path) from err
    if max(map(len, cells)) > catalogue.MAX_POSITIONS:
        limit = f"at most {catalogue.MAX_POSITIONS:,}"
        raise DataError("holds too many positions", need=limit, next="Split it.", path=path)
    fields = [table.fields[index] for index in chosen.values()]
    columns = dict(zip(chosen, map(Column, fields, cells), strict=True))
    return columns, _note(columns, table if len(tables) > 1 else None)


def _note(columns: Mapping[str, Column], table: Table | None) -> str:
    """Words on the columns that were taken; none where they are named id or name, and ra, dec or x, y."""
    names = {name: column.field.name for name, column in columns.items()}
    is_plain = all(column.lower() in (name, "name" if name == ID else name) for name, column in names.items())
    if is_plain and table is None:
        return ""
    where = f" of table {table.number} {table.name}".rstrip() if table else ""
    return f"{', '.join(f'{name} from {column}' for name, column in names.items())}{where}"


def _pairs(path: Path, columns: Mapping[str, Column], names: tuple[str, str]) -> NDArray[np.float64]:
    """Two columns as numbers [n, 2], angles in degrees; NaN for a cell that is no number."""
    try:
        return np.stack(
            [columns[name].angles(name) if names == SKY else columns[name].numbers() for name in names], axis=1
        )
    except DataError as err:
        raise err.about(path) from err
