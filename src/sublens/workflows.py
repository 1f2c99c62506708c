"""Several networks trained, measured and compared; the demo."""

from collections.abc import Sequence
from pathlib import Path

from sublens.config import ModelConfig, RunConfig, SplitConfig, TrainConfig
from sublens.data import store
from sublens.data.dataset import Dataset, open_dataset
from sublens.data.generate import simulate
from sublens.errors import ConfigError, DataError
from sublens.evaluation.evaluate import bundle_files, copy_or_own_folder, is_measured, measure_run
from sublens.models import bundle
from sublens.progress import Bar, Say, silent
from sublens.sim.population import Split
from sublens.storage import files
from sublens.surveys.presets import preset
from sublens.training import duration
from sublens.training.checkpoint import last_step
from sublens.training.run import is_trained, refuse_teacher, resolve_settings, resolved_for, seconds_left, train_run

REPORT = "report"
"""Folder of the report, beside those of the data and the runs."""


def run_all(
    dataset: Dataset,
    configs: Sequence[RunConfig],
    out: Path,
    *,
    force: bool = False,
    bar: Bar = silent,
    say: Say | None = None,
) -> Path:
    """Train and measure one network after the other, then compare them; returns the report's path.

    A run that is already trained or measured on this data set with these settings is kept, so an
    interrupted job continues where it stopped. say: prints how long all trainings take together, and before each
    what it learns from. Raises `ConfigError` where a network is named twice, or the images are a survey's fresh ones.
    """
    if dataset.is_endless:
        raise ConfigError(
            f"{dataset.name} is a survey",
            need="a data set with a test part, on which networks are compared",
            next="Make one with `sublens simulate`, or train on the survey with `sublens train`.",
        )
    names = [config.model.name for config in configs]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"A network is named twice in {', '.join(names)}", need="each once", next="Leave the second out."
        )
    *runs, _ = folders(out, configs)
    _refuse_other_report(out)
    pairs = list(zip(configs, runs, strict=True))
    resolved = [resolved_for(folder, config, dataset, resume=not force) for config, folder in pairs]  # or refuse now
    for config, folder in zip(resolved, runs, strict=True):
        refuse_teacher(folder, config)
    if say:
        _announce_time(dataset, resolved, runs, force, say)
    for config, folder in pairs:
        _train_or_interrupt(dataset, config, folder, force=force, bar=bar, say=say)
    return _measure_and_report(runs, dataset, out, bar)


def _announce_time(dataset: Dataset, configs: Sequence[RunConfig], runs: Sequence[Path], force: bool, say: Say) -> None:
    """Print how long the trainings take that are not complete, together and each."""
    seconds: dict[str, float] = {}
    for config, folder in zip(configs, runs, strict=True):
        if force or not is_trained(folder, config, dataset):
            left = seconds_left(dataset, config, 0 if force else last_step(folder))
            seconds |= {config.model.name: left} if left is not None else {}
    if seconds:
        each = ", ".join(f"{name} {duration.rounded(time)}" for name, time in seconds.items())
        say(f"Training takes {duration.in_words(sum(seconds.values()))} in all: {each}.")


def folders(out: Path, configs: Sequence[RunConfig]) -> list[Path]:
    """The folders that `run_all` writes and replaces: a run for each network, and last the report."""
    return [*(out / "runs" / config.model.name for config in configs), out / REPORT]


def _refuse_other_report(out: Path) -> None:
    """Raise `DataError`, before hours of work, where the report's folder holds anything else."""
    files.refuse_existing(out / REPORT, kind=files.Kind.REPORT, force=True)


def _train_or_interrupt(
    dataset: Dataset, config: RunConfig, folder: Path, *, force: bool, bar: Bar, say: Say | None = None
) -> None:
    """Train a network that is not trained yet, or resume it; raises `KeyboardInterrupt` where it is stopped."""
    if not train_run(dataset, config, folder, force=True, resume=not force, bar=bar, say=say):
        raise KeyboardInterrupt


def _measure_and_report(folders: Sequence[Path], dataset: Dataset, out: Path, bar: Bar) -> Path:
    """Measure the runs that are not measured yet, and compare all; returns the report's path."""
    for folder in folders:
        if not is_measured(folder, dataset):
            measure_run(folder, dataset, force=True, bar=bar)
    from sublens.report import page  # matplotlib, slow to import, is needed only here

    return page.write(folders, out / REPORT, force=True)


DEMO_TRAIN, DEMO_TEST = 20_000, 3_000
"""Training and test images of a demo of `DEMO_FULL_MINUTES` or more."""
DEMO_FULL_MINUTES = 10.0
"""Minutes from which on a demo has all images."""
DEMO_SHARE = 0.6
"""Share of the demo's minutes in which it trains; simulating and measuring take the rest."""
DEMO_NETWORK = "lensnet"
"""The network that the demo trains."""
DEMO_SURVEY = "common-test-1"
"""The survey that the demo simulates."""


def demo(out: Path, minutes: float, *, seed: int = 3, workers: int = 2, force: bool = False, bar: Bar = silent) -> Path:
    """Measure the trained networks for common-test-1 that come with sublens, and one trained live, on fresh images.

    Simulates a small data set, trains `lensnet` on it, measures and compares, all in about
    `minutes`. Returns the report's path. Continues where an earlier demo in `out` was interrupted.
    Raises `DataError` where `out` holds a demo with another seed or length and `force` is false.
    """
    for name in ("data", "runs", REPORT):
        files.refuse_overlap(out / name, *bundle.shipped().values())
    _refuse_other_report(out)
    dataset = _demo_dataset(out, minutes, seed, workers, force, bar)
    folders = copy_shipped(DEMO_SURVEY, out / "runs", force=force)
    train = TrainConfig(minutes=round(DEMO_SHARE * minutes, 2), seed=seed)
    config = RunConfig(model=ModelConfig(name=DEMO_NETWORK), train=train)
    live = out / "runs" / f"{DEMO_NETWORK}-live"
    _train_or_interrupt(dataset, resolve_settings(config, dataset), live, force=force, bar=bar)
    return _measure_and_report([*folders, live], dataset, out, bar)


def _demo_dataset(out: Path, minutes: float, seed: int, workers: int, force: bool, bar: Bar) -> Dataset:
    """The demo's images, simulated unless an earlier one has left them."""
    scale = min(1.0, minutes / DEMO_FULL_MINUTES)
    sizes: dict[Split, int] = {"train": round(DEMO_TRAIN * scale), "test": round(DEMO_TEST * scale)}
    path = out / "data"
    if force or not (path / store.MANIFEST).is_file():
        simulate(preset(DEMO_SURVEY), sizes, path, seed=seed, workers=workers, force=force, bar=bar)
    manifest = store.read_manifest(path)
    if (manifest.origin.seed, manifest.splits) != (seed, sizes):
        raise DataError(
            "holds a demo with another --seed or --minutes",
            need="the same ones to continue it",
            next="Choose another --out, or add --force.",
            path=out,
        )
    return open_dataset(path, SplitConfig())


def copy_shipped(survey: str, out: Path, *, force: bool = False) -> list[Path]:
    """Copy the trained networks for a survey that come with sublens into `out`, where they are not yet.

    Returns their folders there.
    """
    folders = []
    for name, source in bundle.shipped_for(survey).items():
        folders.append(out / name)
        if force or not _is_copy(folders[-1], source):
            copy_or_own_folder(source, folders[-1], force=True)
    return folders


def _is_copy(folder: Path, source: Path) -> bool:
    """Whether a folder holds the trained network of another one, with all its files."""
    if not (folder / bundle.CARD).is_file() or bundle.read_card(folder) != bundle.read_card(source):
        return False
    return all((folder / name).is_file() for name in bundle_files(bundle.read_card(folder)))
