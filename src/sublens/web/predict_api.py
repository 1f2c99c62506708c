"""Files in, judgements out; and a person's corrections into a catalogue."""

import asyncio
import re
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from sublens.errors import ImageError
from sublens.images import formats
from sublens.images.formats import ImageSelector
from sublens.images.pixels import Image
from sublens.images.reader import Extension, Reader, ReadResult
from sublens.inference import tables
from sublens.web.problem import ERROR_RESPONSES, Problem
from sublens.web.service import Json, ServedNetwork, Service, array, together, unless_gone

MAX_IMAGES = 200
"""Of one file; a request is no place for a survey."""
MAX_PIXELS = 2**24
"""Of all images of one file together, about."""
MAX_SHOWN = 512
"""Side of an image that no network could use, but that is shown all the same; pixels."""
PARSERS = 2
"""Child processes that read files."""
NOT_HERE = frozenset({".h5", ".hdf5", ".zarr"})
"""Formats that can point at other files of this machine."""
FORMATS = tuple(suffix for suffix in formats.READERS if suffix not in NOT_HERE)
HDF5_MAGIC = b"\x89HDF"
PICKLE_MAGIC = re.compile(rb"\x80[\x02-\x05]")
OBJECT_ARRAY = re.compile(rb"\x93NUMPY.{,128}\|O", re.DOTALL)


class Parsed(NamedTuple):
    """What one file holds."""

    found: list[ReadResult]
    extensions: list[Extension]
    is_cut: bool
    """Whether it holds more images than that."""


class Parsers:
    """Threads that each keep a child process for files that nobody vouches for."""

    def __init__(self, n: int = PARSERS) -> None:
        self._readers: SimpleQueue[Reader] = SimpleQueue()
        self._all = [Reader().__enter__() for _ in range(n)]
        for reader in self._all:
            self._readers.put(reader)
        self._threads = ThreadPoolExecutor(n)

    async def read(self, path: Path, wanted: ImageSelector, deadline: float) -> Parsed:
        """The images of a file; what cannot be read is an error in its place."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, path, wanted, deadline)

    def _read(self, path: Path, wanted: ImageSelector, deadline: float) -> Parsed:
        reader = self._readers.get()
        try:
            reader.wanted = wanted
            found, n_pixels, is_cut = list[ReadResult](), 0, False
            for one in reader.read([path]):
                is_cut = len(found) == MAX_IMAGES or n_pixels >= MAX_PIXELS
                if is_cut or time.monotonic() > deadline:
                    break
                found.append(one)
                n_pixels += one.image.pixels.size if isinstance(one.image, Image) else 0
            return Parsed(found, reader.extensions(path) if time.monotonic() < deadline else [], is_cut)
        finally:
            self._readers.put(reader)

    def close(self) -> None:
        """End them all."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for reader in self._all:
            reader.__exit__(None, None, None)


class Row(BaseModel):
    """One judged image, and what a person says of it."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(max_length=300)]
    path: Annotated[str, Field(max_length=300)] = ""
    label: Annotated[str, Field(max_length=100)] = ""
    probs: Annotated[dict[str, FiniteFloat], Field(max_length=100)] = {}
    prediction_set: Annotated[list[str], Field(max_length=100)] | None = None
    ood_score: FiniteFloat | None = None
    ood: bool | None = None
    notes: Annotated[list[str], Field(max_length=100)] = []
    error: Annotated[str, Field(max_length=1000)] = ""
    ra: FiniteFloat | None = None
    dec: FiniteFloat | None = None
    correction: Annotated[str, Field(max_length=100)] = ""
    """The class that the person sees."""
    comment: Annotated[str, Field(max_length=1000)] = ""


class Catalogue(BaseModel):
    """What one network, and a person, say of many images."""

    model_config = ConfigDict(extra="forbid")

    network: str
    rows: Annotated[list[Row], Field(max_length=20_000)]


Name = Annotated[str, Query(max_length=300, description="Of the file; its end tells the format.")]
Networks = Annotated[list[str], Query(max_length=50, description="Networks to ask; all if none is named.")]
Choice = Annotated[str | None, Query(max_length=100)]
Scale = Annotated[float | None, Query(ge=1e-6, le=1e3, description="Arcsec a pixel, where the file does not tell.")]
TableFormat = Literal["csv", "fits", "vot", "ecsv", "jsonl", "parquet"]
FILE_BODY = {
    "required": True,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}
TABLE = {200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}}


def routes(service: Service, parsers: Parsers) -> APIRouter:
    """`/v1/predict` and `/v1/catalogue`."""
    router = APIRouter(prefix="/v1", tags=["Images"], responses=ERROR_RESPONSES)

    @router.post("/predict", openapi_extra={"requestBody": FILE_BODY})
    async def predict(
        request: Request,
        name: Name,
        network: Networks = [],  # noqa: B006 - FastAPI copies it
        hdu: Choice = None,
        array: Choice = None,
        pixel_scale: Scale = None,
        saliency: bool = False,
    ) -> dict[str, Any]:
        """Judge the images of one file, whose bytes are the body: at most 200, at most 64 MiB."""
        networks, own = service.chosen(network), _safe(name)
        with tempfile.TemporaryDirectory(prefix="sublens-") as folder:
            path = Path(folder, f"upload{_suffix(own)}")
            await _save(request, path)
            deadline = service.deadline()
            parsed = await unless_gone(request, parsers.read(path, ImageSelector(hdu, array), deadline), deadline)
        judging = _judged(service, Asked(own, str(path), networks, pixel_scale, deadline), parsed)
        told, counts = await unless_gone(request, judging, deadline)
        if saliency:
            for image, one in zip(told["images"], counts, strict=True):
                explained = service.pool.run(partial(_explain, service, image, one))
                await unless_gone(request, explained, deadline)
        return told

    @router.post("/catalogue", responses=TABLE)  # type: ignore[arg-type]
    async def catalogue(
        request: Request, asked: Catalogue, form: Annotated[TableFormat, Query(alias="format")] = "csv"
    ) -> Response:
        """A table of judgements and corrections, as `sublens predict --out` writes them."""
        served = service.network(asked.network)
        table = service.pool.run(lambda: _table(served, asked.rows, form))
        data = await unless_gone(request, table, service.deadline())
        name = f'attachment; filename="sublens.{form}"'
        return Response(data, media_type="application/octet-stream", headers={"Content-Disposition": name})

    return router


def _safe(name: str) -> str:
    """The last part of a file's name, without what a terminal or a page could trip over."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "_", PurePosixPath(name.replace("\\", "/")).name)


def _suffix(name: str) -> str:
    """The end of the name, where it is one that we read here; `Problem` 415 where it is not."""
    lower = name.lower()
    fitting = [suffix for suffix in FORMATS if lower.endswith(suffix)]
    if not fitting:
        raise _unsupported(f"{name!r} is no image that this service reads.")
    return max(fitting, key=len)


def _unsupported(what: str) -> Problem:
    return Problem(
        415,
        what,
        f"one of {', '.join(FORMATS)}",
        "Convert it, or use `sublens predict` on your own machine.",
    )


async def _save(request: Request, path: Path) -> None:
    """Write the body to a file; `Problem` 415 where it is of a kind that is not taken over a network."""
    head = b""
    with path.open("wb") as file:
        async for block in request.stream():
            if len(head) < 256:
                head += block[:256]
            file.write(block)
    if head.startswith(HDF5_MAGIC) or PICKLE_MAGIC.match(head) or OBJECT_ARRAY.match(head):
        raise _unsupported("The file is HDF5, or holds pickled objects, whatever its name says.")
    if not head:
        raise Problem(422, "The file is empty.", "an image", "Send the file's bytes as the body.")


class Asked(NamedTuple):
    """One file, and who is to judge it."""

    name: str
    """As the caller has it."""
    path: str
    """Where it lies here, which nobody is told."""
    networks: Sequence[ServedNetwork]
    pixel_scale: float | None
    deadline: float


async def _judged(service: Service, asked: Asked, parsed: Parsed) -> tuple[Json, list[list[Any]]]:
    """The answer, and the counts of each image in each network's frame."""
    if len(parsed.found) == 1 and isinstance(err := parsed.found[0].image, ImageError) and not parsed.extensions:
        raise ImageError(str(err).replace(asked.path, asked.name))
    good = [one.image for one in parsed.found if isinstance(one.image, Image)]
    judging = [one.judge(good, asked.deadline, service.pool, asked.pixel_scale) for one in asked.networks]
    answers = iter(zip(*await together(judging), strict=True))
    said = [list(next(answers)) if isinstance(one.image, Image) else [] for one in parsed.found]
    told = {
        "file": asked.name,
        "extensions": [one._asdict() for one in parsed.extensions],
        "images": await service.pool.run(lambda: list(map(partial(_image, asked), parsed.found, said))),
        "is_cut": parsed.is_cut,
    }
    return told, [[frame for _, frame in judged] for judged in said]


def _image(asked: Asked, one: ReadResult, judged: list[Any]) -> Json:
    told: Json = {
        "id": asked.name if one.number is None else f"{asked.name}#{one.number}",
        "number": one.number,
        "ra": None,
        "dec": None,
        "error": None,
        "counts": None,
        "pixel_scale": None,
        "is_scale_known": False,
        "predictions": [judgement for judgement, _ in judged],
    }
    if isinstance(one.image, ImageError):
        return told | {"error": str(one.image).replace(asked.path, asked.name)}
    frames = [(frame, network) for (_, frame), network in zip(judged, asked.networks, strict=True) if frame is not None]
    shown, scale = one.image.pixels, one.image.pixel_scale
    if frames:
        told["counts"], scale = array(frames[0][0]), frames[0][1].predictor.pixel_scale or scale
    elif max(shown.shape) <= MAX_SHOWN:
        told["counts"] = array(one.image.counts())
    is_known = asked.pixel_scale is not None or one.image.pixel_scale is not None
    return told | {"ra": one.image.ra, "dec": one.image.dec, "pixel_scale": scale, "is_scale_known": is_known}


def _explain(service: Service, image: Json, counts: Sequence[Any]) -> None:
    """Fill in what speaks for each network's label."""
    for judgement, frame in zip(image["predictions"], counts, strict=True):
        if frame is not None:
            network = service.network(judgement["network"])
            judgement["saliency"] = service.saliency(network, frame, judgement["label"])


EXTRA = (
    tables.Column("correction", "text", "Class that a person sees in it", "meta.code.class"),
    tables.Column("comment", "text", "What a person says of it", "meta.note"),
)


def _table(network: ServedNetwork, rows: Sequence[Row], form: str) -> bytes:
    """The bytes of a table in that format."""
    known = [*tables.columns(network.card.classes), *EXTRA]
    records = [_record(network, row) for row in rows]
    with tempfile.TemporaryDirectory(prefix="sublens-") as folder:
        path = Path(folder, f"table.{form}")
        tables.WRITERS[path.suffix](path, known, lambda: iter(records))
        return path.read_bytes()


def _record(network: ServedNetwork, row: Row) -> tables.Record:
    held = row.prediction_set
    plain = row.model_dump(exclude={"probs", "prediction_set", "notes"})
    return {
        **plain,
        **{f"p_{name}": row.probs.get(name) for name in network.card.classes},
        "prediction_set": "" if held is None else ",".join(held) or "none",
        "notes": "; ".join(row.notes),
        "bundle": network.card.judge,
        "version": version("sublens"),
    }
