"""Saliency: what in an image speaks for a class, and whether that is where the substructure is.

Saliency is told on an image's own pixels, rows along y. Positions are arcsec from the image's centre, x
then y, as in the truth table.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam, LayerGradientXActivation, Occlusion
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor, nn

from sublens.config import InputConfig, field_of_view, zoom
from sublens.errors import BundleError
from sublens.images.pixels import Image
from sublens.images.reader import Found
from sublens.inference.engines import MASS_UNIT_MSUN
from sublens.inference.predictor import BATCH, Predictor, Row
from sublens.inference.torch_engine import Eager
from sublens.metrics import LEVEL, Floats, Labels
from sublens.models.heads import CELL, nearest_tap
from sublens.models.inputs import prepare
from sublens.sim.population import Truth

Method = Literal["hires-cam", "grad-cam", "occlusion"]
METHOD: Method = "hires-cam"
"""The one whose peaks lie on the substructure most often; `benchmarks/explain.py` measures it."""
BLUR = 2.0
"""Standard deviation of the Gaussian that occlusion hides a patch with, image pixels. Sky instead would cut
a hole into the arc, which looks like substructure itself."""
RADIUS = 0.2
"""How far from the substructure a peak may lie to be on it, arcsec: half a cell of the truth head's map."""
LEAST_MSUN = 1e9
"""Mass from which on a subhalo counts."""
PLACES = 32
"""Places along each side of the field at which a peak is tried that lies anywhere."""


def saliency(predictor: Predictor, counts: NDArray[np.uint16], labels: Labels, method: Method = METHOD) -> Floats:
    """What in each image speaks for a class, [b, h, w]: 1 at the peak, 0 where nothing does.

    counts: images [b, h, w] above their minimum. labels: the class of each, [b], a position in the
    predictor's classes. 0 also outside of what the network sees, and everywhere where nothing speaks
    for the class. Raises `BundleError` where the predictor does not run on torch, or its network has
    no feature map for any method but `occlusion`.

    hires-cam: gradient of the class's logit times activation, summed over the channels of the feature
    map whose cells come closest to 8 image pixels (Draelos & Carin 2020, arXiv:2011.08891). grad-cam:
    the same with each channel's gradient averaged over the map first (Selvaraju et al. 2016,
    arXiv:1610.02391, who take the last map). occlusion: how far the logit falls when a patch as large as
    such a cell is blurred, in steps of half of it (Zeiler & Fergus 2013, arXiv:1311.2901, who make it
    grey).
    """
    if not isinstance(predictor.engine, Eager):
        raise BundleError("Saliency needs gradients, which only torch has. Load the network with engine='torch'.")
    model, device = predictor.engine.whole.model, predictor.engine.device
    seen = prepare(counts, predictor.input).to(device, memory_format=torch.channels_last)
    scale = zoom(predictor.input, predictor.image_shape)
    attribute = _occluded if method == "occlusion" else partial(_activated, method=method)
    cells = attribute(model, seen, torch.from_numpy(labels).to(device), scale)
    maps = enlarged(cells.detach().double().cpu().numpy(), predictor.input, predictor.image_shape).clip(0)
    greatest = maps.max(axis=(1, 2), keepdims=True)
    return np.asarray(np.divide(maps, greatest, out=np.zeros_like(maps), where=greatest > 0))


def _activated(model: nn.Module, seen: Tensor, labels: Tensor, scale: float, *, method: Method) -> Tensor:
    """Gradient times activation in each cell of a feature map, [b, g, g]."""
    if not getattr(model, "feature_info", None):
        raise BundleError(f"This network offers no feature map, which {method} needs. Use the method occlusion.")
    layer = model.get_submodule(nearest_tap(model, scale)["module"])
    kind = LayerGradCam if method == "grad-cam" else LayerGradientXActivation
    found: Tensor = kind(model, layer).attribute(seen, target=labels)
    if found.ndim != 4:
        raise BundleError(f"This network sees no map but a list of patches: {method} cannot be drawn. Use occlusion.")
    return found.sum(1)


def _occluded(model: nn.Module, seen: Tensor, labels: Tensor, scale: float) -> Tensor:
    """How far the logit falls for each pixel that the network sees, mean over the patches that hide it, [b, s, s]."""
    channels, side = seen.shape[1], seen.shape[-1]
    patch = min(side, max(2, round(CELL * scale)))
    step = patch // 2
    sigma = BLUR * scale
    blurred = ndimage.gaussian_filter(seen.cpu().numpy(), (0, 0, sigma, sigma), mode="nearest")
    found: Tensor = Occlusion(model).attribute(
        seen,
        target=labels,
        sliding_window_shapes=(channels, patch, patch),
        strides=(channels, step, step),
        baselines=torch.from_numpy(blurred).to(seen),
        perturbations_per_eval=max(1, BATCH // len(seen)),
    )
    width = step // 2 * 2 + 1  # steps made into slopes, so that a peak is a point
    return F.avg_pool2d(found[:, :1], width, 1, width // 2, count_include_pad=False)[:, 0]


def enlarged(cells: Floats, seen: InputConfig, shape: tuple[int, int]) -> Floats:
    """A map of what a network sees, [b, g, g], on the pixels of the images of this shape, [b, h, w]; 0 around it."""
    side = field_of_view(seen, shape)
    inner = F.interpolate(torch.from_numpy(cells)[:, None], (side, side), mode="bilinear")[:, 0].numpy()
    top, left = ((size - side) // 2 for size in shape)
    whole = np.zeros((len(cells), *shape))
    whole[:, top : top + side, left : left + side] = inner
    return whole


def peaks(maps: Floats, pixel_scale: float) -> Floats:
    """Where each map [n, h, w] is greatest, [n, 2], arcsec; the corner where it is nowhere above 0."""
    rows, columns = np.unravel_index(maps.reshape(len(maps), -1).argmax(axis=1), maps.shape[1:])
    height, width = maps.shape[1:]
    return pixel_scale * np.stack([columns - (width - 1) / 2, rows - (height - 1) / 2], axis=1)


def score(
    at: Floats, truth: Truth, field: float, *, least_msun: float = LEAST_MSUN, radius: float = RADIUS
) -> dict[str, float]:
    """How often peaks lie on the substructure: within `radius` of a subhalo of `least_msun`, or of the string.

    at: the peak of each scene, [n, 2], arcsec. field: side of the square that peaks can lie in.
    Returns `n`; `share`, and `low` and `high`, its 95 % interval (Wilson's); `chance`, the share if
    each scene had the peak of another one, mean over all others, which knows that peaks lie near the
    ring; and `uniform`, the share if they were anywhere in the field. Scenes that hold nothing are left
    out; two at least must hold something.
    """
    grid = field * ((np.arange(PLACES) + 0.5) / PLACES - 0.5)
    anywhere = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    lines = [_lines(truth.take(np.array([row])), least_msun) for row in range(len(truth))]
    held = [row for row, line in enumerate(lines) if len(line.start)]
    hits = np.stack([_distance(at[held], lines[row]) <= radius for row in held])
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
    """Straight lines, of which subhaloes have no length."""

    start: Floats
    """[k, 2]"""
    along: Floats
    """From the start to the end, [k, 2]."""


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


def _distance(places: Floats, lines: _Lines) -> Floats:
    """From each place [m, 2] to the nearest of the lines, [m]."""
    off = places[:, None] - lines.start
    length2 = (lines.along**2).sum(axis=1)
    share = np.clip((off * lines.along).sum(axis=2) / np.maximum(length2, 1e-300), 0, 1)
    return np.asarray(np.linalg.norm(off - share[:, :, None] * lines.along, axis=2).min(axis=1, initial=np.inf))


@dataclass(frozen=True)
class Explanation:
    """What in one image speaks for a class."""

    row: Row
    label: str
    """The class; not always the most probable one."""
    counts: NDArray[np.uint16]
    """The image in the network's frame, [h, w]."""
    saliency: Floats
    """[h, w]"""
    side: int
    """Pixels of the central square that the network looks at."""
    pixel_scale: float | None
    """Arcsec a pixel of the frame, where it is known."""

    @property
    def unit(self) -> str:
        """Of lengths."""
        return "arcsec" if self.pixel_scale else "pixels"

    @property
    def peak(self) -> tuple[float, float]:
        """Where the saliency is greatest."""
        x, y = peaks(self.saliency[None], self.pixel_scale or 1.0)[0]
        return float(x), float(y)

    @property
    def probability(self) -> float:
        """Of the class."""
        assert self.row.prediction is not None
        return self.row.prediction.probs[self.label]


def explained(
    predictor: Predictor,
    found: Iterable[Found],
    *,
    method: Method = METHOD,
    label: str | None = None,
    pixel_scale: float | None = None,
) -> Iterator[Explanation | Row]:
    """Explain what was found, in order; what cannot be used is a row with its error.

    label: the class; of each image the most probable one if none. pixel_scale: as in `Predictor.rows`.
    """
    side = field_of_view(predictor.input, predictor.image_shape)
    for one in found:
        row = next(predictor.rows([one], pixel_scale))
        if row.prediction is None or not isinstance(one.image, Image):
            yield row
            continue
        frame = predictor.framed(one.image, pixel_scale)
        counts, name = frame.counts(), label or row.prediction.label
        shown = saliency(predictor, counts[None], np.array([predictor.classes.index(name)]), method)[0]
        scale = predictor.pixel_scale or pixel_scale or one.image.pixel_scale
        yield Explanation(row, name, counts, shown, side, scale)


CONTOURS = 0.1, 0.3, 0.6
"""Their heights over the brightest of the smoothed light."""
MASSES = ("0", "1e9", "3e9", "1e10", "3e10")
"""Ticks of the scale of masses, Msun; the last has full colour."""


def figure(of: Explanation, method: Method) -> Figure:
    """The image, beside it what speaks for the class, and where the network draws maps, the mass that it sees."""
    assert of.row.prediction is not None
    masses, scale = of.row.prediction.masses, of.pixel_scale or 1.0
    n_panels = 2 if masses is None else 3
    drawn = Figure(figsize=(0.4 + 3.3 * n_panels, 4.5), facecolor="white", layout="constrained")
    panels = drawn.subplots(1, n_panels)
    light = of.counts.astype(np.float64)
    light = (light - np.median(light)).clip(0)
    frame = scale * np.array([-1, 1, -1, 1]) * np.repeat(light.shape[::-1], 2) / 2
    half = scale * of.side / 2
    _panel(panels[0], np.sqrt(light), frame, "image", "brightness above sky, square root", cmap="inferno")
    _panel(panels[1], of.saliency, frame, f"speaks for {of.label}", f"{method}, peak is 1", vmin=0, vmax=1)
    if masses is not None:
        ticks, grid = np.log1p(np.array(MASSES, dtype=np.float64) / MASS_UNIT_MSUN), (-half, half, -half, half)
        shade, words = np.log1p(masses / MASS_UNIT_MSUN), "truth head: Msun in a cell"
        bar = _panel(panels[2], shade, grid, "substructure that the network sees", words, vmin=0, vmax=ticks[-1])
        bar.set_ticks(ticks, labels=MASSES)
    smooth = ndimage.gaussian_filter(light, 1.5)
    for axes in panels:
        axes.set(xlim=(-half, half), ylim=(-half, half), xlabel=f"x, {of.unit}")
        if axes is not panels[0] and smooth.any():
            heights = [smooth.max() * height for height in CONTOURS]
            axes.contour(smooth, heights, origin="lower", extent=frame, colors="white", linewidths=0.6, alpha=0.7)
        if of.saliency.any():
            axes.add_patch(Circle(of.peak, CELL / 2 * scale, fill=False, edgecolor="cyan"))
    panels[0].set_ylabel(f"y, {of.unit}")
    drawn.suptitle(_heading(of), fontsize=10, parse_math=False)
    return drawn


def save(of: Explanation, method: Method, path: Path) -> None:
    """Draw the figure of an image into a .png file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names may have letters that no font here has
        figure(of, method).savefig(path, dpi=110)


def record(of: Explanation | Row, picture: str = "") -> dict[str, Any]:
    """One line on an image: what was explained, in which picture, and where the peak lies; or what failed."""
    if isinstance(of, Row):
        return {"path": of.name, "error": of.error}
    x, y = of.peak
    return {
        "path": of.row.name,
        "picture": picture,
        "class": of.label,
        "probability": round(of.probability, 4),
        "peak_x": round(x, 3),
        "peak_y": round(y, 3),
        "unit": of.unit,
    }


def _heading(of: Explanation) -> str:
    """What the image is, and what the network says of it."""
    assert of.row.prediction is not None
    name = of.row.path.name if of.row.number is None else f"{of.row.path.name}#{of.row.number}"
    probs = ", ".join(f"{label} {prob:.3f}" for label, prob in of.row.prediction.probs.items())
    return f"{name}:  {probs}{'  (a strange image)' if of.row.prediction.is_strange else ''}\n"


def _panel(axes: Axes, values: Floats, frame: Any, title: str, words: str, **look: Any) -> Any:
    """A map on its grid, y upwards, with its scale below; returns the scale."""
    picture = axes.imshow(values, origin="lower", extent=tuple(frame), **look)
    axes.set_title(title, fontsize=10, parse_math=False)
    return axes.figure.colorbar(picture, ax=axes, location="bottom", label=words, shrink=0.85)
