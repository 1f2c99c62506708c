"""The camera: pixel grid, point-spread function, noise."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor

from sublens.errors import ConfigError
from sublens.sim import compiled
from sublens.sim.survey import FWHM_PER_SIGMA, Camera, Gaussian, Moffat

PSF_REACH = 4.0
"""Radius at which a Gaussian is cut, in standard deviations; to the nearest pixel."""
MOFFAT_REACH = 8.0
"""Radius at which a Moffat profile is cut, in full widths at half maximum; at most the image's size."""
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
    return F.avg_pool2d(image, supersampling) if supersampling > 1 else image


@lru_cache(maxsize=64)  # users of the service set any width
def psf_kernel(camera: Camera) -> Tensor:
    """The point-spread function on the camera's pixels, [k, k] of odd k, double precision, sum one.

    A Gaussian comes as [k]: it blurs each axis by itself. Sampled at pixel centres.
    """
    kernel: Tensor
    if isinstance(camera.psf, Gaussian):
        sigma = camera.psf.fwhm / FWHM_PER_SIGMA / camera.pixel_scale
        offsets = _offsets(PSF_REACH * sigma, camera.n_pixels)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    elif isinstance(camera.psf, Moffat):
        width, beta = camera.psf.fwhm / camera.pixel_scale, camera.psf.beta
        offsets = _offsets(MOFFAT_REACH * width, camera.n_pixels)
        core = width / 2 / (2 ** (1 / beta) - 1) ** 0.5
        kernel = (1 + (offsets[:, None] ** 2 + offsets**2) / core**2) ** -beta
    else:
        kernel = torch.from_numpy(camera.psf.kernel(camera.pixel_scale))
    return kernel.div(kernel.sum())


def _offsets(reach: float, n_pixels: int) -> Tensor:
    whole = min(int(reach + 0.5), (n_pixels - 1) // 2)
    return torch.arange(-whole, whole + 1, dtype=torch.float64)


def blurred(image: Tensor, kernel: Tensor) -> Tensor:
    """Images [b, h, w], convolved with a point-spread function of `psf_kernel`.

    Light outside the image equals that of the nearest edge pixel, as in the published images.
    """
    reach = len(kernel) // 2
    padded = F.pad(image[:, None], (reach, reach, reach, reach), mode="replicate")[:, 0]
    if kernel.ndim == 2:
        return _convolved(padded, kernel.to(image), image.shape)
    height, width = image.shape[1:]
    weights: list[float] = kernel.tolist()
    down = padded[:, :height] * weights[0]
    for offset, weight in enumerate(weights[1:], start=1):
        down.add_(padded[:, offset : offset + height], alpha=weight)
    across = down[:, :, :width] * weights[0]
    for offset, weight in enumerate(weights[1:], start=1):
        across.add_(down[:, :, offset : offset + width], alpha=weight)
    return across


def _convolved(padded: Tensor, kernel: Tensor, shape: torch.Size) -> Tensor:
    """Convolution by Fourier transform, image by image: no result may depend on its neighbours."""
    size = padded.shape[1:]
    transfer = torch.fft.rfft2(kernel, s=size)
    full = torch.stack([torch.fft.irfft2(torch.fft.rfft2(plane) * transfer, s=size) for plane in padded])
    edge = len(kernel) - 1
    return full[:, edge : edge + shape[1], edge : edge + shape[2]].clamp_min(0)  # rounding goes below


def expose(
    image: Tensor, background: NDArray[np.float64], noise_rms: NDArray[np.float64], gain: float, seeds: Sequence[int]
) -> NDArray[np.int32]:
    """Counts: Poisson electrons around image + background, Gaussian noise, divided by the gain.

    image: noiseless electrons [b, h, w]. background: sky electrons a pixel [b]. noise_rms: electrons
    [b]. gain: electrons a count. seeds: one an image, so that an image's noise does not depend on
    its neighbours. Returns whole counts [b, h, w]; raises `ConfigError` where there are too many.
    """
    rates = image + torch.from_numpy(background).to(image)[:, None, None]
    least, most = (float(rate) for rate in rates.aminmax())
    if not 0 <= least <= most <= MOST_ELECTRONS:  # NaN fails as well
        raise ConfigError(
            f"a pixel expects {most:g} electrons",
            need=f"a number from 0 to {MOST_ELECTRONS:g}",
            next="Lower the exposure or the brightness, or make extreme priors milder.",
        )
    if image.device.type != "cpu":
        generators = [torch.Generator(image.device).manual_seed(seed) for seed in seeds]
        drawn = [torch.poisson(rate, generator) for rate, generator in zip(rates, generators, strict=True)]
        rates = torch.stack(drawn).cpu()
    counts = np.empty(rates.shape, np.int32)
    for rate, rms, seed, image_counts in zip(rates.numpy(), noise_rms, seeds, counts, strict=True):
        rng = np.random.Generator(np.random.SFC64(seed))
        electrons = compiled.poisson(rng, rate) if image.device.type == "cpu" else rate
        if rms or gain != 1:
            electrons = np.rint((electrons + rms * rng.standard_normal(rate.shape)) / gain)
        image_counts[:] = electrons
    return counts


def expose_together(
    image: Tensor, background: NDArray[np.float64], noise_rms: NDArray[np.float64], gain: float, generator: Generator
) -> Tensor:
    """Counts above each image's minimum, float32 [b, h, w], as those of `expose`, drawn on the images' device.

    generator: on that device; the noise of one image depends on its place among the others, and differs between
    kinds of device. Means are not checked, which would wait for the device.
    """
    rates = image + torch.from_numpy(background).to(image)[:, None, None]
    counts = torch.poisson(rates, generator)
    if noise_rms.any() or gain != 1:
        rms = torch.from_numpy(noise_rms).to(image)[:, None, None]
        noise = torch.randn(rates.shape, generator=generator, device=image.device, dtype=image.dtype)
        counts = torch.round((counts + rms * noise) / gain)
    return counts - counts.amin((1, 2), keepdim=True)


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
