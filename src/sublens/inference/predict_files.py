"""Image files -> rows, and rows -> a table that goes on where it was stopped."""

import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from hashlib import blake2b, sha256
from importlib.metadata import version
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sublens.errors import ConfigError
from sublens.images import cutouts, fits_image, formats, listing, reader, resample
from sublens.images.catalogue import WHOLE, CatalogueSelector
from sublens.images.cutouts import Cutouts
from sublens.images.formats import NO_FILES, CompanionFiles, ImageSelector
from sublens.images.pixels import TangentPlane
from sublens.images.reader import ReadRequest, ReadResult
from sublens.inference import tables
from sublens.inference.engines import EngineName
from sublens.inference.journal import Journal
from sublens.inference.predictor import SLICE, Predictor, Row, no_map
from sublens.inference.tables import Totals
from sublens.models import bundle
from sublens.models.bundle import Card, CardMap
from sublens.parallel.dask import open_cluster
from sublens.parallel.mapper import HERE, Mapper
from sublens.parallel.threads import n_threads
from sublens.progress import Bar, Count, silent
from sublens.storage import files, object_store
from sublens.storage.object_store import Remote, parse_path

FIT = 2
"""Number of the way in which lenses are fitted: a table that was made in another is made anew."""

Draw = Callable[[str, NDArray[np.float64], TangentPlane | None], None]


@dataclass(frozen=True)
class Listing:
    """The files behind inputs, in order; a million of them take 100 MB."""

    entries: Sequence[str | ReadResult]
    digest: str
    """Hexadecimal sha256 of the names, sizes and times of the last change."""
    top: Path | None = None
    """Deepest folder that holds all files, where some of them have the same name; None where all names differ."""

    @classmethod
    def of(cls, inputs: Iterable[Path]) -> Self:
        """The files behind files, folders and patterns, see `listing.list_images`."""
        entries, digest, names = list[str | ReadResult](), sha256(), _Names()
        for entry in listing.list_images(inputs):
            path, error = (entry.path, str(entry.image)) if isinstance(entry, ReadResult) else (entry, "")
            digest.update(os.fsencode(f"{path}\0{error}\0{'' if error else list(_stamps(path))}\n"))
            entries.append(entry if isinstance(entry, ReadResult) else str(path))
            names.add(path)
        return cls(entries, digest.hexdigest(), names.top())

    def id_of(self, row: Row) -> str:
        """Name of an image by which no other file's image goes: that of its file, or its path from `top` on."""
        name = row.path.stem if self.top is None else str(row.path)
        if self.top and self.top != self.top.parent:  # else inputs of several roots
            name = PurePosixPath(*row.path.parts[len(self.top.parts) :]).as_posix()
        return name if row.number is None else f"{name}#{row.number}"

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Path | ReadResult]:
        return (parse_path(entry) if isinstance(entry, str) else entry for entry in self.entries)


class _Names:
    """Hashes of the names of files, 8 bytes each, and the folder that holds them all."""

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._top: Path | None = None

    def add(self, path: Path) -> None:
        stem = re.sub(r"#\d+$", "", path.stem)  # else like an image of a stack
        self._hashes.frombytes(blake2b(os.fsencode(stem), digest_size=8).digest())
        top = path.parent if self._top is None else self._top
        while not path.parent.is_relative_to(top) and top != top.parent:
            top = top.parent
        self._top = top

    def top(self) -> Path | None:
        """The folder that holds all, where names repeat."""
        return self._top if len(np.unique(self._hashes)) < len(self._hashes) else None


def _stamps(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, bytes and time of the last change, ns, of a file and of all files in a zarr store."""
    if isinstance(path, Remote):
        yield from object_store.stamps(path)
        return
    inside = sorted(path.rglob("*")) if path.suffix.lower() == ".zarr" else fits_image.files_beside(path).values()
    for file in (path, *inside):
        try:
            status = file.stat()
        except OSError:  # the reader says why
            continue
        yield str(file), status.st_size, status.st_mtime_ns


def _is_local_file(path: Path) -> bool:
    return not isinstance(path, Remote) and path.is_file()


def _companion_stamps(named: CompanionFiles) -> list[list[tuple[str, int, int]]]:
    """The stamps of the files, or of all in a folder, that each option names."""
    paths = [Path(name) for name in named if name]
    return [[stamp for file in sorted(path.rglob("*")) or [path] for stamp in _stamps(file)] for path in paths]


@dataclass(frozen=True)
class Query:
    """A choice of images to predict, and how."""

    network: str
    """Name of a network that comes with sublens, or a folder."""
    inputs: Sequence[Path]
    """Files, folders and patterns."""
    at: Path | None = None
    """Catalogue of positions to cut out of the one input, a big FITS image; a row for each position."""
    selector: ImageSelector = field(default_factory=ImageSelector)
    """Extension or array that holds the image, in files with several."""
    pixel_scale: float | None = None
    """Arcsec a pixel, where the user knows better than the files."""
    engine: EngineName | None = None
    """Engine as in `Predictor.load`; torch runs on a GPU if there is one."""
    columns: CatalogueSelector = WHOLE
    """Columns and table of the catalogue, where they do not follow from it."""
    companions: CompanionFiles = NO_FILES
    """Files with noise, point-spread function and mask, where the images' own do not tell."""
    has_fit: bool = False
    """Whether a lens is fitted to each image, see `lens_fits`."""

    def __post_init__(self) -> None:
        if self.at is not None and self.companions != NO_FILES:
            raise ConfigError(
                "names noise, a PSF or a mask beside a catalogue of positions",
                need="these in extensions of the one image",
                next="Put them in its file, as ERR, PSF and DQ, or cut out the images first.",
            )
        if self.at is None and self.columns != WHOLE:
            raise ConfigError(
                "names columns or a table of no catalogue", need="a catalogue of positions", next="Name it with --at."
            )

    def sources(self) -> list[Path]:
        """All files and folders that are read, those that patterns match included."""
        return [*self._without_images(), *listing.named(self.inputs)]

    def _without_images(self) -> list[Path]:
        named = [Path(name) for name in self.companions if name]
        return [bundle.locate(self.network), *([self.at] if self.at else []), *named]

    def refuse_table(self, out: Path) -> None:
        """Raise `DataError` where a table at `out` could replace what is read.

        It may lie in a folder of images, unless its name could be that of an image. Where nothing is at `out` yet, no
        file can be replaced.
        """
        could_be_image, is_there = formats.is_image(out), os.path.lexists(out)
        images = [path for path in listing.named(self.inputs) if (is_there if _is_local_file(path) else could_be_image)]
        files.refuse_overlap(out, *self._without_images(), *images)

    def refuse_fit(self, card: Card) -> None:
        """Raise `ConfigError` where lenses are to be fitted and the network measures none to begin with."""
        if self.has_fit and not card.has_macro:
            raise ConfigError(
                f"{Path(self.network).name} measures no lens that a fit could begin with",
                need="a network for images of telescopes",
                next="Name one: `sublens networks` lists them, or leave out --fit.",
            )

    def plan(self, card: Card, images: Listing) -> dict[str, Any]:
        """All that decides the rows, the files' contents by their sizes and times."""
        return {
            "bundle": card.digest,
            "inputs": images.digest,
            "at": cutouts.checksum(self.at) if self.at else None,
            "columns": self.columns,
            "selector": self.selector,
            "scale": self.pixel_scale,
            "engine": self.engine,
            "version": version("sublens"),
            **({"fit": FIT} if self.has_fit else {}),
            **({"companions": _companion_stamps(self.companions)} if self.companions != NO_FILES else {}),
        }


def predict(
    query: Query,
    *,
    images: Listing | None = None,
    maps: Path | None = None,
    start: tuple[int, int] = (0, 0),
    cluster: str | None = None,
    force: bool = False,
    bar: Bar = silent,
) -> Iterator[Row]:
    """Predict image files with a trained network: a row for each image, in order.

    images: the query's inputs, if they are listed already. maps: folder for maps of the substructure mass,
    NUMBER-NAME.fits for each image; a note gives the name of one that had to be shortened. start: the `source_index`
    of the row to begin with. cluster: where to compute, if not in this process, see
    `sublens.parallel.dask.open_cluster`; files must have the same names there. Raises `BundleError` where the network
    cannot be used or draws no maps, and `DataError` where the catalogue or the big image cannot be read, or where
    `maps` overlaps what is read.
    """
    if maps:
        files.refuse_overlap(maps, *query.sources())
    with ExitStack() as stack:
        predictor = Predictor.load(query.network, query.engine, _device(query.engine))
        paths = _cutouts(predictor, query, query.at) if query.at else images or Listing.of(query.inputs)
        if maps and predictor.map is None:
            raise no_map()
        draw = stack.enter_context(_drawing(maps, predictor.map, force=force)) if maps and predictor.map else None
        mapper = stack.enter_context(open_cluster(cluster)) if cluster else HERE
        count = Count(stack.enter_context(bar("predicting", len(paths))), mapper.status)
        count.skip(start[0])
        done = start[0]
        if cluster:
            rows = _on_cluster(mapper, query, paths, start)
        else:
            own = predictor.companions(query.companions)
            child = stack.enter_context(reader.Reader(query.selector, own, n_children=n_threads()))
            rows = _rows(predictor, child.read(paths, start), query)
        for number, row in enumerate(rows, start=1):
            if draw and row.prediction and row.prediction.masses is not None:
                stem = f"{number:0{len(str(len(paths)))}}-{row.path.stem}"
                name = files.fitting_name(stem, ".fits")
                draw(name, row.prediction.masses, row.plane)
                if name != f"{stem}.fits":
                    row = replace(row, notes=(*row.notes, f"its map is called {name}"))
            count.add(row.source_index[0] - done)
            done = row.source_index[0]
            yield replace(row, id=paths.id_of(row)) if isinstance(paths, Listing) else row
        count.add(len(paths) - done)


def _rows(predictor: Predictor, results: Iterable[ReadResult], query: Query) -> Iterator[Row]:
    """The rows of images that were read, with their lenses fitted where the query asks for that."""
    predicted = partial(predictor.rows, pixel_scale=query.pixel_scale)
    if not query.has_fit:
        return predicted(results)
    from sublens.inference import lens_fits  # slow to import

    return lens_fits.rows(predicted, results, query.pixel_scale)


class Task(NamedTuple):
    """Inputs that are predicted together, on a worker."""

    query: Query
    digest: str
    """Hash of the network that the query names."""
    requests: tuple[ReadRequest, ...]


def _on_cluster(mapper: Mapper, query: Query, paths: Iterable[ReadRequest], start: tuple[int, int]) -> Iterator[Row]:
    """The rows as this process alone would give them."""
    first, plain = start[0] // SLICE, replace(query, inputs=())
    requests = islice(paths, first * SLICE, None)
    digest = bundle.read_card(bundle.locate(query.network)).digest
    tasks = (Task(plain, digest, batch) for batch in iter(lambda: tuple(islice(requests, SLICE)), ()))
    for number, rows in enumerate(mapper(_predict_task, tasks), start=first):
        for row in rows:
            index = (row.source_index[0] + number * SLICE, row.source_index[1])
            if index >= start:
                yield replace(row, source_index=index)


def _predict_task(task: Task) -> list[Row]:
    """Rows of one task, on a worker, which keeps what it has loaded."""
    query = task.query
    predictor, reader = _load_tools(query.network, task.digest, query.engine, query.selector, query.companions)
    return list(_rows(predictor, reader.read(task.requests), query))


@lru_cache(maxsize=1)
def _load_tools(
    network: str, digest: str, engine: EngineName | None, selector: ImageSelector, companions: CompanionFiles
) -> tuple[Predictor, reader.Reader]:
    """A predictor and a reader, which starts its child process again as needed; the child ends with this process."""
    if bundle.read_card(bundle.locate(network)).digest != digest:
        raise bundle.other_network(network)
    predictor = Predictor.load(network, engine, _device(engine))
    return predictor, reader.Reader(selector, predictor.companions(companions))


def _cutouts(predictor: Predictor, query: Query, at: Path) -> Cutouts:
    """The cutouts of the one input, around the positions of a catalogue, in the size that the network needs."""
    if len(query.inputs) != 1:
        raise ConfigError(
            f"gives positions for {len(query.inputs)} images",
            need="one image only, whose positions these are",
            next="Name one image with --at.",
            path=at,
        )
    if query.selector.plane is not None:
        raise ConfigError(
            f"asks for plane {query.selector.plane} out of a cube",
            need="an image of one plane with --at",
            next="Save that plane as a FITS file.",
            path=query.inputs[0],
        )
    positions = reader.locate_positions(query.inputs[0], at, query.selector, query.columns)
    scale = query.pixel_scale or positions.pixel_scale
    return positions.cuts(query.inputs[0], resample.cutout_size(predictor.image_shape, predictor.pixel_scale, scale))


def predict_to_table(
    query: Query,
    out: Path,
    *,
    maps: Path | None = None,
    cluster: str | None = None,
    force: bool = False,
    bar: Bar = silent,
) -> Totals | None:
    """`predict` into a table; called again after it was stopped or killed, it goes on where it was.

    Where network, images or settings have changed meanwhile it begins anew, with a warning. out: its format follows
    from the end of its name. Returns the numbers of its rows; None where the table is complete already. Raises
    `ConfigError` where there is no such format, else as `predict` does.
    """
    query.refuse_table(out)
    if maps:
        files.refuse_overlap(out, maps)
    card, images, ours = bundle.read_card(bundle.locate(query.network)), Listing.of(query.inputs), version("sublens")
    plan, heads = query.plan(card, images), tables.heads(card, has_fit=query.has_fit)
    if not force and not maps and tables.is_complete(out, plan):
        return None
    files.refuse_existing_file(out, mark=tables.MARK, force=force)
    with Journal(out, plan) as journal:
        if maps:
            journal.begin_anew()  # maps are all drawn by one call
        for row in predict(
            query, images=images, maps=maps, start=journal.resume_at, cluster=cluster, force=force, bar=bar
        ):
            journal.add(row.source_index, tables.record(row, card.classes, card.identity, ours, **heads))
        return journal.finish(tables.columns(card.classes, **heads))


def closing_line(name: str, card: Card, totals: Totals) -> str:
    """A sentence on images of which the network tells nothing; empty where it tells something of most.

    name: that of the network, or its folder. Either all are out of distribution for a network of photon counts, and the
    sentence goes on with the networks for images of telescopes that come with sublens; or most prediction sets hold
    more than one class.
    """
    n, n_open, n_ood = totals.n_images - totals.n_failed, totals.n_open, totals.n_ood
    if n and n_ood == n and not card.input.takes_noise:
        count = f"{n:,} images: all" if n > 1 else "1 image:"
        shipped = {other: bundle.read_card(folder) for other, folder in bundle.shipped().items()}
        others = [other for other, about in shipped.items() if about.input.takes_noise]
        advice = f"; for images of telescopes see {', '.join(others)}" if others else ""
        return f"{count} out of distribution for {Path(name).name}, which knows {card.data.name} only{advice}."
    if 2 * n_open > n:
        whose = f"the prediction sets of {n_open:,} of {n:,} images hold" if n > 1 else "the prediction set holds"
        return f"No class can be told for certain: {whose} more than one, whatever the label is."
    return ""


def _drawing(folder: Path, grid: CardMap, *, force: bool) -> AbstractContextManager[Draw]:
    from sublens.inference import mass_maps  # slow to import

    return mass_maps.maps(folder, grid.cell_arcsec, force=force)


def _device(engine: EngineName | None) -> str:
    if engine != "torch":
        return "cpu"
    from sublens.models.networks import device  # torch is slow to import

    return device()
