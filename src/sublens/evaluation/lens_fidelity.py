"""Fidelity of a survey of telescope images: real lenses with noise maps beside simulated ones."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sublens import metrics
from sublens.config import InputConfig
from sublens.errors import DataError
from sublens.evaluation import lens_statistics
from sublens.evaluation.fidelity import chance_of_any, ks_test, log_odds, part_of, settings, train_network
from sublens.images.signal_to_noise import decode
from sublens.progress import Advance, Bar, silent
from sublens.sim import render
from sublens.sim.population import CLASSES
from sublens.storage.files import write_bytes
from sublens.surveys.survey import Survey
from sublens.training import loop

Floats = NDArray[np.float64]
Planes = NDArray[np.uint16]
"""Images [n, h, w] as `images.signal_to_noise` encodes them."""
MARK = b'"separation":'
"""Text that every file of a comparison holds near its end."""
FEWEST = 5
"""Fewest real lenses of a comparison, one for each of the `FOLDS`."""
COPIES = 16
"""Turned, mirrored and shifted copies of a real lens, and simulated images for each real lens."""
SHIFT = 4
"""Farthest that a copy is shifted along each axis, pixels."""
LARGEST_CROP = 112
"""Largest side of a copy, pixels; nothing is binned, since noise and blur are compared as well."""
FOLDS = 5
"""Networks, each measured on the lenses and simulated images that it did not learn from."""
EPOCHS = 6
"""Passes of a network over its copies and simulated images."""
TEST_COPIES = 4
"""Copies of an image over which a network's log odds are averaged."""
INPUT = InputConfig(transform="signal-to-noise")
"""Steps from a plane to the network's input."""


@dataclass(frozen=True)
class LensComparison:
    """One statistic of real and of simulated lenses."""

    name: str
    """The statistic."""
    real: tuple[float, float]
    """Median, and half the range of the middle 68 %, over the real lenses."""
    simulated: tuple[float, float]
    """The same over the simulated lenses."""
    shift: float
    """Median of the simulated less that of the real, over the latter's half range."""
    distance: float
    """Kolmogorov-Smirnov distance: the largest difference of the cumulative distributions."""
    p: float
    """Probability of a distance as large, if both are distributed alike."""


class Separation(NamedTuple):
    """How well networks tell real lenses that they have not seen from simulated ones."""

    value: float
    """Area under the ROC curve over lenses; 0.5 where both are alike."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end of its 95 % interval."""
    ranks: dict[str, float]
    """Share of the simulated images that look less real than each real lens."""


class LensFidelity(NamedTuple):
    """Real lenses beside simulated ones."""

    rows: list[LensComparison]
    """Every statistic, the one that tells most first."""
    chance: float
    """Probability that some statistic differs as much, if all lenses are alike."""
    separation: Separation
    """The networks' attempt."""

    def write(self, path: Path, survey: str) -> None:
        """Save everything as JSON."""
        tree: dict[str, Any] = {
            "survey": survey,
            "statistics": [asdict(row) for row in self.rows],
            "chance": self.chance,
            "separation": self.separation._asdict(),
        }
        write_bytes(path, (json.dumps(tree, indent=1) + "\n").encode())


def lens_fidelity(
    survey: Survey, real: dict[str, NDArray[np.uint16]], label: str, *, seed: int = 1, bar: Bar = silent
) -> LensFidelity:
    """Compare real lenses, by name, with simulated ones of one class: statistics, and networks' attempts.

    real: planes [h, w] of the survey's size. Raises `DataError` where they are fewer than `FEWEST`.
    """
    if len(real) < FEWEST:
        what = f"{len(real)} lenses that can be compared"
        raise DataError(what, need=f"at least {FEWEST}", next="Add more of them.")
    first = CLASSES.index(label)
    indices = range(first, first + len(CLASSES) * COPIES * len(real), len(CLASSES))
    planes, (_, simulated) = np.stack(list(real.values())), render.simulate(survey, seed, "train", indices)
    scale = survey.camera.pixel_scale
    tables = [lens_statistics.table(decode(images).astype(np.float64), scale) for images in (planes, simulated)]
    return LensFidelity(
        compare(*tables),
        chance_of_any(*tables, seed=seed),
        separate(planes, simulated, list(real), seed=seed, bar=bar),
    )


def compare(real: dict[str, Floats], simulated: dict[str, Floats]) -> list[LensComparison]:
    """Every statistic of two tables, the greatest distance first."""
    rows = [_comparison(name, values, simulated[name]) for name, values in real.items()]
    return sorted(rows, key=lambda row: -row.distance)


def _comparison(name: str, real: Floats, simulated: Floats) -> LensComparison:
    distance, p = ks_test(real, simulated)
    first, second = _middle(real), _middle(simulated)
    difference = second[0] - first[0]
    return LensComparison(name, first, second, difference / (first[1] or second[1] or 1.0), distance, p)


def _middle(values: Floats) -> tuple[float, float]:
    """Median, and half the range of the middle 68 %."""
    low, median, high = np.quantile(values, (0.16, 0.5, 0.84))
    return float(median), float(high - low) / 2


def separate(
    real: Planes, simulated: Planes, names: Sequence[str], *, seed: int = 0, epochs: int = EPOCHS, bar: Bar = silent
) -> Separation:
    """Train `FOLDS` networks to tell real from simulated, each measured on lenses that it has not seen.

    A network learns from copies of lenses, but lenses count, not copies: the log odds of each image are the mean over
    its own. They become ranks among the simulated images of the fold, since networks' odds are on scales of their own.
    """
    rng, images = np.random.default_rng(seed), np.concatenate([simulated, real])
    labels = np.repeat([0, 1], [len(simulated), len(real)])
    folds, ranks = _folds(labels, rng), np.empty(len(images))
    with bar("telling real from simulated", FOLDS * epochs) as advance:
        for fold in range(FOLDS):
            is_test = folds == fold
            network = _trained(
                images[~is_test], labels[~is_test], seed + fold, epochs, partial(_advance, advance, fold * epochs, fold)
            )
            ranks[is_test] = _ranks(_mean_odds(network, images[is_test], rng), labels[is_test])
    interval = metrics.macro_auc_interval(np.stack([1 - ranks, ranks], axis=1), labels)
    return Separation(**interval, ranks=dict(zip(names, ranks[labels == 1].tolist(), strict=True)))


def _folds(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """The fold of each image, [n]; each has its share of the real lenses and of the simulated images."""
    folds = np.empty(len(labels), np.int64)
    for label in (0, 1):
        folds[labels == label] = rng.permutation(int((labels == label).sum())) % FOLDS
    return folds


def _trained(
    images: Planes, labels: NDArray[np.int64], seed: int, epochs: int, on_epoch: Callable[[int], object]
) -> nn.Module:
    """A network that has learned from `COPIES` of each real lens and one of each simulated image."""
    repeated = np.repeat(np.arange(len(images)), np.where(labels == 1, COPIES, 1))
    part = part_of(copies(images[repeated], np.random.default_rng(seed)), labels[repeated])
    return train_network(loop.BatchSource(part, INPUT, settings(epochs, seed), "cpu"), on_epoch)


def copies(images: Planes, rng: np.random.Generator) -> Planes:
    """The images turned by right angles, mirrored and shifted at random, cut to one smaller square."""
    height, width = images.shape[1:]
    side = min(LARGEST_CROP, height - 2 * SHIFT, width - 2 * SHIFT)
    corner = np.array([height - side, width - side]) // 2
    shifts, turns = rng.integers(-SHIFT, SHIFT + 1, (len(images), 2)), rng.integers(0, 8, len(images))
    squares = [
        np.rot90(image[y : y + side, x : x + side], turn % 4)
        for image, (y, x), turn in zip(images, corner + shifts, turns, strict=True)
    ]
    return np.stack([square.T if turn >= 4 else square for square, turn in zip(squares, turns, strict=True)])


def _mean_odds(network: nn.Module, images: Planes, rng: np.random.Generator) -> Floats:
    """Log odds of being real, mean over `TEST_COPIES` of each image, [n]."""
    odds = [
        log_odds(network, part_of(copies(images, rng), np.zeros(len(images), np.int64)), INPUT)
        for _ in range(TEST_COPIES)
    ]
    return np.asarray(np.mean(odds, axis=0))


def _ranks(odds: Floats, labels: NDArray[np.int64]) -> Floats:
    """Share of the simulated images that look less real than each image, [n]; ties count half."""
    simulated = odds[labels == 0]
    return np.asarray(((odds[:, None] > simulated) + (odds[:, None] == simulated) / 2).mean(axis=1))


def _advance(advance: Advance, n_before: int, fold: int, epoch: int) -> None:
    advance(n_before + epoch + 1, f"network {fold + 1} of {FOLDS}, epoch {epoch + 1}")
