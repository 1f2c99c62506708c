"""Predictor x data set -> prediction table -> scores."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from sublens import metrics
from sublens.config import InputConfig, SplitConfig, field_of_view
from sublens.data import dataset
from sublens.data.dataset import Part
from sublens.errors import BundleError, DataError
from sublens.inference.engines import MASS_UNIT_MSUN
from sublens.inference.predictor import BATCH as BATCH
from sublens.inference.predictor import SLICE, Look, Predictions, Predictor
from sublens.inference.torch_engine import Eager, Whole
from sublens.models import bundle, calibration
from sublens.models.calibration import Calibration
from sublens.models.networks import device
from sublens.parallel.mapper import Mapper
from sublens.progress import Bar, Count, silent
from sublens.sim.population import mass_map
from sublens.sim.survey import Survey
from sublens.storage import object_store

FAMILIAR = 4_000
"""Training images that tell what is usual."""
LATENCY_RUNS = 12
LATENCY_SECONDS = 2.0
"""Latency is measured over this many runs, or until this much time has passed."""


def eager(
    model: nn.Module, classes: tuple[str, ...], shape: tuple[int, int], seen: InputConfig, device: str = "cpu"
) -> Predictor:
    """A predictor that runs this model on `device` with torch, as it stands: no maps, not calibrated."""
    return Predictor(Eager(Whole(model, seen), device), classes, shape, seen)


def predict_all(
    predictor: Predictor, part: Part, on_progress: Callable[[int], object] = lambda n: None, batch: int | None = None
) -> Predictions:
    """Predict every image of a part, `BATCH` together unless another number is named."""
    return _predictions(predictor, part, look_all(predictor, part, on_progress, batch))


class Lot(NamedTuple):
    """Images of a data set's test part that are looked at together, on a worker."""

    bundle: Path
    weights_sha256: str
    dataset: Path
    hash: str
    split: SplitConfig
    threads: int
    """Threads of torch, on which the last digits depend."""
    batch: int
    """Images that the network sees together, on which they depend as well."""
    start: int = 0
    stop: int = 0


def predict_on(
    mapper: Mapper, lot: Lot, predictor: Predictor, part: Part, on_progress: Callable[[int], object]
) -> Predictions:
    """`predict_all` of the test part on workers, which find network and data set where `lot` says."""
    starts = range(0, len(part), SLICE)
    looks = []
    for look in mapper(_looked, (lot._replace(start=n, stop=min(n + SLICE, len(part))) for n in starts)):
        looks.append(look)
        on_progress(len(look.probs))
    return _predictions(predictor, part, _joined(looks))


def _looked(lot: Lot) -> Look:
    predictor, part = _opened(lot._replace(start=0, stop=0))
    threads = torch.get_num_threads()
    torch.set_num_threads(lot.threads)
    try:
        return look_all(predictor, part.take(np.arange(lot.start, lot.stop)), batch=lot.batch)
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _opened(lot: Lot) -> tuple[Predictor, Part]:
    """What a worker keeps; raises `BundleError` or `DataError` where it finds something else."""
    folder, local = bundle.located(lot.bundle), dataset.open(object_store.local(lot.dataset), lot.split)
    if bundle.read_card(folder).weights_sha256 != lot.weights_sha256:
        raise BundleError(f"{lot.bundle}: is another network there. Copy the same one to all machines.")
    if local.hash != lot.hash:
        raise DataError(f"{lot.dataset}: is another data set there. Copy the same one to all machines.")
    return Predictor.load(folder, "torch", device()), local.test


def _predictions(predictor: Predictor, part: Part, look: Look) -> Predictions:
    ood = predictor.calibration.ood(look.moments) if predictor.calibration and predictor.calibration.layers else None
    return Predictions(part.ids, part.labels, look.probs, predictor.classes, look.masses, ood)


def look_all(
    predictor: Predictor, part: Part, on_progress: Callable[[int], object] = lambda n: None, batch: int | None = None
) -> Look:
    """What the network sees in every image of a part, `BATCH` together unless another number is named."""
    looks, batch = [], batch or BATCH
    for start in range(0, len(part), batch):
        looks.append(predictor.look(part.counts(np.arange(start, min(start + batch, len(part))))))
        on_progress(len(looks[-1].probs))
    return _joined(looks)


def _joined(looks: Sequence[Look]) -> Look:
    logits, probs, masses, moments = zip(*looks, strict=True)
    return Look(
        np.concatenate(logits),
        np.concatenate(probs),
        None if masses[0] is None else np.concatenate(masses),
        [np.concatenate(layer) for layer in zip(*moments, strict=True)],
    )


def calibrated(predictor: Predictor, familiar: Part, part: Part, bar: Bar = silent) -> Calibration:
    """Calibrate a trained network: `calibrate.fit` on what it sees.

    familiar: training images, of which up to `FAMILIAR` are looked at; part: the selection part.
    """
    plain, few = replace(predictor, calibration=None), familiar.few(FAMILIAR)
    with bar("calibrating", len(few) + len(part)) as advance:
        count = Count(advance)
        known, seen = (look_all(plain, one, count.add) for one in (few, part))
    return calibration.fit(seen.logits, part.labels, seen.moments, known.moments)


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
