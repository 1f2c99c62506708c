"""One big FITS image and a catalogue of positions -> a cutout around each.

No more of the image is read than the rows of one cutout, so it may be larger than the memory; no more
of the catalogue is kept than positions and names. Both are read in the child process of `reader`, which
limits time and memory.
"""

import csv
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sublens.errors import DataError, ImageError
from sublens.images import fits_image, formats, wcs
from sublens.images.fits_image import Missing
from sublens.images.limits import MAX_UNPACKED_BYTES, check_exists, cube_error, damaged_file, name_errors
from sublens.images.pixels import MAX_MISSING, Image, RawImage, fill_missing
from sublens.storage import object_store
from sublens.storage.files import sha256

MAX_POSITIONS = 1_000_000
"""Most positions in a catalogue."""
MAX_CATALOGUE_BYTES = 2**28
"""Largest size of a catalogue."""
FITS_BLOCK = 2880
"""Bytes that the parts of a FITS file are padded to, though not all programs pad the last one."""
DESCRIPTOR_BYTES = 8
"""Least number of bytes that a compressed tile takes beside its pixels."""
DECIMALS = 3
"""Decimals of a position in pixels, so that sky and pixel coordinates of one position give the same cutout."""
SKY, PIXELS = ("ra", "dec"), ("x", "y")
NAMES = ("id", "name")
NEED = "ra, dec (degrees) or x, y (pixels, the first is 0)"
"""The columns that a catalogue needs."""


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
            yield Cutout(self.path, number, (x, y), self.size, str(known.ids[number]), ra, dec)


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
        self.path, self._file = path, fits_image.unpack(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what matters is checked below
                n_bytes = self._file.seek(0, 2)
                self._image = fits_image.choose_image(fits_image.open_hdus(self._file), hdu)
                self._hdu = self._image.hdu
                self.shape = tuple(map(int, self._hdu.shape))
                self._tile = tuple(map(int, getattr(self._hdu, "tile_shape", ())))
                self._check(n_bytes)
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

    def cut(self, number: int, xy: tuple[float, float], size: tuple[int, int]) -> Image:
        """The cutout [h, w] around a position; pixels off the image are missing, as NaN are.

        Raises `ImageError` for one that is off the image, by its centre or more than `MAX_MISSING` of
        its pixels, or is constant.
        """
        name = position_name(self.path, number)
        with name_errors(name):
            self._check_position(xy)
            self._check_size(size)
            pixels, missing, share = self._pixels_around(xy, size)
            if share > MAX_MISSING:
                raise ImageError(
                    f"{share:.0%} of the {size[0]} x {size[1]} pixels around it are off the image",
                    need=f"at most {MAX_MISSING:.0%}",
                    next="Leave it out.",
                )
            notes = (*self._notes, *missing.notes)
            if share:
                notes = (*notes, f"{share:.1%} of the pixels were off the image")
            scale = (self.pixel_scale, None, None)
            return fill_missing(RawImage(pixels, number, False, scale, notes, missing.mask), name)

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
    ) -> tuple[NDArray[np.float64], Missing, float]:
        """The pixels around a position, NaN off the image, those missing on it, and the share of those off it."""
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
        return pixels, missing, 1 - prod(part.stop - part.start for part in cutout.slices_cutout) / pixels.size

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


def locate_in_mosaic(path: Path, hdu: str | None, catalogue: Path) -> Positions:
    """The positions of a catalogue in the big image at `path`: by ra, dec, or else by x, y.

    Raises `DataError` where the catalogue, `ImageError` where the image cannot be used.
    """
    with Mosaic(path, hdu) as mosaic, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers that overflow, projections that fail: they become NaN
        columns = _columns(catalogue)
        has_sky, has_pixels = set(SKY) <= columns.keys(), set(PIXELS) <= columns.keys()
        if not has_sky and not has_pixels:
            raise DataError(
                f"has the columns {', '.join(columns) or 'none'}", need=NEED, next="Rename them.", path=catalogue
            )
        if has_sky and mosaic.wcs is not None:
            sky = _pairs(catalogue, columns, SKY)
            xy = mosaic.pixels(sky)
        elif has_pixels:
            xy = _pairs(catalogue, columns, PIXELS)
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
        raise DataError("holds no positions", need="one at least", next="Check it.", path=catalogue)
    ids = np.array(_ids(columns, len(xy)), np.dtypes.StringDType())
    return Positions(np.round(xy, DECIMALS), sky, ids, mosaic.pixel_scale)


def checksum(catalogue: Path) -> str:
    """Hexadecimal sha256 of a catalogue; raises `DataError` where there is none, or it is too large."""
    _check_catalogue(object_store.local(catalogue))
    return sha256(catalogue)


def _check_catalogue(catalogue: Path) -> None:
    if not catalogue.is_file():
        raise DataError("no such file", need="a catalogue", next="Check the path.", path=catalogue)
    if (n_bytes := catalogue.stat().st_size) > MAX_CATALOGUE_BYTES:
        raise DataError(
            f"has {n_bytes:,} bytes", need=f"at most {MAX_CATALOGUE_BYTES:,}", next="Split it.", path=catalogue
        )


Columns = Mapping[str, Any]
"""Cells of a catalogue by the name of their column in small letters: texts, or a column of astropy."""


def _columns(path: Path) -> Columns:
    _check_catalogue(path)
    read = CATALOGUES.get(path.suffix.lower())
    if read is None:
        raise DataError(
            f"{path.suffix or 'no ending'} is no catalogue that sublens reads",
            need=f"one of {', '.join(CATALOGUES)}",
            next="Convert it to one of these.",
            path=path,
        )
    try:
        columns = read(path)
    except (DataError, MemoryError):
        raise
    except Exception as err:  # astropy raises of every kind for damaged files
        raise DataError(
            f"truncated, or no {path.suffix} catalogue",
            need="an intact file",
            next="Copy or make it again.",
            path=path,
        ) from err
    if max(map(len, columns.values()), default=0) > MAX_POSITIONS:
        raise DataError("holds too many positions", need=f"at most {MAX_POSITIONS:,}", next="Split it.", path=path)
    return columns


def _read_csv(path: Path) -> Columns:
    """Cells of the known columns as texts; empty where a row is too short."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.reader(file, skipinitialspace=True)
        names = [name.strip("# ").lower() for name in next(rows, [])]
        columns: dict[str, list[str]] = {name: [] for name in names}
        known = [(columns[name], names.index(name)) for name in (*SKY, *PIXELS, *NAMES) if name in columns]
        n_rows = 0
        for row in rows:
            if row and row != [""]:
                n_rows += 1
                for cells, column in known:
                    cells.append(row[column] if column < len(row) else "")
            if n_rows > MAX_POSITIONS:
                break
    return columns


def _read_table(path: Path) -> Columns:
    from astropy.table import Table

    table = Table.read(path, format="ascii.ecsv" if path.suffix.lower() == ".ecsv" else "fits")
    return {name.lower(): table[name] for name in table.colnames}


def _read_votable(path: Path) -> Columns:
    from astropy.io.votable import parse_single_table

    table = parse_single_table(str(path)).to_table(use_names_over_ids=True)
    return {name.lower(): table[name] for name in table.colnames}


CATALOGUES: dict[str, Callable[[Path], Columns]] = {
    ".csv": _read_csv,
    **dict.fromkeys((".ecsv", ".fits", ".fit", ".fts"), _read_table),
    **dict.fromkeys((".vot", ".xml", ".votable"), _read_votable),
}
"""Function that reads a catalogue, by the end of its name."""


def _pairs(path: Path, columns: Columns, names: tuple[str, str]) -> NDArray[np.float64]:
    """Two columns as numbers [n, 2], angles in degrees; NaN for a cell that is no number."""
    return np.stack([_numbers(path, name, columns[name], is_angle=names == SKY) for name in names], axis=1)


def _numbers(path: Path, name: str, column: Any, *, is_angle: bool) -> NDArray[np.float64]:
    if isinstance(column, list):
        return np.array([_number(cell) for cell in column], np.float64)
    kind = getattr(column, "dtype", np.dtype(object))
    if kind.kind not in "fiu" or column.ndim != 1:
        raise DataError(f"column {name} holds {kind} values", need="numbers", next="Convert it.", path=path)
    values = np.ma.filled(np.ma.asarray(column).astype(np.float64), np.nan)
    if is_angle and column.unit:
        if not column.unit.is_equivalent("deg"):
            raise DataError(f"column {name} is in {column.unit}", need="an angle", next="Convert it.", path=path)
        values = values * column.unit.to("deg")
    return values


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _ids(columns: Columns, n: int) -> list[str]:
    """Names of the positions, empty where they have none."""
    name = next((name for name in NAMES if name in columns), None)
    if name is None:
        return [""] * n
    column = columns[name]
    return [_text(cell) for cell in (column if isinstance(column, list) else np.ma.asarray(column).tolist())]


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    text = cell.decode(errors="replace") if isinstance(cell, bytes) else str(cell)
    return text.replace("\0", "").strip()
