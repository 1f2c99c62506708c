"""Surface brightness of sources that are images: a picture of a galaxy, or a stamp for each scene."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from sublens.surveys.light import PixelatedSource


@cache
def picture(source: PixelatedSource) -> Tensor:
    """A pixelated source's pixels [h, w] in double precision, the brightest 1."""
    pixels = source.pixels()
    return torch.from_numpy(pixels / pixels.max())


def pixelated(x: Tensor, y: Tensor, pixels: Tensor, *, scale: float, angle: Tensor, intensity: Tensor) -> Tensor:
    """A picture as the source, linear between its pixels and dark outside.

    x, y: positions from its middle, [b, h, w]. pixels: [h, w], rows along y; the x axis lies along
    `angle`. scale: arcsec a pixel. intensity: of a pixel that is 1.
    """
    cos, sin = torch.cos(angle), torch.sin(angle)
    height, width = pixels.shape
    u = (cos * x + sin * y) * (2 / (scale * (width - 1)))
    v = (cos * y - sin * x) * (2 / (scale * (height - 1)))
    grid = torch.stack([u, v], dim=-1)
    stack = pixels.to(x).expand(len(grid), 1, -1, -1)
    inside = (grid.abs() <= 1).all(dim=-1)  # grid_sample would fade over half a pixel more
    return intensity * F.grid_sample(stack, grid, align_corners=True)[:, 0] * inside


def smooth_stamp(u: Tensor, v: Tensor, pixels: Tensor) -> Tensor:
    """Light of a stamp at positions u, v from its middle, both [h, w] and in its pixels along columns and rows.

    A quadratic B-spline of the pixels: smooth, nowhere below 0, of the same sum, and wider than they are by half a
    pixel in standard deviation. pixels: [k, l], whose outermost two rows and columns are empty; dark outside.
    """
    pixels = pixels.to(u)
    height, width = pixels.shape
    column, across = _weights(u + (width - 1) / 2, width)
    row, down = _weights(v + (height - 1) / 2, height)
    total = torch.zeros_like(u)
    for i in range(3):
        for j in range(3):
            total += down[i] * across[j] * pixels[row + (i - 1), column + (j - 1)]
    return total


def _weights(place: Tensor, side: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The pixel that holds each place along an axis, and the weights of the one before, itself and the one after."""
    nearest = torch.floor(place + 0.5).clamp(1, side - 2)
    off = (place - nearest).clamp(-0.5, 0.5)
    return nearest.long(), ((0.5 - off) ** 2 / 2, 0.75 - off * off, (0.5 + off) ** 2 / 2)
