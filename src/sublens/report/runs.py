"""Measured runs, read back and checked for being read_comparable."""

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
from pydantic import ValidationError

from sublens.config import Frozen
from sublens.errors import BundleError, DataError
from sublens.evaluation import evaluate
from sublens.inference.predictor import PredictionTable
from sublens.models import bundle
from sublens.models.bundle import Card
from sublens.training.recorder import GALLERY, LOG, PREDICTIONS, SCORES

CHANCE = 0.5
"""ROC AUC of a guess."""


class Interval(Frozen):
    """A score and its 95 % interval."""

    value: float
    low: float
    high: float


class Latency(Frozen):
    """Milliseconds a batch of so many images."""

    batch_1: float
    batch_32: float


class Measured(Frozen):
    """The data set whose test part was used."""

    name: str
    hash: str


class Scores(Frozen, extra="ignore"):
    """What `scores.json` says of a run."""

    n: int
    loss: Interval
    accuracy: Interval
    auc_macro: Interval
    auc: dict[str, Interval]
    confusion: tuple[tuple[int, ...], ...]
    latency_ms: Latency
    parameters: int
    threads: int
    device: str
    processor: str
    data: Measured


@dataclass(frozen=True)
class Log:
    """How a training went; images are those seen so far."""

    step_images: NDArray[np.float64]
    step_losses: NDArray[np.float64]
    epoch_images: NDArray[np.float64]
    epoch_minutes: NDArray[np.float64]
    epoch_aucs: NDArray[np.float64]
    """Macro AUC on the selection part."""


@dataclass(frozen=True)
class Gallery:
    """Some test images, as counts above their minimum [n, h, w]."""

    counts: NDArray[np.uint16]
    ids: NDArray[np.str_]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """A measured run, read back."""

    name: str
    """Shown to the reader; no two in a report are the same."""
    folder: Path
    card: Card
    scores: Scores
    predictions: PredictionTable
    log: Log
    gallery: Gallery

    @property
    def images(self) -> int:
        """Training images seen."""
        return self.card.training.images

    @property
    def seconds(self) -> float:
        """Time of training."""
        return self.card.training.seconds

    @property
    def is_at_chance(self) -> bool:
        """Whether the network may be no better than a guess."""
        return self.scores.auc_macro.low <= CHANCE


def _read(folder: Path) -> Run:
    try:
        card = bundle.read_card(folder)
    except BundleError as err:
        raise DataError(str(err)) from err
    if not (folder / SCORES).is_file():
        raise DataError(
            f"{folder}: is trained but not measured (no {SCORES}). Measure it with `sublens evaluate {folder} DATASET`."
        )
    scores = _read_scores(folder / SCORES)
    predictions = evaluate.read_predictions(folder / PREDICTIONS)
    n, c = scores.n, len(card.classes)
    has_classes = tuple(scores.auc) == predictions.classes == card.classes
    has_shapes = predictions.probs.shape == (n, c) and np.shape(scores.confusion) == (c, c)
    if not has_classes or not has_shapes or not np.isfinite(predictions.probs).all():
        raise DataError(f"{folder}: {SCORES} and {PREDICTIONS} do not fit its network. {_measure_again(folder)}")
    log, gallery = _read_log(folder / LOG), _read_gallery(folder / GALLERY)
    return Run(card.network, folder, card, scores, predictions, log, gallery)


def _measure_again(folder: Path) -> str:
    return f"Measure the run again with `sublens evaluate {folder} DATASET`."


def _read_scores(path: Path) -> Scores:
    try:
        return Scores.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as err:
        raise DataError(f"{path}: is damaged, or of another version. {_measure_again(path.parent)}") from err


def _read_log(path: Path) -> Log:
    """The log at `path`; a last line that was cut while being written is left out."""
    try:
        lines = path.read_bytes().splitlines()
        rows = list(_rows(lines))
        steps = [(row["images"], row["loss"]) for row in rows if row["kind"] == "step"]
        epochs = [(row["images"], row["seconds"] / 60, row["selection_auc"]) for row in rows if row["kind"] == "epoch"]
        return Log(*_columns(steps, 2), *_columns(epochs, 3))
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DataError(f"{path}: is missing or damaged. Copy the whole run again, or train again.") from err


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
        raise DataError(f"{path}: is missing or damaged. {_measure_again(path.parent)}") from err
    return gallery


def read_comparable(folders: Sequence[Path]) -> list[Run]:
    """The runs, the best first; `DataError` where they were not measured alike."""
    if not folders:
        raise DataError("There is no run to report on. Name one or more folders that `sublens evaluate` has measured.")
    runs = [_read(folder) for folder in folders]
    first = runs[0]
    for run in runs[1:]:
        if run.card.classes != first.card.classes:
            raise DataError(
                f"{run.folder}: tells apart {', '.join(run.card.classes)}, "
                f"but {first.folder} {', '.join(first.card.classes)}. Runs need the same classes; compare these apart."
            )
        if not _has_same_test(run, first):
            raise DataError(
                f"{run.folder}: was not measured on the same test images of the same data set as {first.folder}. "
                "Train and measure both on one data set with one split.seed, or compare them apart."
            )
    return sorted(_named(runs), key=lambda run: (-np.nan_to_num(run.scores.auc_macro.value), run.name))


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
            f"{times} runs would be called {name}, and a report needs to tell them apart. "
            "Name each run once, or rename a folder."
        )
    return named
