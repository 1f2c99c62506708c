"""A trained network x a data set -> outputs for every image, in this process or on workers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from sublens.config import InputConfig, SplitConfig
from sublens.data.dataset import Dataset, Part, open_dataset, open_test_part
from sublens.errors import DataError
from sublens.inference.engines import EngineName
from sublens.inference.predictor import BATCH as BATCH
from sublens.inference.predictor import SLICE, BatchPrediction, PredictionTable, Predictor
from sublens.inference.torch_engine import FullNetwork, TorchEngine
from sublens.models import bundle, calibration, macro
from sublens.models.bundle import Card
from sublens.models.calibration import Calibration
from sublens.models.heads import MacroHead
from sublens.models.networks import device
from sublens.parallel.mapper import Mapper
from sublens.parallel.threads import torch_threads
from sublens.progress import Bar, Count, silent

IN_DISTRIBUTION = 4_000
"""Largest number of training images that the OOD score is fitted to."""


def eager(
    model: nn.Module,
    classes: tuple[str, ...],
    shape: tuple[int, int],
    config: InputConfig,
    device: str = "cpu",
    *,
    macro: MacroHead | None = None,
) -> Predictor:
    """A predictor that runs this model on `device` with torch: without maps or calibration."""
    return Predictor(TorchEngine(FullNetwork(model, config, macro=macro), device), classes, shape, config)


def predict_all(
    predictor: Predictor, part: Part, on_progress: Callable[[int], object] = lambda n: None, batch: int | None = None
) -> PredictionTable:
    """Predict every image of a part, `BATCH` together unless `batch` is set."""
    return _as_table(part, outputs_of_all(predictor, part, on_progress, batch))


class Task(NamedTuple):
    """Images of a data set's test part that are predicted together, on a worker."""

    bundle: Path
    digest: str
    """Hash of the network, see `Card.digest`."""
    dataset: Path
    hash: str
    threads: int
    """Number of torch's threads, on which the last digits depend."""
    batch: int
    """Number of images in a batch, on which the last digits depend as well."""
    start: int = 0
    stop: int = 0
    engine: EngineName = "torch"
    """Engine that runs the network."""
    skip_bad: bool = False
    """Whether images of a folder that cannot be used are left out."""


def predict_on_workers(mapper: Mapper, task: Task, part: Part, on_progress: Callable[[int], object]) -> PredictionTable:
    """`predict_all` of the test part on workers, which read network and data set from the paths in `task`."""
    starts = range(0, len(part), SLICE)
    tasks = (task._replace(start=n, stop=min(n + SLICE, len(part))) for n in starts)
    outputs = []
    for batch in mapper(_compute, tasks):
        outputs.append(batch)
        on_progress(len(batch))
    return _as_table(part, concatenate(outputs))


def _compute(task: Task) -> BatchPrediction:
    predictor, part = _load_predictor_and_part(task._replace(start=0, stop=0))
    with torch_threads(task.threads):
        return outputs_of_all(predictor, part.take(np.arange(task.start, task.stop)), batch=task.batch)


@lru_cache(maxsize=1)
def _load_predictor_and_part(task: Task) -> tuple[Predictor, Part]:
    """Network and test part, kept by a worker; raises `BundleError` or `DataError` where they are others there."""
    folder = bundle.locate(task.bundle)
    card = bundle.read_card(folder)
    if card.digest != task.digest:
        raise bundle.other_network(task.bundle)
    local = open_test_part(task.dataset, card, skip_bad=task.skip_bad)
    if local.hash != task.hash:
        raise DataError(
            "is another data set there",
            need="the same data set on all machines",
            next="Copy the data set to the worker's machine.",
            path=task.dataset,
        )
    return Predictor.load(folder, task.engine, device()), local.test


def _as_table(part: Part, outputs: BatchPrediction) -> PredictionTable:
    measured = outputs.masses, outputs.ood, outputs.macromodels
    return PredictionTable(part.ids, part.labels, outputs.probs, outputs.classes, *measured)


def outputs_of_all(
    predictor: Predictor, part: Part, on_progress: Callable[[int], object] = lambda n: None, batch: int | None = None
) -> BatchPrediction:
    """The network's output for every image of a part, `BATCH` at a time unless `batch` is set."""
    outputs, batch = [], batch or BATCH
    for start in range(0, len(part), batch):
        outputs.append(predictor.forward(part.counts(np.arange(start, min(start + batch, len(part))))))
        on_progress(len(outputs[-1]))
    return concatenate(outputs)


def concatenate(outputs: Sequence[BatchPrediction]) -> BatchPrediction:
    """The outputs of one network for several batches, as those of one."""

    def joined(name: str) -> Any:
        arrays = [getattr(batch, name) for batch in outputs]
        return None if arrays[0] is None else np.concatenate(arrays)

    moments = [np.concatenate(layer) for layer in zip(*(batch.moments for batch in outputs), strict=True)]
    names = ("logits", "probs", "masses", "sets", "ood", "is_ood", "macro", "macromodels", "limit_msun")
    return BatchPrediction(outputs[0].classes, moments=moments, **{name: joined(name) for name in names})


def calibrate(
    predictor: Predictor, training: Part, selection: Part, bar: Bar = silent, *, knows_contaminants: bool = False
) -> Calibration:
    """Calibrate a trained network on the selection part; see `calibration.fit`.

    training: training images, of which up to `IN_DISTRIBUTION` are used. Contaminants are left out of both parts.
    knows_contaminants: whether the network learned from some, so that their logit is part of the OOD score.
    """
    training, selection = training.of_lenses(), selection.of_lenses()
    plain, few = replace(predictor, calibration=None), training.few(IN_DISTRIBUTION)
    with bar("calibrating", len(few) + len(selection)) as advance:
        count = Count(advance)
        reference, outputs = (outputs_of_all(plain, part, count.add) for part in (few, selection))
    lens, logits = outputs.macro, None
    if lens is not None and knows_contaminants:
        logits = lens[:, macro.CONTAMINANT]
    fitted = calibration.fit(
        outputs.logits, selection.labels, outputs.moments, reference.moments, contaminant_logits=logits
    )
    if lens is None or selection.truth is None:
        return fitted
    return replace(fitted, macro_scales=macro.fit_scales(lens, macro.values(*macro.lenses(selection.truth.scenes))))


def open_unseen_dataset(path: Path, card: Card, bar: Bar = silent, *, skip_bad: bool = False) -> Dataset:
    """The data set at `path`, split so that the network of that card was trained on none of its selection part.

    The selection part is half of the training images where the network was trained on other data: the more
    images, the closer prediction sets come to their coverage. skip_bad: as in `open_dataset`.
    """
    dataset = open_dataset(path, SplitConfig(selection=UNSEEN_SHARE), bar, skip_bad=skip_bad)
    if card.data.hash != dataset.hash:
        return dataset
    return open_dataset(path, card.settings.split, bar, skip_bad=skip_bad)


UNSEEN_SHARE = 0.5
"""Share of the training images in the selection part, for data that the network was not trained on."""
