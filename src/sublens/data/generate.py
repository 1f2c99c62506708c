"""A survey -> a simulated data set on disk."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from sublens.data import fits_folder, folders, store
from sublens.data.store import Chunk, Origin, Source
from sublens.errors import ConfigError
from sublens.parallel.dask import open_cluster
from sublens.parallel.mapper import Mapper, open_processes
from sublens.progress import Bar, Count, silent
from sublens.sim.population import CLASSES, Split
from sublens.sim.slices import slice_length, slices
from sublens.storage import files
from sublens.surveys.survey import Survey

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
    `sublens.parallel.dask.open_cluster`. save_maps: store the convergence and the noiseless image as well.
    """
    if save_maps and form == "folder":
        raise ConfigError(
            "folders of .npy files hold no maps",
            need="the format store or fits for --save-maps",
            next="Choose one of these, or leave out --save-maps.",
        )
    files.refuse_existing(out, kind=files.Kind.DATASET, force=force)
    computed = open_cluster(cluster) if cluster else open_processes(workers)
    with computed as mapper, bar(f"simulating {survey.name}", sum(sizes.values())) as advance:
        count = Count(advance, mapper.status)
        splits: dict[str, Source] = {
            split: partial(_chunks, survey, seed, split, n, mapper, save_maps, count) for split, n in sizes.items() if n
        }
        origin = Origin(source=survey.name, seed=seed, survey=survey)
        if form == "store":
            plan = json.dumps([sizes, save_maps, slice_length(survey)])
            store.write(out, CLASSES, origin, splits, plan=plan, force=force)
        elif form == "fits":
            fits_folder.write(out, CLASSES, origin, splits, force=force)
        else:
            folders.write_folder(out, CLASSES, origin, splits, force=force)


def _chunks(
    survey: Survey, seed: int, split: Split, n: int, mapper: Mapper, save_maps: bool, count: Count, n_done: int
) -> Iterator[Chunk]:
    count.skip(min(n_done * slice_length(survey), n))
    for truth, counts, maps in slices(survey, seed, split, n, mapper, with_maps=save_maps, n_done=n_done):
        ids = np.array([f"{split}/{index:07d}" for index in truth.scenes["index"]])
        yield Chunk(counts, truth.scenes["label"], ids, truth, maps)
        count.add(len(truth))
