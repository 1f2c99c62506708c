"""Image files -> rows, and rows -> a table that goes on where it was stopped."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sublens import bundle, catalog, cutout, files, mosaic, reading
from sublens.bundle import CardMap
from sublens.engine import EngineName
from sublens.errors import BundleError, ConfigError
from sublens.images import Wanted
from sublens.mosaic import Cuts
from sublens.predict import NO_MAP, Predictor, Row
from sublens.progress import Bar, Count, silent

Draw = Callable[[str, NDArray[np.float64]], None]


def predict(
    name: str,
    inputs: Iterable[Path],
    *,
    at: Path | None = None,
    wanted: Wanted | None = None,
    pixel_scale: float | None = None,
    maps: Path | None = None,
    engine: EngineName | None = None,
    start: tuple[int, int] = (0, 0),
    force: bool = False,
    bar: Bar = silent,
) -> Iterator[Row]:
    """Judge image files with a trained network: a row for each image, in order.

    name: that of a network that comes with sublens, or a folder. inputs: files, folders and
    patterns. at: a catalogue of positions to cut out of the one input, a big FITS image; a row for
    each position. maps: where to leave where the substructure is, as the network sees it, in
    NUMBER-NAME.fits for each image. engine: see `Predictor.load`; torch runs on a GPU if there is one.
    start: the `place` of the row to begin with. Raises `BundleError` where the network cannot be used
    or draws no maps, and `DataError` where the catalogue or the big image cannot be read.
    """
    with ExitStack() as stack:
        reader = stack.enter_context(reading.Reader(wanted or Wanted()))
        predictor = Predictor.load(name, engine, _device(engine))
        paths = _cuts(predictor, inputs, at, wanted, pixel_scale) if at else list(reading.listed(inputs))
        if maps and predictor.map is None:
            raise BundleError(NO_MAP)
        draw = stack.enter_context(_drawing(maps, predictor.map, force=force)) if maps and predictor.map else None
        count = Count(stack.enter_context(bar("judging", len(paths))))
        count.skip(start[0])
        done = start[0]
        for number, row in enumerate(predictor.rows(reader.read(paths, start), pixel_scale), start=1):
            if draw and row.prediction and row.prediction.masses is not None:
                draw(f"{number:0{len(str(len(paths)))}}-{row.path.stem}", row.prediction.masses)
            count.add(row.place[0] - done)
            done = row.place[0]
            yield row
        count.add(len(paths) - done)


def _cuts(
    predictor: Predictor, inputs: Iterable[Path], at: Path, wanted: Wanted | None, pixel_scale: float | None
) -> Cuts:
    """The cutouts around the positions of a catalogue that a network wants of the one input."""
    paths = list(inputs)
    if len(paths) != 1:
        raise ConfigError(f"{at}: its positions can be those of one image only, not {len(paths)}. Name one with --at.")
    found = reading.surveyed(paths[0], at, wanted or Wanted())
    scale = pixel_scale or found.pixel_scale
    return found.cuts(paths[0], cutout.needed(predictor.image_shape, predictor.pixel_scale, scale))


def tabulate(
    name: str,
    inputs: Sequence[Path],
    out: Path,
    *,
    at: Path | None = None,
    wanted: Wanted | None = None,
    pixel_scale: float | None = None,
    maps: Path | None = None,
    engine: EngineName | None = None,
    force: bool = False,
    bar: Bar = silent,
) -> tuple[int, int]:
    """`predict` into a table; called again after it was stopped or killed, it goes on where it was.

    out: its format follows from the end of its name. Returns the numbers of its rows, and of those
    that failed. Raises `ConfigError` where there is no such format, else as `predict` does.
    """
    files.refuse_existing_file(out, force=force)
    card = bundle.read_card(bundle.located(name))
    plan = {"bundle": card.weights_sha256, "inputs": list(map(str, inputs)), "wanted": wanted, "scale": pixel_scale}
    plan |= {"at": mosaic.checksum(at) if at else None, "engine": engine}
    judge = f"{card.network} {card.weights_sha256[:12]}"
    with catalog.Journal(out, plan) as journal:
        if maps:
            journal.begin_anew()  # maps are all drawn by one call
        options = {
            "at": at,
            "wanted": wanted,
            "pixel_scale": pixel_scale,
            "maps": maps,
            "engine": engine,
            "force": force,
        }
        for row in predict(name, inputs, start=journal.place, bar=bar, **options):  # type: ignore[arg-type]
            journal.add(row.place, catalog.record(row, card.classes, judge, version("sublens")))
        return journal.finish(card.classes)


def _drawing(folder: Path, drawn: CardMap, *, force: bool) -> AbstractContextManager[Draw]:
    from sublens import fits  # slow to import

    return fits.maps(folder, drawn.cell_arcsec, force=force)


def _device(engine: EngineName | None) -> str:
    if engine != "torch":
        return "cpu"
    from sublens.models import device  # torch is slow to import

    return device()
