"""Predictor x data set -> prediction table -> scores."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sublens import metrics
from sublens.data import Part
from sublens.predict import BATCH, Predictor

LATENCY_RUNS = 12
LATENCY_SECONDS = 2.0
"""Latency is measured over this many runs, or until this much time has passed."""


@dataclass(frozen=True)
class Predictions:
    """The prediction table: one row an image."""

    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    """[n], positions in `classes`."""
    probs: NDArray[np.float64]
    """[n, c]"""
    classes: tuple[str, ...]


def predict_all(predictor: Predictor, part: Part, on_progress: Callable[[int], object] = lambda n: None) -> Predictions:
    """Predict every image of a part."""
    rows = []
    for start in range(0, len(part), BATCH):
        rows.append(predictor.probs(part.counts(np.arange(start, min(start + BATCH, len(part))))))
        on_progress(len(rows[-1]))
    return Predictions(part.ids, part.labels, np.concatenate(rows), predictor.classes)


def score(predictor: Predictor, predictions: Predictions) -> dict[str, Any]:
    """What `scores.json` holds: quality with intervals, latency and size."""
    return {
        **metrics.score(predictions.probs, predictions.labels, predictions.classes),
        "latency_ms": {f"batch_{size}": latency_ms(predictor, size) for size in (1, 32)},
        "parameters": sum(parameter.numel() for parameter in predictor.model.parameters()),
        "threads": torch.get_num_threads(),
        "device": predictor.device,
    }


def latency_ms(predictor: Predictor, batch_size: int) -> float:
    """Median time from counts to probabilities for one batch, milliseconds."""
    noise = np.random.default_rng(0).poisson(10, (batch_size, *predictor.image_shape))
    counts = noise.astype(np.uint16)
    predictor.probs(counts)  # the first call allocates
    times: list[float] = []
    while len(times) < LATENCY_RUNS and sum(times) < LATENCY_SECONDS:
        start = perf_counter()
        predictor.probs(counts)
        times.append(perf_counter() - start)
    return 1e3 * statistics.median(times)
