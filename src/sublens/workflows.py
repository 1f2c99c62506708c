"""Several networks trained, measured and compared; the demo."""

from collections.abc import Sequence
from pathlib import Path

from sublens.config import ModelConfig, RunConfig, SplitConfig, TrainConfig
from sublens.data import store
from sublens.data.dataset import Dataset, open_dataset
from sublens.data.generate import simulate
from sublens.errors import ConfigError, DataError
from sublens.evaluation.evaluate import copy_or_own_folder, is_measured, measure_run
from sublens.models import bundle
from sublens.progress import Bar, silent
from sublens.sim.population import Split
from sublens.sim.presets import preset
from sublens.training.run import resolve_settings, train_run


def run_all(
    dataset: Dataset, configs: Sequence[RunConfig], out: Path, *, force: bool = False, bar: Bar = silent
) -> Path:
    """Train and measure one network after the other, then compare them; returns the report's path.

    A run that is already trained or measured on this data set with these settings is kept, so an
    interrupted job continues where it stopped.
    """
    configs = [resolve_settings(config, dataset) for config in configs]  # refuse bad settings before hours of work
    names = [config.model.name for config in configs]
    if len(set(names)) < len(names):
        raise ConfigError(f"A network is named twice: {', '.join(names)}. Name each once.")
    folders = [out / "runs" / config.model.name for config in configs]
    for config, folder in zip(configs, folders, strict=True):
        _train_or_interrupt(dataset, config, folder, force=force, bar=bar)
    return _measure_and_report(folders, dataset, out, bar)


def _train_or_interrupt(dataset: Dataset, config: RunConfig, folder: Path, *, force: bool, bar: Bar) -> None:
    """Train what is not trained yet, or go on with it."""
    if not train_run(dataset, config, folder, force=True, resume=not force, bar=bar):
        raise KeyboardInterrupt


def _measure_and_report(folders: Sequence[Path], dataset: Dataset, out: Path, bar: Bar) -> Path:
    """Measure the runs that are not measured yet, and compare all; returns the report's path."""
    for folder in folders:
        if not is_measured(folder, dataset):
            measure_run(folder, dataset, force=True, bar=bar)
    from sublens.report import page  # matplotlib, slow to import, is needed only here

    return page.write(folders, out / "report", force=True)


DEMO_TRAIN, DEMO_TEST = 20_000, 3_000
"""Images of the demo, reached at `DEMO_FULL_MINUTES`."""
DEMO_FULL_MINUTES = 10.0
DEMO_SHARE = 0.6
"""Share of the demo's minutes in which it trains; simulating and measuring take the rest."""
DEMO_NETWORK = "lensnet"


def demo(out: Path, minutes: float, *, seed: int = 3, workers: int = 2, force: bool = False, bar: Bar = silent) -> Path:
    """Measure the trained networks that come with sublens, and one trained live, on fresh images.

    Simulates a small common-test-1, trains `lensnet` on it, measures and compares, all in about
    `minutes`. Returns the report's path. Continues where an earlier demo in `out` was interrupted.
    """
    scale = min(1.0, minutes / DEMO_FULL_MINUTES)
    sizes: dict[Split, int] = {"train": round(DEMO_TRAIN * scale), "test": round(DEMO_TEST * scale)}
    if force or not (out / "data" / store.MANIFEST).is_file():
        simulate(preset("common-test-1"), sizes, out / "data", seed=seed, workers=workers, force=force, bar=bar)
    manifest = store.read_manifest(out / "data")
    if (manifest.origin.seed, manifest.splits) != (seed, sizes):
        raise DataError(f"{out}: holds a demo with another --seed or --minutes. Choose another --out, or add --force.")
    dataset = open_dataset(out / "data", SplitConfig())
    folders = [out / "runs" / name for name in bundle.shipped()]
    for source, folder in zip(bundle.shipped().values(), folders, strict=True):
        if force or not _is_copy(folder, source):
            copy_or_own_folder(source, folder, force=True)
    live = out / "runs" / f"{DEMO_NETWORK}-live"
    train = TrainConfig(minutes=round(DEMO_SHARE * minutes, 2), seed=seed)
    config = RunConfig(model=ModelConfig(name=DEMO_NETWORK), train=train)
    _train_or_interrupt(dataset, resolve_settings(config, dataset), live, force=force, bar=bar)
    return _measure_and_report([*folders, live], dataset, out, bar)


def _is_copy(folder: Path, source: Path) -> bool:
    return folder.is_dir() and bundle.read_card(folder) == bundle.read_card(source)
