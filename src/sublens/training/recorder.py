"""What follows one training: its log, the best epoch, checkpoints, the card; and the signals that stop it."""

import json
import os
import platform
import signal
import subprocess
import threading
import warnings
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

from sublens import metrics
from sublens.config import RunConfig, field_of_view
from sublens.data.dataset import Dataset
from sublens.errors import BundleError, DataError
from sublens.inference import onnx_export, predict_dataset
from sublens.inference.predictor import Predictor
from sublens.models import bundle, weights
from sublens.models.bundle import CardCalibration, CardGraph, CardMap
from sublens.models.heads import TruthHead
from sublens.models.networks import device
from sublens.parallel.torchrun import Ranks
from sublens.progress import Advance, Bar
from sublens.storage import files
from sublens.training import checkpoint, loop
from sublens.training.checkpoint import Checkpoint
from sublens.training.distillation import StudentMaps

LOG, SCORES, PREDICTIONS, GALLERY = "log.jsonl", "scores.json", "predictions.csv", "gallery.npz"
ENDING = (signal.SIGINT, signal.SIGTERM)
KEEPING = (signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()
"""Signals at which a training writes a checkpoint and ends, or goes on."""
ECHO_SECONDS = 2.0
"""In which the same signal again is no second one: torchrun hands on what all have got already."""
CHECKPOINT_SECONDS = 120.0
"""A checkpoint is written this often, between steps or epochs, and with every new best."""


@contextmanager
def open_log(out: Path, *, is_new: bool) -> Iterator[TextIO]:
    """The log of a run, in a folder emptied for a new one; removed where there was nothing to keep in the end."""
    with files.lock_folder(out):
        for leftover in out.iterdir() if is_new else ():
            files.remove(leftover)
        try:
            with (out / LOG).open("a", encoding="utf-8") as log:
                yield log
        finally:
            if has_no_steps(out):
                files.remove(out)


@contextmanager
def open_no_log() -> Iterator[TextIO]:
    with Path(os.devnull).open("w", encoding="utf-8") as log:
        yield log


def has_no_steps(out: Path) -> bool:
    """Whether a training was begun in `out`, or about to be, but has not taken a step."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    return names <= {LOG, checkpoint.FOLDER} and checkpoint.last_step(out) == 0


@dataclass(frozen=True)
class TrainState:
    """A network about to be trained, and what trains it."""

    model: nn.Module
    head: TruthHead | None
    hints: StudentMaps | None
    optimizer: torch.optim.Optimizer
    feed: loop.BatchSource
    has_bf16: bool

    def drawn(self, dataset: Dataset) -> CardMap | None:
        """The map that the truth head draws, if there is one."""
        if not (self.head and dataset.survey):
            return None
        side = field_of_view(self.feed.seen, dataset.train.shape) * dataset.survey.camera.pixel_scale
        return CardMap(n_cells=self.feed.n_cells, cell_arcsec=side / self.feed.n_cells)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All that has weights."""
        named = {"model": self.model, "head": self.head, "hints": self.hints}
        return {name: module for name, module in named.items() if module}


@dataclass
class Requests:
    """What signals have asked of a training."""

    to_end: bool = False
    to_keep: bool = False
    """To write a checkpoint and go on."""


@contextmanager
def graceful_stop() -> Iterator[Requests]:
    """Ctrl-C and SIGTERM wait until a checkpoint can be written; the second one does not. SIGUSR1 asks for one.

    A signal that is ignored, as in a script's background, stays so.
    """
    asked, came = Requests(), dict[int, float]()

    def note(number: int, frame: object) -> None:
        if monotonic() - came.setdefault(number, monotonic()) > ECHO_SECONDS and number in ENDING:
            raise KeyboardInterrupt
        if number in ENDING:
            asked.to_end = True
        else:
            asked.to_keep = True

    if threading.current_thread() is not threading.main_thread():  # where signals do not arrive
        yield asked
        return
    current = {number: signal.getsignal(number) for number in (*ENDING, *KEEPING)}
    heeded = {number: handler for number, handler in current.items() if handler not in (None, signal.SIG_IGN)}
    for number in heeded:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in heeded.items():
            signal.signal(number, handler)


@dataclass
class TrainingRecorder:
    """Follows one training: keeps its log, judges each epoch, saves the best."""

    dataset: Dataset
    config: RunConfig
    pupil: TrainState
    out: Path
    log: TextIO
    advance: Advance
    ranks: Ranks
    start: float = field(default_factory=monotonic)
    saved: float = field(default_factory=monotonic)
    """When the last checkpoint was."""
    steps: int = 0
    images: int = 0
    place: tuple[int, int] = (0, 0)
    """The epoch that training goes on in, and the batches of it that are behind us."""
    losses: list[float] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    """Epoch and scores on the selection part of the weights that are kept."""
    asked: Requests = field(default_factory=Requests)
    is_ending: bool = False
    """Whether one of the processes was asked to end, and all know."""
    versions: dict[str, str] = field(default_factory=lambda: versions())
    """Of the code that trains, which may change on disk meanwhile."""

    @property
    def seconds(self) -> float:
        return monotonic() - self.start

    def share_done(self, step: int) -> float:
        """By the clock where there is a budget of minutes, else by the number of steps."""
        train_config = self.config.train
        if train_config.minutes:
            return self.ranks.first(self.seconds / (60 * train_config.minutes))
        return step / (train_config.epochs * len(self.pupil.feed))

    def keep(self, epoch: int) -> None:
        """Write a checkpoint of a training that is in this epoch."""
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
            "best_weights": self._kept_weights() if self.best else "",
            "log_bytes": self.log.tell(),
        }
        found = checkpoint.captured(self.steps, self.pupil.modules, self.pupil.optimizer, facts)
        checkpoint.save(self.out, found)
        self.saved, self.asked.to_keep = monotonic(), False

    def _threads(self) -> int:
        """Of all processes."""
        return self.ranks.n * torch.get_num_threads()

    def _kept_weights(self) -> str:
        """Hash of the weights that are kept, "" if there are none."""
        return bundle.read_card(self.out).weights_sha256 if (self.out / bundle.CARD).is_file() else ""

    def _teacher_hash(self) -> str | None:
        teacher = self.pupil.feed.teacher
        return teacher.card.weights_sha256 if teacher else None

    def continue_from(self, before: Checkpoint) -> None:
        """Take up a training where its checkpoint left it; the log is cut back to there.

        What was measured since is removed. Raises `DataError` for a checkpoint of another version, or where
        the teacher is another one now.
        """
        facts = before.facts
        if facts.get("teacher") != self._teacher_hash():
            raise DataError(
                f"{self.out}: was begun with another teacher, which {self.config.train.teacher} was then. "
                "Put that one back, or begin again with --force."
            )
        try:
            checkpoint.restore(before, self.pupil.modules, self.pupil.optimizer)
            self.images, self.losses = facts["images"], facts["losses"]
            self.steps, self.place = before.step, (facts["epoch"], before.step - facts["epoch"] * len(self.pupil.feed))
            self.start = monotonic() - facts["seconds"]
            if facts["best_weights"] == self._kept_weights():  # else a later epoch's, which will come again
                self.best = facts["best"]
            self.cut_log(facts["log_bytes"])
        except (RuntimeError, KeyError, ValueError) as err:
            raise DataError(
                f"{self.out}: its checkpoint was written by another version of sublens. "
                "Install that one, or begin again with --force."
            ) from err
        if (facts["versions"], facts["threads"]) != (self.versions, self._threads()):
            warnings.warn(
                f"{self.out}: was begun with {facts['threads']} threads of {facts['versions']}; going on with "
                f"{self._threads()} of {self.versions}, its weights may differ from those of an unbroken run.",
                stacklevel=2,
            )
        for name in (SCORES, PREDICTIONS, GALLERY):
            files.remove(self.out / name)

    def cut_log(self, n_bytes: int) -> None:
        """Forget what comes after so many bytes."""
        self.log.truncate(min(n_bytes, self.log.tell()))

    def on_step(self, step: loop.Step) -> None:
        self.steps, self.images = step.number, self.images + step.n_images
        self.losses.append(step.loss)
        rate = self.images / self.seconds
        losses = {"loss": step.loss, "truth_loss": step.truth_loss, "distill_loss": step.distill_loss}
        self._write("step", step=step.number, epoch=step.epoch, **losses, images_per_s=rate)
        selected = f"  selection AUC {self.best['selection_auc']:.4f}" if self.best else ""
        self.advance(step.share_done, f"loss {step.loss:.3f}  {rate:,.0f} images/s{selected}")
        if not np.isfinite(step.loss):
            batch = step.number - step.epoch * len(self.pupil.feed)
            raise self._diverged(step.loss, f"step {step.number} (batch {batch} of epoch {step.epoch})")
        self.is_ending = self.ranks.any(self.asked.to_end)
        if self._is_due():
            self.keep(step.epoch)
        self._heed()

    def _is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self.is_ending or self.asked.to_keep or monotonic() - self.saved > CHECKPOINT_SECONDS

    def _heed(self) -> None:
        if self.is_ending:
            raise KeyboardInterrupt

    def on_epoch(self, epoch: int) -> None:
        """Judge the model; a checkpoint follows where there is much to lose."""
        is_best = self.judge(epoch)
        self.is_ending = self.ranks.any(self.asked.to_end)
        is_whole = self.steps == (epoch + 1) * len(self.pupil.feed)  # else the clock has ended it
        if is_whole and (is_best or self._is_due()):
            self.keep(epoch + 1)
            self._heed()

    def judge(self, epoch: int) -> bool:
        """Judge the model on the selection part, and save it if its loss there is the least so far.

        The loss, not the AUC: it is a proper score, so it also asks for honest probabilities.
        Returns whether it was.
        """
        part = self.dataset.selection
        probs = predict_dataset.predict_all(self._predictor(), part).probs
        scored = {
            "selection_loss": float(metrics.losses(probs, part.labels).mean()),
            "selection_accuracy": float(metrics.hits(probs, part.labels).mean()),
            "selection_auc": metrics.macro_auc(probs, part.labels),
        }
        if not np.isfinite(scored["selection_loss"]):
            raise self._diverged(scored["selection_loss"], f"epoch {epoch}")
        is_best = not self.best or scored["selection_loss"] < self.best["selection_loss"]
        mean_loss = float(np.mean(self.losses)) if self.losses else None
        self._write("epoch", epoch=epoch, step=self.steps, train_loss=mean_loss, **scored, is_best=is_best)
        self.losses.clear()
        if is_best:
            weights.save(self.out, self.pupil.model, self.pupil.head)
            self.best = {"best_epoch": epoch, **scored}
            self.write_card(is_interrupted=True)
        return is_best

    def _diverged(self, loss: float, where: str) -> DataError:
        kept = f"; {self.out} keeps the best epoch before it" if self.best else ""
        return DataError(f"The loss became {loss} in {where}. Lower train.lr or train.adamw_lr and train again{kept}.")

    def close(self) -> None:
        """Complete the card of a training that was stopped; the weights of now are judged where none were yet."""
        if not self.best:
            self.judge(0)
        self.write_card(is_interrupted=True)

    def finish(self, bar: Bar) -> None:
        """Calibrate the best weights on the selection part, make a graph of them, and complete the card."""
        self.close()
        part, graph = self.dataset.selection, None
        found = predict_dataset.calibrate(Predictor.load(self.out, "torch", device()), self.dataset.train, part, bar)
        try:
            graph = onnx_export.add_graph(self.out, bundle.read_card(self.out), part, bar)
        except BundleError as err:
            warnings.warn(str(err), stacklevel=2)
        calibration = bundle.save_calibration(self.out, found, len(part))
        self.write_card(is_interrupted=False, calibration=calibration, graph=graph)
        checkpoint.discard(self.out)

    def write_card(
        self, *, is_interrupted: bool, calibration: CardCalibration | None = None, graph: CardGraph | None = None
    ) -> None:
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
            map=self.pupil.drawn(self.dataset),
            teacher=self.pupil.feed.teacher and self.pupil.feed.teacher.told,
            calibration=calibration,
            graph=graph,
            versions=self.versions,
            machine={
                "processor": processor(),
                "processes": self.ranks.n,
                "threads": torch.get_num_threads(),
                "device": device(),
            },
        )

    def _predictor(self) -> Predictor:
        assert self.config.input is not None
        model, shape = self.pupil.model.eval(), self.dataset.train.shape
        return predict_dataset.eager(model, self.dataset.classes, shape, self.config.input, device())

    def _write(self, kind: str, **entry: object) -> None:
        self.log.write(
            json.dumps({"kind": kind, **entry, "images": self.images, "seconds": round(self.seconds, 3)}) + "\n"
        )
        self.log.flush()


class NullRecorder(TrainingRecorder):
    """That of a process which is not the first: it keeps pace, and leaves the rest to that one."""

    def keep(self, epoch: int) -> None:
        self.saved, self.asked.to_keep = monotonic(), False

    def cut_log(self, n_bytes: int) -> None: ...

    def judge(self, epoch: int) -> bool:
        return False

    def close(self) -> None: ...

    def finish(self, bar: Bar) -> None: ...

    def _write(self, kind: str, **entry: object) -> None: ...


def versions() -> dict[str, str]:
    """What a run was made with."""
    found = {name: version(name) for name in ("sublens", "torch", "timm")}
    commit = _commit()
    return {**found, "python": platform.python_version(), **({"commit": commit} if commit else {})}


def _commit() -> str | None:
    """The commit of the source tree that this code runs from, if it is one; + marks local changes."""
    here = Path(__file__).parent
    if not (here.parents[2] / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def processor() -> str:
    """The processor's name."""
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine())
