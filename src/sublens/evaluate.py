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
from sublens.models import MASS_UNIT_MSUN, field_of_view
from sublens.predict import BATCH, Predictor
from sublens.sim.population import mass_map
from sublens.sim.survey import Survey

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
    masses: NDArray[np.float64] | None = None
    """[n, g, g], Msun in each cell, where the network draws maps."""


def predict_all(predictor: Predictor, part: Part, on_progress: Callable[[int], object] = lambda n: None) -> Predictions:
    """Predict every image of a part."""
    probs, masses = [], []
    for start in range(0, len(part), BATCH):
        some, drawn = predictor.look(part.counts(np.arange(start, min(start + BATCH, len(part)))))
        probs.append(some)
        masses += [] if drawn is None else [drawn]
        on_progress(len(some))
    maps = np.concatenate(masses) if masses else None
    return Predictions(part.ids, part.labels, np.concatenate(probs), predictor.classes, maps)


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
    predictor: Predictor, predictions: Predictions, part: Part, survey: Survey | None
) -> dict[str, dict[str, float]]:
    """`metrics.map_score` of each class that has substructure.

    part, survey: what was predicted and how it was simulated. Empty where there are no maps or no
    truth, or where a cell is not as large as those that the network learned.
    """
    seen, masses = predictor.map, predictions.masses
    if seen is None or masses is None or part.truth is None or survey is None:
        return {}
    side = field_of_view(predictor.input, part.shape) * survey.camera.pixel_scale
    if not np.isclose(side, seen.n_cells * seen.cell_arcsec):
        return {}
    true = mass_map(part.truth, seen.n_cells, side)
    chosen = {name: part.labels == label for label, name in enumerate(predictor.classes)}
    return {
        name: metrics.map_score(masses[rows], true[rows], MASS_UNIT_MSUN)
        for name, rows in chosen.items()
        if true[rows].any()
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
