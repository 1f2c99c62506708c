"""Statistics of a lens in signal to noise: its light, its arcs and its noise, for real and simulated images alike."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens.images.signal_to_noise import edge, robust_sigma

Floats = NDArray[np.float64]
CORE = 1.0
"""Radius within which the lens galaxy's light is measured, arcsec."""
RADII = (0.5, 1.0, 1.5, 2.2, 3.0)
"""Edges of the annuli in which arcs are measured, arcsec."""
ORDERS = range(1, 9)
"""Orders m of the angular power."""
BRIGHT = 5.0
"""Signal to noise from which on a pixel or a peak is bright."""
STEPS = 10
"""Steps in which the ellipse of the rings and the light within it come to agree."""
MAX_ELLIPTICITY = 0.8
"""Largest ellipticity of the rings, an axis ratio of a third."""
BORDER_SHARE = 12
"""Sides of the image over the width of its border."""
CLIP = 4.0
"""Standard deviations beyond which a pixel of the border is no noise."""


class Geometry(NamedTuple):
    """Elliptical rings that follow the light of an image's core."""

    radius: Floats
    """Elliptical radius of each pixel [h, w], arcsec, of the circle with the ellipse's area."""
    angle: Floats
    """Position angle of each pixel [h, w], radians, counter-clockwise from x."""
    ellipticity: float
    """(a^2 - b^2) / (a^2 + b^2) of the second moments."""
    offset: float
    """Distance of their centre from the middle of the image, arcsec."""

    def between(self, low: float, high: float) -> NDArray[np.bool_]:
        """The pixels [h, w] between two radii, arcsec."""
        return (self.radius >= low) & (self.radius < high)


def geometry(image: Floats, pixel_scale: float) -> Geometry:
    """The rings of an image [h, w], NaN where masked: adaptive second moments within `CORE`."""
    y, x = (np.indices(image.shape) - (np.array(image.shape) - 1)[:, None, None] / 2) * pixel_scale
    around, light = x + 1j * y, np.nan_to_num(image).clip(0)
    z, radius, e, centre = around, np.abs(around), 0j, 0j
    for _ in range(STEPS):
        weights = light * (radius < CORE)
        centre += complex((weights * z).sum() / max(float(weights.sum()), 1e-12))
        z = around - centre
        e = complex((weights * z**2).sum() / max(float((weights * np.abs(z) ** 2).sum()), 1e-12))
        e *= min(1.0, MAX_ELLIPTICITY / max(abs(e), 1e-12))
        radius = np.sqrt((np.abs(z) ** 2 - (z**2 * np.conj(e)).real) / np.sqrt(1 - abs(e) ** 2))
    return Geometry(radius, np.angle(z), abs(e), abs(centre))


def profile(image: Floats, rings: Geometry, pixel_scale: float) -> Floats:
    """The median over each elliptical ring of a pixel's width, interpolated to the pixels [h, w]."""
    from scipy import ndimage  # slow to import

    is_good, ring = np.isfinite(image), (rings.radius / pixel_scale).astype(np.int64)
    present = np.unique(ring[is_good])
    medians = ndimage.median(image[is_good], ring[is_good], present)
    return np.asarray(np.interp(rings.radius, (present + 0.5) * pixel_scale, medians))


def border(shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels [h, w] along the edges of an image."""
    return edge(shape, max(2, min(shape) // BORDER_SHARE))


def statistics(image: Floats, pixel_scale: float) -> dict[str, float]:
    """All statistics of one image [h, w] in signal to noise, NaN where masked.

    Needs some pixels without a mask in the core, in the border and in every annulus that the image holds.
    """
    rings = geometry(image, pixel_scale)
    arcs = np.nan_to_num(image - profile(image, rings, pixel_scale))
    return {
        **_light(image, rings),
        **_arcs(arcs, np.isfinite(image), rings, pixel_scale),
        **_noise(image, arcs),
        "masked share": float(np.isnan(image).mean()),
    }


def table(images: Floats, pixel_scale: float) -> dict[str, Floats]:
    """All statistics of images [n, h, w], each [n]."""
    rows = [statistics(image, pixel_scale) for image in images]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _light(image: Floats, rings: Geometry) -> dict[str, float]:
    """The lens galaxy's light: its core's signal to noise, size and shape."""
    light = np.nan_to_num(image)
    radius = rings.radius
    within = {limit: float(light[radius < limit].sum()) for limit in (CORE / 2, 2 * CORE)}
    return {
        "core S/N": float(np.sqrt((light[radius < CORE].clip(0) ** 2).sum())),
        "peak S/N": float(light[radius < CORE].max()),
        "concentration": within[CORE / 2] / max(within[2 * CORE], 1.0),
        "half-light radius": half_light(light.ravel(), radius.ravel())[1],
        "ellipticity": rings.ellipticity,
        "offset of the centre": rings.offset,
    }


def half_light(light: Floats, radius: Floats) -> tuple[float, float]:
    """All light of pixels [n] at these radii, where it grows outwards, and the radius within which half of it lies."""
    order = np.argsort(radius)
    grown = np.maximum.accumulate(light[order].cumsum())
    return float(grown[-1]), float(radius[order[np.searchsorted(grown, grown[-1] / 2)]])


def _arcs(arcs: Floats, is_good: NDArray[np.bool_], rings: Geometry, pixel_scale: float) -> dict[str, float]:
    """What is left of the image without its profile: signal in annuli, bright pixels, peaks and angular power."""
    reach = min(RADII[-1], min(arcs.shape) * pixel_scale / 2)
    edges = [*(radius for radius in RADII if radius < reach), reach]
    annulus = is_good & rings.between(edges[0], reach)
    power = [abs((arcs * np.exp(1j * m * rings.angle))[annulus].sum()) ** 2 / annulus.sum() for m in ORDERS]
    in_annuli = {
        f'arcs {low:g}-{high:g}"': float(np.sqrt((arcs[is_good & rings.between(low, high)] ** 2).mean()))
        for low, high in pairwise(edges)
    }
    return {
        **in_annuli,
        "bright pixels": float((arcs[annulus] > BRIGHT).mean()),
        "peaks": float(_n_peaks(arcs, annulus)),
        **{f"angular power m={m}": float(np.log10(value + 1e-3)) for m, value in zip(ORDERS, power, strict=True)},
    }


def _n_peaks(arcs: Floats, annulus: NDArray[np.bool_]) -> int:
    """Local maxima above `BRIGHT` of the mean over 3 x 3 pixels, in units of its own noise."""
    from scipy import ndimage  # slow to import

    smooth = 3 * ndimage.uniform_filter(arcs, 3)
    return int((annulus & (smooth > BRIGHT) & (smooth == ndimage.maximum_filter(smooth, 3))).sum())


def _noise(image: Floats, arcs: Floats) -> dict[str, float]:
    """The border: its level, and without the lens' profile its scatter, correlation of neighbours and bright pixels."""
    is_border = border(image.shape) & np.isfinite(image)
    values = arcs[is_border]
    scatter = max(robust_sigma(values), 1e-6)
    rest = np.where(is_border & (np.abs(arcs) < CLIP * scatter), arcs, np.nan)
    products = [rest[:, 1:] * rest[:, :-1], rest[1:] * rest[:-1]]
    covariance = np.nanmean(np.concatenate([product.ravel() for product in products]))
    return {
        "border level": float(np.median(image[is_border])),
        "border scatter": scatter,
        "noise correlation": float(covariance / np.nanmean(rest**2)),
        "bright border": float((values > BRIGHT * scatter).mean()),
    }
