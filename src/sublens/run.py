"""One run on disk: train a network, then measure it.

RUN/weights.safetensors, card.json   the bundle
RUN/log.jsonl                        one line a step and an epoch
RUN/checkpoints/                     where an unfinished training stands
RUN/scores.json, predictions.csv     what the test part said
RUN/gallery.npz                      some test images, for the report
"""

import io
import json
import platform
import signal
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any, TextIO

import numpy as np
import torch
from torch import nn

from sublens import bundle, catalog, checkpoint, evaluate, files, metrics, models, train
from sublens.bundle import Card, CardMap, CardScores
from sublens.checkpoint import Checkpoint
from sublens.config import RunConfig
from sublens.data import Dataset, Part
from sublens.errors import ConfigError, DataError
from sublens.evaluate import Predictions
from sublens.models import TruthHead
from sublens.predict import Predictor
from sublens.progress import Advance, Bar, Count, silent

LOG, SCORES, PREDICTIONS, GALLERY = "log.jsonl", "scores.json", "predictions.csv", "gallery.npz"
THINNED = 100
"""Steps that share a row in the log of a published run."""
CHECKPOINT_SECONDS = 120.0
"""What a killed training loses at most."""
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


def train_run(
    dataset: Dataset,
    config: RunConfig,
    out: Path,
    *,
    force: bool = False,
    resume: bool = False,
    bar: Bar = silent,
) -> bool:
    """Train one network and leave its bundle and log in `out`.

    resume: go on where an earlier call with the same settings and data stopped, however it did; on
    a processor the weights then become the same as without the stop. Returns False where Ctrl-C
    ended it early; the best weights by then are saved all the same.
    """
    config = settled(config, dataset)
    before = _unfinished(out, config, dataset) if resume and out.is_dir() else None
    if before is None:
        if resume and is_trained(out, config, dataset):
            return True
        files.refuse_existing(out, force=force)
    with torch.random.fork_rng(), files.explained(out), _removed_if_useless(out):
        torch.manual_seed(config.train.seed)
        pupil = _pupil(dataset, config)
        if before is None:
            files.remove(out)
            out.mkdir(parents=True)
        with (out / LOG).open("a", encoding="utf-8") as log, bar(f"training {config.model.name}", 1) as advance:
            diary = _Diary(dataset, config, pupil, out, log, advance)
            if before:
                diary.continue_from(before)
            else:
                diary.keep(0)
            try:
                with _patient() as diary.is_stopped:
                    _fit(diary)
            except KeyboardInterrupt:
                diary.close(is_interrupted=True)
                return False
            diary.close(is_interrupted=False)
            checkpoint.discard(out)
    return True


@dataclass(frozen=True)
class _Pupil:
    """A network about to be trained, and what trains it."""

    model: nn.Module
    head: TruthHead | None
    optimizer: torch.optim.Optimizer
    feed: train.Feed
    has_bf16: bool

    def map(self, dataset: Dataset) -> CardMap | None:
        """The map that the truth head draws."""
        if not (self.head and dataset.survey):
            return None
        side = models.field_of_view(self.feed.seen, dataset.train.shape) * dataset.survey.camera.pixel_scale
        return CardMap(n_cells=self.feed.n_cells, cell_arcsec=side / self.feed.n_cells)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All that has weights."""
        return {"model": self.model, **({"head": self.head} if self.head else {})}


def _pupil(dataset: Dataset, config: RunConfig) -> _Pupil:
    assert config.input is not None
    name, seen, side = config.model.name, config.input, models.side_seen(config.input, dataset.train.shape)
    model = models.build(name, len(dataset.classes), seen.channels, pretrained=config.model.pretrained)
    models.try_out(model, name, seen.channels, side)
    head, n_cells = train.truth_head(model, seen, dataset, config.train)
    modules = [models.placed(module, device()) for module in (model, head) if module]
    return _Pupil(
        model,
        head,
        train.make_optimizer(modules, config.train),
        train.Feed(dataset.train, seen, config.train, device(), dataset.survey if head else None, n_cells),
        models.has_bf16_gain(name, device(), side),
    )


def _fit(diary: "_Diary") -> None:
    """Train; where memory runs out, say which batch would have fitted."""
    pupil, config, (epoch, n_done) = diary.pupil, diary.config.train, diary.place
    try:
        train.fit(
            pupil.model,
            pupil.head,
            pupil.optimizer,
            pupil.feed.epochs(epoch, n_done),
            config,
            share_done=diary.share_done,
            on_step=diary.on_step,
            on_epoch=diary.on_epoch,
            has_bf16=pupil.has_bf16,
            after=(epoch, diary.steps),
        )
    except (MemoryError, RuntimeError) as err:
        if not train.is_out_of_memory(err):
            raise
        fitting = train.fitting_batch(pupil.model, pupil.feed, has_bf16=pupil.has_bf16)
        advice = (
            f"A batch of {fitting} fits: add --set train.batch_size={fitting}."
            if fitting
            else "Not even one image fits: set a smaller input.crop, or choose a smaller network."
        )
        raise DataError(f"Memory ran out with batches of {config.batch_size} images. {advice}") from err


def _unfinished(out: Path, config: RunConfig, dataset: Dataset) -> Checkpoint | None:
    """Where the interrupted training in `out` stands; None where there is none to go on with.

    Raises `ConfigError` where it has other settings, `DataError` where it is on other data.
    """
    found, damaged = checkpoint.latest(out)
    for path in damaged:
        warnings.warn(f"{path} is damaged; the checkpoint before it is used.", stacklevel=2)
    if found is None:
        if damaged:
            raise DataError(f"{out}: every checkpoint is damaged. Add --force instead of --resume to start again.")
        return None
    _refuse_changes(out, found.facts["settings"], config.model_dump(mode="json"))
    if found.facts["data"] != dataset.hash:
        raise DataError(f"{out}: was begun on other data than {dataset.name}. Name that data, or choose another --out.")
    return found


def _refuse_changes(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    old, new = (dict(_leaves(tree)) for tree in (before, now))
    changed = [
        f"{key}: {old.get(key)} before, {new.get(key)} now" for key in sorted(old | new) if old.get(key) != new.get(key)
    ]
    if changed:
        raise ConfigError(
            f"{out}: was begun with other settings:\n  " + "\n  ".join(changed) + "\n"
            "Give the same ones, or none at all; or choose another --out."
        )


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def begun_settings(out: Path) -> RunConfig | None:
    """The settings of the interrupted training in `out`, if there is one."""
    found, _ = checkpoint.latest(out)
    return RunConfig.model_validate(found.facts["settings"]) if found else None


def is_trained(folder: Path, config: RunConfig, dataset: Dataset) -> bool:
    """Whether `folder` holds this very run, complete; `DataError` where it holds another."""
    if not (folder / bundle.CARD).is_file():
        return False
    card = bundle.read_card(folder)
    if card.settings == config and card.data.hash == dataset.hash:
        return not card.training.interrupted
    raise DataError(
        f"{folder}: holds a run with other settings or on other data. Choose another --out, or add "
        "--force to train it again."
    )


@contextmanager
def _patient() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM wait for the end of a step; the second one does not. Yields whether one came."""
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    if threading.current_thread() is not threading.main_thread():  # where signals do not arrive
        yield lambda: False
        return
    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass
class _Diary:
    """Follows one training: keeps its log, judges each epoch, saves the best."""

    dataset: Dataset
    config: RunConfig
    pupil: _Pupil
    out: Path
    log: TextIO
    advance: Advance
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
    is_stopped: Callable[[], bool] = lambda: False
    versions: dict[str, str] = field(default_factory=lambda: versions())
    """Of the code that trains, which may change on disk meanwhile."""

    @property
    def seconds(self) -> float:
        return monotonic() - self.start

    def share_done(self, step: int) -> float:
        """By the clock where there is a budget of minutes, else by the number of steps."""
        train_config = self.config.train
        if train_config.minutes:
            return self.seconds / (60 * train_config.minutes)
        return step / (train_config.epochs * len(self.pupil.feed))

    def keep(self, epoch: int) -> None:
        """Write a checkpoint of a training that is in this epoch."""
        facts = {
            "settings": self.config.model_dump(mode="json"),
            "data": self.dataset.hash,
            "epoch": epoch,
            "images": self.images,
            "seconds": self.seconds,
            "losses": self.losses,
            "best": self.best,
            "log_bytes": self.log.tell(),
        }
        found = checkpoint.captured(self.steps, self.pupil.modules, self.pupil.optimizer, facts)
        checkpoint.save(self.out, found)
        self.saved = monotonic()

    def continue_from(self, before: Checkpoint) -> None:
        """Take up a training where its checkpoint left it; the log is cut back to there."""
        checkpoint.restore(before, self.pupil.modules, self.pupil.optimizer)
        facts = before.facts
        self.steps, self.images, self.losses, self.best = before.step, facts["images"], facts["losses"], facts["best"]
        self.place = facts["epoch"], before.step - facts["epoch"] * len(self.pupil.feed)
        self.start = monotonic() - facts["seconds"]
        self.log.truncate(min(facts["log_bytes"], self.log.tell()))

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
            batch = step.number - step.epoch * len(self.pupil.feed)
            raise self._diverged(step.loss, f"step {step.number} (batch {batch} of epoch {step.epoch})")
        if self.is_stopped() or monotonic() - self.saved > CHECKPOINT_SECONDS:
            self.keep(step.epoch)
        if self.is_stopped():
            raise KeyboardInterrupt

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
            raise self._diverged(scored["selection_loss"], f"epoch {epoch}")
        is_best = not self.best or scored["selection_loss"] < self.best["selection_loss"]
        mean_loss = float(np.mean(self.losses)) if self.losses else None
        self._write("epoch", epoch=epoch, step=self.steps, train_loss=mean_loss, **scored, is_best=is_best)
        self.losses.clear()
        if is_best:
            bundle.save_weights(self.out, self.pupil.model, self.pupil.head)
            self.best = {"best_epoch": epoch, **scored}
            self.write_card(is_interrupted=True)

    def _diverged(self, loss: float, where: str) -> DataError:
        kept = f"; {self.out} keeps the best epoch before it" if self.best else ""
        return DataError(f"The loss became {loss} in {where}. Lower train.lr or train.adamw_lr and train again{kept}.")

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
            map=self.pupil.map(self.dataset),
            versions=self.versions,
            machine={"processor": processor(), "threads": torch.get_num_threads(), "device": device()},
        )

    def _predictor(self) -> Predictor:
        assert self.config.input is not None
        return Predictor(
            self.pupil.model.eval(), self.dataset.classes, self.dataset.train.shape, self.config.input, device()
        )

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
        "map": evaluate.score_maps(predictor, dataset.test),
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


def publish(runs: Sequence[Path], dataset: Dataset, out: Path, *, force: bool = False, bar: Bar = silent) -> Path:
    """Leave in `out` a bundle to give away: the best of several measured runs, with 16-bit weights.

    The best has the least selection loss of those trained on the same data as the first; the
    scores of all go into its card. dataset: its selection part shows what the rounding changes.
    Returns `out`. Raises `DataError` where a run is not measured or is of another network.
    """
    for run in runs:
        files.refuse_overlap(out, run)
    cards = {run: bundle.read_card(run) for run in runs}
    first = cards[runs[0]]
    for run, card in cards.items():
        if (card.network, card.classes) != (first.network, first.classes):
            raise DataError(f"{run}: is a {card.network}, {runs[0]} a {first.network}. Publish one network at a time.")
    scores = {run: _published(run, card) for run, card in cards.items()}
    rivals = [run for run, card in cards.items() if card.data.hash == first.data.hash]
    best = min(rivals, key=lambda run: cards[run].training.selection_loss)
    with files.whole_folder(out, force=force) as folder:
        model, head, card = bundle.load(best)
        bundle.save_weights(folder, model, head, torch.float16)
        told = {name: getattr(card, name) for name in Card.model_fields if name != "weights_sha256"}
        told["scores"] = (scores[best], *(score for run, score in scores.items() if run != best))
        bundle.write_card(folder, **told)
        told["rounding"] = _rounding(best, folder, dataset.selection, bar)
        bundle.write_card(folder, **told)
        (folder / LOG).write_text("\n".join(_thinned((best / LOG).read_text(encoding="utf-8").splitlines())) + "\n")
    return out


def _rounding(run: Path, rounded: Path, part: Part, bar: Bar) -> float:
    """The most that rounding its weights changes any probability of this part."""
    with bar(f"comparing with 16 bits: {run.name}", 2 * len(part)) as advance:
        count = Count(advance)
        loaded = (Predictor.load(folder, device()) for folder in (run, rounded))
        before, after = (evaluate.predict_all(predictor, part, count.add).probs for predictor in loaded)
    return float(np.abs(before - after).max())


def _published(run: Path, card: Card) -> CardScores:
    try:
        scores = json.loads((run / SCORES).read_bytes())
    except (OSError, ValueError) as err:
        raise DataError(f"{run}: is not measured. Measure it with `sublens evaluate {run} DATASET`.") from err
    is_labels_only = card.map is None and card.data.hash == scores["data"]["hash"]
    return CardScores(
        track="labels only" if is_labels_only else "simulator in the loop",
        seed=card.settings.train.seed,
        trained_on=card.data.hash,
        tested_on=scores["data"]["hash"],
        images=card.training.images,
        selection_loss=card.training.selection_loss,
        n=scores["n"],
        auc=scores["auc_macro"]["value"],
        auc_low=scores["auc_macro"]["low"],
        auc_high=scores["auc_macro"]["high"],
        accuracy=scores["accuracy"]["value"],
        loss=scores["loss"]["value"],
    )


def _thinned(lines: Sequence[str]) -> Iterator[str]:
    """A log with a row for each `THINNED` steps, which holds their mean losses, and every epoch."""
    steps: list[dict[str, Any]] = []
    for entry in map(json.loads, lines):
        if entry["kind"] == "step":
            steps.append(entry)
        if steps and (len(steps) == THINNED or entry["kind"] == "epoch"):
            means = {
                name: float(np.mean([step[name] for step in steps]))
                for name in ("loss", "truth_loss")
                if steps[0][name] is not None
            }
            yield json.dumps({**steps[-1], **means})
            steps = []
        if entry["kind"] == "epoch":
            yield json.dumps(entry)


def _gallery(test: Part, predictions: Predictions) -> bytes:
    """Examples of each class and the most confident mistakes, as an .npz."""
    examples = [np.flatnonzero(test.labels == label)[:EXAMPLES] for label in range(len(predictions.classes))]
    wrong = np.flatnonzero(predictions.probs.argmax(axis=1) != test.labels)
    surest = wrong[np.argsort(-predictions.probs[wrong].max(axis=1), kind="stable")][:MISTAKES]
    chosen = np.unique(np.concatenate([*examples, surest]))
    archive = io.BytesIO()
    np.savez_compressed(archive, counts=test.counts(chosen), ids=test.ids[chosen], labels=test.labels[chosen])
    return archive.getvalue()
