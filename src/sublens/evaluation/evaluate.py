"""A trained network measured on the test part: scores.json, predictions.csv, gallery.npz."""

import csv
import io
import json
import shutil
import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from sublens import metrics
from sublens.config import field_of_view
from sublens.data.dataset import Dataset, Part, open_dataset
from sublens.errors import ConfigError, DataError
from sublens.inference import predict_dataset, torch_engine
from sublens.inference.engines import MASS_UNIT_MSUN
from sublens.inference.predict_dataset import Task
from sublens.inference.predictor import PredictionTable, Predictor
from sublens.models import bundle
from sublens.models.calibration import Calibration
from sublens.models.networks import device
from sublens.parallel.dask import open_cluster
from sublens.parallel.mapper import Mapper
from sublens.progress import Bar, Count, silent
from sublens.sim.population import mass_map
from sublens.sim.survey import Survey
from sublens.storage import files, object_store
from sublens.storage.files import write_bytes
from sublens.training.recorder import GALLERY, LOG, PREDICTIONS, SCORES, processor

LATENCY_RUNS = 12
LATENCY_SECONDS = 2.0
"""Latency is measured over this many runs, or until this much time has passed."""


def score(predictor: Predictor, predictions: PredictionTable) -> dict[str, Any]:
    """What `scores.json` says of a predictor: quality with intervals, trust and latency."""
    return {
        **metrics.score(predictions.probs, predictions.labels, predictions.classes),
        "trust": _calibration_scores(predictor.calibration, predictions),
        "latency_ms": {f"batch_{size}": latency_ms(predictor, size) for size in (1, 32)},
    }


def _calibration_scores(calibration: Calibration | None, predictions: PredictionTable) -> dict[str, Any]:
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
    predictor: Predictor, predictions: PredictionTable, part: Part, survey: Survey | None
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


EXAMPLES, MISTAKES = 4, 8
"""Test images kept in the gallery: of each class, and of the most confident mistakes."""


def measure_run(
    folder: Path,
    dataset: Dataset,
    *,
    spread: tuple[Mapper, Task] | None = None,
    force: bool = False,
    bar: Bar = silent,
) -> dict[str, Any]:
    """Measure a trained run on the test part; leaves its scores, predictions and gallery in `folder`.

    The test part is used here and nowhere else. spread: where its images are judged, if not in this
    process, and what workers find there.
    """
    if (folder / SCORES).is_file() and not force:
        raise DataError(f"{folder}: is measured already ({SCORES}). Add --force to measure it again.")
    predictor = Predictor.load(folder, "torch", device())
    if predictor.classes != dataset.classes:
        raise DataError(
            f"{folder}: was trained on the classes {', '.join(predictor.classes)}, {dataset.name} has "
            f"{', '.join(dataset.classes)}. Name a data set with the same classes."
        )
    if predictor.image_shape != dataset.test.shape:
        raise DataError(
            f"{folder}: was trained on images of {predictor.image_shape} pixels, {dataset.name} has "
            f"{dataset.test.shape}. Name a data set with images of the same size."
        )
    with bar(f"measuring {folder.name}", len(dataset.test)) as advance:
        if spread:
            predictions = predict_dataset.predict_on_workers(
                *spread, predictor, dataset.test, Count(advance, spread[0].told).add
            )
        else:
            predictions = predict_dataset.predict_all(predictor, dataset.test, Count(advance).add)
    assert isinstance(predictor.engine, torch_engine.TorchEngine)
    scores = {
        **score(predictor, predictions),
        "parameters": sum(parameter.numel() for parameter in predictor.engine.whole.model.parameters()),
        "threads": torch.get_num_threads(),
        "device": predictor.engine.device,
        "map": score_maps(predictor, predictions, dataset.test, dataset.survey),
        "weights_sha256": bundle.read_card(folder).weights_sha256,
        "weights_bytes": (folder / bundle.WEIGHTS).stat().st_size,
        "processor": processor(),
        "data": {"name": dataset.name, "hash": dataset.hash},
    }
    with files.translate_errors(folder):
        (folder / SCORES).unlink(missing_ok=True)  # it vouches for the two others
    write_predictions(predictions, folder / PREDICTIONS)
    files.write_bytes(folder / GALLERY, _gallery(dataset.test, predictions))
    files.write_bytes(folder / SCORES, (json.dumps(scores, indent=1) + "\n").encode())
    return scores


def is_measured(folder: Path, dataset: Dataset) -> bool:
    """Whether the run in `folder` has been measured on this very data set, with the weights it has."""
    try:
        scores = json.loads((folder / SCORES).read_bytes())
        is_same = scores["weights_sha256"] == bundle.read_card(folder).weights_sha256
        return bool(is_same and scores["data"]["hash"] == dataset.hash)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _gallery(test: Part, predictions: PredictionTable) -> bytes:
    """Examples of each class and the most confident mistakes, as an .npz."""
    examples = [np.flatnonzero(test.labels == label)[:EXAMPLES] for label in range(len(predictions.classes))]
    wrong = np.flatnonzero(predictions.probs.argmax(axis=1) != test.labels)
    surest = wrong[np.argsort(-predictions.probs[wrong].max(axis=1), kind="stable")][:MISTAKES]
    chosen = np.unique(np.concatenate([*examples, surest]))
    archive = io.BytesIO()
    np.savez_compressed(archive, counts=test.counts(chosen), ids=test.ids[chosen], labels=test.labels[chosen])
    return archive.getvalue()


def write_predictions(predictions: PredictionTable, path: Path) -> None:
    """Columns id, label (the true class) and p_<class>, one row an image."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["id", "label", *(f"p_{name}" for name in predictions.classes)])
    for name, label, probs in zip(predictions.ids, predictions.labels, predictions.probs, strict=True):
        table.writerow([name, predictions.classes[label], *(f"{prob:.9g}" for prob in probs)])
    write_bytes(path, text.getvalue().encode())


def read_predictions(path: Path) -> PredictionTable:
    """The table that `write_predictions` left at `path`; `DataError` where it is missing or damaged."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file))
        classes = tuple(name.removeprefix("p_") for name in header[2:])
        return PredictionTable(
            ids=np.array([row[0] for row in rows]),
            labels=np.array([classes.index(row[1]) for row in rows]),
            probs=np.array([[float(value) for value in row[2:]] for row in rows]),
            classes=classes,
        )
    except OSError as err:
        raise DataError(
            f"{path}: cannot be read ({err.strerror}). Measure the run again with `sublens evaluate`."
        ) from err
    except (ValueError, IndexError) as err:
        raise DataError(f"{path}: is damaged. Measure the run again with `sublens evaluate`.") from err


def copy_or_own_folder(network: Path, out: Path | None, *, force: bool = False) -> Path:
    """The run folder to measure: `out`, a copy of the trained network, or that network's own folder.

    Raises `ConfigError` where it comes with sublens, whose folder is not ours to write to, and
    there is no `out`.
    """
    source = bundle.locate(network)
    if out is None:
        if isinstance(network, object_store.Remote):
            raise ConfigError(f"{network}: add --out FOLDER, where a copy is measured.")
        if source.resolve() in [shipped.resolve() for shipped in bundle.shipped().values()]:
            raise ConfigError(f"{network}: comes with sublens. Add --out FOLDER, where a copy is measured.")
        return source
    files.refuse_overlap(out, source)
    bundle.read_card(source)
    with files.whole_folder(out, force=force) as folder:
        for name in (bundle.WEIGHTS, bundle.CALIBRATION, bundle.CARD, LOG):
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    return out


def measure_network(
    network: Path,
    path: Path,
    out: Path | None = None,
    *,
    cluster: str | None = None,
    force: bool = False,
    bar: Bar = silent,
) -> tuple[Path, Dataset, dict[str, Any]]:
    """Measure a trained network on the test part of the data set at `path`, in `copy_or_own_folder`'s folder.

    cluster: where its images are judged, if not in this process, see `sublens.parallel.dask.opened`; network and
    data set must have the same names there. Returns the folder, the data set, and the scores.
    """
    folder = copy_or_own_folder(network, out, force=force)
    card = bundle.read_card(folder)
    dataset = open_dataset(path, card.settings.split, bar)
    if not cluster:
        return folder, dataset, measure_run(folder, dataset, force=force, bar=bar)
    threads = torch.get_num_threads()
    lot = predict_dataset.Task(
        network, card.weights_sha256, path, dataset.hash, card.settings.split, threads, predict_dataset.BATCH
    )
    with open_cluster(cluster) as mapper:
        return folder, dataset, measure_run(folder, dataset, spread=(mapper, lot), force=force, bar=bar)
