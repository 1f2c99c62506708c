"""A trained network x a data set -> outputs for every image, in this process or on workers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from sublens.config import InputConfig, SplitConfig
from sublens.data import dataset
from sublens.data.dataset import Dataset, Part, open_dataset
from sublens.errors import BundleError, DataError
from sublens.inference.predictor import BATCH as BATCH
from sublens.inference.predictor import SLICE, Look, Predictions, Predictor
from sublens.inference.torch_engine import Eager, Whole
from sublens.models import bundle, calibration
from sublens.models.bundle import Card
from sublens.models.calibration import Calibration
from sublens.models.networks import device
from sublens.parallel.mapper import Mapper
from sublens.progress import Bar, Count, silent
from sublens.storage import object_store

FAMILIAR = 4_000
"""Training images that tell what is usual."""


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


def open_unlearned(path: Path, card: Card, bar: Bar = silent) -> Dataset:
    """The data set at `path`, split so that the network of that card learned nothing from its selection part.

    That is half of the training images where it learned from none of them: the more there are, the closer
    sets come to the coverage that they promise.
    """
    dataset = open_dataset(path, SplitConfig(selection=UNLEARNED), bar)
    return open_dataset(path, card.settings.split, bar) if card.data.hash == dataset.hash else dataset


UNLEARNED = 0.5
"""Share of the training images in the selection part of data that a network did not learn from."""
