"""One big FITS image and a catalogue of positions -> a cutout around each.

Of the image no more is read than the rows of one cutout, so it may be larger than the memory; of the
catalogue no more is kept than positions and names. What time and memory both may take is limited by
the child process in `reading`.
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
from sublens.images import formats
from sublens.images.pixels import MAX_MISSING, Image, RawImage, fill_missing
from sublens.storage import object_store
from sublens.storage.files import sha256

MAX_POSITIONS = 1_000_000
MAX_CATALOGUE_BYTES = 2**28
FITS_BLOCK = 2880
"""Bytes that the parts of a FITS file are filled up to, which not all programs do at the end."""
DESCRIPTOR_BYTES = 8
"""That a compressed tile takes at least, beside its pixels."""
DECIMALS = 3
"""Of a position in pixels, so that both ways to give the same one end in the same cutout."""
SKY, PIXELS = ("ra", "dec"), ("x", "y")
NAMES = ("id", "name")
NEED = "needs ra, dec (degrees) or x, y (pixels, the first is 0)"


class Cutout(NamedTuple):
    """A cutout that is wanted of a big image."""

    path: Path
    number: int
    """Place in the catalogue."""
    xy: tuple[float, float]
    """Its centre, pixels of which the first is 0; NaN where there is none."""
    size: tuple[int, int]
    """Height and width, pixels."""
    id: str = ""
    """Name in the catalogue, where it has one."""
    ra: float | None = None
    dec: float | None = None
    """Its centre on the sky, degrees, where that is known."""


@dataclass(frozen=True)
class Positions:
    """Where the positions of a catalogue lie in a big image, in the catalogue's order."""

    xy: NDArray[np.float64]
    """Pixels [n, 2] of which the first is 0; NaN where there is none."""
    sky: NDArray[np.float64]
    """Right ascension and declination [n, 2], degrees; NaN where there is none."""
    ids: NDArray[Any]
    """Names [n], empty where the catalogue has none."""
    pixel_scale: float | None
    """Arcsec a pixel of the image, where it tells."""

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

    Raises `ImageError` where that cannot be done.
    """

    def __init__(self, path: Path, hdu: str | None) -> None:
        from astropy.io import fits  # slow to import

        if not path.is_file():
            raise ImageError(f"{path}: no such file. Check the path.")
        if not formats.is_fits(path):
            raise ImageError(f"{path}: is no FITS image, which alone can be cut at positions. Convert it.")
        self.path, self._file = path, formats.unpack(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what matters of it is checked below
                if self._file.read(len(formats.FITS_MAGIC)) != formats.FITS_MAGIC:  # astropy would unpack it, unlimited
                    raise formats.damaged_file(path, "a FITS file")
                n_bytes = self._file.seek(0, 2)
                self._file.seek(0)
                self._hdu = formats.choose_hdu(path, fits.open(self._file, memmap=False, lazy_load_hdus=True), hdu)
                self.shape = tuple(map(int, self._hdu.shape))
                self._tile = tuple(map(int, getattr(self._hdu, "tile_shape", ())))
                self._check(n_bytes)
                self.wcs = formats.celestial(self._hdu.header)
                self.pixel_scale = formats.pixel_scale(self._hdu.header, self.wcs)
        except Exception as err:  # astropy raises of every kind for damaged files
            self._file.close()
            if isinstance(err, ImageError | MemoryError):
                raise
            raise formats.damaged_file(path, "a FITS file") from err

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _check(self, n_bytes: int) -> None:
        """Refuse what is no plain image, and what a file of so many bytes cannot hold."""
        if len(self.shape) != 2:
            raise ImageError(f"{self.path}: has shape {self.shape}, a cube. Save the image alone.")
        start, n_claimed = (self._hdu.fileinfo()[key] for key in ("datLoc", "datSpan"))
        n_least = prod(self._n_tiles(self.shape)) * DESCRIPTOR_BYTES if self._tile else 0
        if min(self.shape) < 1 or n_least > n_claimed or start + n_claimed >= n_bytes + FITS_BLOCK:
            raise formats.damaged_file(self.path, "a FITS file")

    def _n_tiles(self, size: tuple[int, ...]) -> list[int]:
        return [ceil(pixels / tile) for pixels, tile in zip(size, self._tile, strict=True)]

    def _check_size(self, size: tuple[int, int]) -> None:
        """Refuse cutouts for which too much would have to be unpacked."""
        if not self._tile:
            return
        touched = [(n + 1) * tile for n, tile in zip(self._n_tiles(size), self._tile, strict=True)]
        n_bytes = 8 * prod(min(pixels, side) for pixels, side in zip(touched, self.shape, strict=True))
        if n_bytes > formats.MAX_UNPACKED_BYTES:
            raise ImageError(f"{self.path}: has tiles of {self._tile} pixels, too large to unpack. Unpack it first.")

    def cut(self, number: int, xy: tuple[float, float], size: tuple[int, int]) -> Image:
        """The cutout [h, w] around a position; what is missing at an edge is given the median, as NaN are.

        Raises `ImageError` for one that is off the image, by its centre or more than `MAX_MISSING` of
        its pixels, or has none to see.
        """
        from astropy.nddata import Cutout2D  # slow to import

        name, (x, y), (height, width) = f"{self.path}, position {number}", xy, self.shape
        if not np.isfinite(xy).all():
            raise ImageError(
                f"{name}: is no number, or a point of the sky that the image's projection does not reach; {NEED}. "
                "Correct it or leave it out."
            )
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            raise ImageError(
                f"{name}: lies at x {x:.1f}, y {y:.1f}, off the {width} x {height} pixels of the image. Leave it out."
            )
        self._check_size(size)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = Cutout2D(self._hdu.section, xy, size, mode="partial", fill_value=0)
                pixels = np.full(size, np.nan)
                pixels[found.slices_cutout] = found.data[found.slices_cutout]
        except MemoryError:
            raise
        except Exception as err:  # astropy raises of every kind for damaged files
            raise formats.damaged_file(self.path, "a FITS file") from err
        share = 1 - prod(part.stop - part.start for part in found.slices_cutout) / pixels.size
        if share > MAX_MISSING:
            raise ImageError(
                f"{name}: {share:.0%} of the {size[0]} x {size[1]} pixels around it are off the image, of which "
                f"{MAX_MISSING:.0%} may be. Leave it out."
            )
        notes = (f"{share:.1%} of the pixels were off the image",) if share else ()
        return fill_missing(RawImage(pixels, number, False, (self.pixel_scale, None, None), notes), name)

    def pixels(self, sky: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where points [n, 2] of the sky (ICRS, degrees) lie in pixels [n, 2]; NaN for those that do not."""
        from astropy.coordinates import SkyCoord

        xy = np.full(sky.shape, np.nan)
        known = np.isfinite(sky).all(axis=1) & (np.abs(sky) <= (360, 90)).all(axis=1)
        if known.any():
            points = SkyCoord(*sky[known].T, unit="deg")
            found = np.stack(self.wcs.world_to_pixel(points), axis=1)
            lies = np.isfinite(found).all(axis=1)
            found[~lies] = np.nan
            back = self.wcs.pixel_to_world(*found[lies].T)  # a projection can lead to where it does not come from
            found[np.flatnonzero(lies)[back.separation(points[lies]).arcsec > self.pixel_scale]] = np.nan
            xy[known] = found
        return xy

    def sky(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where pixels [n, 2] lie on the sky (ICRS, degrees); NaN for those that do not."""
        sky, known = np.full(xy.shape, np.nan), np.isfinite(xy).all(axis=1)
        if self.wcs is not None and known.any():
            points = self.wcs.pixel_to_world(*xy[known].T).icrs
            sky[known] = np.stack([points.ra.deg, points.dec.deg], axis=1)
        return sky


open_mosaic = lru_cache(maxsize=1)(Mosaic)
"""The same as before where it is the same: for who asks for one cutout after the other."""


def locate_in_mosaic(path: Path, hdu: str | None, catalogue: Path) -> Positions:
    """Where the positions of a catalogue lie in the big image at `path`: by ra, dec, or else by x, y.

    Raises `DataError` or `ImageError` where the one or the other cannot be used.
    """
    with Mosaic(path, hdu) as mosaic, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers that overflow, projections that fail: they become NaN
        columns = _columns(catalogue)
        has_sky, has_pixels = set(SKY) <= columns.keys(), set(PIXELS) <= columns.keys()
        if not has_sky and not has_pixels:
            raise DataError(f"{catalogue}: has the columns {', '.join(columns) or 'none'}; {NEED}. Rename them.")
        if has_sky and mosaic.wcs is not None:
            sky = _pairs(catalogue, columns, SKY)
            xy = mosaic.pixels(sky)
        elif has_pixels:
            xy = _pairs(catalogue, columns, PIXELS)
            sky = mosaic.sky(xy)
        else:
            raise DataError(f"{path}: does not tell where it lies on the sky. Give x, y in {catalogue}, pixels from 0.")
    if not len(xy):
        raise DataError(f"{catalogue}: holds no positions. Check it.")
    ids = np.array(_ids(columns, len(xy)), np.dtypes.StringDType())
    return Positions(np.round(xy, DECIMALS), sky, ids, mosaic.pixel_scale)


def checksum(catalogue: Path) -> str:
    """Hexadecimal sha256 of a catalogue; raises `DataError` where there is none, or it is too large."""
    _check_catalogue(object_store.local(catalogue))
    return sha256(catalogue)


def _check_catalogue(catalogue: Path) -> None:
    if not catalogue.is_file():
        raise DataError(f"{catalogue}: no such file. Check the path.")
    if (n_bytes := catalogue.stat().st_size) > MAX_CATALOGUE_BYTES:
        raise DataError(f"{catalogue}: has {n_bytes:,} bytes; {MAX_CATALOGUE_BYTES:,} are allowed. Split it.")


Columns = Mapping[str, Any]
"""Cells of a catalogue by the name of their column in small letters: texts, or a column of astropy's."""


def _columns(path: Path) -> Columns:
    _check_catalogue(path)
    read = CATALOGUES.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{path}: sublens reads {', '.join(CATALOGUES)} catalogues. Convert it to one of these.")
    try:
        columns = read(path)
    except (DataError, MemoryError):
        raise
    except Exception as err:  # astropy raises of every kind for damaged files
        raise DataError(f"{path}: truncated, or no {path.suffix} catalogue. Copy or make it again.") from err
    if max(map(len, columns.values()), default=0) > MAX_POSITIONS:
        raise DataError(f"{path}: holds more than {MAX_POSITIONS:,} positions. Split it.")
    return columns


def _read_csv(path: Path) -> Columns:
    """Cells as texts, of columns that we know; a row too short is empty where it ends."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.reader(file, skipinitialspace=True)
        names = [name.strip("# ").lower() for name in next(rows, [])]
        columns: dict[str, list[str]] = {name: [] for name in names}
        known = [(columns[name], names.index(name)) for name in (*SKY, *PIXELS, *NAMES) if name in columns]
        n_rows = 0
        for row in rows:
            if row and row != [""]:
                n_rows += 1
                for cells, place in known:
                    cells.append(row[place] if place < len(row) else "")
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
"""How a catalogue is read, by the end of its name."""


def _pairs(path: Path, columns: Columns, names: tuple[str, str]) -> NDArray[np.float64]:
    """Two columns as numbers [n, 2], in degrees where they lie on the sky; NaN for what is none."""
    return np.stack([_numbers(path, name, columns[name], is_angle=names == SKY) for name in names], axis=1)


def _numbers(path: Path, name: str, column: Any, *, is_angle: bool) -> NDArray[np.float64]:
    if isinstance(column, list):
        return np.array([_number(cell) for cell in column], np.float64)
    kind = getattr(column, "dtype", np.dtype(object))
    if kind.kind not in "fiu" or column.ndim != 1:
        raise DataError(f"{path}: column {name} holds {kind} values; {NEED}. Convert it.")
    values = np.ma.filled(np.ma.asarray(column).astype(np.float64), np.nan)
    if is_angle and column.unit:
        if not column.unit.is_equivalent("deg"):
            raise DataError(f"{path}: column {name} is in {column.unit}; {NEED}. Convert it.")
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
