"""An image of any size and pixel scale -> the frame that a network was trained on."""

from dataclasses import replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from sublens.errors import ImageError
from sublens.images.formats import MAX_SIDE
from sublens.images.pixels import Image

SAME_SCALE = 0.01
"""Pixel scales that differ by less are taken as the same."""
SATURATED_PIXELS = 5
"""As many at the very top of an image are no chance."""
FLAT_SHARE = 0.05
"""Share of pixels at the very bottom from which on an image looks clipped."""
MARGIN = 4
"""Pixels, of the frame and of the image, that are cut out beyond the frame where it is resampled."""


def cutout_size(shape: tuple[int, int], pixel_scale: float | None, scale: float | None) -> tuple[int, int]:
    """Size of the cutout of an image of `scale` with which `resample_image` fills `shape` at `pixel_scale`.

    Both in arcsec a pixel, where they are known. Raises `ImageError` where that is too large to read.
    """
    if scale is None or pixel_scale is None or abs(scale / pixel_scale - 1) <= SAME_SCALE:
        return shape
    height, width = (ceil((side + MARGIN) * pixel_scale / scale - 1e-6) + MARGIN for side in shape)
    if max(height, width) > MAX_SIDE:
        raise ImageError(
            f"At {scale:g} arcsec a pixel the image that the network needs has {height} x {width} pixels; a side may "
            f"have {MAX_SIDE} at most. Check the pixel scale, or bin the image."
        )
    return height, width


def resample_image(
    image: Image, shape: tuple[int, int], side: int, pixel_scale: float | None, given_scale: float | None = None
) -> Image:
    """The image resampled to `pixel_scale` and cut to `shape` around its centre; its notes say what was done.

    side: pixels of the central square that the network looks at; without these an image is refused,
    while what is missing around them is filled with the median, which the network never sees.
    pixel_scale: arcsec a pixel of the frame, where it is known; given_scale: that of the image, where
    the user knows better than the file. Raises `ImageError` where the image is too small, or has nothing
    to show there. A header may hold any scale: no more is computed than `shape`, nor before the size is known.
    """
    notes = [*image.notes, *_quality(image)]
    scale = given_scale or image.pixel_scale
    pixels, size, zoom = image.pixels, image.pixels.shape, 1.0
    if scale is None or pixel_scale is None:
        notes.append("pixel scale unknown" if pixel_scale is None else f"pixel scale unknown, taken as {pixel_scale:g}")
    elif abs(scale / pixel_scale - 1) > SAME_SCALE:
        zoom = scale / pixel_scale
        size = _zoomed(size, zoom, shape)
        notes.append(f"resampled from {scale:g} to {pixel_scale:g} arcsec a pixel")
    if min(size) < side:
        height, width = size
        raise ImageError(f"is {height} x {width} pixels; needs {side} x {side} around the lens. Cut out more of it.")
    if zoom != 1.0:
        pixels = _resampled(pixels, zoom, (min(size[0], shape[0]), min(size[1], shape[1])))
    if size != shape:
        notes.append(f"cut to {shape[0]} x {shape[1]} pixels")
        pixels = _cut(pixels, shape)
    if pixels.min() == pixels.max():
        raise ImageError(f"every pixel around its centre is {pixels.min():g}; there is nothing to see. Leave it out.")
    return replace(image, pixels=pixels, notes=tuple(notes))


def _quality(image: Image) -> list[str]:
    """What is wrong with the values, in words."""
    pixels, notes = image.pixels, []
    at_top, at_bottom = (pixels == pixels.max()).sum(), (pixels == pixels.min()).mean()
    if at_top >= SATURATED_PIXELS:
        notes.append(f"{at_top} pixels look saturated")
    if at_bottom >= FLAT_SHARE and len(np.unique(pixels)) > 2:
        notes.append(f"{at_bottom:.0%} of the pixels look clipped or blank")
    return notes


def _zoomed(size: tuple[int, ...], zoom: float, shape: tuple[int, int]) -> tuple[int, int]:
    """Pixels on a grid `zoom` times as fine, of which `shape` can be cut with the same centre."""
    sides = [max(1, int(np.floor(one * zoom + 1e-6))) for one in size]
    height, width = (one - (one - wanted) % 2 for one, wanted in zip(sides, shape, strict=True))  # or half a pixel off
    return height, width


def _resampled(pixels: NDArray[np.float64], zoom: float, size: tuple[int, int]) -> NDArray[np.float64]:
    """The central `size` of a grid `zoom` times as fine; smoothed where that is coarser."""
    from scipy import ndimage  # slow to import

    if zoom < 1:  # a pixel of the new grid is 1 / zoom wide: smooth what it could not show
        pixels = ndimage.gaussian_filter(pixels, np.sqrt(1 / zoom**2 - 1) / np.sqrt(12))
    offset = [(old - 1) / 2 - (new - 1) / 2 / zoom for old, new in zip(pixels.shape, size, strict=True)]
    out = ndimage.affine_transform(pixels, [1 / zoom] * 2, offset, size, order=3, mode="nearest")
    return np.asarray(out, dtype=np.float64)


def _cut(pixels: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """The central `shape`; what is missing is the median."""
    out = np.full(shape, np.median(pixels))
    slices = [_overlap(size, wanted) for size, wanted in zip(pixels.shape, shape, strict=True)]
    (rows, to_rows), (columns, to_columns) = slices
    out[to_rows, to_columns] = pixels[rows, columns]
    return out


def _overlap(size: int, wanted: int) -> tuple[slice, slice]:
    """Where the central part lies in what there is, and in what is wanted."""
    if size >= wanted:
        start = (size - wanted) // 2
        return slice(start, start + wanted), slice(0, wanted)
    start = (wanted - size) // 2
    return slice(0, size), slice(start, start + size)
