"""Whole jobs: make a data set, train and compare several networks, the demo."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sublens.config import ModelConfig, RunConfig, SplitConfig, TrainConfig
from sublens.data import dataset, fits_folder, folders, store
from sublens.data.dataset import Dataset
from sublens.data.store import Chunk, Origin, Source
from sublens.errors import ConfigError, DataError, ImageError, nearest
from sublens.evaluation import evaluate
from sublens.evaluation.evaluate import is_measured, measure_run
from sublens.evaluation.fidelity import Comparison, Telling, compare, tell_apart
from sublens.images import formats, listing, pixels, reader
from sublens.images.formats import Wanted
from sublens.inference import predict_dataset
from sublens.inference.predictor import Predictor, Row
from sublens.models import bundle
from sublens.models.bundle import Card
from sublens.parallel.dask import opened
from sublens.parallel.mapper import HERE, Mapper, on_processes
from sublens.progress import Bar, Count, silent
from sublens.sim import render
from sublens.sim.population import CLASSES, Split
from sublens.sim.presets import preset
from sublens.sim.slices import slice_length, slices
from sublens.sim.survey import Survey
from sublens.storage import files, object_store
from sublens.training.recorder import LOG
from sublens.training.run import settled, train_run

if TYPE_CHECKING:
    from sublens.evaluation.saliency import Method

Form = Literal["store", "folder", "fits"]


def simulate(
    survey: Survey,
    sizes: Mapping[Split, int],
    out: Path,
    *,
    seed: int,
    workers: int = 1,
    cluster: str | None = None,
    form: Form = "store",
    save_maps: bool = False,
    force: bool = False,
    bar: Bar = silent,
) -> None:
    """Simulate a data set: a store, the ML4SCI folders of .npy files, or folders of FITS files.

    The images depend on the survey, the seed, the split and their index alone. An interrupted
    store is continued by the same call. workers: processes of this machine; or else cluster, see
    `sublens.cluster.opened`. save_maps: store the convergence and the noiseless image as well.
    """
    if save_maps and form == "folder":
        raise ConfigError("Folders of .npy files have no place for maps. Choose the format store or fits, or no maps.")
    files.refuse_existing(out, force=force)
    computed = opened(cluster) if cluster else on_processes(workers)
    with computed as mapper, bar(f"simulating {survey.name}", sum(sizes.values())) as advance:
        count = Count(advance, mapper.told)
        splits: dict[str, Source] = {
            split: partial(_simulated, survey, seed, split, n, mapper, save_maps, count)
            for split, n in sizes.items()
            if n
        }
        origin = Origin(source=survey.name, seed=seed, survey=survey)
        if form == "store":
            plan = json.dumps([sizes, save_maps, slice_length(survey)])
            store.write(out, CLASSES, origin, splits, plan=plan, force=force)
        elif form == "fits":
            fits_folder.write(out, CLASSES, origin, splits, force=force)
        else:
            folders.write_folder(out, CLASSES, origin, splits, force=force)


def _simulated(
    survey: Survey, seed: int, split: Split, n: int, mapper: Mapper, save_maps: bool, count: Count, n_done: int
) -> Iterator[Chunk]:
    count.skip(min(n_done * slice_length(survey), n))
    for truth, counts, maps in slices(survey, seed, split, n, mapper, with_maps=save_maps, n_done=n_done):
        ids = np.array([f"{split}/{index:07d}" for index in truth.scenes["index"]])
        yield Chunk(counts, truth.scenes["label"], ids, truth, maps)
        count.add(len(truth))


def fidelity(
    survey: Survey, path: Path, label: str, *, seed: int = 1, bar: Bar = silent
) -> tuple[list[Comparison], Telling]:
    """Compare real images of one class with as many simulated ones: statistics, and a network's attempt.

    path: a folder of images, or an .npz file whose array `counts` [n, h, w] holds counts.
    """
    real = _real_images(path, bar)
    side = survey.camera.n_pixels
    if real.shape[1:] != (side, side):
        raise ImageError(
            f"{path}: its images are {real.shape[1]} x {real.shape[2]} pixels but {survey.name} makes {side} x {side}. "
            "Crop them, or edit camera.n_pixels in a copy of the preset."
        )
    if len(real) < FEWEST:
        raise DataError(f"{path}: holds {len(real)} images; a comparison needs at least {FEWEST}.")
    first = CLASSES.index(label)
    indices = range(first, first + len(CLASSES) * len(real), len(CLASSES))
    _, simulated = render.simulate(survey, seed, "train", indices)
    if (real.max(axis=(1, 2)) == pixels.QUANTISED_PEAK).any():  # no photon counts, so none in ours either
        simulated = np.stack([pixels.stretched(one.astype(np.float64)) for one in simulated])
        real = np.stack([pixels.stretched(one.astype(np.float64)) for one in real])
    return compare(real, simulated), tell_apart(real, simulated, seed=seed, bar=bar)


FEWEST = 50
"""Images without which a comparison says nothing."""


def _real_images(path: Path, bar: Bar) -> NDArray[np.uint16]:
    if path.suffix.lower() == ".npz":
        return formats.read_archive(path)
    found = sorted(file for file in path.glob("*") if formats.is_image(file))
    if not found:
        raise DataError(f"{path}: holds no {', '.join(formats.READERS)} images. Name a folder of images of one class.")
    with bar(f"reading {path}", len(found)) as advance:
        count, read = Count(advance), []
        for file in found:
            read.append(formats.read_counts(file))
            count.add(1)
            if read[-1].shape != read[0].shape:
                raise ImageError(
                    f"{file}: is {read[-1].shape[0]} x {read[-1].shape[1]} pixels, {found[0]} is not. "
                    "Crop them to one size."
                )
    return np.stack(read)


def open_dataset(path: Path, split: SplitConfig, bar: Bar = silent) -> Dataset:
    """The data set at `path`; a folder is read with a progress bar, and what lies on an object store is fetched."""
    path = object_store.local(path, bar)
    if (path / store.MANIFEST).is_file():
        return dataset.open(path, split)
    with bar(f"reading {path}", folders.Layout.of(path).n_images) as advance:
        return dataset.open(path, split, Count(advance).add)


def open_unlearned(path: Path, card: Card, bar: Bar = silent) -> Dataset:
    """The data set at `path`, split so that the network of that card learned nothing from its selection part.

    That is half of the training images where it learned from none of them: the more there are, the closer
    sets come to the coverage that they promise.
    """
    dataset = open_dataset(path, SplitConfig(selection=UNLEARNED), bar)
    return open_dataset(path, card.settings.split, bar) if card.data.hash == dataset.hash else dataset


UNLEARNED = 0.5
"""Share of the training images in the selection part of data that a network did not learn from."""


def pack(folder: Path, out: Path, *, cluster: str | None = None, force: bool = False, bar: Bar = silent) -> None:
    """Convert a folder of class folders into a store; cluster: where it is read, see `sublens.cluster.opened`."""
    files.refuse_overlap(out, folder)
    files.refuse_existing(out, force=force)
    object_store.refuse_unfinished(folder)
    layout = folders.Layout.of(folder)
    computed = opened(cluster) if cluster else nullcontext(HERE)
    with computed as mapper, bar(f"packing {folder}", layout.n_images) as advance:
        count = Count(advance, mapper.told)
        splits = {name: partial(layout.chunks, name, count.add, mapper=mapper) for name in layout.files}
        store.write(out, layout.classes, Origin(source=folder.resolve().name), splits, force=force)


def explain_images(
    name: str,
    inputs: Iterable[Path],
    out: Path,
    *,
    method: "Method",
    label: str | None = None,
    wanted: Wanted | None = None,
    pixel_scale: float | None = None,
    force: bool = False,
    bar: Bar = silent,
) -> Iterator[dict[str, Any]]:
    """Draw what in image files speaks for a class: pictures NUMBER-NAME.png, and their list in `explain.json`.

    name: that of a network that comes with sublens, or a folder. inputs: files, folders and patterns.
    label: the class; of each image the most probable one if none. Yields `explain.record` of each
    image. Raises `ConfigError` where the network knows no such class, `BundleError` where it has
    nothing to explain it by, and `ImageError` where no image could be explained.
    """
    from sublens.models.networks import device

    predictor, paths = Predictor.load(name, "torch", device()), list(listing.listed(inputs))
    if label is not None and label not in predictor.classes:
        raise ConfigError(f"{name} knows no class {label!r}. {nearest(label, predictor.classes)}")
    records: list[dict[str, Any]] = []
    done = 0
    with files.whole_folder(out, force=force) as folder, bar("explaining", len(paths)) as advance:
        count = Count(advance)
        with reader.Reader(wanted or Wanted()) as child:
            read = child.read(paths)
            found = explain_images.explained(predictor, read, method=method, label=label, pixel_scale=pixel_scale)
            for number, one in enumerate(found, start=1):
                row, picture = one if isinstance(one, Row) else one.row, ""
                if not isinstance(one, Row):
                    picture = f"{number:0{len(str(len(paths)))}}-{row.path.stem}.png"
                    explain_images.save(one, method, folder / picture)
                count.add(row.place[0] - done)
                done = row.place[0]
                records.append(explain_images.record(one, picture))
                yield records[-1]
        count.add(len(paths) - done)
        if not any("picture" in one for one in records):
            raise ImageError(f"None of {len(records)} images could be explained; the lines above say why.")
        about = {"bundle": name, "method": method, "images": records}
        (folder / "explain.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def adopted(network: Path, out: Path | None, *, force: bool = False) -> Path:
    """The run folder to measure: `out`, a copy of the trained network, or that network's own folder.

    Raises `ConfigError` where it comes with sublens, whose folder is not ours to write to, and
    there is no `out`.
    """
    source = bundle.located(network)
    if out is None:
        if isinstance(network, object_store.Remote):
            raise ConfigError(f"{network}: add --out FOLDER, where a copy is measured.")
        if source.resolve() in [shipped.resolve() for shipped in bundle.references().values()]:
            raise ConfigError(f"{network}: comes with sublens. Add --out FOLDER, where a copy is measured.")
        return source
    files.refuse_overlap(out, source)
    bundle.read_card(source)
    with files.whole_folder(out, force=force) as folder:
        for name in (bundle.WEIGHTS, bundle.CALIBRATION, bundle.CARD, LOG):
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    return out


def measure(
    network: Path,
    path: Path,
    out: Path | None = None,
    *,
    cluster: str | None = None,
    force: bool = False,
    bar: Bar = silent,
) -> tuple[Path, Dataset, dict[str, Any]]:
    """Measure a trained network on the test part of the data set at `path`, in `adopted`'s folder.

    cluster: where its images are judged, if not in this process, see `sublens.cluster.opened`; network and
    data set must have the same names there. Returns the folder, the data set, and the scores.
    """
    folder = adopted(network, out, force=force)
    card = bundle.read_card(folder)
    dataset = open_dataset(path, card.settings.split, bar)
    if not cluster:
        return folder, dataset, measure_run(folder, dataset, force=force, bar=bar)
    threads = torch.get_num_threads()
    lot = predict_dataset.Lot(
        network, card.weights_sha256, path, dataset.hash, card.settings.split, threads, evaluate.BATCH
    )
    with opened(cluster) as mapper:
        return folder, dataset, measure_run(folder, dataset, spread=(mapper, lot), force=force, bar=bar)


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
        _train_or_stop(dataset, config, folder, force=force, bar=bar)
    return _reported(folders, dataset, out, bar)


def _train_or_stop(dataset: Dataset, config: RunConfig, folder: Path, *, force: bool, bar: Bar) -> None:
    """Train what is not trained yet, or go on with it."""
    if not train_run(dataset, config, folder, force=True, resume=not force, bar=bar):
        raise KeyboardInterrupt


def _reported(folders: Sequence[Path], dataset: Dataset, out: Path, bar: Bar) -> Path:
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
    folders = [out / "runs" / name for name in bundle.references()]
    for source, folder in zip(bundle.references().values(), folders, strict=True):
        if force or not _is_copy(folder, source):
            adopted(source, folder, force=True)
    live = out / "runs" / f"{DEMO_NETWORK}-live"
    train = TrainConfig(minutes=round(DEMO_SHARE * minutes, 2), seed=seed)
    config = RunConfig(model=ModelConfig(name=DEMO_NETWORK), train=train)
    _train_or_stop(dataset, settled(config, dataset), live, force=force, bar=bar)
    return _reported([*folders, live], dataset, out, bar)


def _is_copy(folder: Path, source: Path) -> bool:
    return folder.is_dir() and bundle.read_card(folder) == bundle.read_card(source)
