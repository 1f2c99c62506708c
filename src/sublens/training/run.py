"""One run on disk: train a network, then measure it.

RUN/weights.safetensors, card.json   the bundle
RUN/log.jsonl                        one line a step and an epoch
RUN/checkpoints/                     state of an unfinished training
RUN/scores.json, predictions.csv     scores and predictions of the test part
RUN/gallery.npz                      some test images, for the report
"""

import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from sublens.config import AUTO, RunConfig, TrainConfig, checked, input_side
from sublens.data import survey_stream
from sublens.data.dataset import Dataset
from sublens.errors import ConfigError, DataError
from sublens.models import bundle, networks
from sublens.models.networks import device
from sublens.parallel.signals import graceful_stop
from sublens.parallel.torchrun import ALONE, Ranks
from sublens.progress import Bar, Say, silent
from sublens.storage import files
from sublens.surveys.survey import Survey
from sublens.training import checkpoint, duration, labels_only, loop, macromodel
from sublens.training.checkpoint import Checkpoint
from sublens.training.distillation import StudentMaps, Teacher, start_from
from sublens.training.recorder import (
    LOG,
    NullRecorder,
    TrainingRecorder,
    has_its_log,
    has_no_steps,
    open_log,
    open_no_log,
)
from sublens.training.state import TrainState


def resolve_settings(config: RunConfig, dataset: Dataset) -> RunConfig:
    """Settings of a run on this data set, with the network's own values and the data's division filled in."""
    filled = networks.resolved(config, dataset.train.shape, dataset.pixels).model_copy(update={"split": dataset.split})
    return labels_only.with_defaults(filled, dataset, has_own_input=config.input is not None)


def resolved_for(out: Path, config: RunConfig, dataset: Dataset, *, resume: bool) -> RunConfig:
    """`resolve_settings`, with what is left to sublens as the run in `out` began it, where that is resumed."""
    begun = labels_only.as_begun(config, settings_of(out), dataset) if resume else config
    return resolve_settings(begun, dataset)


def seconds_left(dataset: Dataset, config: RunConfig, n_done: int = 0) -> float | None:
    """Time of a training after `n_done` steps, seconds, from a few steps of it.

    None where memory runs out, and for fresh images, which take their time to begin. config: resolved.
    """
    if config.train.minutes:
        return 60 * config.train.minutes
    if dataset.is_endless:
        return None
    with torch.random.fork_rng(_gpus()):
        torch.manual_seed(config.train.seed)
        state = build_state(dataset, config, ALONE)
        try:
            step = duration.measure_step(state, config.train)
        except (MemoryError, RuntimeError) as err:
            if not loop.is_out_of_memory(err):
                raise
            return None  # the training itself will name the batch that fits
    n_steps = config.train.epochs * len(state.batches) - n_done
    n_predicted = config.train.epochs * len(dataset.selection) + len(dataset.test)
    return step * (n_steps + duration.FORWARD * n_predicted / state.batches.size)


def train_run(
    dataset: Dataset,
    config: RunConfig,
    out: Path,
    *,
    force: bool = False,
    resume: bool = False,
    ranks: Ranks = ALONE,
    bar: Bar = silent,
    say: Say | None = None,
) -> bool:
    """Train one network and write its bundle and log to `out`.

    resume: continue an interrupted run of the same settings and data, begin where there is none, and leave
    a complete run alone. With a number of epochs, on a processor and with as many threads, the weights
    are the same as without the stop. ranks: the processes that call this together, to train one network;
    all of them read `out`, and the first writes it. say: prints before the training what the network learns from and
    how long it takes, which a process alone measures. Returns False where Ctrl-C or SIGTERM ended the
    training early; the best weights by then are saved all the same.
    """
    chosen, config = config, resolved_for(out, config, dataset, resume=resume)
    refuse_teacher(out, config)
    if resume and is_trained(out, config, dataset):
        if ranks.is_first:
            checkpoint.discard(out)  # may be left of a kill at the very end
        return True
    before = _unfinished(out, config, dataset) if resume else None
    if before is None and not (resume and has_no_steps(out)):
        files.refuse_existing(out, kind=files.Kind.RUN, force=force)
    ranks.wait()  # until all have read `out`
    with torch.random.fork_rng(_gpus()), files.translate_errors(out):
        torch.manual_seed(config.train.seed)
        state = build_state(dataset, config, ranks)
        if say:
            say(f"{config.model.name}: {state.supervision}{labels_only.note(chosen, config)}.")
            _announce_time(dataset, config, before.step if before else 0, ranks, say)
        with open_log(out, is_new=before is None) if ranks.is_first else open_no_log() as log:
            with bar(f"training {config.model.name}", 1) as advance:
                kind = TrainingRecorder if ranks.is_first else NullRecorder
                recorder = kind(dataset, config, state, out, log, advance, ranks)
                if before:
                    recorder.continue_from(before)
                else:
                    recorder.keep(0)
                try:
                    with graceful_stop() as recorder.requests:
                        _fit(recorder)
                except KeyboardInterrupt:
                    recorder.close()
                    return False
            recorder.finish(bar)
    return True


def _gpus() -> list[int]:
    """The GPU that is used, if any; `fork_rng` warns where there are several and none is named."""
    return [torch.cuda.current_device()] if device() == "cuda" else []


def _announce_time(dataset: Dataset, config: RunConfig, n_done: int, ranks: Ranks, say: Say) -> None:
    """Print how long a training will take; processes that train together are not timed."""
    if ranks.n == 1 and (seconds := seconds_left(dataset, config, n_done)):
        say(f"Training takes {duration.in_words(seconds)}.")


def refuse_teacher(out: Path, config: RunConfig) -> None:
    """Raise `DataError` where training in `out` could damage the teacher, or the network that it starts from."""
    for name in (config.train.teacher, config.model.start):
        if name not in (None, AUTO):
            files.refuse_overlap(out, bundle.locate(name))


def build_state(dataset: Dataset, config: RunConfig, ranks: Ranks) -> TrainState:
    """The network, its heads, its optimiser and its batches, before the first step."""
    assert config.input is not None
    name, network_input, side = config.model.name, config.input, input_side(config.input, dataset.train.shape)
    model = networks.build(name, len(dataset.classes), network_input.n_channels, pretrained=config.model.pretrained)
    networks.check_input_size(model, name, network_input.n_channels, side)
    head, n_cells = loop.truth_head(model, network_input, dataset, config.train)
    macro = macromodel.head(model, network_input, dataset, config.train)
    teacher, student, start = None, None, None
    if config.model.start:
        start = start_from(config.model.start, config, dataset, model, head, macro)
    if config.train.teacher:
        teacher = Teacher.load(config.train.teacher, dataset, network_input, device())
        student = StudentMaps(model, network_input, teacher)
    modules = [networks.to_device(module, device()) for module in (model, head, student, macro) if module]
    survey = dataset.survey if head else None
    endless = _endless(dataset, config.train)
    batches = loop.BatchSource(
        dataset.train, network_input, config.train, device(), survey, n_cells, teacher, ranks, endless, bool(macro)
    )
    ranks.check(batches.size)
    return TrainState(
        model,
        head,
        student,
        macro,
        loop.make_optimizer(modules, config.train),
        batches,
        networks.has_bf16_gain(name, device(), side),
        start,
    )


def _endless(dataset: Dataset, train: TrainConfig) -> Survey | None:
    """The survey whose fresh images are trained on, if there is one.

    Raises `ConfigError` where train.cache or train.matched is set without one, or the cache does not fit.
    """
    if not (dataset.is_endless and dataset.survey):
        if name := "train.cache" if train.cache else "train.matched" if train.matched else "":
            what, need = f"{name} is set, and every image of this data set is at hand", "a survey to train from"
            raise ConfigError(what, need=need, next="Leave it out, or name a survey instead of the data set.")
        return None
    if device() == "cpu":
        survey_stream.check_cache(dataset.survey, train.cache or survey_stream.POOL)
    return dataset.survey


def _fit(recorder: TrainingRecorder) -> None:
    """Train; `DataError` with the batch that would fit where memory runs out."""
    state, config, (epoch, n_done) = recorder.state, recorder.config.train, recorder.resume_at
    try:
        with closing(state.batches.epochs(epoch, n_done)) as epochs:
            loop.fit(
                state.model,
                state.head,
                state.optimizer,
                epochs,
                config=config,
                share_done=recorder.share_done,
                on_step=recorder.on_step,
                on_epoch=recorder.on_epoch,
                student=state.student,
                macro=state.macro,
                has_bf16=state.has_bf16,
                after=(epoch, recorder.steps),
                ranks=recorder.ranks,
                log_every=state.batches.log_every,
                is_ending=recorder.has_to_end,
            )
        return
    except (MemoryError, RuntimeError) as err:
        if not loop.is_out_of_memory(err):
            raise
    if recorder.ranks.n > 1:  # whose layers would wait for each other
        raise DataError(
            f"memory ran out with batches of {state.batches.size} images over {recorder.ranks.n} processes",
            need="smaller batches",
            next=f"Begin again with --set train.batch_size={max(recorder.ranks.n, state.batches.size // 2)}.",
        )
    fitting = loop.fitting_batch(state.model, state.batches, has_bf16=state.has_bf16)  # now that the error holds none
    raise DataError(
        f"memory ran out with batches of {state.batches.size} images",
        need=f"batches of {fitting} or fewer" if fitting else "more memory, as not even one image fits",
        next=f"Begin again with --set train.batch_size={fitting}."
        if fitting
        else "Set a smaller input.crop, or choose a smaller network.",
    )


def _unfinished(out: Path, config: RunConfig, dataset: Dataset) -> Checkpoint | None:
    """The last checkpoint of the interrupted training in `out`; None where there is none.

    Raises `DataError` where it has other settings or is on other data.
    """
    last, damaged = checkpoint.latest(out, lambda before: has_its_log(out, before))
    if last is None and damaged:
        raise DataError(
            f"holds {len(damaged)} checkpoints, all damaged, or {LOG} was cut or changed before them",
            need=f"a whole one to resume from, and {LOG} as it was then",
            next="Copy them back, or begin again with --force.",
            path=out,
        )
    if last:
        _refuse_changes(out, last.facts["settings"], config)
        _refuse_other_data(out, last.facts["data"], dataset)
    for path in damaged:
        what = f"{path} is damaged, or {LOG} was cut or changed before it; the checkpoint before it is used."
        warnings.warn(what, stacklevel=2)
        path.unlink(missing_ok=True)
    return last


def _refuse_changes(out: Path, before: dict[str, Any], config: RunConfig) -> None:
    old, new = (dict(_leaves(tree)) for tree in (before, config.model_dump(mode="json")))
    changed = [
        f"{key}: {old.get(key)} before, {new.get(key)} now" for key in sorted(old | new) if old.get(key) != new.get(key)
    ]
    if changed:
        raise DataError(
            f"holds a run with other settings ({'; '.join(changed)})",
            need="the same settings to go on",
            next="Give the same ones, choose another --out, or begin again with --force.",
            path=out,
        )


def _refuse_other_data(out: Path, digest: str, dataset: Dataset) -> None:
    if digest != dataset.hash:
        raise DataError(
            f"holds a run on other data than {dataset.name}",
            need="the same data to go on",
            next="Name that data, choose another --out, or begin again with --force.",
            path=out,
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
    last, _ = checkpoint.latest(out)
    return checked(last.facts["settings"], RunConfig) if last else None


def is_trained(folder: Path, config: RunConfig, dataset: Dataset) -> bool:
    """Whether `folder` holds this very run, complete; `DataError` where it holds another."""
    if not (folder / bundle.CARD).is_file():
        return False
    card = bundle.read_card(folder)
    _refuse_changes(folder, card.settings.model_dump(mode="json"), config)
    _refuse_other_data(folder, card.data.hash, dataset)
    return not card.training.interrupted
