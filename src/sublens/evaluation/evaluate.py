"""A trained network measured on the test part: scores.json, predictions.csv, gallery.npz."""

import statistics
from time import perf_counter
from typing import Any

import numpy as np

from sublens import metrics
from sublens.config import field_of_view
from sublens.data.dataset import Part
from sublens.inference.engines import MASS_UNIT_MSUN
from sublens.inference.predictor import BATCH as BATCH
from sublens.inference.predictor import Predictions, Predictor
from sublens.models.calibration import Calibration
from sublens.sim.population import mass_map
from sublens.sim.survey import Survey

LATENCY_RUNS = 12
LATENCY_SECONDS = 2.0
"""Latency is measured over this many runs, or until this much time has passed."""


def score(predictor: Predictor, predictions: Predictions) -> dict[str, Any]:
    """What `scores.json` says of a predictor: quality with intervals, trust and latency."""
    return {
        **metrics.score(predictions.probs, predictions.labels, predictions.classes),
        "trust": _trust(predictor.calibration, predictions),
        "latency_ms": {f"batch_{size}": latency_ms(predictor, size) for size in (1, 32)},
    }


def _trust(calibration: Calibration | None, predictions: Predictions) -> dict[str, Any]:
    """How honest the probabilities and sets are, and how many images are called strange."""
    probs, labels = predictions.probs, predictions.labels
    told: dict[str, Any] = {"ece": metrics.calibration_error(probs, labels)}
    if calibration:
        sets = calibration.sets(probs)
        told["promised_coverage"] = calibration.coverage
        told["coverage"] = metrics.coverage(sets, labels, predictions.classes)
        told["set_sizes"] = [float((sets.sum(axis=1) == size).mean()) for size in range(len(predictions.classes) + 1)]
        if predictions.ood is not None:
            told["strange"] = float((predictions.ood > calibration.ood_threshold).mean())
    return told


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
