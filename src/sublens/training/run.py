"""One run on disk: train a network, then measure it.

RUN/weights.safetensors, card.json   the bundle
RUN/log.jsonl                        one line a step and an epoch
RUN/checkpoints/                     where an unfinished training stands
RUN/scores.json, predictions.csv     what the test part said
RUN/gallery.npz                      some test images, for the report
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sublens.config import RunConfig, checked, side_seen
from sublens.data.dataset import Dataset
from sublens.errors import DataError
from sublens.models import bundle, networks
from sublens.models.networks import device
from sublens.parallel.torchrun import ALONE, Ranks
from sublens.progress import Bar, silent
from sublens.storage import files
from sublens.training import checkpoint, loop
from sublens.training.checkpoint import Checkpoint
from sublens.training.distillation import StudentMaps, Teacher
from sublens.training.recorder import (
    NullRecorder,
    TrainingRecorder,
    TrainState,
    graceful_stop,
    has_no_steps,
    open_log,
    open_no_log,
)


def resolve_settings(config: RunConfig, dataset: Dataset) -> RunConfig:
    """The settings that a run on this data set has: the network's own choices, and how the data were divided."""
    filled = networks.resolved(config, dataset.train.shape)
    return filled.model_copy(update={"split": dataset.split})


def train_run(
    dataset: Dataset,
    config: RunConfig,
    out: Path,
    *,
    force: bool = False,
    resume: bool = False,
    ranks: Ranks = ALONE,
    bar: Bar = silent,
) -> bool:
    """Train one network and leave its bundle and log in `out`.

    resume: go on where an earlier call with the same settings and data stopped, however it did,
    begin where none did, and leave a complete run alone. With a number of epochs, on a processor
    and with as many threads, the weights become the same as without the stop. ranks: the processes
    that call this together, to train one network; they all see `out`, and the first one writes it.
    Returns False where Ctrl-C or SIGTERM ended it early; the best weights by then are saved all the same.
    """
    config = resolve_settings(config, dataset)
    if resume and is_trained(out, config, dataset):
        if ranks.is_first:
            checkpoint.discard(out)  # may be left of a kill at the very end
        return True
    before = _unfinished(out, config, dataset) if resume else None
    if before is None and not (resume and has_no_steps(out)):
        files.refuse_existing(out, force=force)
    ranks.wait()  # until all have seen what is there
    with torch.random.fork_rng(), files.translate_errors(out):
        torch.manual_seed(config.train.seed)
        pupil = build_state(dataset, config, ranks)
        with open_log(out, is_new=before is None) if ranks.is_first else open_no_log() as log:
            with bar(f"training {config.model.name}", 1) as advance:
                diary = (TrainingRecorder if ranks.is_first else NullRecorder)(
                    dataset, config, pupil, out, log, advance, ranks
                )
                if before:
                    diary.continue_from(before)
                else:
                    diary.keep(0)
                try:
                    with graceful_stop() as diary.asked:
                        _fit(diary)
                except KeyboardInterrupt:
                    diary.close()
                    return False
            diary.finish(bar)
    return True


def build_state(dataset: Dataset, config: RunConfig, ranks: Ranks) -> TrainState:
    assert config.input is not None
    name, seen, side = config.model.name, config.input, side_seen(config.input, dataset.train.shape)
    model = networks.build(name, len(dataset.classes), seen.channels, pretrained=config.model.pretrained)
    networks.check_input_size(model, name, seen.channels, side)
    head, n_cells = loop.truth_head(model, seen, dataset, config.train)
    teacher, hints = None, None
    if config.train.teacher:
        teacher = Teacher.load(config.train.teacher, dataset, seen, device())
        hints = StudentMaps(model, seen, teacher)
    modules = [networks.to_device(module, device()) for module in (model, head, hints) if module]
    survey = dataset.survey if head else None
    feed = loop.BatchSource(dataset.train, seen, config.train, device(), survey, n_cells, teacher, ranks)
    ranks.check(feed.size)
    return TrainState(
        model,
        head,
        hints,
        loop.make_optimizer(modules, config.train),
        feed,
        networks.has_bf16_gain(name, device(), side),
    )


def _fit(diary: "TrainingRecorder") -> None:
    """Train; where memory runs out, say which batch would have fitted."""
    pupil, config, (epoch, n_done) = diary.pupil, diary.config.train, diary.place
    try:
        loop.fit(
            pupil.model,
            pupil.head,
            pupil.optimizer,
            pupil.feed.epochs(epoch, n_done),
            config=config,
            share_done=diary.share_done,
            on_step=diary.on_step,
            on_epoch=diary.on_epoch,
            hints=pupil.hints,
            has_bf16=pupil.has_bf16,
            after=(epoch, diary.steps),
            ranks=diary.ranks,
        )
        return
    except (MemoryError, RuntimeError) as err:
        if not loop.is_out_of_memory(err):
            raise
    fitting = loop.fitting_batch(pupil.model, pupil.feed, has_bf16=pupil.has_bf16)  # now that the error holds none
    advice = (
        f"A batch of {fitting} may fit: begin again with --set train.batch_size={fitting}."
        if fitting
        else "Not even one image fits: set a smaller input.crop, or choose a smaller network."
    )
    raise DataError(f"Memory ran out with batches of {pupil.feed.size} images. {advice}")


def _unfinished(out: Path, config: RunConfig, dataset: Dataset) -> Checkpoint | None:
    """Where the interrupted training in `out` stands; None where there is none to go on with.

    Raises `DataError` where it has other settings or is on other data.
    """
    found, damaged = checkpoint.latest(out)
    if found is None and damaged:
        raise DataError(f"{out}: all of its checkpoints are damaged. Begin again with --force.")
    for path in damaged:
        warnings.warn(f"{path} is damaged; the checkpoint before it is used.", stacklevel=2)
        path.unlink(missing_ok=True)
    if found:
        _refuse_changes(out, found.facts["settings"], config)
        _refuse_other_data(out, found.facts["data"], dataset)
    return found


def _refuse_changes(out: Path, before: dict[str, Any], config: RunConfig) -> None:
    old, new = (dict(_leaves(tree)) for tree in (before, config.model_dump(mode="json")))
    changed = [
        f"{key}: {old.get(key)} before, {new.get(key)} now" for key in sorted(old | new) if old.get(key) != new.get(key)
    ]
    if changed:
        raise DataError(
            f"{out}: holds a run with other settings:\n  " + "\n  ".join(changed) + "\n"
            "Give the same ones, choose another --out, or begin again with --force."
        )


def _refuse_other_data(out: Path, digest: str, dataset: Dataset) -> None:
    if digest != dataset.hash:
        raise DataError(
            f"{out}: holds a run on other data than {dataset.name}. Name that data, choose another --out, or "
            "begin again with --force."
        )


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def settings_of(out: Path) -> RunConfig | None:
    """The settings of the training in `out`, complete or not, if there is one."""
    if (out / bundle.CARD).is_file():
        return bundle.read_card(out).settings
    found, _ = checkpoint.latest(out)
    return checked(found.facts["settings"], RunConfig) if found else None


def is_trained(folder: Path, config: RunConfig, dataset: Dataset) -> bool:
    """Whether `folder` holds this very run, complete; `DataError` where it holds another."""
    if not (folder / bundle.CARD).is_file():
        return False
    card = bundle.read_card(folder)
    _refuse_changes(folder, card.settings.model_dump(mode="json"), config)
    _refuse_other_data(folder, card.data.hash, dataset)
    return not card.training.interrupted
