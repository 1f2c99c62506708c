"""Saliency: the evidence for a class in an image, and whether it lies where the substructure is.

A saliency map lies on an image's own pixels, rows along y. Positions are arcsec from the image's centre, x
then y, as in the truth table.
"""

from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam, LayerGradientXActivation, Occlusion
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor, nn

from sublens.config import InputConfig, field_of_view, zoom
from sublens.errors import BundleError
from sublens.inference.predictor import BATCH, Predictor
from sublens.inference.torch_engine import TorchEngine
from sublens.metrics import LEVEL, Floats, Labels
from sublens.models.heads import CELL, nearest_tap
from sublens.models.inputs import counts_to_input
from sublens.surveys.truth import Truth

Method = Literal["hires-cam", "grad-cam", "occlusion"]
"""Name of a saliency method, see `saliency`."""
METHOD: Method = "hires-cam"
"""Default method: its peaks lie on the substructure most often, as `benchmarks/explain.py` measures."""
BLUR = 2.0
"""Standard deviation of the Gaussian that blurs an occluded patch, image pixels. Sky instead would cut
a hole into the arc, which resembles substructure itself."""
RADIUS = 0.2
"""Largest distance of a peak on the substructure, arcsec: half a cell of the truth head's map."""
LEAST_MSUN = 1e9
"""Least mass of the subhaloes that count."""
GRID = 32
"""Positions along each side of the field, of which the uniform chance level is the mean."""


def saliency(predictor: Predictor, counts: NDArray[np.uint16], labels: Labels, method: Method = METHOD) -> Floats:
    """The evidence for a class in each image, [b, h, w]: 1 at the peak, 0 where there is none.

    counts: images [b, h, w] above their minimum. labels: the class of each, [b], a position in the
    predictor's classes. 0 also outside of the network's field of view, and everywhere where there is no
    evidence for the class. Raises `BundleError` where the predictor does not run on torch, or its network
    has no feature map and the method is not `occlusion`.

    hires-cam: gradient of the class's logit times activation, summed over the channels of the feature
    map whose cells come closest to 8 image pixels (Draelos & Carin 2020, arXiv:2011.08891). grad-cam:
    the same with each channel's gradient averaged over the map first (Selvaraju et al. 2016,
    arXiv:1610.02391, who take the last map). occlusion: how far the logit falls when a patch as large as
    such a cell is blurred, in steps of half of it (Zeiler & Fergus 2013, arXiv:1311.2901, who make it
    grey).
    """
    if not isinstance(predictor.engine, TorchEngine):
        raise BundleError(
            "The network runs on an engine without gradients",
            need="torch for saliency",
            next="Load the network with engine='torch'.",
        )
    model, device = predictor.engine.whole.model, predictor.engine.device
    images = counts_to_input(counts, predictor.input).to(device, memory_format=torch.channels_last)
    scale = zoom(predictor.input, predictor.image_shape)
    attribute = _occluded if method == "occlusion" else partial(_activated, method=method)
    cells = attribute(model, images, torch.from_numpy(labels).to(device), scale)
    maps = enlarged(cells.detach().double().cpu().numpy(), predictor.input, predictor.image_shape).clip(0)
    greatest = maps.max(axis=(1, 2), keepdims=True)
    return np.asarray(np.divide(maps, greatest, out=np.zeros_like(maps), where=greatest > 0))


def _activated(model: nn.Module, images: Tensor, labels: Tensor, scale: float, *, method: Method) -> Tensor:
    """Gradient times activation in each cell of a feature map, [b, g, g]."""
    if not getattr(model, "feature_info", None):
        raise BundleError("The network has no feature map", need=f"one for {method}", next="Use the method occlusion.")
    layer = model.get_submodule(nearest_tap(model, CELL * scale)["module"])
    kind = LayerGradCam if method == "grad-cam" else LayerGradientXActivation
    attributions: Tensor = kind(model, layer).attribute(images, target=labels)
    if attributions.ndim != 4:
        raise BundleError(
            "The network's features are a list of patches", need=f"a map for {method}", next="Use the method occlusion."
        )
    return attributions.sum(1)


def _occluded(model: nn.Module, images: Tensor, labels: Tensor, scale: float) -> Tensor:
    """How far the logit falls for each pixel of the network's input, mean over the patches that hide it, [b, s, s]."""
    channels, side = images.shape[1], images.shape[-1]
    patch = min(side, max(2, round(CELL * scale)))
    step = patch // 2
    sigma = BLUR * scale
    blurred = ndimage.gaussian_filter(images.cpu().numpy(), (0, 0, sigma, sigma), mode="nearest")
    falls: Tensor = Occlusion(model).attribute(
        images,
        target=labels,
        sliding_window_shapes=(channels, patch, patch),
        strides=(channels, step, step),
        baselines=torch.from_numpy(blurred).to(images),
        perturbations_per_eval=max(1, BATCH // len(images)),
    )
    width = step // 2 * 2 + 1  # steps made into slopes, so that a peak is a point
    return F.avg_pool2d(falls[:, :1], width, 1, width // 2, count_include_pad=False)[:, 0]


def enlarged(cells: Floats, config: InputConfig, shape: tuple[int, int]) -> Floats:
    """Maps of the network's field of view, [b, g, g], on the pixels of images of this shape, [b, h, w]; 0 around it."""
    side = field_of_view(config, shape)
    inner = F.interpolate(torch.from_numpy(cells)[:, None], (side, side), mode="bilinear")[:, 0].numpy()
    top, left = ((size - side) // 2 for size in shape)
    whole = np.zeros((len(cells), *shape))
    whole[:, top : top + side, left : left + side] = inner
    return whole


def peaks(maps: Floats, pixel_scale: float) -> Floats:
    """Position of each map's maximum, [n, 2], arcsec; the corner where a map is nowhere above 0. maps: [n, h, w]."""
    rows, columns = np.unravel_index(maps.reshape(len(maps), -1).argmax(axis=1), maps.shape[1:])
    height, width = maps.shape[1:]
    return pixel_scale * np.stack([columns - (width - 1) / 2, rows - (height - 1) / 2], axis=1)


def score(
    positions: Floats, truth: Truth, field: float, *, least_msun: float = LEAST_MSUN, radius: float = RADIUS
) -> dict[str, float]:
    """How often peaks lie on the substructure: within `radius` of a subhalo of `least_msun`, or of the string.

    positions: the peak of each scene, [n, 2], arcsec. field: side of the square that peaks can lie in, arcsec.
    Returns `n`; `share`, and `low` and `high`, its 95 % interval (Wilson's); `chance`, the share if
    each scene had the peak of another one, mean over all others, which accounts for peaks lying near the
    ring; and `uniform`, the share if they were anywhere in the field. Scenes without substructure are left
    out; at least two must hold some.
    """
    grid = field * ((np.arange(GRID) + 0.5) / GRID - 0.5)
    anywhere = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    lines = [_lines(truth.take(np.array([row])), least_msun) for row in range(len(truth))]
    held = [row for row, line in enumerate(lines) if len(line.start)]
    hits = np.stack([_distance(positions[held], lines[row]) <= radius for row in held])
    n, right = len(held), int(hits.trace())
    low, high = stats.binomtest(right, n).proportion_ci(LEVEL, method="wilson")
    return {
        "n": n,
        "share": right / n,
        "low": float(low),
        "high": float(high),
        "chance": float((hits.sum() - right) / (n * (n - 1))),
        "uniform": float(np.mean([(_distance(anywhere, lines[row]) <= radius).mean() for row in held])),
    }


class _Lines(NamedTuple):
    """Substructure as straight lines; those of subhaloes have no length."""

    start: Floats
    """One end of each, arcsec, [k, 2]."""
    along: Floats
    """Vector from the start to the end, arcsec, [k, 2]."""


def _lines(truth: Truth, least_msun: float) -> _Lines:
    """The substructure of one scene."""
    scene = truth.scenes[0]
    heavy = truth.subhaloes[truth.subhaloes["mass_msun"] >= least_msun]
    start, along = np.stack([heavy["x"], heavy["y"]], axis=1), np.zeros((len(heavy), 2))
    if scene["string_mass_msun"] > 0:
        half = scene["string_half_length"] * np.array([np.cos(scene["string_angle"]), np.sin(scene["string_angle"])])
        start = np.vstack([start, np.array([scene["string_x"], scene["string_y"]]) - half])
        along = np.vstack([along, 2 * half])
    return _Lines(start, along)


def _distance(positions: Floats, lines: _Lines) -> Floats:
    """Distance of each position [m, 2] from the nearest of the lines, arcsec, [m]."""
    off = positions[:, None] - lines.start
    length2 = (lines.along**2).sum(axis=1)
    share = np.clip((off * lines.along).sum(axis=2) / np.maximum(length2, 1e-300), 0, 1)
    return np.asarray(np.linalg.norm(off - share[:, :, None] * lines.along, axis=2).min(axis=1, initial=np.inf))
