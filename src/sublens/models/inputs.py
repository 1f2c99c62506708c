"""Counts above the minimum, or codes of signal to noise -> the tensor that a network takes in."""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sublens.config import InputConfig, field_of_view
from sublens.images.pixels import QUANTISED_PEAK
from sublens.images.signal_to_noise import LEAST, MASKED, STEP

NOMINAL_PEAK = 801.0
"""Counts given to the peak of an image whose photon counts are unknown: the median of common-test-1."""
SKY = 9.3
"""Counts of empty sky above the minimum in common-test-1; the Anscombe input is zero there."""
DETAIL_GAIN = 6.0
"""Factor that brings the detail of common-test-1, less a blur of 3 pixels, to a width of about 1."""
BLUR = 4.0
"""Standard deviation of the blur behind the plane `detail` where `highpass` is unset, pixels."""
LEAST_WEIGHT = 1e-6
"""Weight of a masked pixel's neighbours below which it is filled with less than their mean, down to the sky's 0."""


def counts_to_input(counts: NDArray[np.uint16], config: InputConfig) -> Tensor:
    """Network input: counts above the minimum [b, h, w] -> [b, channels, s, s] float32; see `to_input`."""
    return to_input(torch.from_numpy(counts.astype(np.float32)), config)


def to_input(images: Tensor, config: InputConfig) -> Tensor:
    """Counts above the minimum [b, h, w], float32 -> network input [b, channels, s, s].

    Cropped to the centre, binned, transformed, high-passed, resampled, copied to `channels`, in that
    order; codes of signal to noise become planes instead, see `_planes`. `anscombe` is 2 sqrt(k + 3/8), which has
    unit noise for Poisson counts k (Anscombe 1948, Biometrika 35, 246), shifted so that empty sky is 0 and divided by
    10 times the binning. The high-passed image is multiplied by `DETAIL_GAIN`.
    """
    if config.transform == "signal-to-noise":
        return _resized(_planes(images, config), config)
    peak = images.amax((1, 2), keepdim=True)
    images = _crop(images, field_of_view(config, (images.shape[1], images.shape[2])))
    if config.transform == "minmax":
        images = images / peak
    else:
        images = images * torch.where(peak == QUANTISED_PEAK, NOMINAL_PEAK / QUANTISED_PEAK, 1.0)
    images = _bin(images, config.binning)
    if config.transform == "anscombe":
        area = config.binning**2
        images = (2 * torch.sqrt(images * area + 0.375) - 2 * math.sqrt(SKY * area + 0.375)) / (10 * config.binning)
    images = images[:, None]
    if config.highpass:
        blurred = _blurred(images, config.highpass / config.binning)
        images = (DETAIL_GAIN * (images - blurred)).to(images.dtype)
    return _resized(images, config).expand(-1, config.channels, -1, -1)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Images [..., s, s] after a Gaussian blur, in float64: in float32 its errors would be the largest of all."""
    rows = torch.from_numpy(_blur_weights(images.shape[-1], sigma)).to(images.device, non_blocking=True)
    return rows @ images.double() @ rows.T


def _resized(images: Tensor, config: InputConfig) -> Tensor:
    if not config.resize:
        return images
    rows = torch.from_numpy(resample_weights(images.shape[-1], config.resize)).to(images, non_blocking=True)
    return rows @ images @ rows.T


def _planes(codes: Tensor, config: InputConfig) -> Tensor:
    """Codes of signal to noise [b, h, w], 0 where masked -> the channels that `config.planes` names, [b, c, s, s].

    `image` is asinh(S/N / stretch). `detail` is the S/N less its blur, with the same stretch above that of the noise,
    which keeps its width of about 1 where the lens galaxy is bright as well. Masked pixels take the blur of their
    neighbours in `image`, and 0 in `detail`. Binned pixels have the mean S/N of those that are not masked, times the
    binning: their noise is 1 where none is masked.
    """
    codes = _crop(codes, field_of_view(config, (codes.shape[1], codes.shape[2])))
    good = (codes != MASKED).to(codes.dtype)
    share = _bin(good, config.binning)
    mean = _bin((codes * STEP + LEAST) * good, config.binning) / share.clamp_min(0.5 / config.binning**2)
    snr, good = config.binning * mean, (share > 0).to(codes.dtype)
    sigma = (config.highpass or BLUR) / config.binning
    faint = (snr - _smoothed(snr, good, sigma)) * good
    image = torch.asinh(snr / config.stretch)
    planes = {
        "image": torch.where(good > 0, image, _smoothed(image, good, sigma)),
        "detail": config.stretch * torch.asinh(faint / config.stretch),
        "mask": 1 - share,
    }
    return torch.stack([planes[name] for name in config.planes], 1)


def _smoothed(image: Tensor, good: Tensor, sigma: float) -> Tensor:
    """The Gaussian blur of an image [b, s, s] over its good pixels."""
    return (_blurred(image * good, sigma) / _blurred(good, sigma).clamp_min(LEAST_WEIGHT)).to(image.dtype)


@lru_cache
def _blur_weights(side: int, sigma: float) -> NDArray[np.float64]:
    """Weights [side, side] of a Gaussian blur that ends at the edge."""
    weights = np.exp(-0.5 * ((np.arange(side) - np.arange(side)[:, None]) / sigma) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


@lru_cache
def resample_weights(side: int, size: int) -> NDArray[np.float64]:
    """Weights [size, side] that resample linearly, over as many pixels as become one where there are fewer.

    As torch's antialiased bilinear interpolation, which works out its weights in float32; those errors
    are the largest of all in what a network gives.
    """
    centres = (np.arange(size) + 0.5) * side / size - 0.5
    reach = max(1.0, side / size)
    weights = np.clip(1 - np.abs(np.arange(side) - centres[:, None]) / reach, 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _crop(images: Tensor, side: int) -> Tensor:
    top, left = ((size - side) // 2 for size in images.shape[1:])
    return images[:, top : top + side, left : left + side]


def _bin(images: Tensor, binning: int) -> Tensor:
    return F.avg_pool2d(images, binning) if binning > 1 else images
