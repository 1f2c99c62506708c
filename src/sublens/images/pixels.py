"""The pixels of one image: checks, missing pixels, and the photon counts behind them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sublens.errors import ImageError

MAX_MISSING = 0.1
"""Largest share of missing pixels in the field of view; an image with more is refused."""
MAX_FILLED = 2**17
"""Most missing pixels in the field of view; filling more takes seconds."""
FILL_SIGMA = 1.7
"""Standard deviation of the weights of a missing pixel's neighbours, pixels of the network: about its PSF's."""
MIN_WEIGHT = 0.45
"""Least share of these weights that lies on good pixels; a square hole of 4 x 4 pixels is too large."""
MIN_FITTED = 0.1
"""Least share of a pixel that is fitted nevertheless; others keep a typical value."""
FILL_BLOCK = 4096
"""Number of pixels that are filled at once."""
SENTINELS = (-99, -999, -9999, -99999, -999999, -(2**15), -(2**31))
"""Values that stand for a missing pixel by convention."""
MIN_SENTINELS = 8, 1e-3
"""Least number of pixels that share a value which marks them as missing, and least share of the image."""
FAR = 10
"""Least distance of any other such value from the other pixels, in units of their range; see `_is_sentinel`."""
MIN_LEVELS = 16
"""Least number of values of the other pixels: a map of few levels has no such value."""
QUANTISED_PEAK = 65535
"""Peak of an image whose photon counts are unknown and which was scaled to 16 bits instead."""
MAX_PEAK = 20000
"""Largest photon count above the minimum that is recovered."""
MIN_GAP = 0.5 / MAX_PEAK
"""Smallest difference of two pixels scaled to 0..1 that can be a photon; any smaller is one of rounding."""
BINS, EMPTY_BINS = 2**17, 4
"""Bins of pixels scaled to 0..1, and the empty ones in a row that span more than `MIN_GAP`, and with the two
around them less than the step of `MAX_PEAK` photons."""
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

    def scaled(self, factor: float) -> "TangentPlane":
        """The same plane for pixels that are `factor` times as large on the sky."""
        return self._replace(cd=[value * factor for value in self.cd])

    def flipped(self) -> "TangentPlane":
        """The same plane for rows in the opposite order."""
        x, y = self.offset
        return self._replace(cd=[self.cd[0], -self.cd[1], self.cd[2], -self.cd[3]], offset=(x, -y))

    def cut(self, size: Sequence[int], shape: Sequence[int]) -> "TangentPlane":
        """The same plane for `shape` cut out of `size`, [h, w], or laid around it, with half a pixel to the left."""
        y, x = ((old - new) % 2 / 2 * (1 if old > new else -1) for old, new in zip(size, shape, strict=True))
        return self._replace(offset=(self.offset[0] + x, self.offset[1] + y))


class Companions(NamedTuple):
    """Noise, point-spread function and photometry of an image, as they come beside its pixels; not checked."""

    noise: NDArray[np.float64] | None = None
    """Standard deviation of each pixel [h, w], in the unit of the pixels, NaN where it is not known; None without."""
    noise_source: str = ""
    """`map`, `weight` or `option`; `estimated` where no file has it."""
    psf: NDArray[np.float64] | None = None
    """Point-spread function [k, k] on the image's pixels, of any sum; None without."""
    psf_source: str = ""
    """Extension or file that holds the point-spread function."""
    unit: str = ""
    """Unit of the pixels, as BUNIT has it; empty where it is not known."""
    exposure: float | None = None
    """Exposure, seconds."""
    gain: float | None = None
    """Electrons in one unit of the pixels."""
    zero_point: float | None = None
    """Magnitude of one unit of the pixels."""


NO_COMPANIONS = Companions()
"""What comes with an image of which the pixels alone are read."""


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
    """Missing pixels [h, w], where `pixels` has a typical value; None where none is known."""
    has_hole: bool = False
    """Whether pixels of the field of view are missing that their neighbours cannot fill: see `fill_field`."""
    plane: TangentPlane | None = None
    """Coordinates on the sky, where the file gives them."""
    companions: Companions = NO_COMPANIONS
    codes: NDArray[np.uint16] | None = None
    """Signal to noise [h, w] as `signal_to_noise.encode` has it, in the frame of a network that takes it; else None."""
    psf_fwhm: float | None = None
    """Full width of the point-spread function at half maximum, arcsec, in that frame; None where it is not known."""

    @property
    def noise(self) -> NDArray[np.float64] | None:
        """Standard deviation of each pixel [h, w]; None where no file has it and it is not estimated yet."""
        return self.companions.noise

    @property
    def psf(self) -> NDArray[np.float64] | None:
        """Point-spread function [k, k]; None where no file has it."""
        return self.companions.psf

    def counts(self) -> NDArray[np.uint16]:
        """Counts above the minimum [h, w], or the codes of signal to noise in the frame of a network that takes these.

        An 8-bit picture is scaled to 16 bits instead.
        """
        if self.codes is not None:
            return self.codes
        return scale_to_16_bits(self.pixels) if self.is_coarse else counts_above_minimum(self.pixels)

    def flipped(self) -> "Image":
        """The image upside down."""
        mask = None if self.mask is None else self.mask[::-1]
        plane = self.plane.flipped() if self.plane else None
        notes = (*self.notes, "flipped: its first row is the top")
        noise, psf = (None if array is None else array[::-1] for array in (self.noise, self.psf))
        companions = self.companions._replace(noise=noise, psf=psf)
        return replace(self, pixels=self.pixels[::-1], mask=mask, notes=notes, plane=plane, companions=companions)


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
    companions: Companions = NO_COMPANIONS


def fill_missing(image: RawImage, name: str) -> Image:
    """The image `name`, its missing pixels marked and set to a typical value; raises `ImageError` if it is unusable.

    Missing are NaN, what the image's mask has, and sentinels: see `_sentinels`.
    """
    pixels = _to_floats(image.pixels, name)
    mask = np.isnan(pixels) if image.mask is None else np.isnan(pixels) | image.mask.reshape(pixels.shape)
    if image.pixels.dtype.kind in "if" or not (image.is_picture or image.pixels.dtype.kind == "b"):
        mask |= _sentinels(pixels, mask)
    if mask.all():
        what = f"all {mask.size:,} pixels are missing"
        raise ImageError(what, need="pixels with values", next="Leave this image out.", path=name)
    if mask.any():
        pixels[mask] = typical(pixels[~mask])
    _check_values(pixels, name)
    is_coarse = image.is_picture and image.pixels.dtype.itemsize == 1
    missing = mask if mask.any() else None
    parts = (*image.wcs, image.number, image.notes, missing)
    return Image(pixels, is_coarse, *parts, plane=image.plane, companions=image.companions)


def typical(values: NDArray[np.float64]) -> float:
    """The median, or the value below it: between two values the step of photon counts would be lost."""
    return float(np.quantile(values, 0.5, method="lower"))


def _to_floats(pixels: NDArray[np.generic], name: str) -> NDArray[np.float64]:
    """A copy of `pixels` as float64 [h, w]."""
    if pixels.ndim == 3 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.ndim != 2 or min(pixels.shape) < 2:
        shapes = "(height, width) or (1, height, width)"
        raise ImageError(f"has shape {pixels.shape}", need=shapes, next="Save one image a file.", path=name)
    if pixels.dtype.kind not in "fiub":
        advice = "Save it as float or integer."
        raise ImageError(f"holds {pixels.dtype} values", need="real numbers", next=advice, path=name)
    return pixels.astype(np.float64)


def _check_values(values: NDArray[np.float64], name: str) -> None:
    if not np.isfinite(values).all():
        what = f"{(~np.isfinite(values)).sum()} of {values.size} pixels are infinite"
        raise ImageError(what, need="finite pixels", next="Set them to NaN, which is filled in.", path=name)
    low, high = values.min(), values.max()
    if low == high:
        what = f"every pixel is {low:g}: there is nothing to see"
        raise ImageError(what, need="pixels that differ", next="Leave this image out.", path=name)
    if high / 2 - low / 2 > np.finfo(np.float64).max / 4:
        what = f"pixels span {low:g} to {high:g}, too far to compute with"
        raise ImageError(what, need="a smaller range", next="Rescale the image.", path=name)


def _sentinels(values: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels [h, w] outside the mask whose value only says that they are missing."""
    is_good = np.isfinite(values) & ~mask
    sentinels, good = np.zeros_like(mask), values if is_good.all() else values[is_good]
    if not good.size:
        return sentinels
    low, high = good.min(), good.max()
    for value in {low, high, *(value for value in SENTINELS if value > low)}:
        holders = is_good & (values == value)
        if _is_shared(holders) and _is_sentinel(float(value), values[is_good & ~holders], int(holders.sum())):
            sentinels |= holders
    return sentinels


def _is_shared(holders: NDArray[np.bool_]) -> bool:
    """Whether these pixels are many, or a whole edge of the image."""
    number, share = MIN_SENTINELS
    edges = holders[0], holders[-1], holders[:, 0], holders[:, -1]
    return bool(np.count_nonzero(holders) >= max(number, share * holders.size) or any(edge.all() for edge in edges))


def _is_sentinel(value: float, others: NDArray[np.float64], n_holders: int) -> bool:
    """Whether a value that so many pixels share stands for a missing pixel, as clipped or saturated ones do not.

    One of `SENTINELS` does if few other pixels are near it; any but 0 if it is `FAR` from all others.
    """
    if not others.size or value == 0:
        return False
    distances = np.abs(others - value)
    if value in SENTINELS:
        return bool(n_holders > FAR * (distances < abs(value) / 10).sum())
    spread = others.max() - others.min()
    return bool(distances.min() > FAR * spread and len(np.unique(others)) >= MIN_LEVELS)


Field = tuple[slice, slice]
"""Rows and columns of the field of view."""


def fill_field(image: Image, field: Field, sigma: float = FILL_SIGMA, arcsec: float | None = None) -> Image:
    """The image with the missing pixels of its field of view filled from their neighbours; a note says so.

    An image with pixels that have too few good neighbours is marked by `has_hole`. sigma: standard deviation of the
    neighbours' weights, pixels. arcsec: side of a pixel, where it is known, for the note. Raises
    `ImageError` where more than `MAX_MISSING` of the field is missing.
    """
    if image.mask is None:
        return image
    missing = np.zeros_like(image.mask)
    missing[field] = image.mask[field]
    _check_missing(missing, field)
    places, pixels = np.argwhere(missing), image.pixels.copy()
    good, neighbours, n_holes = pixels[field][~image.mask[field]], Neighbours.of(sigma), 0
    for start in range(0, len(places), FILL_BLOCK):
        at = places[start : start + FILL_BLOCK]
        values, share = _fit_neighbours(image.pixels, image.mask, at, neighbours)
        at, values = at[share >= MIN_FITTED], values[share >= MIN_FITTED]
        pixels[at[:, 0], at[:, 1]] = values.clip(good.min(), good.max())
        n_holes += int((share < MIN_WEIGHT).sum())
    pixels[missing] = _to_whole_photons(pixels[missing], good)
    note = _missing_note(image.mask, field, n_holes, arcsec)
    return replace(image, pixels=pixels, notes=(*image.notes, note), has_hole=n_holes > 0)


def _check_missing(missing: NDArray[np.bool_], field: Field) -> None:
    n_missing, size = missing[field].sum(), missing[field].size
    if n_missing > MAX_MISSING * size:
        raise ImageError(
            f"{n_missing} of the {size} pixels around its centre are missing",
            need=f"at most {MAX_MISSING:.0%}",
            next="Leave this image out.",
        )
    if n_missing > MAX_FILLED:
        what = f"{n_missing:,} pixels around its centre are missing"
        raise ImageError(what, need=f"at most {MAX_FILLED:,}", next="Bin the image.")


class Neighbours(NamedTuple):
    """The n neighbours of any pixel."""

    rows: NDArray[np.intp]
    """Their rows [n], counted from the pixel's."""
    columns: NDArray[np.intp]
    weights: NDArray[np.float64]
    """Gaussian weights [n], which sum to one with the pixel's own."""
    terms: NDArray[np.float64]
    """Terms of a parabola [n, 6]; the first is its value at the pixel."""

    @classmethod
    def of(cls, sigma: float) -> Self:
        """Those within three `sigma`, pixels; of very many every second one, every third one ..."""
        stride = max(1, round(sigma / FILL_SIGMA))
        reach = ceil(3 * sigma / stride) * stride
        steps = slice(-reach, reach + 1, stride)
        dy, dx = (offsets.ravel() for offsets in np.mgrid[steps, steps])
        weights, x, y = np.exp(-0.5 * (dx**2 + dy**2) / sigma**2), dx / sigma, dy / sigma
        terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
        return cls(dy, dx, weights / weights.sum(), terms)


def _fit_neighbours(
    image: NDArray[np.float64], mask: NDArray[np.bool_], at: NDArray[np.intp], neighbours: Neighbours
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values [n] for the pixels `at` [n, 2], and the share [n] of their neighbours' weights that lies on good pixels.

    image, mask: pixels and missing pixels [h, w]. A parabola is fitted to the good neighbours: the normalised
    convolution of Knutsson & Westin (1993) with a basis of second order, which unlike a mean of the neighbours does
    not flatten the crest of an arc.
    """
    rows, columns, (height, width) = at[:, :1] + neighbours.rows, at[:, 1:] + neighbours.columns, mask.shape
    is_inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    indices = rows.clip(0, height - 1), columns.clip(0, width - 1)
    weights, pixels, terms = neighbours.weights * (is_inside & ~mask[indices]), image[indices], neighbours.terms
    total = weights.sum(1)
    mean = (weights * pixels).sum(1) / np.maximum(total, 1e-300)
    products = (weights @ (terms[:, :, None] * terms[:, None]).reshape(len(terms), 36)).reshape(-1, 6, 6)
    products += 1e-6 * np.eye(6)  # neighbours in a line fit many parabolas
    offsets = (weights * (pixels - mean[:, None])) @ terms
    return mean + np.linalg.solve(products, offsets[:, :, None])[:, 0, 0], total / (is_inside @ neighbours.weights)


def _to_whole_photons(values: NDArray[np.float64], good: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values [n] as whole numbers of photons, where the good pixels are, so that counts can be recovered."""
    low, high = good.min(), good.max()
    n_levels = _n_levels(_minmax(good)) if high > low else None
    if n_levels is None:
        return values
    return np.asarray(low + ((values - low) / (high - low) * n_levels).round() * ((high - low) / n_levels))


def _missing_note(mask: NDArray[np.bool_], field: Field, n_holes: int, arcsec: float | None) -> str:
    """The number of missing pixels, where they lie and what became of them."""
    unit, scale = ("pixels", 1.0) if arcsec is None else ("arcsec", arcsec)
    height, width = (part.stop - part.start for part in field)
    rows, columns = np.nonzero(mask[field])
    n_missing = int(mask.sum())
    start = f"{n_missing} missing pixel{'s' if n_missing > 1 else ''}"
    size = f"the central {height * scale:.3g} x {width * scale:.3g} {unit}"
    if not len(rows):
        return f"{start}, none of them in {size}"
    nearest = np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2).min() * scale
    end = f"{n_holes} in a hole too large to fill: out of distribution" if n_holes else "filled from their neighbours"
    return f"{start}, {len(rows)} of them in {size}, the nearest {nearest:.2g} {unit} from the centre; {end}"


def counts_above_minimum(pixels: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Photon counts above the minimum behind `pixels` [h, w], whatever linear scale they were saved in.

    Simulated images are min-max scaled counts, so every pixel is a whole multiple of a smallest
    step; dividing by it gives the counts back exactly. Where there is no such step up to
    `MAX_PEAK`, the image is scaled to 0..`QUANTISED_PEAK` instead.
    """
    scaled = _minmax(pixels)
    return _rounded(scaled * (_n_levels(scaled) or QUANTISED_PEAK))


def _n_levels(scaled: NDArray[np.float64]) -> int | None:
    """Photons between the least and the greatest of pixels scaled to 0..1, of any shape; None where unknown."""
    gaps = _gaps(scaled)
    step = float(gaps[gaps > MIN_GAP].min(initial=1.0))
    for divisor in (1, 2, 3):  # the smallest gap present may be a few counts wide
        n_levels = round(divisor / step)
        if n_levels > MAX_PEAK:
            return None
        counts = scaled * n_levels
        if np.abs(counts - np.rint(counts)).max() < INTEGER_TOLERANCE:
            return n_levels
    return None


def _gaps(scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Differences of neighbouring values among pixels scaled to 0..1: all that decide the number of levels.

    Pixels are put in `BINS` bins, narrower than any gap that counts. Where each bin holds one value, the bins have the
    values in order. An empty space of four bins is a gap too small for `MAX_PEAK` photons, so that no other matters.
    Only what is left is sorted.
    """
    values = scaled.ravel()
    bins = (values * BINS).astype(np.intp)
    is_filled = np.zeros(BINS + 1, np.bool_)
    is_filled[bins] = True
    filled = np.flatnonzero(is_filled)
    if (np.diff(filled) == EMPTY_BINS + 1).any():
        return np.array([(EMPTY_BINS + 1) / BINS])
    levels = np.empty(BINS + 1)
    levels[bins] = values
    return np.diff(levels[filled] if np.array_equal(levels[bins], values) else np.sort(values))


def scale_to_16_bits(pixels: NDArray[np.float64]) -> NDArray[np.uint16]:
    """`pixels` scaled to 0..`QUANTISED_PEAK`: for images whose photon counts are unknown."""
    return _rounded(_minmax(pixels) * QUANTISED_PEAK)


def _rounded(pixels: NDArray[np.float64]) -> NDArray[np.uint16]:
    return np.rint(pixels).astype(np.uint16)


def _minmax(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((pixels - pixels.min()) / (pixels.max() - pixels.min()))
