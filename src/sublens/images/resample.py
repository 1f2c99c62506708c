"""An image of any size and pixel scale -> the size and scale that a network was trained on."""

from dataclasses import replace
from functools import lru_cache
from math import ceil, floor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sublens.errors import ImageError
from sublens.images import signal_to_noise
from sublens.images.limits import MAX_SIDE
from sublens.images.pixels import FILL_SIGMA, Field, Image, TangentPlane, fill_field, typical

Scalar = TypeVar("Scalar", bound=np.generic)

SAME_SCALE = 0.01
"""Relative difference up to which two pixel scales count as the same."""
SATURATED_PIXELS = 5
"""Number of pixels at the maximum from which on an image is noted as saturated."""
FLAT_SHARE = 0.05
"""Share of pixels at the minimum from which on an image is noted as clipped."""
MARGIN = 4
"""Pixels, of the frame and of the image, that are cut out beyond the frame for resampling."""
MASKED_SHARE = 0.25
"""Share of a resampled pixel that is masked in the image from which on it is masked as well."""
MAX_COVERED = 0.5
"""Largest share of the network's input, and of `RING`, that may be masked where masked pixels are not filled."""
RING = (0.5, 1.5)
"""Inner and outer radius of the ring in which arcs are looked for, arcsec."""


def cutout_size(shape: tuple[int, int], pixel_scale: float | None, scale: float | None) -> tuple[int, int]:
    """Height and width of the cutout from an image of `scale` with which `resample_image` fills `shape`.

    pixel_scale, scale: arcsec a pixel of the frame and of the image, where they are known. Raises
    `ImageError` where the cutout is too large to read.
    """
    if scale is None or pixel_scale is None or abs(scale / pixel_scale - 1) <= SAME_SCALE:
        return shape
    height, width = (ceil((side + MARGIN) * pixel_scale / scale - 1e-6) + MARGIN for side in shape)
    if max(height, width) > MAX_SIDE:
        raise ImageError(
            f"a cutout for the network has {height} x {width} pixels at {scale:g} arcsec a pixel",
            need=f"sides of at most {MAX_SIDE} pixels",
            next="Check the pixel scale, or bin the image.",
        )
    return height, width


def resample_image(
    image: Image, shape: tuple[int, int], side: int, pixel_scale: float | None, image_scale: float | None = None
) -> Image:
    """The image resampled to `pixel_scale` and cut to `shape` around its centre; its notes say so.

    side: pixels of the central square that is the network's input; an image that does not cover it is
    refused, while those around it are set to the median and never reach the network. Missing pixels are filled
    within that square as by `fill_field`, which marks an image with a hole there.
    pixel_scale: arcsec a pixel of the frame, where it is known. image_scale: that of the image, where
    the user knows better than the file. Raises `ImageError` where the image is too small, or constant or
    mostly missing there. A header may hold any scale: no more is computed than `shape`, nor before the size is known.
    """
    size, zoom, scale, note = _scaling(image, shape, side, pixel_scale, image_scale)
    field = _covered(image.pixels.shape, shape, side, zoom)
    arcsec = (scale if zoom != 1.0 else pixel_scale) or scale
    image = replace(image, notes=(*image.notes, *_quality(image), *note))
    image = fill_field(image, field, FILL_SIGMA / zoom, arcsec)
    pixels, notes = image.pixels, list(image.notes)
    if zoom != 1.0:
        pixels = _resampled(pixels, zoom, (min(size[0], shape[0]), min(size[1], shape[1])))
    if size != shape:
        notes.append(f"cut to {shape[0]} x {shape[1]} pixels")
        pixels = _cut(pixels, shape, typical(pixels))
    plane = _plane_in_frame(image, size, shape, zoom, image_scale)
    if pixels.min() == pixels.max():
        raise ImageError(
            f"every pixel around its centre is {pixels.min():g}: there is nothing to see",
            need="pixels that differ",
            next="Leave it out.",
        )
    return replace(image, pixels=pixels, notes=tuple(notes), mask=None, plane=plane)


def resample_weighed(
    image: Image, shape: tuple[int, int], side: int, pixel_scale: float | None, image_scale: float | None = None
) -> Image:
    """The image in that frame as `resample_image` makes it, less its sky, and with the codes of signal to noise.

    Its noise is resampled as variance, and stays that of one pixel where neighbours are correlated afterwards. Masked
    pixels are not filled in the codes; those beyond the image are masked. The arguments are those of `resample_image`.
    Raises `ImageError` as `signal_to_noise.weigh` does, and where the image is too small, or more than `MAX_COVERED`
    of the network's input or of the ring `RING` is masked.
    """
    size, zoom, scale, note = _scaling(image, shape, side, pixel_scale, image_scale)
    image = signal_to_noise.weigh(image)
    assert image.noise is not None
    assert image.mask is not None
    around = _around(image.pixels.shape, shape, zoom)
    noise, mask = image.noise[around], image.mask[around]
    pixels = _filled(image.pixels[around], mask)
    notes = [*image.notes, *_quality(image), *note]
    if zoom != 1.0:
        inner = (min(size[0], shape[0]), min(size[1], shape[1]))
        pixels, noise, mask = _resampled_weighed(pixels, noise, mask, zoom, inner)
        notes.append("its noise is correlated by that")
    if size != shape:
        notes.append(f"cut to {shape[0]} x {shape[1]} pixels")
    pixels, noise = _cut(pixels, shape, 0.0), _cut(noise, shape, np.nan)
    mask = _cut(mask.astype(np.float64), shape, 1.0) > 0
    codes = signal_to_noise.encode(pixels, noise, mask)
    _check_covered(codes, side, pixel_scale or scale)
    width = signal_to_noise.fwhm(image.psf) * scale if image.psf is not None and scale else None
    plane = _plane_in_frame(image, size, shape, zoom, image_scale)
    own = image.companions._replace(noise=noise)
    image = replace(image, pixels=pixels, mask=None, notes=tuple(notes), plane=plane)
    return replace(image, companions=own, codes=codes, psf_fwhm=width)


def _scaling(
    image: Image, shape: tuple[int, int], side: int, pixel_scale: float | None, image_scale: float | None
) -> tuple[tuple[int, ...], float, float | None, list[str]]:
    """Size of the image on the frame's pixels, how many of these make one of its own, its scale, and a note on it.

    Raises `ImageError` where it does not cover the central square of that side.
    """
    scale = image_scale or image.pixel_scale
    size, zoom, notes = image.pixels.shape, 1.0, list[str]()
    if scale is None:
        taken = "" if pixel_scale is None else f"; taken as {pixel_scale:g} arcsec"
        notes.append(f"pixel scale not in the file{taken}")
    elif pixel_scale is None:
        notes.append("not resampled: the network's pixel scale is not known")
    elif abs(scale / pixel_scale - 1) > SAME_SCALE:
        zoom = scale / pixel_scale
        size = _zoomed(size, zoom, shape)
        notes.append(f"resampled from {scale:g} to {pixel_scale:g} arcsec a pixel")
    if min(size) < side:
        raise _too_small(image.pixels.shape, side, zoom, scale)
    return size, zoom, scale, notes


def _plane_in_frame(
    image: Image, size: tuple[int, ...], shape: tuple[int, int], zoom: float, image_scale: float | None
) -> TangentPlane | None:
    """Coordinates on the sky of the frame."""
    ratio = image_scale / image.pixel_scale if image_scale and image.pixel_scale else 1.0
    return image.plane.scaled(ratio).zoomed(zoom).cut(size, shape) if image.plane else None


def _around(size: tuple[int, ...], shape: tuple[int, int], zoom: float) -> Field:
    """Rows and columns of an image of that size that a frame of `shape`, `zoom` times as fine, can need."""
    needed = (ceil((side + MARGIN) / zoom) + 2 * MARGIN for side in shape)
    beyond = (max(0, (old - new) // 2) for old, new in zip(size, needed, strict=True))
    rows, columns = (slice(first, old - first) for first, old in zip(beyond, size, strict=True))  # the same centre
    return rows, columns


def _resampled_weighed(
    pixels: NDArray[np.float64],
    noise: NDArray[np.float64],
    mask: NDArray[np.bool_],
    zoom: float,
    size: tuple[int, int],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Pixels, noise and mask on the central `size` of a grid `zoom` times as fine."""
    variance = _resampled(_filled(noise, mask) ** 2, zoom, size, order=1)
    covered = _resampled(mask.astype(np.float64), zoom, size, order=1)
    return _resampled(pixels, zoom, size), np.sqrt(variance) * _noise_kept(zoom), covered > MASKED_SHARE


@lru_cache
def _noise_kept(zoom: float) -> float:
    """Standard deviation of white noise of 1 after resampling to a grid `zoom` times as fine."""
    side = min(MAX_SIDE // 4, ceil(96 / min(zoom, 1.0)))
    white = np.random.default_rng(0).standard_normal((side, side))
    new = max(2, floor(side * zoom) - 2 * MARGIN)
    return float(np.sqrt((_resampled(white, zoom, (min(new, 256), min(new, 256))) ** 2).mean()))


def _filled(plane: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The plane [h, w] with a mean of near neighbours in place of each masked pixel, or of all where it has none."""
    from scipy import ndimage  # slow to import

    if not mask.any() or mask.all():
        return plane
    total = ndimage.gaussian_filter(np.where(mask, 0.0, plane), FILL_SIGMA)
    weight = ndimage.gaussian_filter((~mask).astype(np.float64), FILL_SIGMA)
    mean = np.where(weight > 1e-6, total / np.maximum(weight, 1e-300), typical(plane[~mask]))
    return np.where(mask, mean, plane)


def central(plane: NDArray[Scalar], side: int) -> NDArray[Scalar]:
    """The central square of that side of a plane [h, w]."""
    top, left = ((length - side) // 2 for length in plane.shape)
    return plane[top : top + side, left : left + side]


def _check_covered(codes: NDArray[np.uint16], side: int, arcsec: float | None) -> None:
    """Raise `ImageError` where the mask hides too much of the central square, or of the ring where arcs are."""
    masked = central(codes, side) == signal_to_noise.MASKED
    y, x = np.indices(masked.shape) - (side - 1) / 2
    radius = np.hypot(x, y) * (arcsec or np.nan)
    ring = masked[(radius >= RING[0]) & (radius <= RING[1])]
    for what, part in (("the field of the network", masked), (f"the central {2 * RING[1]:g} arcsec", ring)):
        if part.size and part.mean() > MAX_COVERED:
            raise ImageError(
                f"{part.mean():.0%} of {what} are masked",
                need=f"at most {MAX_COVERED:.0%}",
                next="Check the mask, or leave this image out.",
            )


def _too_small(shape: tuple[int, ...], side: int, zoom: float, scale: float | None) -> ImageError:
    """The error of an image of that shape and pixel scale, in its own pixels, `zoom` of which make one of the frame."""
    at_scale = "" if scale is None else f" of {scale:g} arcsec"
    needed = side if zoom == 1.0 else ceil((side + 1) / zoom)  # one more, for the centre to stay where it is
    return ImageError(
        f"is {shape[0]} x {shape[1]} pixels{at_scale}",
        need=f"{needed:,} x {needed:,} of them around the lens",
        next="Cut out more of it, or check the pixel scale.",
    )


def _quality(image: Image) -> list[str]:
    """Doubts about the values, in words."""
    pixels, notes = image.pixels, []
    at_top = np.count_nonzero(pixels == pixels.max())
    at_bottom = np.count_nonzero(pixels == pixels.min()) / pixels.size
    if at_top >= SATURATED_PIXELS:
        notes.append(f"{at_top} pixels look saturated")
    if at_bottom >= FLAT_SHARE and len(np.unique(pixels)) > 2:
        notes.append(f"{at_bottom:.0%} of the pixels look clipped or blank")
    return notes


def _zoomed(size: tuple[int, ...], zoom: float, shape: tuple[int, int]) -> tuple[int, int]:
    """Size of a grid `zoom` times as fine, from which `shape` can be cut with the same centre."""
    sides = [max(1, int(np.floor(side * zoom + 1e-6))) for side in size]
    height, width = (
        side - (side - target) % 2 for side, target in zip(sides, shape, strict=True)
    )  # else half a pixel off
    return height, width


def _covered(size: tuple[int, ...], shape: tuple[int, int], side: int, zoom: float) -> Field:
    """Rows and columns of an image of `size` under the central square of a frame of `shape`, `zoom` times as fine."""
    slices = []
    for length, target in zip(size, shape, strict=True):
        offset = target / 2 - (target - side) // 2  # of the square's edge from the frame's centre
        aligned = (length - target) // 2 + target / 2 if length >= target else target / 2 - (target - length) // 2
        centre = aligned if zoom == 1.0 else length / 2
        first, last = centre - offset / zoom, centre + (side - offset) / zoom
        slices.append(slice(max(0, floor(first + 1e-6)), min(length, ceil(last - 1e-6))))
    rows, columns = slices
    return rows, columns


def _resampled(pixels: NDArray[np.float64], zoom: float, size: tuple[int, int], order: int = 3) -> NDArray[np.float64]:
    """The central `size` of a grid `zoom` times as fine; smoothed first where the grid is coarser.

    order: of the splines between the pixels.
    """
    from scipy import ndimage  # slow to import

    if zoom < 1:  # a pixel of the new grid is 1 / zoom wide: smooth what it could not show
        pixels = ndimage.gaussian_filter(pixels, np.sqrt(1 / zoom**2 - 1) / np.sqrt(12))
    offset = [(old - 1) / 2 - (new - 1) / 2 / zoom for old, new in zip(pixels.shape, size, strict=True)]
    out = ndimage.affine_transform(pixels, [1 / zoom] * 2, offset, size, order=order, mode="nearest")
    return np.asarray(out, dtype=np.float64)


def _cut(pixels: NDArray[np.float64], shape: tuple[int, int], beyond: float) -> NDArray[np.float64]:
    """The central `shape`, with that value in pixels beyond the image."""
    out = np.full(shape, beyond)
    slices = [_overlap(size, target) for size, target in zip(pixels.shape, shape, strict=True)]
    (rows, to_rows), (columns, to_columns) = slices
    out[to_rows, to_columns] = pixels[rows, columns]
    return out


def _overlap(size: int, target: int) -> tuple[slice, slice]:
    """The shared central part of two sides of that many pixels, as a slice of each."""
    n_shared = min(size, target)
    start, target_start = (size - n_shared) // 2, (target - n_shared) // 2
    return slice(start, start + n_shared), slice(target_start, target_start + n_shared)
