"""A trained network x a data set -> outputs for every image, in this process or on workers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from sublens.config import InputConfig, SplitConfig
from sublens.data.dataset import Dataset, Part, open_dataset
from sublens.errors import BundleError, DataError
from sublens.inference.engines import EngineName
from sublens.inference.predictor import BATCH as BATCH
from sublens.inference.predictor import SLICE, BatchPrediction, PredictionTable, Predictor
from sublens.inference.torch_engine import FullNetwork, TorchEngine
from sublens.models import bundle, calibration
from sublens.models.bundle import Card
from sublens.models.calibration import Calibration
from sublens.models.networks import device
from sublens.parallel.mapper import Mapper
from sublens.progress import Bar, Count, silent

IN_DISTRIBUTION = 4_000
"""Training images that tell what is usual."""


def eager(
    model: nn.Module, classes: tuple[str, ...], shape: tuple[int, int], seen: InputConfig, device: str = "cpu"
) -> Predictor:
    """A predictor that runs this model on `device` with torch, as it stands: no maps, not calibrated."""
    return Predictor(TorchEngine(FullNetwork(model, seen), device), classes, shape, seen)


def predict_all(
    predictor: Predictor, part: Part, on_progress: Callable[[int], object] = lambda n: None, batch: int | None = None
) -> PredictionTable:
    """Predict every image of a part, `BATCH` together unless another number is named."""
    return _as_table(part, outputs_of_all(predictor, part, on_progress, batch))


class Task(NamedTuple):
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
    engine: EngineName = "torch"
    """Engine that runs the network."""


def predict_on_workers(
    mapper: Mapper, task: Task, predictor: Predictor, part: Part, on_progress: Callable[[int], object]
) -> PredictionTable:
    """`predict_all` of the test part on workers, which find network and data set where `task` says."""
    starts = range(0, len(part), SLICE)
    tasks = (task._replace(start=n, stop=min(n + SLICE, len(part))) for n in starts)
    outputs = []
    for batch in mapper(_compute, tasks):
        outputs.append(batch)
        on_progress(len(batch))
    return _as_table(part, _concatenate(outputs))


def _compute(task: Task) -> BatchPrediction:
    predictor, part = _load_predictor_and_part(task._replace(start=0, stop=0))
    threads = torch.get_num_threads()
    torch.set_num_threads(task.threads)
    try:
        return outputs_of_all(predictor, part.take(np.arange(task.start, task.stop)), batch=task.batch)
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _load_predictor_and_part(task: Task) -> tuple[Predictor, Part]:
    """What a worker keeps; raises `BundleError` or `DataError` where it finds something else."""
    folder, local = bundle.locate(task.bundle), open_dataset(task.dataset, task.split)
    if bundle.read_card(folder).weights_sha256 != task.weights_sha256:
        raise BundleError(f"{task.bundle}: is another network there. Copy the same one to all machines.")
    if local.hash != task.hash:
        raise DataError(f"{task.dataset}: is another data set there. Copy the same one to all machines.")
    return Predictor.load(folder, task.engine, device()), local.test


def _as_table(part: Part, outputs: BatchPrediction) -> PredictionTable:
    return PredictionTable(part.ids, part.labels, outputs.probs, outputs.classes, outputs.masses, outputs.ood)


def outputs_of_all(
    predictor: Predictor, part: Part, on_progress: Callable[[int], object] = lambda n: None, batch: int | None = None
) -> BatchPrediction:
    """The network's output for every image of a part, `BATCH` at a time unless another number is given."""
    outputs, batch = [], batch or BATCH
    for start in range(0, len(part), batch):
        outputs.append(predictor.forward(part.counts(np.arange(start, min(start + batch, len(part))))))
        on_progress(len(outputs[-1]))
    return _concatenate(outputs)


def _concatenate(outputs: Sequence[BatchPrediction]) -> BatchPrediction:
    def joined(name: str) -> Any:
        arrays = [getattr(one, name) for one in outputs]
        return None if arrays[0] is None else np.concatenate(arrays)

    moments = [np.concatenate(layer) for layer in zip(*(one.moments for one in outputs), strict=True)]
    names = ("logits", "probs", "masses", "sets", "ood", "is_ood")
    return BatchPrediction(outputs[0].classes, moments=moments, **{name: joined(name) for name in names})


def calibrate(predictor: Predictor, familiar: Part, part: Part, bar: Bar = silent) -> Calibration:
    """Calibrate a trained network: `calibrate.fit` on what it sees.

    familiar: training images, of which up to `IN_DISTRIBUTION` are looked at; part: the selection part.
    """
    plain, few = replace(predictor, calibration=None), familiar.few(IN_DISTRIBUTION)
    with bar("calibrating", len(few) + len(part)) as advance:
        count = Count(advance)
        known, seen = (outputs_of_all(plain, one, count.add) for one in (few, part))
    return calibration.fit(seen.logits, part.labels, seen.moments, known.moments)


def open_unseen_dataset(path: Path, card: Card, bar: Bar = silent) -> Dataset:
    """The data set at `path`, split so that the network of that card learned nothing from its selection part.

    That is half of the training images where it learned from none of them: the more there are, the closer
    sets come to the coverage that they promise.
    """
    dataset = open_dataset(path, SplitConfig(selection=UNSEEN_SHARE), bar)
    return open_dataset(path, card.settings.split, bar) if card.data.hash == dataset.hash else dataset


UNSEEN_SHARE = 0.5
"""Share of the training images in the selection part of data that a network did not learn from."""
