"""Point-spread functions that differ between scenes."""

from collections.abc import Callable
from functools import lru_cache
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ive
from torch import Tensor

from sublens.observation.camera import (
    binned,
    blurred,
    convolved,
    filtered,
    finished,
    profiles,
    psf_parts,
    transformed,
    widened,
)
from sublens.surveys.camera import FWHM_PER_SIGMA, Camera
from sublens.surveys.priors import Floats
from sublens.surveys.psf_set import MAX_REACH, PsfSet

TURNS = 8
"""Ways to lay a square on itself: turned by 90 degrees up to three times, mirrored or not."""
KEPT, KEPT_BYTES = 128, 2**27
"""Kernels of a set that are kept for reuse; their transforms are as well, where so many take no more memory."""
BROADENED = 5.0
"""Reach of the Gaussian that broadens an image of a point-spread function, standard deviations."""


def in_own_pixels(image: Tensor, camera: Camera, extra: NDArray[np.void]) -> Tensor:
    """Light at the points of the camera's grid, [b, h * s, w * s], in its pixels, [b, h, w], with each scene's blur.

    extra: rows of the scenes, of dtype EXTRA. On a processor no result depends on its neighbours.
    """
    parts = psf_parts(camera)
    image = binned(image, camera.supersampling // parts)
    if image.device.type == "cpu":
        blur = _blurred if isinstance(camera.psf, PsfSet) else blurred
        scenes = zip(torch.split(image, 1), kernels_alone(camera, extra), strict=True)
        return torch.cat([blur(plane, kernel, parts) for plane, kernel in scenes])
    return blurred_together(image, kernels(camera, extra), parts)


def blurred_together(image: Tensor, weights: Tensor, parts: int) -> Tensor:
    """Images [b, h * parts, w * parts] in pixels [b, h, w], each with its kernel of `kernels`, on any device."""
    weights = weights.to(image)
    square = weights if weights.ndim == 3 else weights[:, :, None] * weights[:, None, :]
    padded = widened(image, (square.shape[-1] - parts) // 2)
    return convolved(padded, square)[:, ::parts, ::parts]


def _blurred(image: Tensor, kernel: Tensor, parts: int) -> Tensor:
    """As `camera.blurred`, with the transform of a kernel [k, k] that is kept for reuse."""
    padded = widened(image, (len(kernel) - parts) // 2)
    is_kept = KEPT * padded.numel() * padded.itemsize <= KEPT_BYTES
    transform = _kept_transform if is_kept else _transform
    return filtered(padded, transform(kernel, padded.shape, image.dtype), len(kernel))[:, ::parts, ::parts]


def _transform(kernel: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return transformed(kernel[None].to(dtype), shape)


_kept_transform = lru_cache(maxsize=KEPT)(_transform)  # knows a tensor again as the same object, not by its numbers


def kernels(camera: Camera, extra: NDArray[np.void]) -> Tensor:
    """Point-spread functions of the scenes as `psf_kernel` has them: [b, k] for Gaussians, else [b, k, k]."""
    if not isinstance(camera.psf, PsfSet):
        return finished(profiles(camera, torch.from_numpy(extra["psf_fwhm"].copy())), psf_parts(camera))
    return _of_set(camera, extra["psf_index"], extra["psf_turn"], extra["psf_broadening"])


def kernels_alone(camera: Camera, extra: NDArray[np.void]) -> list[Tensor]:
    """As `kernels`, each of a size of its own, whatever its neighbours; those of a set are kept for reuse."""
    if not isinstance(camera.psf, PsfSet):
        return [kernels(camera, row)[0] for row in np.split(extra, len(extra))]
    kernel = _kept(camera)
    return [kernel(*row) for row in extra[["psf_index", "psf_turn", "psf_broadening"]].tolist()]


@lru_cache(maxsize=4)
def _kept(camera: Camera) -> Callable[[float, float, float], Tensor]:
    """From the columns of one scene to its kernel, which is kept."""

    @lru_cache(maxsize=KEPT)
    def kernel(index: float, turn: float, broadening: float) -> Tensor:
        return _of_set(camera, *np.array([[index], [turn], [broadening]]))[0]

    return kernel


def _of_set(camera: Camera, index: Floats, turn: Floats, broadening: Floats) -> Tensor:
    """Kernels of scenes whose point-spread functions are those of a set, [b, k, k]; arguments: as the columns, [b]."""
    parts = psf_parts(camera)
    images = _stack(camera)[index.astype(np.int64)]
    turned = torch.stack([_turned(image, int(own)) for image, own in zip(images, turn, strict=True)])
    sigma = broadening / FWHM_PER_SIGMA / camera.pixel_scale * parts
    return finished(_broadened(turned, sigma) if sigma.any() else turned, parts)


@lru_cache(maxsize=4)
def _stack(camera: Camera) -> Tensor:
    """All images of the camera's set, on parts of its pixels, [n, k, k]."""
    assert isinstance(camera.psf, PsfSet)
    parts = psf_parts(camera)
    return torch.from_numpy(camera.psf.kernels(camera.pixel_scale / parts, MAX_REACH * parts))


def _turned(image: Tensor, turn: int) -> Tensor:
    """An image [k, k] laid on itself in one of `TURNS` ways."""
    turned = torch.rot90(image, turn % 4)
    return turned.flip(0) if turn >= 4 else turned


def _broadened(images: Tensor, sigma: NDArray[np.float64]) -> Tensor:
    """Images [b, k, k], blurred by round Gaussians of these standard deviations, pixels, on a larger square.

    Weights of pixels n apart are e^-t I_n(t) with t = sigma^2: Lindeberg's discrete Gaussian, whose variance is exact
    for any width, unlike that of samples of a narrow one.
    """
    edge = ceil(BROADENED * sigma.max()) + 1
    side = images.shape[-1] + 2 * edge
    weights = torch.from_numpy(ive(np.arange(side), sigma[:, None] ** 2))
    along = weights[:, (torch.arange(side)[:, None] - torch.arange(edge, side - edge)).abs()]
    return along @ images @ along.mT
