"""Image files -> rows, and rows -> a table that goes on where it was stopped."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens.errors import BundleError, ConfigError
from sublens.images import cutouts, listing, reader, resample
from sublens.images.cutouts import Cutouts
from sublens.images.formats import ImageSelector
from sublens.images.reader import ReadRequest
from sublens.inference import tables
from sublens.inference.engines import EngineName
from sublens.inference.predictor import NO_MAP, SLICE, Predictor, Row
from sublens.models import bundle
from sublens.models.bundle import Card, CardMap
from sublens.parallel.dask import open_cluster
from sublens.parallel.mapper import HERE, Mapper
from sublens.progress import Bar, Count, silent
from sublens.storage import files

Draw = Callable[[str, NDArray[np.float64]], None]


@dataclass(frozen=True)
class Query:
    """Which images are to be judged, and how."""

    network: str
    """Name of a network that comes with sublens, or a folder."""
    inputs: Sequence[Path]
    """Files, folders and patterns."""
    at: Path | None = None
    """Catalogue of positions to cut out of the one input, a big FITS image; a row for each position."""
    wanted: ImageSelector = field(default_factory=ImageSelector)
    """Which of the things in a file is meant."""
    pixel_scale: float | None = None
    """Arcsec a pixel, where the user knows better than the files."""
    engine: EngineName | None = None
    """See `Predictor.load`; torch runs on a GPU if there is one."""

    def plan(self, card: Card) -> dict[str, Any]:
        """All that decides what the rows say."""
        return {
            "bundle": _hashes(card),
            "inputs": list(map(str, self.inputs)),
            "at": cutouts.checksum(self.at) if self.at else None,
            "wanted": self.wanted,
            "scale": self.pixel_scale,
            "engine": self.engine,
        }


def predict(
    query: Query,
    *,
    maps: Path | None = None,
    start: tuple[int, int] = (0, 0),
    cluster: str | None = None,
    force: bool = False,
    bar: Bar = silent,
) -> Iterator[Row]:
    """Judge image files with a trained network: a row for each image, in order.

    maps: where to leave where the substructure is, as the network sees it, in NUMBER-NAME.fits for
    each image. start: the `place` of the row to begin with. cluster: where to judge, if not in this
    process, see `sublens.parallel.dask.opened`; files must have the same names there. Raises `BundleError` where
    the network cannot be used or draws no maps, and `DataError` where the catalogue or the big image cannot be read.
    """
    with ExitStack() as stack:
        predictor = Predictor.load(query.network, query.engine, _device(query.engine))
        paths = _cutouts(predictor, query, query.at) if query.at else list(listing.list_images(query.inputs))
        if maps and predictor.map is None:
            raise BundleError(NO_MAP)
        draw = stack.enter_context(_drawing(maps, predictor.map, force=force)) if maps and predictor.map else None
        mapper = stack.enter_context(open_cluster(cluster)) if cluster else HERE
        count = Count(stack.enter_context(bar("judging", len(paths))), mapper.told)
        count.skip(start[0])
        done = start[0]
        if cluster:
            rows = _on_cluster(mapper, query, paths, start)
        else:
            child = stack.enter_context(reader.Reader(query.wanted))
            rows = predictor.rows(child.read(paths, start), query.pixel_scale)
        for number, row in enumerate(rows, start=1):
            if draw and row.prediction and row.prediction.masses is not None:
                draw(f"{number:0{len(str(len(paths)))}}-{row.path.stem}", row.prediction.masses)
            count.add(row.place[0] - done)
            done = row.place[0]
            yield row
        count.add(len(paths) - done)


class Task(NamedTuple):
    """Inputs that are judged together, on a worker."""

    query: Query
    judge: tuple[str, str | None]
    """Hashes of the network that the query names."""
    asked: tuple[ReadRequest, ...]


def _on_cluster(mapper: Mapper, query: Query, paths: Iterable[ReadRequest], start: tuple[int, int]) -> Iterator[Row]:
    """The rows as this process alone would give them."""
    first, plain = start[0] // SLICE, replace(query, inputs=())
    asked = islice(paths, first * SLICE, None)
    judge = _hashes(bundle.read_card(bundle.locate(query.network)))
    slices = (Task(plain, judge, some) for some in iter(lambda: tuple(islice(asked, SLICE)), ()))
    for number, rows in enumerate(mapper(_predict_task, slices), start=first):
        for row in rows:
            place = (row.place[0] + number * SLICE, row.place[1])
            if place >= start:
                yield replace(row, place=place)


def _predict_task(some: Task) -> list[Row]:
    """On a worker, which keeps what it has loaded."""
    predictor, reader = _load_tools(some.query.network, some.judge, some.query.engine, some.query.wanted)
    return list(predictor.rows(reader.read(some.asked), some.query.pixel_scale))


def _hashes(card: Card) -> tuple[str, str | None]:
    """Of the weights and of the graph, which decide what a network says."""
    return card.weights_sha256, card.graph.sha256 if card.graph else None


@lru_cache(maxsize=1)
def _load_tools(
    network: str, judge: tuple[str, str | None], engine: EngineName | None, wanted: ImageSelector
) -> tuple[Predictor, reader.Reader]:
    """A reader begins anew whatever child process it needs, and that ends with this one."""
    if _hashes(bundle.read_card(bundle.locate(network))) != judge:
        raise BundleError(f"{network}: is another network there. Copy the same one to all machines.")
    return Predictor.load(network, engine, _device(engine)), reader.Reader(wanted)


def _cutouts(predictor: Predictor, query: Query, at: Path) -> Cutouts:
    """The cutouts around the positions of a catalogue that a network wants of the one input."""
    if len(query.inputs) != 1:
        raise ConfigError(
            f"{at}: its positions can be those of one image only, not {len(query.inputs)}. Name one with --at."
        )
    found = reader.locate_positions(query.inputs[0], at, query.wanted)
    scale = query.pixel_scale or found.pixel_scale
    return found.cuts(query.inputs[0], resample.cutout_size(predictor.image_shape, predictor.pixel_scale, scale))


def predict_to_table(
    query: Query,
    out: Path,
    *,
    maps: Path | None = None,
    cluster: str | None = None,
    force: bool = False,
    bar: Bar = silent,
) -> tuple[int, int]:
    """`predict` into a table; called again after it was stopped or killed, it goes on where it was.

    out: its format follows from the end of its name. Returns the numbers of its rows, and of those
    that failed. Raises `ConfigError` where there is no such format, else as `predict` does.
    """
    files.refuse_existing_file(out, force=force)
    card, ours = bundle.read_card(bundle.locate(query.network)), version("sublens")
    with tables.Journal(out, query.plan(card)) as journal:
        if maps:
            journal.begin_anew()  # maps are all drawn by one call
        for row in predict(query, maps=maps, start=journal.place, cluster=cluster, force=force, bar=bar):
            journal.add(row.place, tables.record(row, card.classes, card.judge, ours))
        return journal.finish(card.classes)


def _drawing(folder: Path, drawn: CardMap, *, force: bool) -> AbstractContextManager[Draw]:
    from sublens.inference import mass_maps  # slow to import

    return mass_maps.maps(folder, drawn.cell_arcsec, force=force)


def _device(engine: EngineName | None) -> str:
    if engine != "torch":
        return "cpu"
    from sublens.models.networks import device  # torch is slow to import

    return device()
