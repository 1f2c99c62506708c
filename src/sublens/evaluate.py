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
from sublens.models import MASS_UNIT_MSUN
from sublens.predict import BATCH, Predictor
from sublens.sim.population import mass_map

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


def score_maps(
    predictor: Predictor, part: Part, on_progress: Callable[[int], object] = lambda n: None
) -> dict[str, dict[str, float]]:
    """`metrics.map_score` of each class that has substructure; empty where there is no map or no truth."""
    if predictor.map is None or part.truth is None:
        return {}
    found = {}
    side = predictor.map.n_cells * predictor.map.cell_arcsec
    for label, name in enumerate(predictor.classes):
        rows = np.flatnonzero(part.labels == label)
        truth = part.take(rows).truth
        assert truth is not None
        true = mass_map(truth, predictor.map.n_cells, side)
        if true.any():
            chosen = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
            drawn = []
            for some in chosen:
                drawn.append(predictor.masses(part.counts(some)))
                on_progress(len(some))
            found[name] = metrics.map_score(np.concatenate(drawn), true, MASS_UNIT_MSUN)
    return found


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
