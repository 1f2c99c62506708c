"""Record of one training: its log, the best epoch, checkpoints and the card."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any, TextIO

import numpy as np
import torch

from sublens import metrics
from sublens.config import RunConfig
from sublens.data.dataset import Dataset
from sublens.errors import BundleError, DataError
from sublens.inference import detection_trials, onnx_export, predict_dataset
from sublens.inference.predictor import Predictor
from sublens.models import bundle, weights
from sublens.models.bundle import Card, CardCalibration, CardGraph, CardLog
from sublens.models.detection import Detection
from sublens.models.networks import device
from sublens.parallel import machine
from sublens.parallel.signals import Requests
from sublens.parallel.torchrun import Ranks
from sublens.progress import Advance, Bar
from sublens.storage import files
from sublens.training import checkpoint, labels_only, loop, macromodel
from sublens.training.chance import ChanceWatch
from sublens.training.checkpoint import Checkpoint
from sublens.training.state import TrainState

LOG, SCORES, PREDICTIONS, GALLERY = "log.jsonl", "scores.json", "predictions.csv", "gallery.npz"
CHECKPOINT_SECONDS = 120.0
"""Time between checkpoints, which are written between steps or epochs, and with every new best."""


@contextmanager
def open_log(out: Path, *, is_new: bool) -> Iterator[TextIO]:
    """The log of a run, in a folder emptied for a new one; removed with the folder where no step was taken."""
    with files.lock_folder(out):
        for leftover in out.iterdir() if is_new else ():
            files.remove(leftover)
        try:
            with (out / LOG).open("a", encoding="utf-8") as log:
                yield log
        finally:
            if has_no_steps(out):
                files.discard(out)


@contextmanager
def open_no_log() -> Iterator[TextIO]:
    """A log that keeps nothing."""
    with Path(os.devnull).open("w", encoding="utf-8") as log:
        yield log


def has_its_log(out: Path, before: Checkpoint) -> bool:
    """Whether the log in `out` still begins with all that it held at a checkpoint; older ones have no hash of it."""
    if "log_sha256" not in before.facts:
        return True
    path, entry = out / LOG, CardLog(n_bytes=before.facts["log_bytes"], sha256=before.facts["log_sha256"])
    return path.is_file() and entry.begins(path.read_bytes())


def read_log(folder: Path, card: Card) -> bytes:
    """The log of a training up to the time of its card; `DataError` where it is missing, cut or changed.

    A training that was killed may have left more, which no hash covers. Cards of format 1 have no hash of a log.
    """
    path = folder / LOG
    log = path.read_bytes() if path.is_file() else None
    if log is None or not (card.log is None or card.log.begins(log)):
        raise damaged_log(folder)
    return log[: card.log.n_bytes] if card.log else log


def damaged_log(folder: Path) -> DataError:
    """The error of a log that is not the one that a training left."""
    return DataError(
        "is missing or damaged",
        need="the log that the training left",
        next="Copy the whole run again, or train again.",
        path=folder / LOG,
    )


def has_no_steps(out: Path) -> bool:
    """Whether `out` is missing, or holds a training that has no checkpoint after a step."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    return names <= {LOG, checkpoint.FOLDER} and checkpoint.last_step(out) == 0


@dataclass
class TrainingRecorder:
    """Recorder of one training: writes its log and checkpoints, evaluates each epoch, saves the best."""

    dataset: Dataset
    config: RunConfig
    state: TrainState
    out: Path
    log: TextIO
    advance: Advance
    ranks: Ranks
    start: float = field(default_factory=lambda: monotonic())
    saved: float = field(default_factory=lambda: monotonic())
    """Time of the last checkpoint, on the monotonic clock."""
    steps: int = 0
    images: int = 0
    resume_at: tuple[int, int] = (0, 0)
    """Epoch at which training resumes, and the number of its batches already done."""
    losses: list[float] = field(default_factory=list)
    log_digest: Any = field(default_factory=hashlib.sha256)
    """Hash of all that was written to the log."""
    best: dict[str, Any] = field(default_factory=dict)
    """Epoch and selection scores of the best weights so far; empty before the first epoch ends."""
    best_weights: str = ""
    """sha256 of the best weights, as they were written."""
    requests: Requests = field(default_factory=Requests)
    is_ending: bool = False
    """Whether any of the processes has a request to end; the same in all."""
    versions: dict[str, str] = field(default_factory=machine.versions)
    """Versions of the running code, which may change on disk meanwhile."""

    def __post_init__(self) -> None:
        self.chance = ChanceWatch(self.dataset.train.of_lenses().labels)

    @property
    def seconds(self) -> float:
        """Length of the training so far, interruptions left out."""
        return monotonic() - self.start

    def share_done(self, step: int) -> float:
        """Share of the training done: by the clock where there is a budget of minutes, else by steps."""
        train_config = self.config.train
        if train_config.minutes:
            return self.ranks.first(self.seconds / (60 * train_config.minutes))
        return step / (train_config.epochs * len(self.state.batches))

    def keep(self, epoch: int) -> None:
        """Write a checkpoint during this epoch."""
        os.fsync(self.log.fileno())
        facts = {
            "settings": self.config.model_dump(mode="json"),
            "data": self.dataset.hash,
            "teacher": self._teacher_hash(),
            "versions": self.versions,
            "threads": self._threads(),
            "epoch": epoch,
            "images": self.images,
            "seconds": self.seconds,
            "losses": self.losses,
            "best": self.best,
            "best_weights": self.best_weights,
            "log_bytes": self.log.tell(),
            "log_sha256": self.log_digest.hexdigest(),
        }
        checkpoint.save(self.out, checkpoint.captured(self.steps, self.state.modules, self.state.optimizer, facts))
        self.saved, self.requests.to_keep = monotonic(), False

    def _threads(self) -> int:
        """Number of threads of all processes."""
        return self.ranks.n * torch.get_num_threads()

    def _teacher_hash(self) -> str | None:
        teacher = self.state.batches.teacher
        return teacher.card.weights_sha256 if teacher else None

    def continue_from(self, before: Checkpoint) -> None:
        """Resume a training from its checkpoint; the log is cut back to there and later scores are removed.

        Raises `DataError` for a checkpoint of another version, or where the teacher has changed.
        """
        if before.facts.get("teacher") != self._teacher_hash():
            raise DataError(
                f"was begun with another teacher, which {self.config.train.teacher} was then",
                need="the same teacher to the end",
                next="Put that one back, or begin again with --force.",
                path=self.out,
            )
        try:
            self._restore(before)
        except (RuntimeError, KeyError, ValueError) as err:
            raise DataError(
                "has a checkpoint that was written by another version of sublens",
                need="the version that began the training",
                next="Install that one, or begin again with --force.",
                path=self.out,
            ) from err
        self._warn_of_changes(before)
        for name in (SCORES, PREDICTIONS, GALLERY):
            files.remove(self.out / name)

    def _restore(self, before: Checkpoint) -> None:
        facts, epoch = before.facts, before.facts["epoch"]
        checkpoint.restore(before, self.state.modules, self.state.optimizer)
        self.images, self.losses = facts["images"], facts["losses"]
        self.steps, self.resume_at = before.step, (epoch, before.step - epoch * len(self.state.batches))
        self.start = monotonic() - facts["seconds"]
        if facts["best"]:
            self._resume_best(facts["best"], facts["best_weights"])
        self.cut_log(facts["log_bytes"])

    def _resume_best(self, best: dict[str, Any], digest: str) -> None:
        """Go on with the best epoch of the checkpoint, or without one where a later epoch's weights lie there.

        That epoch comes again. Raises `DataError` where the weights are neither.
        """
        path = self.out / bundle.WEIGHTS
        current = files.sha256(path) if path.is_file() else ""
        if current == digest:
            self.best, self.best_weights = best, digest
        elif not current or not self._are_later(current, best["best_epoch"]):
            raise DataError(
                "is missing or damaged",
                need=f"the best weights of the training, whose sha256 begins with {digest[:12]}",
                next="Copy that file back, or begin again with --force.",
                path=path,
            )

    def _are_later(self, digest: str, epoch: int) -> bool:
        """Whether weights on disk are the best of a later epoch; where there is no card, a kill came before it."""
        if not (self.out / bundle.CARD).is_file():
            return True
        card = bundle.read_card(self.out)
        return card.weights_sha256 == digest and card.training.best_epoch > epoch

    def _warn_of_changes(self, before: Checkpoint) -> None:
        versions, threads = before.facts["versions"], before.facts["threads"]
        if (versions, threads) != (self.versions, self._threads()):
            warnings.warn(
                f"{self.out}: was begun with {threads} threads of {versions}; going on with {self._threads()} of "
                f"{self.versions}, its weights may differ from those of an unbroken run.",
                stacklevel=4,
            )

    def cut_log(self, n_bytes: int) -> None:
        """Cut the log to so many bytes."""
        self.log.truncate(min(n_bytes, self.log.tell()))
        self.log_digest = hashlib.sha256((self.out / LOG).read_bytes())

    def on_step(self, step: loop.Step) -> None:
        """Log a step; write a checkpoint where one is due, and stop where that is requested."""
        self.steps, self.images = step.number, self.images + step.n_images
        self.losses.append(step.loss)
        self.chance.add(step.loss, step.n_images)
        if self.chance.is_check(self.images, step.share_done):
            self._warn_of_chance("is still")
        rate = self.images / self.seconds
        losses = {"loss": step.loss, "truth_loss": step.truth_loss, "distill_loss": step.distill_loss}
        losses |= {"macro_loss": step.macro_loss} if self.state.macro else {}
        losses |= {} if step.contaminant_loss is None else {"contaminant_loss": step.contaminant_loss}
        self._write("step", step=step.number, epoch=step.epoch, **losses, images_per_s=rate)
        selected = f"  selection AUC {self.best['selection_auc']:.4f}" if self.best else ""
        self.advance(step.share_done, f"loss {step.loss:.3f}  {rate:,.0f} images/s{selected}")
        if not np.isfinite(step.loss):
            batch = step.number - step.epoch * len(self.state.batches)
            raise self._diverged(step.loss, f"step {step.number} (batch {batch} of epoch {step.epoch})")
        self.is_ending = self.ranks.any(self.requests.to_end)
        if self._is_due():
            self.keep(step.epoch)
        self._raise_if_stopping()

    def has_to_end(self) -> bool:
        """Whether this process trains alone and has a request to end; several agree on theirs in `on_step`."""
        return self.ranks.n == 1 and self.requests.to_end

    def _warn_of_chance(self, verb: str) -> None:
        """Warn where the network has learned nothing; the verb says when: it is still at chance, or ended there."""
        evidence = self.chance.evidence(self.images)
        if evidence and self.ranks.is_first:
            what = f"{self.config.model.name} {verb} at chance after {self.images:,} images ({evidence})"
            warnings.warn(f"{what}; try {labels_only.remedy(self.config, self.dataset)}.", stacklevel=3)

    def _is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self.is_ending or self.requests.to_keep or monotonic() - self.saved > CHECKPOINT_SECONDS

    def _raise_if_stopping(self) -> None:
        """Raise `KeyboardInterrupt` where the training is to end."""
        if self.is_ending:
            raise KeyboardInterrupt

    def on_epoch(self, epoch: int) -> None:
        """Evaluate the model; write a checkpoint after a new best and where one is due."""
        is_best = self.evaluate(epoch)
        self.is_ending = self.ranks.any(self.requests.to_end)
        is_whole = self.steps == (epoch + 1) * len(self.state.batches)  # else the clock has ended it
        if is_whole and (is_best or self._is_due()):
            self.keep(epoch + 1)
            self._raise_if_stopping()

    def evaluate(self, epoch: int) -> bool:
        """Evaluate the model on the selection part; save it if its loss is the least so far, and return whether.

        The loss, not the AUC: it is a proper score, so it rewards calibrated probabilities as well. That of a macro
        head counts by its weight in training.
        """
        part = self.dataset.selection.of_lenses()
        outputs = predict_dataset.outputs_of_all(self._predictor(), part)
        self.chance.evaluate(self.images, outputs.probs, part.labels)
        scores = {
            "selection_loss": float(metrics.losses(outputs.probs, part.labels).mean()),
            "selection_accuracy": float(metrics.hits(outputs.probs, part.labels).mean()),
            "selection_auc": metrics.macro_auc(outputs.probs, part.labels),
        }
        if outputs.macro is not None and part.truth:
            scores["selection_macro_loss"] = macromodel.mean_loss(outputs.macro, part.truth.scenes)
        loss = self._whole_loss(scores, scores)
        if not np.isfinite(loss):
            raise self._diverged(loss, f"epoch {epoch}")
        is_best = not self.best or self._whole_loss(scores, self.best) < self._whole_loss(self.best, scores)
        mean_loss = float(np.mean(self.losses)) if self.losses else None
        self._write("epoch", epoch=epoch, step=self.steps, train_loss=mean_loss, **scores, is_best=is_best)
        self.losses.clear()
        if is_best:
            self.best_weights = weights.save(self.out, self.state.model, self.state.head, self.state.macro)
            self.best = {"best_epoch": epoch, **scores}
            self.write_card(is_interrupted=True)
        return is_best

    def _whole_loss(self, scores: dict[str, Any], others: dict[str, Any]) -> float:
        """Loss of an epoch as compared with another; checkpoints of sublens 0.2 have none of macro heads."""
        loss = float(scores["selection_loss"])
        if "selection_macro_loss" in scores and "selection_macro_loss" in others:
            loss += self.config.train.macro_weight * float(scores["selection_macro_loss"])
        return loss

    def _diverged(self, loss: float, where: str) -> DataError:
        kept = f" {self.out} keeps the best epoch before it." if self.best else ""
        return DataError(
            f"the loss became {loss} in {where}",
            need="a finite loss in every step",
            next=f"Lower train.lr or train.adamw_lr and train again.{kept}",
        )

    def close(self) -> None:
        """Complete the card of a stopped training; the present weights are evaluated where none were before."""
        if not self.best:
            self.evaluate(0)
        self.write_card(is_interrupted=True)

    def finish(self, bar: Bar) -> None:
        """Calibrate the best weights on the selection part, fit their detection limit, export their graph, and complete
        the card.
        """
        self.close()
        self._warn_of_chance("ended")
        part, graph = self.dataset.selection, None
        predictor = Predictor.load(self.out, "torch", device())
        fitted = predict_dataset.calibrate(
            predictor, self.dataset.train, part, bar, knows_contaminants=self.dataset.has_contaminants
        )
        detection = detection_trials.fit_where_known(replace(predictor, calibration=fitted), self.dataset, bar)
        try:
            graph = onnx_export.add_graph(self.out, bundle.read_card(self.out), part, bar)
        except BundleError as err:
            warnings.warn(str(err), stacklevel=2)
        calibration = bundle.save_calibration(self.out, fitted, len(part))
        self.write_card(is_interrupted=False, calibration=calibration, detection=detection, graph=graph)
        checkpoint.discard(self.out)

    def write_card(
        self,
        *,
        is_interrupted: bool,
        calibration: CardCalibration | None = None,
        detection: Detection | None = None,
        graph: CardGraph | None = None,
    ) -> None:
        """Write the card of the best weights and of the training so far."""
        assert self.config.input is not None
        fields: dict[str, Any] = {
            "network": self.config.model.name,
            "classes": self.dataset.classes,
            "image_shape": self.dataset.train.shape,
            "input": self.config.input,
            "settings": self.config,
            "data": {
                "name": self.dataset.name,
                "hash": self.dataset.hash,
                "train": self.state.batches.n_images(self.steps),
                "selection": len(self.dataset.selection),
                "test": len(self.dataset.test),
            },
            "training": {
                "steps": self.steps,
                "images": self.images,
                "seconds": round(self.seconds, 1),
                **self.best,
                "interrupted": is_interrupted,
            },
            "map": self.state.card_map(self.dataset),
            "has_macro": self.state.macro is not None,
            "teacher": self.state.batches.teacher and self.state.batches.teacher.card_entry,
            "start": self.state.start,
            "supervision": self.state.supervision,
            "calibration": calibration,
            "detection": detection,
            "graph": graph,
            "versions": self.versions,
            "machine": {
                "processor": machine.processor(),
                "processes": self.ranks.n,
                "threads": torch.get_num_threads(),
                "device": device(),
            },
            "weights_sha256": self.best_weights,
            "log": CardLog(n_bytes=self.log.tell(), sha256=self.log_digest.hexdigest()),
        }
        bundle.save_card(self.out, Card(**fields))

    def _predictor(self) -> Predictor:
        assert self.config.input is not None
        model, shape, macro = self.state.model.eval(), self.dataset.train.shape, self.state.macro
        return predict_dataset.eager(
            model, self.dataset.classes, shape, self.config.input, device(), macro=macro and macro.eval()
        )

    def _write(self, kind: str, **entry: object) -> None:
        content = {"kind": kind, **entry, "images": self.images, "seconds": round(self.seconds, 3)}
        line = json.dumps(content) + "\n"
        self.log.write(line)
        self.log.flush()
        self.log_digest.update(line.encode())


class NullRecorder(TrainingRecorder):
    """Recorder of a process that is not the first: it counts steps and writes nothing."""

    def keep(self, epoch: int) -> None:
        self.saved, self.requests.to_keep = monotonic(), False

    def cut_log(self, n_bytes: int) -> None: ...

    def evaluate(self, epoch: int) -> bool:
        return False

    def close(self) -> None: ...

    def finish(self, bar: Bar) -> None: ...

    def _write(self, kind: str, **entry: object) -> None: ...
