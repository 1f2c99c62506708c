"""Simulated images as files of a telescope hold them: pixels, noise, mask and point-spread function."""

import numpy as np
import torch
from numpy.typing import NDArray

from sublens.images import signal_to_noise
from sublens.images.pixels import Companions, Image
from sublens.observation.psf import in_own_pixels
from sublens.sim.render import render
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth

Floats = NDArray[np.float64]

PSF_SIDE = 15
"""Side of a point-spread function, pixels."""


def images(truth: Truth, codes: NDArray[np.uint16], survey: Survey) -> list[Image]:
    """Images of scenes in electrons, from their planes of signal to noise [n, h, w]."""
    noise = noise_of(render(truth, survey).double().numpy(), truth)
    masks = codes == signal_to_noise.MASKED
    pixels = np.where(masks, 0, (codes * signal_to_noise.STEP + signal_to_noise.LEAST) * noise)
    return [
        Image(
            pixels[row],
            pixel_scale=survey.camera.pixel_scale,
            mask=masks[row],
            companions=Companions(noise=noise[row], noise_source="map", psf=psf(truth, survey, row)),
        )
        for row in range(len(truth))
    ]


def psf(truth: Truth, survey: Survey, row: int) -> Floats:
    """Point-spread function of a scene on the pixels of its image."""
    n, parts = survey.camera.n_pixels, survey.camera.supersampling
    light, middle = torch.zeros(1, n * parts, n * parts), n // 2
    light[0, middle * parts : (middle + 1) * parts, middle * parts : (middle + 1) * parts] = 1
    around = slice(middle - PSF_SIDE // 2, middle + PSF_SIDE // 2 + 1)
    assert truth.extra is not None
    blurred = in_own_pixels(light, survey.camera, truth.extra[row : row + 1])
    return blurred[0, around, around].double().numpy()


def noise_of(noiseless: Floats, truth: Truth) -> Floats:
    """Standard deviation of the pixels of noiseless images [n, h, w] of these scenes."""
    scenes = truth.scenes
    return np.asarray(np.sqrt(noiseless + (scenes["background"] + scenes["noise_rms"] ** 2)[:, None, None]))
