"""One run on disk: train a network, then measure it.

RUN/weights.safetensors, card.json   the bundle
RUN/log.jsonl                        one line a step and an epoch
RUN/scores.json, predictions.csv     what the test part said
RUN/gallery.npz                      some test images, for the report
"""

import io
import json
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any, TextIO

import numpy as np
import torch
from torch import nn

from sublens import bundle, catalog, evaluate, files, metrics, models, train
from sublens.config import RunConfig
from sublens.data import Dataset, Part
from sublens.errors import DataError
from sublens.evaluate import Predictions
from sublens.predict import Predictor
from sublens.progress import Advance, Bar, Count, silent

LOG, SCORES, PREDICTIONS, GALLERY = "log.jsonl", "scores.json", "predictions.csv", "gallery.npz"
EXAMPLES, MISTAKES = 4, 8
"""Test images kept in the gallery: of each class, and of the most confident mistakes."""


def device() -> str:
    """Where networks run: a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def settled(config: RunConfig, dataset: Dataset) -> RunConfig:
    """The settings that a run on this data set has: the network's own choices, and how the data were divided."""
    filled = models.resolved(config, dataset.train.shape)
    return filled.model_copy(update={"split": dataset.split})


@contextmanager
def _removed_if_useless(out: Path) -> Iterator[None]:
    """Remove the run where an error came before there was anything to keep."""
    try:
        yield
    finally:
        if not (out / bundle.CARD).is_file():
            files.remove(out)


def train_run(dataset: Dataset, config: RunConfig, out: Path, *, force: bool = False, bar: Bar = silent) -> bool:
    """Train one network and leave its bundle and log in `out`.

    Returns False where Ctrl-C ended it early; the best weights by then are saved all the same.
    """
    files.refuse_existing(out, force=force)
    config = settled(config, dataset)
    assert config.input is not None
    side = models.side_seen(config.input, dataset.train.shape)
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        model = models.build(
            config.model.name, len(dataset.classes), config.input.channels, pretrained=config.model.pretrained
        )
        models.try_out(model, config.model.name, config.input.channels, side)
        head, n_cells = train.truth_head(model, config.input, dataset, config.train)
    for module in (model, head) if head else (model,):
        models.placed(module, device())
    feed = train.Feed(dataset.train, config.input, config.train, device(), dataset.survey if head else None, n_cells)
    with files.explained(out), _removed_if_useless(out):
        files.remove(out)
        out.mkdir(parents=True)
        with (out / LOG).open("w", encoding="utf-8") as log, bar(f"training {config.model.name}", 1) as advance:
            diary = _Diary(dataset, config, model, out, log, advance, len(feed))
            try:
                train.fit(
                    model,
                    head,
                    feed.epochs(),
                    config.train,
                    share_done=diary.share_done,
                    on_step=diary.on_step,
                    on_epoch=diary.on_epoch,
                    has_bf16=models.has_bf16_gain(config.model.name, device(), side),
                )
            except KeyboardInterrupt:
                diary.close(is_interrupted=True)
                return False
            diary.close(is_interrupted=False)
    return True


@dataclass
class _Diary:
    """Follows one training: keeps its log, judges each epoch, saves the best."""

    dataset: Dataset
    config: RunConfig
    model: nn.Module
    out: Path
    log: TextIO
    advance: Advance
    steps_per_epoch: int
    start: float = field(default_factory=monotonic)
    steps: int = 0
    images: int = 0
    losses: list[float] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    """Epoch and scores on the selection part of the weights that are kept."""

    @property
    def seconds(self) -> float:
        return monotonic() - self.start

    def share_done(self, step: int) -> float:
        """By the clock where there is a budget of minutes, else by the number of steps."""
        budget = self.config.train.minutes
        return self.seconds / (60 * budget) if budget else step / (self.config.train.epochs * self.steps_per_epoch)

    def on_step(self, step: train.Step) -> None:
        self.steps, self.images = step.number, self.images + step.n_images
        self.losses.append(step.loss)
        rate = self.images / self.seconds
        self._write(
            "step", step=step.number, epoch=step.epoch, loss=step.loss, truth_loss=step.truth_loss, images_per_s=rate
        )
        selected = f"  selection AUC {self.best['selection_auc']:.4f}" if self.best else ""
        self.advance(step.share_done, f"loss {step.loss:.3f}  {rate:,.0f} images/s{selected}")
        if not np.isfinite(step.loss):
            raise self._diverged(step.loss, step.epoch)

    def on_epoch(self, epoch: int) -> None:
        """Judge the model on the selection part, and save it if its loss there is the least so far.

        The loss, not the AUC: it is a proper score, so it also asks for honest probabilities.
        """
        part = self.dataset.selection
        probs = evaluate.predict_all(self._predictor(), part).probs
        scored = {
            "selection_loss": float(metrics.losses(probs, part.labels).mean()),
            "selection_accuracy": float(metrics.hits(probs, part.labels).mean()),
            "selection_auc": metrics.macro_auc(probs, part.labels),
        }
        if not np.isfinite(scored["selection_loss"]):
            raise self._diverged(scored["selection_loss"], epoch)
        is_best = not self.best or scored["selection_loss"] < self.best["selection_loss"]
        mean_loss = float(np.mean(self.losses)) if self.losses else None
        self._write("epoch", epoch=epoch, step=self.steps, train_loss=mean_loss, **scored, is_best=is_best)
        self.losses.clear()
        if is_best:
            bundle.save_weights(self.out, self.model)
            self.best = {"best_epoch": epoch, **scored}
            self.write_card(is_interrupted=True)

    def _diverged(self, loss: float, epoch: int) -> DataError:
        kept = f"; {self.out} keeps the best epoch before it" if self.best else ""
        return DataError(
            f"The loss became {loss} in epoch {epoch}. Lower train.lr or train.adamw_lr and train again{kept}."
        )

    def close(self, *, is_interrupted: bool) -> None:
        """Complete the card; the weights of now are judged and saved where none were yet."""
        if not self.best:
            self.on_epoch(0)
        self.write_card(is_interrupted=is_interrupted)

    def write_card(self, *, is_interrupted: bool) -> None:
        """Describe the best weights so far and the training so far."""
        assert self.config.input is not None
        bundle.write_card(
            self.out,
            network=self.config.model.name,
            classes=self.dataset.classes,
            image_shape=self.dataset.train.shape,
            input=self.config.input,
            settings=self.config,
            data={
                "name": self.dataset.name,
                "hash": self.dataset.hash,
                "train": len(self.dataset.train),
                "selection": len(self.dataset.selection),
                "test": len(self.dataset.test),
            },
            training={
                "steps": self.steps,
                "images": self.images,
                "seconds": round(self.seconds, 1),
                **self.best,
                "interrupted": is_interrupted,
            },
            versions=versions(),
            machine={"processor": processor(), "threads": torch.get_num_threads(), "device": device()},
        )

    def _predictor(self) -> Predictor:
        assert self.config.input is not None
        return Predictor(self.model.eval(), self.dataset.classes, self.dataset.train.shape, self.config.input, device())

    def _write(self, kind: str, **entry: object) -> None:
        self.log.write(
            json.dumps({"kind": kind, **entry, "images": self.images, "seconds": round(self.seconds, 3)}) + "\n"
        )
        self.log.flush()


def versions() -> dict[str, str]:
    """What a run was made with."""
    found = {name: version(name) for name in ("sublens", "torch", "timm")}
    commit = _commit()
    return {**found, "python": platform.python_version(), **({"commit": commit} if commit else {})}


def _commit() -> str | None:
    """The commit of the source tree that this code runs from, if it is one; + marks local changes."""
    here = Path(__file__).parent
    if not (here.parents[1] / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def processor() -> str:
    """The processor's name."""
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine())


def measure_run(folder: Path, dataset: Dataset, *, force: bool = False, bar: Bar = silent) -> dict[str, Any]:
    """Measure a trained run on the test part; leaves its scores, predictions and gallery in `folder`.

    The test part is used here and nowhere else.
    """
    if (folder / SCORES).is_file() and not force:
        raise DataError(f"{folder}: is measured already ({SCORES}). Add --force to measure it again.")
    predictor = Predictor.load(folder, device())
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
        predictions = evaluate.predict_all(predictor, dataset.test, Count(advance).add)
    scores = {
        **evaluate.score(predictor, predictions),
        "weights_bytes": (folder / bundle.WEIGHTS).stat().st_size,
        "processor": processor(),
        "data": {"name": dataset.name, "hash": dataset.hash},
    }
    with files.explained(folder):
        (folder / SCORES).unlink(missing_ok=True)  # it vouches for the two others
    catalog.write(predictions, folder / PREDICTIONS)
    files.write_bytes(folder / GALLERY, _gallery(dataset.test, predictions))
    files.write_bytes(folder / SCORES, (json.dumps(scores, indent=1) + "\n").encode())
    return scores


def is_measured(folder: Path, dataset: Dataset) -> bool:
    """Whether the run in `folder` has been measured on this very data set."""
    try:
        scores = json.loads((folder / SCORES).read_bytes())
        return bool(scores["data"]["hash"] == dataset.hash)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _gallery(test: Part, predictions: Predictions) -> bytes:
    """Examples of each class and the most confident mistakes, as an .npz."""
    examples = [np.flatnonzero(test.labels == label)[:EXAMPLES] for label in range(len(predictions.classes))]
    wrong = np.flatnonzero(predictions.probs.argmax(axis=1) != test.labels)
    surest = wrong[np.argsort(-predictions.probs[wrong].max(axis=1), kind="stable")][:MISTAKES]
    chosen = np.unique(np.concatenate([*examples, surest]))
    archive = io.BytesIO()
    np.savez_compressed(archive, counts=test.counts(chosen), ids=test.ids[chosen], labels=test.labels[chosen])
    return archive.getvalue()
