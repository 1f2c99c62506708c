"""The part of an image that a lens model is fitted to: its pixels, binned, and the points where light is traced."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.signal import convolve2d

from sublens.errors import ImageError
from sublens.images.resample import central
from sublens.lensing.compiled import Reals
from sublens.modelling.response import Blur

Floats = NDArray[np.float64]

COARSE, FINE = 0.1, 0.05
"""Pixels are binned up to the first side, and light is traced at points no farther apart than the second, arcsec."""
LARGEST_PSF = 1.5
"""Greatest side of a point-spread function, arcsec; what lies beyond is left out."""
CORE = 0.5
"""Radius of the core whose light tells the lens galaxy's centre, arcsec."""


@dataclass(frozen=True)
class LensImage:
    """An image of one lens, in its middle."""

    pixels: Floats
    """[h, w], any linear unit, less the sky."""
    noise: Floats
    """Standard deviation of each pixel, infinite or NaN where it is masked, [h, w]."""
    psf: Floats
    """Point-spread function on the image's pixels, of a sum above 0, [k, k]."""
    pixel_scale: float
    """Arcsec."""

    def cut(self, side: float) -> "LensImage":
        """The middle of the image, of at most that side, arcsec."""
        n = int(side / self.pixel_scale) // 2 * 2
        rows, columns = (slice(max(size - n, 0) // 2, max(size - n, 0) // 2 + n) for size in self.pixels.shape)
        pixels, noise = (np.ascontiguousarray(plane[rows, columns]) for plane in (self.pixels, self.noise))
        return replace(self, pixels=pixels, noise=noise)

    def coarser(self) -> "LensImage":
        """The image on pixels of twice the side, a little less sharp, with an even number along each side."""
        n = min(self.pixels.shape) // 4 * 2
        pixels, noise = (central(plane, 2 * n).reshape(n, 2, n, 2) for plane in (self.pixels, self.noise))
        middle, halves = np.array([side // 2 for side in self.psf.shape]), np.array([0.5, 1, 0.5])
        spread = convolve2d(self.psf, np.outer(halves, halves))
        psf = spread[(middle[0] + 1) % 2 :: 2, (middle[1] + 1) % 2 :: 2]
        return LensImage(pixels.sum((1, 3)), np.sqrt((noise**2).sum((1, 3))), psf, 2 * self.pixel_scale)


@dataclass(frozen=True)
class Data:
    """Pixels of the data [p], those within a circle that are not masked, and how points [n, n] map to them."""

    values: Floats
    noise: Floats
    unit: float
    """Median noise, which is 1 in `values` and `noise`."""
    blur: Blur
    x: Floats
    y: Floats
    """Places of the points, arcsec."""
    places: NDArray[np.int64]
    """Row and column of each pixel in a square of `side` pixels, [p, 2]."""
    side: int
    centre: tuple[float, float]
    """Centre of the lens galaxy's core, arcsec."""

    @classmethod
    def of(cls, image: LensImage, radius: float, fine: float = FINE) -> "Data":
        """The data within `radius` of the middle, arcsec; points reach as far as light is blurred into them.

        fine: greatest distance of points, arcsec.
        """
        scale = image.pixel_scale
        n_bin, parts = max(1, round(COARSE / scale)), max(1, int(np.ceil(scale / fine - 0.01)))
        psf = _trimmed(image.psf, scale)
        side = int(min(*image.pixels.shape, 2 * radius / scale)) // (2 * n_bin) * 2
        pixels, noise = (central(plane, side * n_bin) for plane in (image.pixels, image.noise))
        is_good = np.isfinite(noise) & (noise > 0) & np.isfinite(pixels)
        pixels, variance = np.where(is_good, pixels, 0), np.where(is_good, noise, 0) ** 2
        binned = [plane.reshape(side, n_bin, side, n_bin).sum((1, 3)) for plane in (pixels, variance, is_good)]
        axis = _axis(side, n_bin * scale)
        within = (binned[2] == n_bin**2) & (np.hypot(axis, axis[:, None]) < radius)
        points = _axis((side * n_bin + 2 * (len(psf) // 2)) * parts, scale / parts)
        x, y = (np.ascontiguousarray(plane) for plane in np.meshgrid(points, points))
        sigma = np.sqrt(binned[1][within])
        unit = float(np.median(sigma)) if len(sigma) else 1.0
        return cls(
            values=binned[0][within] / unit,
            noise=sigma / unit,
            unit=unit,
            blur=_blur(psf, n_bin, parts, np.argwhere(within)),
            x=x,
            y=y,
            places=np.argwhere(within),
            side=side,
            centre=_core(pixels, _axis(side * n_bin, scale)),
        )

    def plane(self, values: Reals) -> Floats:
        """Values of the pixels [p] in their square [side, side], NaN elsewhere."""
        square: Floats = np.full((self.side, self.side), np.nan)
        square[tuple(self.places.T)] = values
        return square


def _axis(n: int, step: float) -> Floats:
    return np.asarray((np.arange(n) - (n - 1) / 2) * step)


def _core(pixels: Floats, axis: Floats) -> tuple[float, float]:
    """Centroid of the light in the core."""
    light = np.where(np.hypot(axis, axis[:, None]) < CORE, pixels, 0).clip(0)
    total = max(light.sum(), np.finfo(np.float64).tiny)
    return float((light * axis).sum() / total), float((light * axis[:, None]).sum() / total)


def _trimmed(psf: Floats, scale: float) -> Floats:
    """The middle of a point-spread function, of sum 1; raises `ImageError` where it holds no light."""
    side = min(*psf.shape, max(1, int(LARGEST_PSF / scale)) // 2 * 2 + 1)
    top, left = (length // 2 - side // 2 for length in psf.shape)
    psf = psf[top : top + side, left : left + side]
    if psf.sum() <= 0:
        raise ImageError(
            "the middle of its point-spread function holds less light than nothing",
            need="one whose sky is taken off",
            next="Take its sky off, or leave it out.",
        )
    return np.asarray(psf / psf.sum())


def _blur(psf: Floats, n_bin: int, parts: int, places: NDArray[np.int64]) -> Blur:
    """Weights of the points in pixels of `n_bin` pixels of the image a side, each with `parts` points a side.

    The first points lie half the size of the point-spread function before the first pixel.
    """
    first = (len(psf) + 1) % 2
    wide = convolve2d(psf[::-1, ::-1], np.ones((n_bin, n_bin)))
    kernel = np.kron(wide, np.full((parts, parts), parts**-2.0)).astype(np.float32)
    return Blur(kernel, np.ascontiguousarray((places * n_bin + first) * parts))
