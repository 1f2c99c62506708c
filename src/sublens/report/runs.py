"""Measured runs, read back and checked to be comparable."""

import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublens.config import Frozen
from sublens.errors import BundleError, DataError
from sublens.evaluation import evaluate
from sublens.evaluation.calibration_scores import CalibrationScores
from sublens.inference.engines import EngineName
from sublens.inference.predictor import PredictionTable
from sublens.models import bundle
from sublens.models.bundle import Card
from sublens.training.recorder import GALLERY, LOG, PREDICTIONS, SCORES, damaged_log, read_log

CHANCE = 0.5
"""ROC AUC of a guess."""


class Interval(Frozen):
    """A score and its 95 % interval."""

    value: float
    """Score of the whole test part."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


class Latency(Frozen):
    """Median time from counts to probabilities, ms."""

    batch_1: float
    """Time of one image."""
    batch_32: float
    """Time of a batch of 32 images."""


class Measured(Frozen):
    """The data set whose test part was used."""

    name: str
    """Name of the store or folder."""
    hash: str
    """sha256 of the data."""


class Scores(Frozen, extra="ignore"):
    """The content of `scores.json`."""

    n: int
    """Test images."""
    loss: Interval
    """Cross-entropy, nats."""
    accuracy: Interval
    """Share of images whose most probable class is the true one."""
    auc_macro: Interval
    """Mean of the areas under the ROC curves."""
    auc: dict[str, Interval]
    """One-vs-rest area under the ROC curve of each class."""
    confusion: tuple[tuple[int, ...], ...]
    """Test images by true class (rows) and most probable class (columns)."""
    engine: EngineName = "torch"
    """Engine of the latency; files written before it was named are of torch."""
    latency_ms: Latency
    """Latency on `device` with `threads` threads, ms."""
    parameters: int
    """Parameters of the network."""
    threads: int
    """Threads of the engine."""
    device: str
    """Device of the engine."""
    processor: str
    """Name of the processor."""
    data: Measured
    """Data set of the test part."""
    calibration: CalibrationScores = CalibrationScores()
    """How well the calibration holds; nothing in files from before it was measured."""


@dataclass(frozen=True)
class Log:
    """How a training went; images are the training images used so far."""

    step_images: NDArray[np.float64]
    """Images up to each step."""
    step_losses: NDArray[np.float64]
    """Cross-entropy of each step, nats."""
    epoch_images: NDArray[np.float64]
    """Images up to the end of each epoch."""
    epoch_minutes: NDArray[np.float64]
    """Minutes up to the end of each epoch."""
    epoch_aucs: NDArray[np.float64]
    """Macro AUC on the selection part after each epoch."""


@dataclass(frozen=True)
class Gallery:
    """Some test images of a run."""

    counts: NDArray[np.uint16]
    """Counts above the minimum, [n, h, w]."""
    ids: NDArray[np.str_]
    """Identifiers of the images."""
    labels: NDArray[np.int64]
    """True classes, positions in the network's classes, [n]."""


@dataclass(frozen=True)
class Run:
    """A measured run, read back."""

    name: str
    """Name in the report, where no two are the same."""
    folder: Path
    """Folder of the run."""
    card: Card
    """Card of its bundle."""
    scores: Scores
    """Scores on the test part."""
    predictions: PredictionTable
    """Predictions for the test part."""
    log: Log
    """Log of its training."""
    gallery: Gallery
    """Examples and mistakes among the test images."""

    @property
    def images(self) -> int:
        """Training images used, repeats included."""
        return self.card.training.images

    @property
    def seconds(self) -> float:
        """Duration of the training, seconds."""
        return self.card.training.seconds

    @property
    def is_at_chance(self) -> bool:
        """Whether the interval of the AUC reaches down to that of a guess."""
        return self.scores.auc_macro.low <= CHANCE


def _read(folder: Path) -> Run:
    if not folder.exists() and str(folder) in bundle.shipped():
        raise DataError(
            "comes with sublens and is not measured here",
            need="a measured run",
            next=f"Measure a copy with `sublens evaluate {folder} DATASET --out runs/{folder}`; compare that.",
            path=folder,
        )
    try:
        card = bundle.read_card(folder)
    except BundleError as err:
        raise DataError(err.what, need=err.need, next=err.next, path=err.path) from err
    scores = _read_scores(folder)
    predictions = evaluate.read_predictions(folder / PREDICTIONS)
    n, c = scores.n, len(card.classes)
    has_classes = tuple(scores.auc) == predictions.classes == card.classes
    has_shapes = predictions.probs.shape == (n, c) and np.shape(scores.confusion) == (c, c)
    if not has_classes or not has_shapes or not np.isfinite(predictions.probs).all():
        raise _unusable(f"{SCORES} and {PREDICTIONS} do not fit the network", folder, folder)
    log = _read_log(folder, card)
    return Run(card.network, folder, card, scores, predictions, log, _read_gallery(folder / GALLERY))


def _unusable(what: str, path: Path, run: Path) -> DataError:
    """Error for a file of a run that measuring it again would mend."""
    again = f"Measure the run again with `sublens evaluate {run} DATASET --force`."
    return DataError(what, need="what `sublens evaluate` left there", next=again, path=path)


def _read_scores(folder: Path) -> Scores:
    content = evaluate.read_scores(folder)
    try:
        evaluate.refuse_partial_scores(content, folder)
        return Scores.model_validate(content)
    except (ValueError, AttributeError, TypeError, KeyError) as err:
        raise _unusable("is of another version of sublens", folder / SCORES, folder) from err


def _read_log(folder: Path, card: Card) -> Log:
    """The log of a run, without a last line that was cut while being written.

    Empty where it is missing and not needed, as that of an exported network.
    """
    if card.graph and card.graph.is_alone and not (folder / LOG).exists():
        return Log(*_columns([], 2), *_columns([], 3))
    lines = read_log(folder, card).splitlines()
    try:
        rows = list(_rows(lines))
        steps = [(row["images"], row["loss"]) for row in rows if row["kind"] == "step"]
        epochs = [(row["images"], row["seconds"] / 60, row["selection_auc"]) for row in rows if row["kind"] == "epoch"]
        return Log(*_columns(steps, 2), *_columns(epochs, 3))
    except (ValueError, KeyError, TypeError) as err:
        raise damaged_log(folder) from err


def _columns(rows: Sequence[Sequence[float]], n: int) -> NDArray[np.float64]:
    return np.array(rows, dtype=np.float64).reshape(-1, n).T


def _rows(lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except ValueError:
            if number < len(lines):
                raise


def _read_gallery(path: Path) -> Gallery:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            gallery = Gallery(archive["counts"], archive["ids"], archive["labels"])
        if not gallery.counts.ndim == 3 or not len(gallery.counts) == len(gallery.ids) == len(gallery.labels):
            raise ValueError("not a stack of images with an id and a label each")
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as err:
        raise _unusable("is missing or damaged", path, path.parent) from err
    return gallery


def read_comparable(folders: Sequence[Path]) -> list[Run]:
    """The runs, the best first; `DataError` where they were not measured alike."""
    if not folders:
        raise DataError(
            "No run was named",
            need="one or more folders that `sublens evaluate` has measured",
            next="Name them, as in `sublens compare runs/resnet18 runs/lensnet --out comparison`.",
        )
    runs = [_read(folder) for folder in folders]
    for run in runs[1:]:
        _check_comparable(run, runs[0])
    return sorted(_named(runs), key=lambda run: (-np.nan_to_num(run.scores.auc_macro.value), run.name))


def _check_comparable(run: Run, first: Run) -> None:
    if run.card.classes != first.card.classes:
        raise DataError(
            f"tells apart {', '.join(run.card.classes)}, but {first.folder} {', '.join(first.card.classes)}",
            need="the same classes in all runs",
            next="Compare these apart.",
            path=run.folder,
        )
    if not _has_same_test(run, first):
        raise DataError(
            f"was not measured on the test images of {first.folder}",
            need="the same test images of the same data set",
            next="Train and measure both on one data set with one split.seed, or compare them apart.",
            path=run.folder,
        )


def _has_same_test(run: Run, other: Run) -> bool:
    return (
        run.scores.data == other.scores.data
        and np.array_equal(run.predictions.ids, other.predictions.ids)
        and np.array_equal(run.predictions.labels, other.predictions.labels)
    )


def _named(runs: Sequence[Run]) -> list[Run]:
    """The runs under their network's name, or their folder's where networks repeat."""
    networks = Counter(run.card.network for run in runs)
    named = [run if networks[run.name] == 1 else replace(run, name=run.folder.resolve().name) for run in runs]
    name, times = Counter(run.name for run in named).most_common(1)[0]
    if times > 1:
        raise DataError(
            f"{times} runs would be called {name}",
            need="a name of its own for each",
            next="Name each run once, or rename a folder.",
        )
    return named
