"""The pixels of one image: checks, and the photon counts behind them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens.errors import ImageError

MAX_MISSING = 0.1
"""Largest share of NaN pixels that is filled in; an image with more is refused."""
QUANTISED_PEAK = 65535
"""Peak of an image whose photon counts are unknown and which was scaled to 16 bits instead."""
MAX_PEAK = 20000
"""Largest photon count above the minimum that is recovered."""
INTEGER_TOLERANCE = 1e-3
"""Largest difference of a recovered count from a whole number."""


class TangentPlane(NamedTuple):
    """Linear coordinates on the sky around the centre of an image, as FITS headers tell them."""

    axes: tuple[str, str]
    """CTYPE1 and CTYPE2."""
    crval: tuple[float, float]
    """Longitude and latitude of the reference point, degrees."""
    cd: Sequence[float]
    """CD1_1, CD1_2, CD2_1 and CD2_2, degrees a pixel."""
    radesys: str
    equinox: float | None
    offset: tuple[float, float] = (0.0, 0.0)
    """The reference point as seen from the centre of the image, pixels."""

    def zoomed(self, zoom: float) -> "TangentPlane":
        """The same plane for pixels `zoom` times as fine."""
        x, y = self.offset
        return self._replace(cd=[value / zoom for value in self.cd], offset=(x * zoom, y * zoom))

    def cut(self, size: Sequence[int], shape: Sequence[int]) -> "TangentPlane":
        """The same plane for `shape` cut out of `size`, [h, w], or laid around it, with half a pixel to the left."""
        y, x = ((old - new) % 2 / 2 * (1 if old > new else -1) for old, new in zip(size, shape, strict=True))
        return self._replace(offset=(self.offset[0] + x, self.offset[1] + y))


@dataclass(frozen=True)
class Image:
    """One image as its file holds it."""

    pixels: NDArray[np.float64]
    """[h, w], finite and not constant."""
    is_coarse: bool = False
    """Whether the values are the levels of an 8-bit picture, too coarse to be photons."""
    pixel_scale: float | None = None
    """Arcsec along the side of a pixel, where the file gives it."""
    ra: float | None = None
    """Right ascension of the centre, degrees, where the file gives it."""
    dec: float | None = None
    """Declination of the centre, degrees, where the file gives it."""
    number: int | None = None
    """Index in a file that holds many images."""
    notes: Sequence[str] = ()
    """Changes that were made to the pixels, and doubts about them, in words."""
    mask: NDArray[np.bool_] | None = None
    """Missing pixels [h, w]; None where none is known."""
    plane: TangentPlane | None = None
    """Coordinates on the sky, where the file gives them."""

    def counts(self) -> NDArray[np.uint16]:
        """Counts above the minimum [h, w]; an 8-bit picture is scaled to 16 bits instead."""
        return scale_to_16_bits(self.pixels) if self.is_coarse else counts_above_minimum(self.pixels)


class RawImage(NamedTuple):
    """One image before it is checked."""

    pixels: NDArray[np.generic]
    number: int | None = None
    is_picture: bool = False
    wcs: tuple[float | None, float | None, float | None] = (None, None, None)
    """Pixel scale, arcsec, right ascension and declination of the centre, degrees."""
    notes: tuple[str, ...] = ()
    mask: NDArray[np.bool_] | None = None
    """Missing pixels [h, w]; None where none is known."""
    plane: TangentPlane | None = None
    """Coordinates on the sky, where the file gives them."""


def check_pixels(pixels: NDArray[np.generic], name: str) -> NDArray[np.float64]:
    """`pixels` as float64 [h, w]; raises `ImageError` where the image `name` cannot be used."""
    if pixels.ndim == 3 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.ndim != 2 or min(pixels.shape) < 2:
        shapes = "(height, width) or (1, height, width)"
        raise ImageError(f"has shape {pixels.shape}", need=shapes, next="Save one image a file.", path=name)
    if pixels.dtype.kind not in "fiub":
        advice = "Save it as float or integer."
        raise ImageError(f"holds {pixels.dtype} values", need="real numbers", next=advice, path=name)
    values = pixels.astype(np.float64)
    _check_values(values, name)
    return values


def _check_values(values: NDArray[np.float64], name: str) -> None:
    if not np.isfinite(values).all():
        what = f"{(~np.isfinite(values)).sum()} of {values.size} pixels are NaN or infinite"
        raise ImageError(what, need="finite pixels", next="Fill or cut them out.", path=name)
    low, high = values.min(), values.max()
    if low == high:
        what = f"every pixel is {low:g}: there is nothing to see"
        raise ImageError(what, need="pixels that differ", next="Leave this image out.", path=name)
    if high / 2 - low / 2 > np.finfo(np.float64).max / 4:
        what = f"pixels span {low:g} to {high:g}, too far to compute with"
        raise ImageError(what, need="a smaller range", next="Rescale the image.", path=name)


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
    return scale_to_16_bits(pixels)


def scale_to_16_bits(pixels: NDArray[np.float64]) -> NDArray[np.uint16]:
    """`pixels` scaled to 0..`QUANTISED_PEAK`: for images whose photon counts are unknown."""
    return np.asarray((_minmax(pixels) * QUANTISED_PEAK).round(), dtype=np.uint16)


def _minmax(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((pixels - pixels.min()) / (pixels.max() - pixels.min()))


def fill_missing(image: RawImage, name: str) -> Image:
    """The image `name`, its few NaN pixels filled in; raises `ImageError` as `check_pixels` does."""
    pixels, notes = image.pixels, image.notes
    if pixels.dtype.kind == "f" and pixels.size and (missing := np.isnan(pixels)).any():
        share = float(missing.mean())
        if share <= MAX_MISSING:
            pixels = np.where(missing, np.median(pixels[~missing]), pixels)
            notes = (*notes, f"{share:.1%} of the pixels were NaN")
    is_coarse = image.is_picture and image.pixels.dtype == np.uint8
    return Image(check_pixels(pixels, name), is_coarse, *image.wcs, image.number, notes, plane=image.plane)
