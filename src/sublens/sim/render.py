"""Truth table -> images, in batches, on any device."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sublens.config import SimConfig
from sublens.sim import camera, light, mass
from sublens.sim.population import Split, Truth, draw, noise_seeds

CPU_BLOCK, GPU_BLOCK = 8, 256
"""Images rendered together. On a processor one image's planes fit its cache, and an image
cannot depend on its neighbours, not even in the last bit; a GPU wants many at once."""


def render(truth: Truth, config: SimConfig, device: str = "cpu") -> Tensor:
    """Noiseless images of the scenes, counts a pixel without background, [n, h, w] float32."""
    block = CPU_BLOCK if device == "cpu" else GPU_BLOCK
    order = np.arange(len(truth))
    with torch.inference_mode():
        blocks = [
            _render_block(truth.take(order[start : start + block]), config, device)
            for start in range(0, len(truth), block)
        ]
        return torch.cat(blocks)


def simulate(
    config: SimConfig, seed: int, split: Split, indices: range, device: str = "cpu"
) -> tuple[Truth, NDArray[np.uint16]]:
    """Scenes and their noisy images: counts above each image's minimum, [n, h, w]."""
    truth = draw(config, seed, split, indices)
    counts = camera.expose(render(truth, config, device), config.background, noise_seeds(seed, split, indices))
    return truth, camera.above_minimum(counts)


def _render_block(truth: Truth, config: SimConfig, device: str) -> Tensor:
    axis = camera.pixel_centres(config.n_pixels, config.pixel_scale).to(device)
    x, y = axis[None, None, :], axis[None, :, None]
    alpha_x, alpha_y = deflection(truth, x, y)
    image = light.sersic(
        x - alpha_x,
        y - alpha_y,
        _columns(truth, "source_x", "source_y", "source_q", "source_angle").to(x),
        n=config.sersic_n,
        r_eff=config.sersic_r_eff,
        intensity=config.sersic_intensity,
    )
    blur = camera.gaussian_blur(config.n_pixels, config.psf_sigma).to(x)
    return torch.stack([blur @ one @ blur.T for one in image])  # one by one: the same to the last bit in any block


def deflection(truth: Truth, x: Tensor, y: Tensor) -> mass.Field:
    """Total reduced deflection of each scene, arcsec, as two planes [n, h, w].

    x, y: image-plane positions that broadcast to [n, h, w]; their device and precision are used.
    """
    gamma, shear_angle = _columns(truth, "gamma", "shear_angle").to(x).unbind(1)
    alpha_x, alpha_y = mass.sis(x, y, _columns(truth, "theta_e").to(x)[:, 0])
    parts = [mass.external_shear(x, y, gamma, shear_angle)]
    if len(truth.subhaloes):
        parts.append(mass.points(x, y, _subhaloes(truth).to(x)))
    if truth.scenes["string_mass_msun"].any():
        parts.append(mass.string(x, y, _strings(truth).to(x)))
    for part_x, part_y in parts:
        alpha_x, alpha_y = alpha_x + part_x, alpha_y + part_y
    return alpha_x, alpha_y


def _columns(truth: Truth, *names: str) -> Tensor:
    return torch.from_numpy(np.stack([truth.scenes[name] for name in names], axis=1))


def _strings(truth: Truth) -> Tensor:
    """[n, 5] for `mass.string`; where there is none, any length does, as its mass is 0."""
    strings = _columns(truth, "string_x", "string_y", "string_angle", "string_half_length", "string_theta_e")
    strings[strings[:, 4] == 0, 3] = 1
    return strings


def _subhaloes(truth: Truth) -> Tensor:
    """[n, most, 3] for `mass.points`, padded with massless rows."""
    counts, owners = truth.scenes["n_subhaloes"], truth.owners()
    place = np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]
    padded = np.zeros((len(truth), counts.max(), 3))
    for column, name in enumerate(("x", "y", "theta_e")):
        padded[owners, place, column] = truth.subhaloes[name]
    return torch.from_numpy(padded)
