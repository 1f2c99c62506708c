"""Observation of scenes as counts or signal to noise: noise, sky that is left over, defects and masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from sublens.images.signal_to_noise import LEAST, MASKED, MOST, STEP
from sublens.lensing import compiled
from sublens.observation import camera
from sublens.observation.defects import Marks, strike
from sublens.observation.psf import TURNS
from sublens.surveys.camera import Camera, Psf
from sublens.surveys.priors import Floats, Prior, clipped_quantile
from sublens.surveys.psf_set import PsfSet
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth


def draw_columns(extra: NDArray[np.void], settings: Camera, uniform: Floats) -> None:
    """Fill in what each scene's observation has of its own.

    extra: rows of dtype EXTRA [n]. uniform: numbers in [0, 1), [n, 16], one column a quantity.
    """
    columns = iter(uniform.T)
    choices = settings.n_exposures if isinstance(settings.n_exposures, tuple) else (settings.n_exposures,)
    extra["n_exposures"] = _chosen(np.array(choices), next(columns))
    _draw_psf(extra, settings.psf, next(columns), next(columns), next(columns))
    for name in ("noise_correlation", "sky_residual", "sky_gradient"):
        extra[name] = getattr(settings, name).quantile(next(columns))
    extra["sky_gradient_angle"] = 2 * np.pi * next(columns)
    extra["noise_error"] = clipped_quantile(settings.noise_error, next(columns))


def _draw_psf(extra: NDArray[np.void], psf: Psf, size: Floats, index: Floats, turn: Floats) -> None:
    if isinstance(psf, PsfSet):
        extra["psf_broadening"] = psf.broadening.quantile(size)
        extra["psf_index"] = _chosen(np.arange(psf.n_images), index)
        extra["psf_turn"] = np.floor(turn * TURNS) if psf.turned else 0
    elif isinstance(fwhm := getattr(psf, "fwhm", None), Prior):
        extra["psf_fwhm"] = clipped_quantile(fwhm, size)


def _chosen(values: NDArray[np.int64], u: Floats) -> NDArray[np.int64]:
    """Draws from equally likely values, for uniform u in [0, 1)."""
    return np.asarray(values[np.floor(u * len(values)).astype(np.int64)])


@dataclass(frozen=True)
class Conditions:
    """Conditions of each scene's observation, as [b, 1, 1] on the device of its image."""

    background: Tensor
    """Electrons a pixel of the sky."""
    noise_rms: Tensor
    """Gaussian noise, electrons a pixel."""
    noise_correlation: Tensor
    sky_residual: Tensor
    sky_gradient: Tensor
    sky_gradient_angle: Tensor
    noise_error: Tensor

    @classmethod
    def of(cls, scenes: NDArray[np.void], extra: NDArray[np.void], like: Tensor) -> Self:
        """The conditions in rows of the truth table and of that of dtype EXTRA."""
        names = cls.__dataclass_fields__
        columns = [(scenes if name in (scenes.dtype.names or ()) else extra)[name] for name in names]
        values = torch.from_numpy(np.stack(columns)).to(like)
        return cls(*values[:, :, None, None])

    @property
    def sky_variance(self) -> Tensor:
        """Variance of a pixel's noise without light, electrons squared."""
        return self.background + self.noise_rms**2


def observe(truth: Truth, images: Tensor, survey: Survey, struck: Marks, seeds: Sequence[int]) -> NDArray[np.uint16]:
    """Noisy images of noiseless ones, [n, h, w]: counts above the minimum, or planes of signal to noise.

    struck: pixels with defects, see `defects.marks`. seeds: of the noise, one an image.
    """
    scenes, gain = truth.scenes, survey.camera.gain
    conditions = Conditions.of(scenes, truth.extra_or_blank(), images)
    if survey.camera.pixels == "signal-to-noise":
        return planes(images, conditions, struck, seeds)
    counts = camera.expose(images, scenes["background"], scenes["noise_rms"], gain, seeds)
    if survey.defects:
        strike_counts(torch.from_numpy(counts), struck, conditions, gain)
    return camera.above_minimum(counts)


def observe_together(truth: Truth, images: Tensor, survey: Survey, struck: Marks, generator: Generator) -> Tensor:
    """Noisy images as those of `observe`, float32, drawn on the images' device; see `camera.expose_together`."""
    scenes, gain = truth.scenes, survey.camera.gain
    conditions = Conditions.of(scenes, truth.extra_or_blank(), images)
    if survey.camera.pixels == "signal-to-noise":
        return planes_together(images, conditions, struck, generator)
    counts = camera.expose_together(images, scenes["background"], scenes["noise_rms"], gain, generator)
    if survey.defects:
        strike_counts(counts, struck, conditions, gain)
    return counts - counts.amin((1, 2), keepdim=True)


def planes(images: Tensor, conditions: Conditions, struck: Marks, seeds: Sequence[int]) -> NDArray[np.uint16]:
    """Observed images as planes of `sublens.images.signal_to_noise`, [b, h, w].

    images: noiseless electrons [b, h, w]. seeds: one an image, so that an image's noise does not depend on its
    neighbours. Raises `ConfigError` where a pixel has too many electrons.
    """
    rates = camera.rates_of(images, conditions.background)
    draw = _noise if images.device.type == "cpu" else _noise_on_device
    codes = encoded(images, draw(rates, conditions.noise_rms, seeds), conditions, struck)
    return codes.cpu().numpy().astype(np.uint16)


def planes_together(images: Tensor, conditions: Conditions, struck: Marks, generator: Generator) -> Tensor:
    """Planes as those of `planes`, float32, drawn on the images' device.

    generator: on that device; the noise of one image depends on its place among the others, and differs between
    kinds of device. Means are not checked, which would wait for the device.
    """
    noise = _noise_of(images + conditions.background, conditions.noise_rms, generator)
    return encoded(images, noise, conditions, struck)


def _noise(rates: Tensor, rms: Tensor, seeds: Sequence[int]) -> Tensor:
    """Electrons less their mean, [b, h, w], drawn on a processor."""
    noise = torch.empty_like(rates)
    for rate, sigma, seed, plane in zip(rates.numpy(), rms.ravel().tolist(), seeds, noise.numpy(), strict=True):
        rng = np.random.Generator(np.random.SFC64(seed))
        np.subtract(compiled.poisson(rng, rate), rate, out=plane)
        if sigma:
            plane += np.float32(sigma) * rng.standard_normal(rate.shape, np.float32)
    return noise


def _noise_on_device(rates: Tensor, rms: Tensor, seeds: Sequence[int]) -> Tensor:
    generators = [torch.Generator(rates.device).manual_seed(seed) for seed in seeds]
    scenes = zip(rates, rms, generators, strict=True)
    return torch.stack([_noise_of(rate, sigma, generator) for rate, sigma, generator in scenes])


def _noise_of(rates: Tensor, rms: Tensor, generator: Generator) -> Tensor:
    normal = torch.randn(rates.shape, generator=generator, device=rates.device, dtype=rates.dtype)
    return torch.poisson(rates, generator) - rates + rms * normal


def encoded(images: Tensor, noise: Tensor, conditions: Conditions, struck: Marks) -> Tensor:
    """Codes of `sublens.images.signal_to_noise` of electrons above the sky, [b, h, w].

    The noise of a pixel follows from its own electrons, as a pipeline has it: sky, read-out and the photons of
    what lies above the sky.
    """
    sigma_sky = conditions.sky_variance.sqrt()
    pixels = images + drizzled(noise, conditions.noise_correlation)
    pixels += sigma_sky * _sky_left(pixels, conditions)
    strike(pixels, struck, sigma_sky.ravel(), torch.zeros_like(sigma_sky).ravel())
    sigma = (pixels.clamp_min(0) + conditions.sky_variance).sqrt_() * conditions.noise_error
    codes = pixels.div_(sigma).sub_(LEAST).div_(STEP).round_().clamp_(MASKED + 1, MOST)
    codes.masked_fill_(sigma == 0, MASKED)
    codes.view(-1)[torch.from_numpy(struck.masked_at).to(codes.device)] = MASKED
    return codes


def drizzled(noise: Tensor, drop: Tensor) -> Tensor:
    """Noise of pixels [b, h, w] as that of an image which is drizzled from many dithered exposures.

    drop: side r of the drops over that of the pixels, 0 to 1, [b, 1, 1]. Each pixel shares its noise with the next
    along both axes, a + b = 1 and a b = r / 6 along each: the noise of large areas stays, that of a pixel falls by
    1 - r / 3, and neighbours correlate by r / (6 - 2 r). Both are those of drops laid evenly over the pixels: Casertano
    et al. 2000, arXiv:astro-ph/0010245, whose R is 1 / (1 - r / 3). Opposite edges are neighbours.
    """
    if not drop.any():
        return noise
    b = (1 - (1 - 2 * drop / 3).sqrt()) / 2
    for axis in (1, 2):
        noise = noise.lerp(noise.roll(1, axis), b)
    return noise


def _sky_left(pixels: Tensor, conditions: Conditions) -> Tensor:
    """Sky that is left after subtraction, [b, h, w] or the same for all pixels, standard deviations of its noise."""
    if not conditions.sky_gradient.any():
        return conditions.sky_residual
    axis = (torch.arange(pixels.shape[-1], device=pixels.device, dtype=pixels.dtype) + 0.5) / pixels.shape[-1] - 0.5
    along = axis * conditions.sky_gradient_angle.cos() + axis[:, None] * conditions.sky_gradient_angle.sin()
    return conditions.sky_residual + conditions.sky_gradient * along


def strike_counts(counts: Tensor, struck: Marks, conditions: Conditions, gain: float) -> None:
    """Let defects change counts [b, h, w], whole numbers of 0 or more, in place. gain: electrons a count."""
    unit, zero = conditions.sky_variance.sqrt() / gain, conditions.background / gain
    at = torch.from_numpy(np.union1d(struck.added_at, struck.stuck_at)).to(counts.device)
    values = counts.double()
    strike(values, struck, unit.ravel().double(), zero.ravel().double())
    counts.view(-1)[at] = values.view(-1)[at].round().clamp(0, camera.MOST_ELECTRONS).to(counts.dtype)
