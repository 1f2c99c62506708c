"""Fidelity of simulated images: summary statistics beside those of real images, and a classifier two-sample test."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sublens.config import InputConfig, TrainConfig, input_side
from sublens.data.dataset import Part
from sublens.errors import DataError, ImageError
from sublens.images import formats, pixels
from sublens.models import inputs, networks
from sublens.progress import Advance, Bar, Count, silent
from sublens.sim import render
from sublens.sim.population import CLASSES
from sublens.surveys.survey import Survey
from sublens.training import loop

CORNER = 8
"""Side of the squares in the four corners, which hold sky alone, pixels."""
Counts = NDArray[np.uint16]
"""Images [n, h, w], counts above their minimum."""
Table = Mapping[str, NDArray[np.float64]]
"""Statistics of n images by name, each [n]."""


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
    """The statistic."""
    real: tuple[float, float]
    """Mean and standard deviation over the real images."""
    simulated: tuple[float, float]
    """Mean and standard deviation over the simulated images."""
    distance: float
    """Kolmogorov-Smirnov distance: the largest difference of the cumulative distributions."""
    p: float
    """Probability of a distance as large, if both are distributed alike."""


def compare(real: Counts, simulated: Counts) -> list[Comparison]:
    """Every statistic of two sets of images [n, h, w]."""
    others = statistics(simulated)
    return [_comparison(name, values, others[name]) for name, values in statistics(real).items()]


def _comparison(name: str, real: NDArray[np.float64], simulated: NDArray[np.float64]) -> Comparison:
    first, second = ((float(values.mean()), float(values.std())) for values in (real, simulated))
    return Comparison(name, first, second, *ks_test(real, simulated))


def ks_test(real: NDArray[np.float64], simulated: NDArray[np.float64]) -> tuple[float, float]:
    """Kolmogorov-Smirnov distance of two samples, and the probability of one as large if both are alike."""
    from scipy.stats import ks_2samp  # slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # among many equal values p is that of large samples
        test = ks_2samp(real, simulated)
    return float(test.statistic), float(test.pvalue)


PERMUTATIONS = 999
"""Random permutations of the labels behind `chance_of_one`."""


def chance_of_one(real: Counts, simulated: Counts, *, seed: int = 0) -> float:
    """`chance_of_any` of the statistics of images [n, h, w]."""
    return chance_of_any(statistics(real), statistics(simulated), seed=seed)


def chance_of_any(real: Table, simulated: Table, *, seed: int = 0) -> float:
    """Probability that some statistic differs as much as the one that differs most, if all images are alike.

    From random permutations of the labels, which keep the statistics' correlations (Westfall & Young 1993).
    """
    tables = [_Pooled.of(np.concatenate([values, simulated[name]])) for name, values in real.items()]
    n, n_simulated = (len(next(iter(table.values()))) for table in (real, simulated))
    rng, is_real = np.random.default_rng(seed), np.arange(n + n_simulated) < n
    observed = max(table.distance(is_real) for table in tables)
    shuffled = (rng.permutation(is_real) for _ in range(PERMUTATIONS))
    n_beyond = sum(max(table.distance(labels) for table in tables) >= observed for labels in shuffled)
    return (1 + n_beyond) / (1 + PERMUTATIONS)


class _Pooled(NamedTuple):
    """One statistic of all images, sorted."""

    order: NDArray[np.int64]
    """Images from the least value to the greatest."""
    ends: NDArray[np.int64]
    """Places of the last image of each value."""

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Self:
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        return cls(order, np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)))

    def distance(self, is_real: NDArray[np.bool_]) -> float:
        """Kolmogorov-Smirnov distance of the images so labelled from the others."""
        ordered = is_real[self.order]
        n = int(ordered.sum())
        steps = np.where(ordered, 1 / n, -1 / (len(ordered) - n))
        return float(np.abs(np.cumsum(steps)[self.ends]).max())


class TwoSampleTest(NamedTuple):
    """Two networks' attempt to tell real from simulated images, each on the half that the other learned from."""

    auc: float
    """Mean of the areas under their ROC curves; 0.5 where both are alike."""
    p: float
    """Probability of AUCs as great, if both are alike: at most this, however the two depend on each other."""


EPOCHS = 10
"""Passes over the half of the images that a network learns from."""
LARGEST_CROP = 112
"""Largest side of the central square that the network is given, pixels. They are not binned: noise and blur are
to be compared as well."""


def tell_apart(
    real: Counts, simulated: Counts, *, seed: int = 0, epochs: int = EPOCHS, bar: Bar = silent
) -> TwoSampleTest:
    """Train a small network to tell real from simulated images, and measure it on others.

    Each of two networks learns from one half of the images and is measured on the other half.
    real, simulated: [n, h, w] of counts above their minimum, best as many of each.
    """
    images, labels = np.concatenate([simulated, real]), np.repeat([0, 1], [len(simulated), len(real)])
    part, crop = part_of(images, labels), InputConfig(crop=min(LARGEST_CROP, *real.shape[1:]))
    is_first = np.random.default_rng(seed).permutation(len(part)) % 2 == 0
    tests = []
    with bar("telling real from simulated", 2 * epochs) as advance:
        for number, is_training in enumerate((is_first, ~is_first)):
            config = settings(epochs, seed + number)
            training, test = (part.take(np.flatnonzero(mask)) for mask in (is_training, ~is_training))
            network = train_network(
                loop.BatchSource(training, crop, config, "cpu"), partial(_advance, advance, number * epochs)
            )
            tests.append(_permutation_test(log_odds(network, test, crop), test.labels == 1))
    return _combined(tests)


def _permutation_test(scores: NDArray[np.float64], is_real: NDArray[np.bool_]) -> TwoSampleTest:
    """AUC of a network and its p over permutations of the labels of images that it was not trained on.

    Of like images these labels are exchangeable, whatever the network has learned; over all permutations an AUC is
    distributed as Mann & Whitney's U (1947, Ann. Math. Stat. 18, 50).
    """
    from scipy.stats import mannwhitneyu  # slow to import

    test = mannwhitneyu(scores[is_real], scores[~is_real], alternative="greater")
    return TwoSampleTest(float(test.statistic) / int(is_real.sum()) / int((~is_real).sum()), float(test.pvalue))


def _combined(tests: Sequence[TwoSampleTest]) -> TwoSampleTest:
    """Mean AUC, and the least p times the number of tests (Bonferroni).

    The two networks' AUCs are correlated, since what one learns from is what the other is measured on; Bonferroni's
    bound holds all the same.
    """
    return TwoSampleTest(
        float(np.mean([test.auc for test in tests])), min(1.0, len(tests) * min(test.p for test in tests))
    )


def _advance(advance: Advance, n_before: int, epoch: int) -> None:
    advance(n_before + epoch + 1, f"epoch {epoch + 1}")


def settings(epochs: int, seed: int) -> TrainConfig:
    """Settings by which a network learns to tell real from simulated images."""
    return TrainConfig(epochs=epochs, batch_size=64, lr=0.02, adamw_lr=3e-3, truth_weight=0, seed=seed)


def part_of(images: NDArray[np.uint16], labels: NDArray[np.int64]) -> Part:
    """Images [n, h, w] as a data set, label 1 for real."""
    rows = np.arange(len(images))
    return Part((images,), rows, labels, rows.astype(str), None)


def train_network(batches: loop.BatchSource, on_epoch: Callable[[int], object]) -> nn.Module:
    """A lensnet of two classes, fitted to the batches."""
    with torch.random.fork_rng():
        torch.manual_seed(batches.config.seed)
        network = networks.to_device(networks.build("lensnet", 2, batches.input.n_channels), batches.device)
    n_steps = len(batches) * batches.config.epochs
    loop.fit(
        network,
        None,
        loop.make_optimizer([network], batches.config),
        batches.epochs(),
        config=batches.config,
        share_done=lambda step: step / n_steps,
        on_step=lambda step: None,
        on_epoch=on_epoch,
        has_bf16=networks.has_bf16_gain("lensnet", batches.device, input_side(batches.input, batches.part.shape)),
    )
    return network.eval()


def log_odds(network: nn.Module, part: Part, crop: InputConfig) -> NDArray[np.float64]:
    """Log odds of being real, [n]."""
    odds = []
    with torch.inference_mode():
        for start in range(0, len(part), 64):
            rows = np.arange(start, min(start + 64, len(part)))
            logits = network(inputs.counts_to_input(part.counts(rows), crop))
            odds.append((logits[:, 1] - logits[:, 0]).double().numpy())
    return np.concatenate(odds)


FEWEST = 50
"""Fewest images of a comparison."""


class Fidelity(NamedTuple):
    """Real images beside simulated ones."""

    rows: list[Comparison]
    """Every statistic."""
    chance: float
    """`chance_of_one` of them."""
    separation: TwoSampleTest
    """The networks' attempt."""


def fidelity(survey: Survey, path: Path, label: str, *, seed: int = 1, bar: Bar = silent) -> Fidelity:
    """Compare real images of one class with as many simulated ones: statistics, and a network's attempt.

    path: a folder of images, or an .npz file whose array `counts` [n, h, w] holds counts. Raises `ImageError`
    where they are not of the survey's size, `DataError` where they are fewer than `FEWEST`.
    """
    real = _real_images(path, bar)
    _check_comparable(real, survey, path)
    first = CLASSES.index(label)
    indices = range(first, first + len(CLASSES) * len(real), len(CLASSES))
    _, simulated = render.simulate(survey, seed, "train", indices)
    if (real.max(axis=(1, 2)) == pixels.QUANTISED_PEAK).any():  # no photon counts, so none in ours either
        real, simulated = _rescaled(real), _rescaled(simulated)
    return Fidelity(
        compare(real, simulated),
        chance_of_one(real, simulated, seed=seed),
        tell_apart(real, simulated, seed=seed, bar=bar),
    )


def _check_comparable(real: Counts, survey: Survey, path: Path) -> None:
    side = survey.camera.n_pixels
    if real.shape[1:] != (side, side):
        raise ImageError(
            f"holds images of {real.shape[1]} x {real.shape[2]} pixels",
            need=f"{side} x {side}, which {survey.name} makes",
            next="Crop them, or edit camera.n_pixels in a copy of the preset.",
            path=path,
        )
    if len(real) < FEWEST:
        raise DataError(
            f"holds {len(real)} images", need=f"at least {FEWEST} to compare", next="Add more of them.", path=path
        )


def _rescaled(counts: Counts) -> Counts:
    return np.stack([pixels.scale_to_16_bits(image.astype(np.float64)) for image in counts])


def _real_images(path: Path, bar: Bar) -> Counts:
    """The images at `path`, all of one size."""
    if path.suffix.lower() == ".npz":
        return formats.read_archive(path)
    files = sorted(file for file in path.glob("*") if formats.is_image(file))
    if not files:
        raise DataError(
            "holds no images",
            need=f"{', '.join(formats.READERS)} files",
            next="Name a folder of images of one class.",
            path=path,
        )
    images: list[NDArray[np.uint16]] = []
    with bar(f"reading {path}", len(files)) as advance:
        count = Count(advance)
        for file in files:
            images.append(formats.read_counts(file))
            if images[-1].shape != images[0].shape:
                raise _other_size(file, images[-1], images[0])
            count.add(1)
    return np.stack(images)


def _other_size(path: Path, image: NDArray[np.uint16], first: NDArray[np.uint16]) -> ImageError:
    (height, width), (rows, columns) = image.shape, first.shape
    return ImageError(
        f"is {height} x {width} pixels",
        need=f"{rows} x {columns}, as the first",
        next="Crop them to one size.",
        path=path,
    )
