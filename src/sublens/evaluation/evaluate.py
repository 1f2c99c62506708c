"""A trained network measured on the test part of a data set: scores.json, predictions.csv, gallery.npz."""

import csv
import io
import json
import shutil
import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from sublens import metrics
from sublens.config import field_of_view
from sublens.data.dataset import Dataset, Part, open_test_part
from sublens.errors import ConfigError, DataError
from sublens.evaluation import calibration_scores
from sublens.inference import predict_dataset
from sublens.inference.engines import MASS_UNIT_MSUN, EngineName
from sublens.inference.predict_dataset import Task
from sublens.inference.predictor import PredictionTable, Predictor
from sublens.inference.torch_engine import TorchEngine
from sublens.models import bundle, macro, networks
from sublens.models.bundle import Card
from sublens.models.networks import device
from sublens.parallel.dask import open_cluster
from sublens.parallel.machine import processor
from sublens.parallel.mapper import Mapper
from sublens.parallel.threads import n_threads
from sublens.progress import Bar, Count, silent
from sublens.sim.mass_map import mass_map
from sublens.storage import files, object_store
from sublens.storage.seal import unsealed, write_sealed
from sublens.surveys.survey import Survey
from sublens.training.recorder import GALLERY, LOG, PREDICTIONS, SCORES

LATENCY_RUNS = 12
"""Runs of which the latency is the median, where they take no longer than `LATENCY_SECONDS`."""
LATENCY_SECONDS = 2.0
"""Time after which no further run is timed."""
EXAMPLES = 4
"""Test images of each class in the gallery."""
MISTAKES = 8
"""Most confident mistakes in the gallery."""


def measure_network(
    network: Path,
    path: Path,
    out: Path | None = None,
    *,
    cluster: str | None = None,
    skip_bad: bool = False,
    force: bool = False,
    bar: Bar = silent,
) -> tuple[Path, Dataset, dict[str, Any]]:
    """Measure a trained network on the test part of the data set at `path`, in `copy_or_own_folder`'s folder.

    path, skip_bad: see `open_test_part`. cluster: where its images are predicted, if not in this process, see
    `sublens.parallel.dask.open_cluster`; network and data set must have the same names there. Returns the folder,
    the data set, and the scores.
    """
    if out:
        source = bundle.locate(network)
        files.refuse_overlap(out, source, path)
        kind = files.kind_of(source)
        files.refuse_existing(out, kind=kind, force=force)  # before the data set is read, and copied only after
    folder = out or copy_or_own_folder(network, None)
    card = bundle.read_card(bundle.locate(network))
    dataset = open_test_part(path, card, bar, skip_bad=skip_bad)
    if out:
        copy_or_own_folder(network, out, force=force)
    with ExitStack() as cleanup:
        if out:
            cleanup.enter_context(_removed_where_it_fails(out))
        spread = None
        if cluster:
            threads, batch = torch.get_num_threads(), predict_dataset.BATCH
            task = Task(network, card.digest, path, dataset.hash, threads, batch)
            task = task._replace(engine=reference_engine(card), skip_bad=skip_bad)
            spread = (cleanup.enter_context(open_cluster(cluster)), task)
        return folder, dataset, measure_run(folder, dataset, spread=spread, force=force, bar=bar)


@contextmanager
def _removed_where_it_fails(copy: Path) -> Iterator[None]:
    """Remove a copy that could not be measured, so that the same command can be run again."""
    try:
        yield
    except BaseException:
        files.discard(copy)
        raise


def copy_or_own_folder(network: Path, out: Path | None, *, force: bool = False) -> Path:
    """The run folder to measure: `out`, a copy of the trained network, or that network's own folder.

    Raises `ConfigError` where there is no `out` and the network comes with sublens or lies on an object
    store: those folders are not written to.
    """
    source = bundle.locate(network)
    if out is None:
        if isinstance(network, object_store.Remote):
            raise _needs_copy("lies on an object store", network)
        if source.resolve() in [shipped.resolve() for shipped in bundle.shipped().values()]:
            raise _needs_copy("comes with sublens", network)
        return source
    files.refuse_overlap(out, source)
    card = bundle.read_card(source)
    with files.whole_folder(out, kind=files.kind_of(source), force=force) as folder:
        for name, digest in bundle_files(card).items():
            (folder / name).write_bytes(bundle.read_verified(source / name, digest))
        shutil.copyfile(source / bundle.CARD, folder / bundle.CARD)
        if (source / LOG).is_file():
            shutil.copyfile(source / LOG, folder / LOG)
    return out


def _needs_copy(what: str, network: Path) -> ConfigError:
    return ConfigError(
        what, need="a folder to write to", next="Add --out FOLDER, where a copy is measured.", path=network
    )


def bundle_files(card: Card) -> dict[str, str]:
    """Names and sha256 of the files that make up a trained network, beside its card."""
    digests = {} if _is_graph_alone(card) else {bundle.WEIGHTS: card.weights_sha256}
    if card.graph:
        digests[bundle.GRAPH] = card.graph.sha256
    if card.calibration:
        digests[bundle.CALIBRATION] = card.calibration.sha256
    return digests


def _is_graph_alone(card: Card) -> bool:
    """Whether the network was exported: its graph holds the weights, and may compute something else than they do."""
    return card.graph is not None and card.graph.is_alone


def reference_engine(card: Card) -> EngineName:
    """The engine that a network is measured with: torch, but for an exported one, which only its graph is."""
    return "onnxruntime" if _is_graph_alone(card) else "torch"


def measure_run(
    folder: Path,
    dataset: Dataset,
    *,
    spread: tuple[Mapper, Task] | None = None,
    force: bool = False,
    bar: Bar = silent,
) -> dict[str, Any]:
    """Measure a trained run on the test part; leaves its scores, predictions and gallery in `folder`.

    The test part is used here and nowhere else. spread: where its images are predicted, if not in this
    process, and what workers find there. Raises `DataError` where the run is measured already and `force`
    is false, was trained on other classes or image sizes, or is being trained or measured by another process.
    """
    bundle.read_card(folder)  # the lock would make a folder where there is none
    with files.lock_folder(folder):
        return _measure_run(folder, dataset, spread, force, bar)


def _measure_run(
    folder: Path, dataset: Dataset, spread: tuple[Mapper, Task] | None, force: bool, bar: Bar
) -> dict[str, Any]:
    if (folder / SCORES).is_file() and not force:
        raise DataError(
            f"is measured already ({SCORES})",
            need="--force to be measured again",
            next="Add it, or --out FOLDER to measure a copy.",
            path=folder,
        )
    card = bundle.read_card(folder)
    _check_fit(card, dataset, folder)
    predictor = Predictor.load(folder, reference_engine(card), device())
    predictions = _predictions(predictor, dataset.test, folder.name, spread, bar)
    scores = {
        **score(predictor, predictions),
        **asdict(measure_cost(folder, card)),
        "map": score_maps(predictor, predictions, dataset.test, dataset.survey),
        **score_macromodels(predictions, dataset.test),
        "weights_sha256": card.weights_sha256,
        "data": {"name": dataset.name, "hash": dataset.hash},
    }
    with files.translate_errors(folder):
        (folder / SCORES).unlink(missing_ok=True)  # else a kill would leave it with files of another measurement
    write_predictions(predictions, folder / PREDICTIONS)
    files.write_bytes(folder / GALLERY, _gallery(dataset.test, predictions))
    write_scores(folder, scores)
    return scores


def write_scores(folder: Path, scores: Mapping[str, Any]) -> None:
    """Write the scores of a run, sealed, with the hashes of the card and of the files that were written before."""
    digests = {name: files.sha256(folder / name) for name in (bundle.CARD, PREDICTIONS, GALLERY)}
    write_sealed(folder / SCORES, {**scores, "files": digests})


def read_scores(folder: Path) -> dict[str, Any]:
    """The scores of a run; `DataError` where they, or a file whose hash they hold, are missing or have changed."""
    if not (folder / SCORES).is_file():
        raise DataError(
            f"is trained but not measured (no {SCORES})",
            need="the scores of a test part",
            next=f"Measure it with `sublens evaluate {folder} DATASET`.",
            path=folder,
        )
    try:
        scores = unsealed(json.loads((folder / SCORES).read_bytes()))
        digests: dict[str, str] = scores["files"]
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as err:
        raise _needs_measuring("is damaged, or of a version that kept no hashes", folder / SCORES) from err
    for name, digest in digests.items():
        if not (folder / name).is_file() or files.sha256(folder / name) != digest:
            raise _needs_measuring("is missing, or has changed since the run was measured", folder / name)
    return scores


def _check_fit(card: Card, dataset: Dataset, folder: Path) -> None:
    """Raise `DataError` where a network was trained on other classes or image sizes than a data set has."""
    if card.classes != dataset.classes:
        raise DataError(
            f"was trained on the classes {', '.join(card.classes)}",
            need=f"{', '.join(dataset.classes)}, which {dataset.name} has",
            next="Name a data set with the same classes.",
            path=folder,
        )
    if (pixels := networks.pixels_of(card.input)) != dataset.pixels:
        raise DataError(
            f"was trained on {pixels}",
            need=f"{dataset.pixels}, which {dataset.name} has",
            next="Name a data set with such pixels.",
            path=folder,
        )
    if card.image_shape != dataset.test.shape:
        trained, tested = (" x ".join(map(str, shape)) for shape in (card.image_shape, dataset.test.shape))
        raise DataError(
            f"was trained on images of {trained} pixels",
            need=f"{tested}, which {dataset.name} has",
            next="Name a data set with images of the same size.",
            path=folder,
        )


def _predictions(
    predictor: Predictor, test: Part, name: str, spread: tuple[Mapper, Task] | None, bar: Bar
) -> PredictionTable:
    with bar(f"measuring {name}", len(test)) as advance:
        if spread is None:
            return predict_dataset.predict_all(predictor, test, Count(advance).add)
        return predict_dataset.predict_on_workers(*spread, test, Count(advance, spread[0].status).add)


def is_measured(folder: Path, dataset: Dataset) -> bool:
    """Whether the run in `folder` has been measured on this very data set, and nothing has changed since."""
    try:
        return bool(read_scores(folder)["data"]["hash"] == dataset.hash)
    except (DataError, KeyError, TypeError):
        return False


def refuse_partial_scores(scores: dict[str, Any], folder: Path) -> None:
    """Raise `DataError` where the scores of a run are those of images of some classes only."""
    if None in scores["auc"].values():
        raise DataError(
            "was measured on images of some classes only",
            need="test images of every class",
            next=f"Measure it on such a data set with `sublens evaluate {folder} DATASET --force`.",
            path=folder,
        )


def score(predictor: Predictor, predictions: PredictionTable) -> dict[str, Any]:
    """Quality of predictions, with intervals, and the calibration of the network that made them."""
    return {
        **metrics.score(predictions.probs, predictions.labels, predictions.classes),
        "calibration": calibration_scores.score(predictor.calibration, predictions).model_dump(exclude_none=True),
    }


def score_maps(
    predictor: Predictor, predictions: PredictionTable, part: Part, survey: Survey | None
) -> dict[str, dict[str, float]]:
    """`metrics.map_score` of each class that has substructure.

    part, survey: what was predicted and how it was simulated. Empty where there are no maps or no
    truth, or where a cell is not as large as those that the network learned.
    """
    grid, masses = predictor.map, predictions.masses
    if grid is None or masses is None or part.truth is None or survey is None:
        return {}
    side = field_of_view(predictor.input, part.shape) * survey.camera.pixel_scale
    if not np.isclose(side, grid.n_cells * grid.cell_arcsec):
        return {}
    true = mass_map(part.truth, grid.n_cells, side)
    masks = {name: part.labels == label for label, name in enumerate(predictor.classes)}
    return {
        name: metrics.map_score(masses[mask], true[mask], MASS_UNIT_MSUN)
        for name, mask in masks.items()
        if true[mask].any()
    }


def score_macromodels(predictions: PredictionTable, part: Part) -> dict[str, dict[str, dict[str, float]]]:
    """`macro.score` under the name `macromodel`; empty where the network has no macro head or the part no truth."""
    if predictions.macromodels is None or part.truth is None:
        return {}
    return {"macromodel": macro.score(predictions.macromodels, macro.values(*macro.lenses(part.truth.scenes)))}


@dataclass(frozen=True)
class RunningCost:
    """What a trained network takes on this machine, run by the engine that its users get."""

    engine: EngineName
    """Engine of the latency, the one that runs the network where no other is named."""
    latency_ms: dict[str, float]
    """Latency of a batch of 1 and of 32 images, ms."""
    parameters: int
    """Parameters of the network."""
    weights_bytes: int
    """Size of the file that holds the weights."""
    threads: int
    """Threads that the engine computes with."""
    device: str
    """Device that it computes on."""
    processor: str
    """Name of this machine's processor."""


def measure_cost(folder: Path, card: Card) -> RunningCost:
    """Time the trained network in `folder` with the engine that `Predictor.load` takes, and count its parameters."""
    predictor = Predictor.load(folder, device=device())
    is_torch = isinstance(predictor.engine, TorchEngine)
    network = networks.build(card.network, len(card.classes), card.input.n_channels)
    return RunningCost(
        engine="torch" if is_torch else "onnxruntime",
        latency_ms={f"batch_{size}": latency_ms(predictor, size) for size in (1, 32)},
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        weights_bytes=(folder / (bundle.GRAPH if _is_graph_alone(card) else bundle.WEIGHTS)).stat().st_size,
        threads=torch.get_num_threads() if is_torch else n_threads(),
        device=device() if is_torch else "cpu",
        processor=processor(),
    )


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


def write_predictions(predictions: PredictionTable, path: Path) -> None:
    """Write the columns id, label (the true class) and p_<class>, one row an image."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["id", "label", *(f"p_{name}" for name in predictions.classes)])
    for name, label, probs in zip(predictions.ids, predictions.labels, predictions.probs, strict=True):
        table.writerow([name, predictions.classes[label], *(f"{prob:.9g}" for prob in probs)])
    files.write_bytes(path, text.getvalue().encode())


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
        raise _needs_measuring(f"cannot be read ({err.strerror})", path) from err
    except (ValueError, IndexError) as err:
        raise _needs_measuring("is damaged", path) from err


def _needs_measuring(what: str, path: Path) -> DataError:
    """The error of a file of a run that measuring it again would mend."""
    return DataError(
        what,
        need="the file that measuring the run left",
        next=f"Measure it again with `sublens evaluate {path.parent} DATASET --force`.",
        path=path,
    )


def _gallery(test: Part, predictions: PredictionTable) -> bytes:
    """Examples of each class and the most confident mistakes, as an .npz."""
    examples = [np.flatnonzero(test.labels == label)[:EXAMPLES] for label in range(len(predictions.classes))]
    wrong = np.flatnonzero(predictions.probs.argmax(axis=1) != test.labels)
    surest = wrong[np.argsort(-predictions.probs[wrong].max(axis=1), kind="stable")][:MISTAKES]
    rows = np.unique(np.concatenate([*examples, surest]))
    archive = io.BytesIO()
    np.savez_compressed(archive, counts=test.counts(rows), ids=test.ids[rows], labels=test.labels[rows])
    return archive.getvalue()
