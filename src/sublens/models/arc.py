"""The light around the ring of a lens in a few numbers, from the pixels and from the measured lens. Knows no torch.

The image is cut into circles one pixel wide around its middle. The median of each circle stands for the lens galaxy,
and what is left of it for the arc. All light is in units of each pixel's noise.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens.config import Pixels
from sublens.images import signal_to_noise

Floats = NDArray[np.float64]

WIDTH = 0.4
"""Half of the width of the annulus around the ring, in radii of the ring."""
INNERMOST = 3
"""Least radius at which the ring is looked for in the pixels: further in is the lens galaxy's middle."""
CLEAR = 3.0
"""Signal to noise from which on a pixel, or a whole circle, counts as lit by the arc."""
PLAIN = ("ln_radius", "ln_arc_sn", "ln_arc_area", "ln_light", "masked_share")
"""Features from the pixels. Natural logarithms of: the ring's radius, pixels; the signal to noise of the whole arc; 1 +
the number of its clear pixels; 1 + the median signal to noise of a pixel of the lens galaxy. Then the masked share. All
but the first are of the annulus around the ring."""
MEASURED = (*PLAIN, "theta_e_sigma", "axis_ratio")
"""Features where the lens is measured: besides, the relative standard deviation of its Einstein radius, which is the
ring's radius then, and its axis ratio."""


class MeasuredLens(NamedTuple):
    """Lenses as a network measures them, [b] each."""

    theta_e: Floats
    """Einstein radii, pixels."""
    theta_e_sigma: Floats
    """Standard deviations of their natural logarithms."""
    axis_ratio: Floats


class _Circles(NamedTuple):
    """The pixels of an image, circle by circle, as far as whole circles reach."""

    order: NDArray[np.int64]
    """Places of the pixels in the flat image, [p]."""
    starts: NDArray[np.int64]
    """Position in `order` of the first pixel of each circle, [r]."""
    radii: Floats
    """Radius of the middle of each circle, pixels, [r]."""


@lru_cache(maxsize=8)
def _circles(height: int, width: int) -> _Circles:
    y, x = np.ogrid[:height, :width]
    circle = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2).astype(np.int64).ravel()
    order = np.argsort(circle, kind="stable")
    sizes = np.bincount(circle)[: min(height, width) // 2]
    return _Circles(order[: sizes.sum()], np.cumsum(sizes) - sizes, np.arange(len(sizes), dtype=np.float64) + 0.5)


def features(planes: NDArray[np.uint16], pixels: Pixels, lens: MeasuredLens | None = None) -> Floats:
    """Features of images [b, h, w], [b, k]: those of `MEASURED` where the lens is measured, else those of `PLAIN`."""
    circles = _circles(*planes.shape[1:])
    values = noise_weighted(planes, pixels).reshape(len(planes), -1)[:, circles.order]
    is_good = np.isfinite(values)
    medians = _medians(values, is_good, circles)
    sizes = np.diff(circles.starts, append=values.shape[1])
    rest = np.where(is_good, values - np.repeat(medians, sizes, axis=1), 0)

    def per_circle(pixel_values: NDArray[np.generic]) -> Floats:
        return np.add.reduceat(pixel_values, circles.starts, axis=1, dtype=np.float64)

    n_good, power = per_circle(is_good), per_circle(rest**2) - per_circle(is_good)
    radius = lens.theta_e if lens else _ring_radius(power, n_good, circles.radii)
    inside = np.abs(circles.radii - radius[:, None]) <= np.maximum(WIDTH * radius[:, None], 1)
    n_inside = np.maximum((inside * sizes).sum(1), 1)
    columns = (
        np.log(radius),
        np.log(np.maximum((inside * power).sum(1), 1)) / 2,
        np.log1p((inside * per_circle(rest > CLEAR)).sum(1)),
        np.log1p(((inside * sizes * medians).sum(1) / n_inside).clip(0)),
        1 - (inside * n_good).sum(1) / n_inside,
        *((lens.theta_e_sigma, lens.axis_ratio) if lens else ()),
    )
    return np.stack(columns, 1)


def noise_weighted(planes: NDArray[np.uint16], pixels: Pixels) -> NDArray[np.float32]:
    """Signal to noise of each pixel of images [b, h, w]; NaN where masked.

    Counts lose the median of the image's border; their variance is the border's, from quartiles, and one for each
    count above that median.
    """
    if pixels == "signal-to-noise":
        return signal_to_noise.decode(planes)
    rows, columns = planes[:, [0, -1]], planes[:, :, [0, -1]]
    edge = np.concatenate([rows.reshape(len(planes), -1), columns.reshape(len(planes), -1)], axis=1)
    low, sky, high = (level[:, None, None] for level in np.percentile(edge, (25, 50, 75), axis=1))
    above = planes - sky
    return np.asarray(above / np.sqrt(np.maximum(((high - low) / 1.349) ** 2, 1) + above.clip(0)), dtype=np.float32)


def _medians(values: NDArray[np.float32], is_good: NDArray[np.bool_], circles: _Circles) -> Floats:
    """Median of the good pixels of each circle, [b, r]; 0 where none is good."""
    ends = np.append(circles.starts[1:], values.shape[1])
    columns = [
        _median(values[:, start:end], is_good[:, start:end].sum(1))
        for start, end in zip(circles.starts, ends, strict=True)
    ]
    return np.stack(columns, 1)


def _median(values: NDArray[np.float32], n_good: NDArray[np.int64]) -> Floats:
    """Median of the `n_good` numbers in each row of [b, k], the others being NaN; 0 where there are none."""
    ordered, rows = np.sort(values, axis=1), np.arange(len(values))  # NaN comes last
    middle = (ordered[rows, (n_good - 1) // 2] + ordered[rows, n_good // 2]) / 2
    return np.where(n_good > 0, middle, 0)


def _ring_radius(power: Floats, n_good: Floats, radii: Floats) -> Floats:
    """Mean radius of the circles that an arc lights, weighted by its power, pixels, [b]; half of the field if none.

    power: sum over each circle of what is left squared, less one for each good pixel, [b, r].
    """
    is_lit = (power > CLEAR * np.sqrt(2 * n_good)) & (radii >= INNERMOST)
    weights = np.where(is_lit, power, 0)
    total = weights.sum(1)
    mean = np.divide(weights @ radii, total, out=np.full(len(power), radii[-1] / 2), where=total > 0)
    return np.asarray(mean)
