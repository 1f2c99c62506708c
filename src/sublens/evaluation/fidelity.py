"""Are simulated images distributed like real ones? Summary statistics, and a network that tries to tell."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sublens import metrics
from sublens.config import InputConfig, TrainConfig, side_seen
from sublens.data.dataset import Part
from sublens.errors import DataError, ImageError
from sublens.images import formats, pixels
from sublens.models import inputs, networks
from sublens.progress import Advance, Bar, Count, silent
from sublens.sim import render
from sublens.sim.population import CLASSES
from sublens.sim.survey import Survey
from sublens.training import loop

CORNER = 8
"""Side of the squares in the four corners, pixels, where there is sky alone."""
Counts = NDArray[np.uint16]


def statistics(counts: Counts) -> dict[str, NDArray[np.float64]]:
    """Summary statistics of images [n, h, w] of counts above their minimum, each [n]."""
    images = counts.astype(np.float64)
    peak = images.max(axis=(1, 2))
    pixels = images / peak[:, None, None]
    ends = (slice(CORNER), slice(-CORNER, None))
    corners = np.stack([images[:, y, x] for y in ends for x in ends])
    axis = np.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    flux = np.clip(images - np.median(corners, axis=(0, 2, 3))[:, None, None], 0, None)
    total = flux.sum(axis=(1, 2))
    bright = pixels > 0.2
    return {
        "pixel mean": pixels.mean(axis=(1, 2)),
        "pixel standard deviation": pixels.std(axis=(1, 2)),
        "peak": peak,
        "corner counts": corners.mean(axis=(0, 2, 3)),
        "corner variance": corners.var(axis=(0, 2, 3)),
        "flux centroid x": (flux.sum(axis=1) * axis).sum(axis=1) / total,
        "flux centroid y": (flux.sum(axis=2) * axis).sum(axis=1) / total,
        "bright area": bright.mean(axis=(1, 2)),
        "radius of bright pixels": (bright * np.hypot(axis[:, None], axis)).sum(axis=(1, 2)) / bright.sum(axis=(1, 2)),
        "width in x": np.sqrt((flux.sum(axis=1) * axis**2).sum(axis=1) / total),
        "width in y": np.sqrt((flux.sum(axis=2) * axis**2).sum(axis=1) / total),
        "pixel-to-pixel roughness": np.abs(np.diff(images, axis=2)).mean(axis=(1, 2)),
    }


@dataclass(frozen=True)
class Comparison:
    """One statistic of real and of simulated images."""

    name: str
    real: tuple[float, float]
    """Mean and standard deviation."""
    simulated: tuple[float, float]
    distance: float
    """Of Kolmogorov and Smirnov: the largest difference of the cumulative distributions."""
    p: float
    """Chance of a distance as large, if both are distributed alike."""


def compare(real: Counts, simulated: Counts) -> list[Comparison]:
    """Every statistic of two sets of images [n, h, w]."""
    from scipy.stats import ks_2samp  # slow to import

    pairs, rows = statistics(simulated), []
    for name, ours in statistics(real).items():
        test = ks_2samp(ours, pairs[name])
        rows.append(
            Comparison(
                name,
                (float(ours.mean()), float(ours.std())),
                (float(pairs[name].mean()), float(pairs[name].std())),
                float(test.statistic),
                float(test.pvalue),
            )
        )
    return rows


class Telling(NamedTuple):
    """How well a network tells real from simulated images it was not trained on."""

    auc: float
    """0.5 where it cannot."""
    low: float
    """Lower end of the 95 % interval over resampled images."""
    high: float
    """Its upper end."""


EPOCHS = 10
MOST_SEEN = 112
"""Pixels along the side of the central square that the network sees, at most. They are not
binned: noise and blur are to be compared as well."""


def tell_apart(real: Counts, simulated: Counts, *, seed: int = 0, epochs: int = EPOCHS, bar: Bar = silent) -> Telling:
    """Train a small network to tell real from simulated images, and measure it on others.

    Each of two networks learns from one half of the images and is measured on the other half.
    real, simulated: [n, h, w] of counts above their minimum, best as many of each.
    """
    part, seen = _part(real, simulated), InputConfig(crop=min(MOST_SEEN, *real.shape[1:]))
    halves = np.random.default_rng(seed).permutation(len(part)) % 2 == 0
    resampled = []
    with bar("telling real from simulated", 2 * epochs) as advance:
        for number, is_learnt in enumerate((halves, ~halves)):
            config = TrainConfig(
                epochs=epochs, batch_size=64, lr=0.02, adamw_lr=3e-3, truth_weight=0, seed=seed + number
            )
            feed = loop.BatchSource(part.take(np.flatnonzero(is_learnt)), seen, config, "cpu")
            network = _trained(feed, partial(_tell, advance, number * epochs))
            others = part.take(np.flatnonzero(~is_learnt))
            weights = np.vstack([np.ones(len(others)), metrics.resamples(len(others), seed)])
            resampled.append(metrics.auc(_scores(network, others, seen), others.labels == 1, weights))
    found = metrics.interval(np.mean(resampled, axis=0))
    return Telling(found["value"], found["low"], found["high"])


def _tell(advance: Advance, before: int, epoch: int) -> None:
    advance(before + epoch + 1, f"epoch {epoch + 1}")


def _part(real: Counts, simulated: Counts) -> Part:
    counts, n = np.concatenate([simulated, real]), len(simulated) + len(real)
    labels = np.repeat([0, 1], [len(simulated), len(real)])
    return Part((counts,), np.arange(n), labels, np.arange(n).astype(str), None)


def _trained(feed: loop.BatchSource, on_epoch: Callable[[int], object]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(feed.config.seed)
        network = networks.to_device(networks.build("lensnet", 2), feed.device)
    n_steps = len(feed) * feed.config.epochs
    loop.fit(
        network,
        None,
        loop.make_optimizer([network], feed.config),
        feed.epochs(),
        config=feed.config,
        share_done=lambda step: step / n_steps,
        on_step=lambda step: None,
        on_epoch=on_epoch,
        has_bf16=networks.has_bf16_gain("lensnet", feed.device, side_seen(feed.seen, feed.part.shape)),
    )
    return network.eval()


def _scores(network: nn.Module, part: Part, seen: InputConfig) -> NDArray[np.float64]:
    """Log odds of being real, [n]."""
    scores = []
    with torch.inference_mode():
        for start in range(0, len(part), 64):
            chosen = np.arange(start, min(start + 64, len(part)))
            logits = network(inputs.counts_to_input(part.counts(chosen), seen))
            scores.append((logits[:, 1] - logits[:, 0]).double().numpy())
    return np.concatenate(scores)


def fidelity(
    survey: Survey, path: Path, label: str, *, seed: int = 1, bar: Bar = silent
) -> tuple[list[Comparison], Telling]:
    """Compare real images of one class with as many simulated ones: statistics, and a network's attempt.

    path: a folder of images, or an .npz file whose array `counts` [n, h, w] holds counts.
    """
    real = _real_images(path, bar)
    side = survey.camera.n_pixels
    if real.shape[1:] != (side, side):
        raise ImageError(
            f"{path}: its images are {real.shape[1]} x {real.shape[2]} pixels but {survey.name} makes {side} x {side}. "
            "Crop them, or edit camera.n_pixels in a copy of the preset."
        )
    if len(real) < FEWEST:
        raise DataError(f"{path}: holds {len(real)} images; a comparison needs at least {FEWEST}.")
    first = CLASSES.index(label)
    indices = range(first, first + len(CLASSES) * len(real), len(CLASSES))
    _, simulated = render.simulate(survey, seed, "train", indices)
    if (real.max(axis=(1, 2)) == pixels.QUANTISED_PEAK).any():  # no photon counts, so none in ours either
        simulated = np.stack([pixels.scale_to_16_bits(one.astype(np.float64)) for one in simulated])
        real = np.stack([pixels.scale_to_16_bits(one.astype(np.float64)) for one in real])
    return compare(real, simulated), tell_apart(real, simulated, seed=seed, bar=bar)


FEWEST = 50
"""Images without which a comparison says nothing."""


def _real_images(path: Path, bar: Bar) -> NDArray[np.uint16]:
    if path.suffix.lower() == ".npz":
        return formats.read_archive(path)
    found = sorted(file for file in path.glob("*") if formats.is_image(file))
    if not found:
        raise DataError(f"{path}: holds no {', '.join(formats.READERS)} images. Name a folder of images of one class.")
    with bar(f"reading {path}", len(found)) as advance:
        count, read = Count(advance), []
        for file in found:
            read.append(formats.read_counts(file))
            count.add(1)
            if read[-1].shape != read[0].shape:
                raise ImageError(
                    f"{file}: is {read[-1].shape[0]} x {read[-1].shape[1]} pixels, {found[0]} is not. "
                    "Crop them to one size."
                )
    return np.stack(read)
