"""Whole jobs: make a data set, train and compare several networks, the demo."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sublens import bundle, data, files, store
from sublens.config import ModelConfig, RunConfig, SimConfig, SplitConfig
from sublens.data import Dataset
from sublens.errors import ConfigError, DataError
from sublens.progress import Bar, Count, silent
from sublens.run import is_measured, measure_run, settled, train_run
from sublens.sim.population import CLASSES, Split
from sublens.sim.presets import COMMON_TEST_1
from sublens.sim.workers import slices
from sublens.store import Chunk, Origin


def simulate(
    survey: SimConfig,
    sizes: Mapping[Split, int],
    out: Path,
    *,
    seed: int,
    workers: int = 1,
    as_folder: bool = False,
    force: bool = False,
    bar: Bar = silent,
) -> None:
    """Simulate a data set into a store, or into the ML4SCI folder layout.

    The images depend on the survey, the seed, the split and their index alone.
    """
    files.refuse_existing(out, force=force)
    with bar(f"simulating {survey.name}", sum(sizes.values())) as advance:
        count = Count(advance)
        splits: dict[str, Iterable[Chunk]] = {
            split: _simulated(survey, seed, split, n, workers, count) for split, n in sizes.items() if n
        }
        if as_folder:
            data.write_folder(out, CLASSES, splits, force=force)
        else:
            store.write(out, CLASSES, Origin(source=survey.name, seed=seed, survey=survey), splits, force=force)


def _simulated(survey: SimConfig, seed: int, split: Split, n: int, workers: int, count: Count) -> Iterator[Chunk]:
    for truth, counts in slices(survey, seed, split, n, workers):
        ids = np.array([f"{split}/{index:07d}" for index in truth.scenes["index"]])
        yield Chunk(counts, truth.scenes["label"], ids, truth)
        count.add(len(truth))


def open_dataset(path: Path, split: SplitConfig, bar: Bar = silent) -> Dataset:
    """The data set at `path`; a folder is read with a progress bar."""
    if (path / store.MANIFEST).is_file():
        return data.open(path, split)
    with bar(f"reading {path}", data.Layout.of(path).n_images) as advance:
        return data.open(path, split, Count(advance).add)


def pack(folder: Path, out: Path, *, force: bool = False, bar: Bar = silent) -> None:
    """Convert a folder of class folders into a store."""
    files.refuse_overlap(out, folder)
    files.refuse_existing(out, force=force)
    with bar(f"packing {folder}", data.Layout.of(folder).n_images) as advance:
        data.pack(folder, out, force=force, on_progress=Count(advance).add)


def run_all(
    dataset: Dataset, configs: Sequence[RunConfig], out: Path, *, force: bool = False, bar: Bar = silent
) -> Path:
    """Train and measure one network after the other, then compare them; returns the report's path.

    A run that is already trained or measured on this data set with these settings is kept, so an
    interrupted job continues where it stopped.
    """
    configs = [settled(config, dataset) for config in configs]  # refuse bad settings before hours of work
    names = [config.model.name for config in configs]
    if len(set(names)) < len(names):
        raise ConfigError(f"A network is named twice: {', '.join(names)}. Name each once.")
    folders = [out / "runs" / config.model.name for config in configs]
    for config, folder in zip(configs, folders, strict=True):
        if not _is_trained(folder, config, dataset, force=force) and not train_run(
            dataset, config, folder, force=True, bar=bar
        ):
            raise KeyboardInterrupt
        if not is_measured(folder, dataset):
            measure_run(folder, dataset, force=True, bar=bar)
    from sublens import report  # matplotlib, slow to import, is needed only here

    return report.write(folders, out / "report", force=True)


def _is_trained(folder: Path, config: RunConfig, dataset: Dataset, *, force: bool) -> bool:
    """Whether `folder` holds this very run, complete; `DataError` where it holds another."""
    if force or not (folder / bundle.CARD).is_file():
        return False
    card = bundle.read_card(folder)
    if card.settings == config and card.data.hash == dataset.hash:
        return not card.training.interrupted
    raise DataError(
        f"{folder}: holds a run with other settings or on other data. Choose another --out, or add "
        "--force to train it again."
    )


DEMO_TRAIN, DEMO_TEST = 20_000, 3_000
"""Images of the demo, reached at `DEMO_FULL_MINUTES`."""
DEMO_FULL_MINUTES = 12.0
DEMO_SHARES = {"lensnet": 0.21, "resnet18": 0.28, "mobilenetv3-small": 0.28, "efficientnet-b5": 0.05}
"""Share of the demo's minutes that each network trains; simulating and measuring take the rest."""


def demo(out: Path, minutes: float, *, seed: int = 1, workers: int = 2, force: bool = False, bar: Bar = silent) -> Path:
    """Simulate a small common-test-1, train and compare the networks, all in about `minutes`.

    Returns the report's path. Continues where an earlier demo in `out` was interrupted.
    """
    scale = min(1.0, minutes / DEMO_FULL_MINUTES)
    sizes: dict[Split, int] = {"train": round(DEMO_TRAIN * scale), "test": round(DEMO_TEST * scale)}
    if force or not (out / "data" / store.MANIFEST).is_file():
        simulate(COMMON_TEST_1, sizes, out / "data", seed=seed, workers=workers, force=force, bar=bar)
    manifest = store.read_manifest(out / "data")
    if (manifest.origin.seed, manifest.splits) != (seed, sizes):
        raise DataError(f"{out}: holds a demo with another --seed or --minutes. Choose another --out, or add --force.")
    dataset = open_dataset(out / "data", SplitConfig())
    configs = [demo_config(name, share * minutes, seed) for name, share in DEMO_SHARES.items()]
    return run_all(dataset, configs, out, force=force, bar=bar)


def demo_config(name: str, minutes: float, seed: int) -> RunConfig:
    """The demo's settings for a network: the project's own, within a budget of minutes."""
    defaults = RunConfig(model=ModelConfig(name=name))
    return defaults.model_copy(
        update={"train": defaults.train.model_copy(update={"minutes": round(minutes, 2), "seed": seed})}
    )
