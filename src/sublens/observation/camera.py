"""The camera: pixel grid, point-spread function, noise."""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from statistics import NormalDist

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from torch import Generator, Tensor

from sublens.errors import ConfigError
from sublens.lensing import compiled
from sublens.surveys.camera import FWHM_PER_SIGMA, Camera, Moffat, PixelatedPsf, typical_fwhm
from sublens.surveys.psf_set import MAX_REACH, PsfSet

LIGHT_LOST = 1e-4
"""Most of the light that the cut wings of a point-spread function may hold, where the image is large enough."""
MOST_ELECTRONS = 1e9
"""Most electrons in a pixel that whole numbers of 32 bits count."""
FULL_SCALE = 65535
"""Most counts above the minimum that a store holds."""


def pixel_centres(n_pixels: int, pixel_scale: float, supersampling: int = 1) -> Tensor:
    """Positions along one axis at which light is computed, arcsec; 0 is the grid's middle.

    [n_pixels * supersampling] in double precision: pixel centres, or those of their equal parts.
    """
    n = n_pixels * supersampling
    return (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * (pixel_scale / supersampling)


def binned(image: Tensor, supersampling: int) -> Tensor:
    """Means over each pixel's parts, [b, h * s, w * s] -> [b, h, w]."""
    if supersampling == 1:
        return image
    if image.device.type != "cpu":
        return F.avg_pool2d(image, supersampling)
    total, *others = (image[:, i::supersampling, j::supersampling] for i, j in np.ndindex(supersampling, supersampling))
    for other in others:  # the same to the last bit, several times as fast here
        total = total + other
    return total / supersampling**2


def in_pixels(image: Tensor, camera: Camera) -> Tensor:
    """Light at the points of the camera's grid, [b, h * s, w * s], -> light in its pixels, blurred, [b, h, w]."""
    parts = psf_parts(camera)
    return blurred(binned(image, camera.supersampling // parts), psf_kernel(camera), parts)


@lru_cache(maxsize=64)
def psf_parts(camera: Camera) -> int:
    """Parts of a pixel, along a side, on which the point-spread function acts.

    One for a picture on the camera's own pixels: what a detector has recorded holds the pixel's response.
    """
    psf = camera.psf
    is_coarse = isinstance(psf, PixelatedPsf | PsfSet) and not psf.is_finer(camera.pixel_scale)
    return 1 if is_coarse else camera.supersampling


@lru_cache(maxsize=64)  # users of the service set any width
def psf_kernel(camera: Camera) -> Tensor:
    """The point-spread function and the mean over a pixel's s = `psf_parts` parts in one, double precision, sum one.

    [k, k]; a Gaussian comes as [k], as it blurs each axis by itself. k - s is even. Sampled at the middles of
    parts.
    """
    parts = psf_parts(camera)
    if isinstance(camera.psf, PixelatedPsf):
        kernels = torch.from_numpy(camera.psf.kernel(camera.pixel_scale / parts, MAX_REACH * parts))[None]
    else:
        kernels = profiles(camera, torch.tensor([typical_fwhm(camera.psf, 0)], dtype=torch.float64))
    return finished(kernels, parts)[0]


def profiles(camera: Camera, fwhm: Tensor) -> Tensor:
    """Gaussians [b, k] or Moffat profiles [b, k, k] of these widths, arcsec, [b], on parts of the camera's pixels."""
    parts = psf_parts(camera)
    scale, most = camera.pixel_scale / parts, camera.n_pixels * parts - 1
    if isinstance(camera.psf, Moffat):
        return _moffats(fwhm / scale, camera.psf.beta, most)
    return _gaussians(fwhm / FWHM_PER_SIGMA / scale, most)


def finished(kernels: Tensor, parts: int) -> Tensor:
    """Point-spread functions [b, k] or [b, k, k] with the mean over a pixel's parts, sum one; see `psf_kernel`."""
    axes = kernels.ndim - 1
    for _ in range(axes if parts > 1 else 0):
        kernels = _boxed(kernels, parts).transpose(1, axes)
    return kernels / kernels.flatten(1).sum(1).reshape(-1, *[1] * axes)


def _gaussians(sigma: Tensor, most: int) -> Tensor:
    """Gaussians of these widths, cells, up to `most` cells from their middle, [b, k]."""
    reach = float(sigma.max()) * NormalDist().inv_cdf(1 - LIGHT_LOST / 4)  # the wings of two axes are cut
    return torch.exp(-0.5 * (_offsets(reach, most) / sigma[:, None]) ** 2)


def _moffats(fwhm: Tensor, beta: float, most: int) -> Tensor:
    """Moffat profiles of these widths, cells, up to `most` cells from their middle, [b, k, k]."""
    core = fwhm / 2 / float(2 ** (1 / beta) - 1) ** 0.5
    steepness = max(beta - 1, 0.1)  # the image ends long before such wings
    offsets = _offsets(float(core.max()) * (LIGHT_LOST ** (-1 / steepness) - 1) ** 0.5, most)
    return torch.pow(1 + (offsets[:, None] ** 2 + offsets**2) / core[:, None, None] ** 2, -beta)


def _offsets(reach: float, most: int) -> Tensor:
    """Whole numbers from -k to k, k up to `most`, whose cells cover `reach` on either side."""
    whole = min(ceil(reach - 0.5), most)
    return torch.arange(-whole, whole + 1, dtype=torch.float64)


def _boxed(kernels: Tensor, parts: int) -> Tensor:
    """Sums over `parts` neighbours along the last axis, which becomes `parts` - 1 longer."""
    return sum((F.pad(kernels, (i, parts - 1 - i)) for i in range(parts)), torch.zeros(1))


def blurred(image: Tensor, kernel: Tensor, parts: int = 1) -> Tensor:
    """Images [b, h * parts, w * parts] in pixels [b, h, w], with a point-spread function of `psf_kernel`.

    Light outside the image equals that of the nearest edge pixel, as in the published images.
    """
    reach = (len(kernel) - parts) // 2
    if image.device.type == "cpu" and kernel.ndim == 1:
        n_rows, n_columns = (side // parts for side in image.shape[1:])
        pixels = torch.empty(len(image), n_rows, n_columns, dtype=image.dtype)
        compiled.blur(image.contiguous().numpy(), kernel.to(image.dtype).numpy(), parts, pixels.numpy())
        return pixels
    padded = widened(image, reach)
    if kernel.ndim == 2:
        one_by_one = [
            convolved(plane, kernel[None].to(image)) for plane in torch.split(padded, 1)
        ]  # none affects another
        return torch.cat(one_by_one)[:, ::parts, ::parts]
    height, width = (side // parts * parts for side in image.shape[1:])
    weights: list[float] = kernel.tolist()
    down = padded[:, :height:parts] * weights[0]
    for offset, weight in enumerate(weights[1:], start=1):
        down.add_(padded[:, offset : offset + height : parts], alpha=weight)
    across = down[:, :, :width:parts] * weights[0]
    for offset, weight in enumerate(weights[1:], start=1):
        across.add_(down[:, :, offset : offset + width : parts], alpha=weight)
    return across


def widened(image: Tensor, reach: int) -> Tensor:
    """Images with `reach` more pixels beyond each edge, which equal the nearest one."""
    return F.pad(image[:, None], (reach, reach, reach, reach), mode="replicate")[:, 0]


def convolved(padded: Tensor, kernels: Tensor) -> Tensor:
    """Images [b, h + k - 1, w + k - 1], each convolved with its kernel [b, k, k], by Fourier transform, [b, h, w]."""
    return filtered(padded, transformed(kernels, padded.shape), kernels.shape[-1])


def transformed(kernels: Tensor, shape: Sequence[int]) -> Tensor:
    """Fourier transforms of kernels [b, k, k], for `filtered` images of this shape."""
    transforms: Tensor = torch.fft.rfft2(kernels, s=_transform_size(shape))
    return transforms


def filtered(padded: Tensor, transforms: Tensor, side: int) -> Tensor:
    """As `convolved`, with the kernels' transforms; side: k."""
    size = _transform_size(padded.shape)
    full: Tensor = torch.fft.irfft2(torch.fft.rfft2(padded, s=size) * transforms, s=size)
    return full[:, side - 1 : padded.shape[1], side - 1 : padded.shape[2]].clamp_min(0)  # rounding goes below


def _transform_size(shape: Sequence[int]) -> list[int]:
    return [next_fast_len(side, real=True) for side in shape[1:]]


def rates_of(image: Tensor, background: Tensor) -> Tensor:
    """Electrons that each pixel expects, image [b, h, w] + background [b, 1, 1]; `ConfigError` where too many."""
    rates = image + background
    least, most = (float(rate) for rate in rates.aminmax())
    if not 0 <= least <= most <= MOST_ELECTRONS:  # NaN fails as well
        raise ConfigError(
            f"a pixel expects {most:g} electrons",
            need=f"a number from 0 to {MOST_ELECTRONS:g}",
            next="Lower the exposure or the brightness, or make extreme priors milder.",
        )
    return rates


def expose(
    image: Tensor, background: NDArray[np.float64], noise_rms: NDArray[np.float64], gain: float, seeds: Sequence[int]
) -> NDArray[np.int32]:
    """Counts: Poisson electrons around image + background, Gaussian noise, divided by the gain.

    image: noiseless electrons [b, h, w]. background: sky electrons a pixel [b]. noise_rms: electrons
    [b]. gain: electrons a count. seeds: one an image, so that an image's noise does not depend on
    its neighbours. Returns whole counts [b, h, w]; raises `ConfigError` where there are too many.
    """
    rates = rates_of(image, torch.from_numpy(background).to(image)[:, None, None])
    if image.device.type != "cpu":
        generators = [torch.Generator(image.device).manual_seed(seed) for seed in seeds]
        drawn = [torch.poisson(rate, generator) for rate, generator in zip(rates, generators, strict=True)]
        rates = torch.stack(drawn).cpu()
    counts = np.empty(rates.shape, np.int32)
    for rate, rms, seed, image_counts in zip(rates.numpy(), noise_rms, seeds, counts, strict=True):
        rng = np.random.Generator(np.random.SFC64(seed))
        image_counts[:] = compiled.poisson(rng, rate) if image.device.type == "cpu" else rate
        if rms or gain != 1:
            compiled.add_noise(image_counts.ravel(), rng.standard_normal(rate.size), rms, float(gain))
    return counts


def expose_together(
    image: Tensor, background: NDArray[np.float64], noise_rms: NDArray[np.float64], gain: float, generator: Generator
) -> Tensor:
    """Counts as those of `expose`, float32 [b, h, w], drawn on the images' device.

    generator: on that device; the noise of one image depends on its place among the others, and differs between
    kinds of device. Means are not checked, which would wait for the device.
    """
    rates = image + torch.from_numpy(background).to(image)[:, None, None]
    counts = torch.poisson(rates, generator)
    if noise_rms.any() or gain != 1:
        rms = torch.from_numpy(noise_rms).to(image)[:, None, None]
        noise = torch.randn(rates.shape, generator=generator, device=image.device, dtype=image.dtype)
        counts = torch.round((counts + rms * noise) / gain)
    return counts


def above_minimum(counts: NDArray[np.int32]) -> NDArray[np.uint16]:
    """Counts above each image's minimum, [b, h, w]; dividing by the maximum gives min-max pixels.

    Raises `ConfigError` where they do not fit 16 bits.
    """
    counts = counts - counts.min(axis=(1, 2), keepdims=True)
    peaks = counts.max(axis=(1, 2))
    if peaks.max(initial=0) > FULL_SCALE:
        raise ConfigError(
            f"an image has {peaks.max():,} counts above its minimum",
            need=f"up to {FULL_SCALE:,}, which a store holds",
            next="Raise camera.gain, or lower the exposure or the brightness.",
        )
    if not peaks.all():
        raise ConfigError(
            "an image has not one count above its minimum",
            need="one count or more",
            next="Raise the exposure or the brightness.",
        )
    return np.asarray(counts, dtype=np.uint16)
