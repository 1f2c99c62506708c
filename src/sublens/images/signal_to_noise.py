"""Signal to noise of each pixel: planes of 16 bits in which it travels to the networks, and the noise behind it."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sublens.errors import ImageError
from sublens.images import wcs
from sublens.images.pixels import Companions, Image

MASKED = 0
"""Code of a masked pixel."""
STEP = 0.02
"""Signal to noise between two codes."""
LEAST = -20.0
"""Signal to noise of code 0, which no pixel with a value has; all below `LEAST + STEP` is clipped to that."""
MOST = 65535
"""Largest code: a signal to noise of 1290.7, to which all above is clipped."""
MASKED_NOISE = 1e8
"""Noise of a pixel from which on it is missing."""
BORDER = 1 / 6, 8
"""Width of the border of an image, as a share of its shorter side, and least width in pixels."""
MIN_BORDER = 100
"""Least number of good pixels in the border by which noise can be estimated."""
BLOCKS = (4, 2, 1)
"""Sides of the blocks of pixels whose scatter gives the noise, pixels; the next where there are too few of them."""
MIN_DIFFERENCES = 20
"""Least number of differences of blocks by which noise can be estimated."""
MIN_SHARE = 0.75
"""Least share of good pixels in a block."""
MAD = 1.4826
"""Standard deviation of Gaussian numbers whose median absolute deviation is 1."""
SKY_SIGMAS = 3
"""Noise above 0 of the faintest hundredth of the border from which on the sky is in the image."""
RELATIVE_WEIGHTS = 1.3
"""Ratio of the noise by a weight map to the scatter of the sky, known to a tenth, from which on the map is relative."""
MAX_OFFSET = 2.0
"""Largest distance of the peak of a point-spread function from the middle of its image, pixels."""
EXPOSURE_KEYS = ("EXPTIME", "TEXPTIME", "EXPOSURE")
GAIN_KEYS = ("GAIN", "CCDGAIN", "ATODGAIN")
ZERO_POINT_KEYS = ("MAGZERO", "MAGZPT", "MAGZEROP", "PHOTZP")
ELECTRONS, COUNTS = re.compile(r"(e-?|e[-_]?lectrons?)(?![a-z])"), re.compile(r"(counts?|adu|dn)(?![a-z])")
"""Units of pixels, by the beginning of BUNIT."""
RATE = re.compile(r"(/ ?s(ec)?|s(ec)?\^?\(?-1\)?)$")
"""End of a unit for each second."""
FLUX = re.compile(r"ergs?/")
"""Beginning of a unit that PHOTFLAM turns electrons a second into."""


# --- codes ------------------------------------------------------------------------------------


def encode(pixels: ArrayLike, noise: ArrayLike, mask: NDArray[np.bool_] | None = None) -> NDArray[np.uint16]:
    """The codes of pixels [..., h, w] less their sky, by the standard deviation of each pixel's noise in the same unit.

    mask: pixels without a value, [..., h, w]. Masked as well are pixels that are not finite, and those whose noise is
    NaN or not above 0.
    """
    values, sigma = np.asarray(pixels, np.float64), np.asarray(noise, np.float64)
    has_value = np.isfinite(values) & (sigma > 0)
    if mask is not None:
        has_value = has_value & ~mask
    with np.errstate(over="ignore"):
        ratio = np.divide(values, sigma, out=np.zeros(has_value.shape), where=has_value)
        codes = np.rint((ratio - LEAST) / STEP).clip(1, MOST)
    return np.where(has_value, codes, MASKED).astype(np.uint16)


def decode(plane: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The signal to noise behind codes [..., h, w]; NaN where masked."""
    return np.where(plane == MASKED, np.nan, plane * STEP + LEAST).astype(np.float32)


# --- noise and photometry of files ------------------------------------------------------------


def to_sigma(values: NDArray[Any], role: str) -> NDArray[np.float64]:
    """The standard deviation behind a map of noise, variance or weight (1 / variance); NaN where it marks a pixel."""
    power = {"variance": 0.5, "weight": -0.5}.get(role, 1.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        sigma = values.astype(np.float64) ** power
        return np.where((sigma > 0) & (sigma < MASKED_NOISE), sigma, np.nan)


def photometry(*headers: Any) -> Companions:
    """Unit, exposure, gain and zero point by the first of the headers that has each."""
    unit = next(filter(None, (wcs.text(header, "BUNIT") for header in headers)), "")
    exposure, flam = _positive(headers, EXPOSURE_KEYS), _positive(headers, ("PHOTFLAM",))
    gain = _electrons(unit, exposure, _positive(headers, GAIN_KEYS), flam)
    return Companions(unit=unit, exposure=exposure, gain=gain, zero_point=_zero_point(headers, flam))


def _positive(headers: tuple[Any, ...], keys: tuple[str, ...]) -> float | None:
    """The first number above 0 of those keywords."""
    values = (wcs.number(header, key) for key in keys for header in headers)
    return next((value for value in values if value and value > 0), None)


def _electrons(unit: str, exposure: float | None, gain: float | None, flam: float | None) -> float | None:
    """Electrons in one unit of the pixels; None where the unit, or a number that it asks for, is not known."""
    name = unit.strip().lower()
    if FLUX.match(name):
        return exposure / flam if exposure and flam else None
    seconds = exposure if RATE.search(name) else 1.0
    if ELECTRONS.match(name):
        return seconds
    if (COUNTS.match(name) or not name) and gain and seconds:
        return gain * seconds
    return None


def _zero_point(headers: tuple[Any, ...], flam: float | None) -> float | None:
    """The zero point by a keyword, or the AB one by Hubble's PHOTFLAM and PHOTPLAM."""
    named = _positive(headers, ZERO_POINT_KEYS)
    pivot = _positive(headers, ("PHOTPLAM",))
    if named is None and flam and pivot:
        return float(-2.5 * np.log10(flam) - 5 * np.log10(pivot) - 2.408)
    return named


# --- noise and sky of an image ----------------------------------------------------------------


def weigh(image: Image) -> Image:
    """The image less its sky, with the noise of each pixel: that of its companions, else estimated; notes say how.

    Raises `ImageError` where noise, or the point-spread function, does not fit the image, and where no noise can be
    estimated.
    """
    _check_noise(image)
    if image.psf is not None:
        _check_psf(image.psf, image.pixels.shape)
    mask = np.zeros(image.pixels.shape, np.bool_) if image.mask is None else image.mask
    sources = image.companions
    if image.noise is not None:
        mask = mask | np.isnan(image.noise)
    if image.noise is None or sources.noise_source == "weight":
        image = _with_estimate(image, mask)
    assert image.noise is not None
    sky = _sky_level(image.pixels, image.noise, mask)
    notes = (*image.notes, f"sky of {sky:.4g} taken off") if sky else image.notes
    return replace(image, pixels=image.pixels - sky, mask=mask, notes=notes)


def _check_noise(image: Image) -> None:
    """Raise `ImageError` for noise of another shape than the image, and for noise of no pixel."""
    noise, advice = image.noise, "Correct it, or leave it out, to have the noise estimated."
    if noise is not None and noise.shape != image.pixels.shape:
        have, need = (" x ".join(map(str, array.shape)) for array in (noise, image.pixels))
        raise ImageError(f"its noise has {have} pixels", need=f"{need}, as the image has", next=advice)
    if noise is not None and np.isnan(noise).all():
        raise ImageError(
            f"its noise is above 0 and below {MASKED_NOISE:g} in no pixel", need="the noise of each pixel", next=advice
        )


def _check_psf(psf: NDArray[np.float64], shape: tuple[int, ...]) -> None:
    """Raise `ImageError` for a point-spread function that is not one, or none of an image of that shape."""
    need, advice = "one that is centred, and no wider than the image", "Cut it out around its peak, or leave it out."
    if psf.shape[0] > shape[0] or psf.shape[1] > shape[1]:
        have = " x ".join(map(str, psf.shape))
        raise ImageError(f"its point-spread function has {have} pixels, more than the image", need=need, next=advice)
    if not np.isfinite(psf).all() or psf.max() <= 0:
        raise ImageError("its point-spread function holds no light", need=need, next=advice)
    peak = np.unravel_index(psf.argmax(), psf.shape)
    offset = float(np.hypot(*(at - (side - 1) / 2 for at, side in zip(peak, psf.shape, strict=True))))
    if offset > MAX_OFFSET:
        what = f"its point-spread function peaks {offset:.1f} pixels from the middle"
        raise ImageError(what, need=need, next=advice)


def fwhm(psf: NDArray[np.float64]) -> float:
    """Full width at half maximum of a point-spread function [k, k], pixels: that of a disc of the same area."""
    from scipy import ndimage  # slow to import

    zoom = 8
    fine = ndimage.zoom(np.pad(psf, 2), zoom, order=3, grid_mode=True, mode="grid-constant")
    return float(2 * np.sqrt((fine > fine.max() / 2).sum() / np.pi) / zoom)


def _with_estimate(image: Image, mask: NDArray[np.bool_]) -> Image:
    """The image with the noise that its own pixels show, in place of none, or as the unit of relative weights.

    A weight map mostly tells the noise of the sky: that of a pixel's own photons is added where it is not in there.
    """
    scatter, sources = sky_scatter(image.pixels, mask), image.companions
    level = border_level(image.pixels, mask)
    photons = np.zeros(mask.shape) if sources.gain is None else (image.pixels - level).clip(0) / sources.gain
    end = " alone: the electrons behind a pixel are not known" if sources.gain is None else " and the electrons"
    if sources.noise is None:
        note = "noise estimated from the scatter of the sky" + end
        own = sources._replace(noise=np.sqrt(scatter**2 + photons), noise_source="estimated")
        return replace(image, notes=(*image.notes, note), companions=own)
    typical = float(np.median(sources.noise[border(mask.shape) & ~mask]))
    is_absolute = 1 / RELATIVE_WEIGHTS <= scatter / typical <= RELATIVE_WEIGHTS
    typical, noise = (typical, sources.noise) if is_absolute else (scatter, sources.noise * (scatter / typical))
    note = ("noise from the weights" if is_absolute else "weights scaled to the scatter of the sky") + end
    noise = np.sqrt(np.fmax(noise**2, typical**2 + photons) + 0 * noise)  # NaN stays NaN
    return replace(image, notes=(*image.notes, note), companions=sources._replace(noise=noise))


def border(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The border [h, w] of an image, in whole blocks."""
    share, least = BORDER
    width = max(least, int(share * min(shape)) // BLOCKS[0] * BLOCKS[0])
    return edge(shape, width)


def edge(shape: tuple[int, ...], width: int) -> NDArray[np.bool_]:
    """The pixels [h, w] within so many of the edge of an image."""
    at_edge = np.ones(shape, np.bool_)
    at_edge[width:-width, width:-width] = False
    return at_edge


def robust_sigma(values: NDArray[np.float64]) -> float:
    """Standard deviation of a Gaussian with the median absolute deviation of the values."""
    return float(MAD * np.median(np.abs(values - np.median(values))))


def sky_scatter(pixels: NDArray[np.float64], mask: NDArray[np.bool_]) -> float:
    """Standard deviation of the noise in the border of an image [h, w], as that of pixels without correlation.

    By second differences of the means of blocks, which a gradient of light does not change, and of which the
    correlation of neighbours that drizzling leaves takes off a tenth. Raises `ImageError` where the border has too few
    good pixels, or all are alike.
    """
    good = border(mask.shape) & ~mask
    advice = "Give its noise in an extension ERR, or with --noise."
    if (n_good := int(good.sum())) < MIN_BORDER:
        need = f"{MIN_BORDER} to estimate the noise by"
        raise ImageError(f"has no noise, and {n_good} good pixels at its border", need=need, next=advice)
    differences = (_differences(_block_means(pixels, good, side)) * side for side in BLOCKS)
    enough = next((values for values in differences if values.size >= MIN_DIFFERENCES), np.zeros(1))
    if (scatter := MAD * float(np.median(np.abs(enough)))) > 0:
        return scatter
    raise ImageError("has no noise, and a border without scatter", need="noise of each pixel", next=advice)


def _block_means(pixels: NDArray[np.float64], good: NDArray[np.bool_], side: int) -> NDArray[np.float64]:
    """Means of the good pixels in blocks of that side; NaN for those with too few."""
    height, width = (length // side for length in pixels.shape)
    cut = (slice(height * side), slice(width * side))
    n_good, total = (
        array[cut].reshape(height, side, width, side).sum((1, 3)) for array in (good, np.where(good, pixels, 0.0))
    )
    return np.where(n_good >= MIN_SHARE * side**2, total / np.maximum(n_good, 1), np.nan)


def _differences(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Second differences along both axes, as wide as the noise of the values; those of NaN are left out."""
    both = [((row[2:] + row[:-2]) / 2 - row[1:-1]).ravel() / np.sqrt(1.5) for row in (values, values.T) if len(row) > 2]
    together = np.concatenate([np.zeros(0), *both])
    return np.asarray(together[np.isfinite(together)])


def border_level(pixels: NDArray[np.float64], mask: NDArray[np.bool_]) -> float:
    """Median of the good pixels in the border, less those further than three deviations from it."""
    values = pixels[border(mask.shape) & ~mask]
    for _ in range(3):
        middle = np.median(values)
        values = values[np.abs(values - middle) <= 3 * MAD * np.median(np.abs(values - middle))]
    return float(np.median(values))


def _sky_level(pixels: NDArray[np.float64], noise: NDArray[np.float64], mask: NDArray[np.bool_]) -> float:
    """Level of the sky where it is in the image: where even the faintest pixels of the border are above their noise."""
    good = border(mask.shape) & ~mask
    if good.sum() < MIN_BORDER or np.quantile((pixels / noise)[good], 0.01) < SKY_SIGMAS:
        return 0.0
    return border_level(pixels, mask)
