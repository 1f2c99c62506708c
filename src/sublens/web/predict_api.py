"""Files in, predictions out; and predictions with a person's corrections in, a table out."""

import asyncio
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from typing import Annotated, Literal, NamedTuple

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from sublens.config import Pixels
from sublens.errors import ImageError
from sublens.images import formats
from sublens.images.formats import NO_FILES, CompanionFiles, ImageSelector
from sublens.images.pixels import Image
from sublens.images.reader import Extension, Reader, ReadResult
from sublens.inference import predictor, tables
from sublens.inference.predictor import Prediction
from sublens.models import macro
from sublens.storage import scratch
from sublens.web.answers import FileExtension, FilePredictions, ImagePredictions, Measured, as_json, plane
from sublens.web.problem import ERROR_RESPONSES, Problem
from sublens.web.service import ImageOutcome, NamedImage, ServedNetwork, Service, assumed_scale, together, unless_gone

MAX_IMAGES = 200
"""Most images of one file; those after them are left out."""
MAX_PIXELS = 2**24
"""Pixels of one file after which its other images are left out."""
MAX_SHOWN = 512
"""Largest side of an image that is sent back although no network can use it, pixels."""
PARSERS = 2
"""Child processes that read files."""
NOT_HERE = frozenset({".h5", ".hdf5", ".zarr"})
"""Formats that can point at other files of this machine."""
FORMATS = tuple(suffix for suffix in formats.READERS if suffix not in NOT_HERE)
HDF5_MAGIC = b"\x89HDF"
PICKLE_MAGIC = re.compile(rb"\x80[\x02-\x05]")
OBJECT_ARRAY = re.compile(rb"\x93NUMPY.{,128}\|O", re.DOTALL)


class ParsedFile(NamedTuple):
    """The content of one file."""

    results: list[ReadResult]
    extensions: list[Extension]
    is_cut: bool
    """Whether images were left out."""


class Parsers:
    """Threads that each have a child process to read untrusted files."""

    def __init__(self, n: int = PARSERS) -> None:
        self._readers: SimpleQueue[Reader] = SimpleQueue()
        self._all = [Reader().__enter__() for _ in range(n)]
        for reader in self._all:
            self._readers.put(reader)
        self._threads = ThreadPoolExecutor(n)

    async def read(
        self, path: Path, selector: ImageSelector, deadline: float, companions: CompanionFiles | None = None
    ) -> ParsedFile:
        """The images of a file; an error in place of each that cannot be read. companions: see `Reader`."""
        task = partial(self._read, path, selector, deadline, companions)
        return await asyncio.get_running_loop().run_in_executor(self._threads, task)

    def _read(
        self, path: Path, selector: ImageSelector, deadline: float, companions: CompanionFiles | None
    ) -> ParsedFile:
        reader = self._readers.get()
        try:
            reader.selector, reader.companions = selector, companions
            results, n_pixels, is_cut = list[ReadResult](), 0, False
            for result in reader.read([path]):
                is_cut = len(results) == MAX_IMAGES or n_pixels >= MAX_PIXELS
                if is_cut or time.monotonic() > deadline:
                    break
                results.append(result)
                n_pixels += result.image.pixels.size if isinstance(result.image, Image) else 0
            return ParsedFile(results, reader.extensions(path) if time.monotonic() < deadline else [], is_cut)
        finally:
            self._readers.put(reader)

    def close(self) -> None:
        """End the threads and their child processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for reader in self._all:
            reader.__exit__(None, None, None)


class CatalogueRow(Measured):
    """One image, its prediction, and a person's correction."""

    id: Annotated[str, Field(max_length=300)]
    path: Annotated[str, Field(max_length=300)] = ""
    label: Annotated[str, Field(max_length=100)] = ""
    """The predicted class; empty where there is no prediction."""
    probs: dict[str, FiniteFloat] = Field({}, max_length=100)
    prediction_set: Annotated[list[str], Field(max_length=100)] | None = None
    ood_score: FiniteFloat | None = None
    ood: bool | None = None
    notes: list[str] = Field([], max_length=100)
    error: Annotated[str, Field(max_length=1000)] = ""
    ra: FiniteFloat | None = None
    dec: FiniteFloat | None = None
    correction: Annotated[str, Field(max_length=100)] = ""
    """The class that the person assigns."""
    comment: Annotated[str, Field(max_length=1000)] = ""


class Catalogue(BaseModel):
    """The predictions of one network for many images, with corrections."""

    model_config = ConfigDict(extra="forbid")

    network: str
    rows: Annotated[list[CatalogueRow], Field(max_length=20_000)]


Name = Annotated[str, Query(max_length=300, description="Name of the file; its end gives the format.")]
Networks = Annotated[list[str], Query(max_length=50, description="Networks that predict: all by default.")]
Choice = Annotated[str | None, Query(max_length=100)]
Scale = Annotated[float | None, Query(ge=1e-6, le=1e3, description="Arcsec a pixel, instead of the file's own.")]
TableFormat = Literal["csv", "fits", "vot", "ecsv", "jsonl", "parquet"]
FILE_BODY = {
    "required": True,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}
TABLE = {200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}}


def routes(service: Service, parsers: Parsers) -> APIRouter:
    """`/v1/predict` and `/v1/catalogue`."""
    router = APIRouter(prefix="/v1", tags=["Images"], responses=ERROR_RESPONSES)

    @router.post(
        "/predict",
        response_model=FilePredictions,
        openapi_extra={"requestBody": FILE_BODY},
        dependencies=[Depends(_refuse_form)],
    )
    async def predict(
        request: Request,
        name: Name,
        network: Networks = [],  # noqa: B006 - FastAPI copies it
        hdu: Choice = None,
        array: Choice = None,
        pixel_scale: Scale = None,
        saliency: bool = False,
    ) -> Response:
        """Predict the images of one file, whose bytes are the body: at most 200 images, at most 64 MiB."""
        upload = Upload(_safe(name), service.select(network), pixel_scale)
        for chosen in upload.networks:
            chosen.batcher.check_room()
        with scratch.folder() as folder:
            path = Path(folder, f"upload{_suffix(upload.name)}")
            await _save(request, path)
            deadline = service.deadline()
            takes_noise = any(chosen.predictor.input.takes_noise for chosen in upload.networks)
            reading = parsers.read(path, ImageSelector(hdu, array), deadline, NO_FILES if takes_noise else None)
            parsed = await unless_gone(request, reading, deadline)
        answer = await unless_gone(request, _predict(service, upload, parsed, deadline, saliency), deadline)
        return as_json(answer)

    @router.post("/catalogue", response_class=Response, responses=TABLE)  # type: ignore[arg-type]
    async def catalogue(
        request: Request, catalogue: Catalogue, form: Annotated[TableFormat, Query(alias="format")] = "csv"
    ) -> Response:
        """Write predictions and corrections as a table, in the formats of `sublens predict --out`."""
        network = service.network(catalogue.network)
        table = service.pool.run(lambda: _table(network, catalogue.rows, form))
        data = await unless_gone(request, table, service.deadline())
        disposition = f'attachment; filename="sublens.{form}"'
        return Response(data, media_type="application/octet-stream", headers={"Content-Disposition": disposition})

    return router


def _safe(name: str) -> str:
    """The last part of a file's name, without control characters and lone surrogates."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "_", PurePosixPath(name.replace("\\", "/")).name)


def _suffix(name: str) -> str:
    """The end of the name that gives a format. Raises `Problem` 415 where it gives none."""
    suffixes = [suffix for suffix in FORMATS if name.lower().endswith(suffix)]
    if not suffixes:
        raise _unsupported(f"{name!r} does not end as the name of an image that is read here")
    return max(suffixes, key=len)


def _unsupported(what: str) -> Problem:
    return Problem(
        415,
        what,
        need=f"one of {', '.join(FORMATS)}",
        next="Convert the file, or run `sublens predict` on your own machine.",
    )


def _refuse_form(request: Request) -> None:
    """Raise `Problem` 415 for the form that `curl -F` and `requests.post(files=...)` send."""
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        raise Problem(
            415,
            "The body is a form, as `curl -F` and `requests.post(files=...)` send it",
            need="the bytes of one file as the body, and its name in the query",
            next="Send `curl --data-binary @lens.fits 'URL/v1/predict?name=lens.fits'`, or in Python "
            "`requests.post(URL + '/v1/predict', params={'name': 'lens.fits'}, data=open('lens.fits', 'rb'))`.",
        )


async def _save(request: Request, path: Path) -> None:
    """Write the body to a file. Raises `Problem` 415 where its format is not accepted over a network."""
    head = b""
    with scratch.filled(), path.open("wb") as file:
        async for block in request.stream():
            if len(head) < 256:
                head += block[:256]
            file.write(block)
    if head.startswith(HDF5_MAGIC) or PICKLE_MAGIC.match(head) or OBJECT_ARRAY.match(head):
        raise _unsupported("The file is HDF5 or holds pickled objects, whatever its name says")
    if not head:
        raise Problem(422, "The file is empty", need="an image", next="Send the file's bytes as the body.")


class Upload(NamedTuple):
    """One file and the networks that predict its images."""

    name: str
    networks: Sequence[ServedNetwork]
    pixel_scale: float | None

    def image_name(self, result: ReadResult) -> str:
        """The name of an image of the file."""
        return self.name if result.number is None else f"{self.name}#{result.number}"


async def _predict(
    service: Service, upload: Upload, parsed: ParsedFile, deadline: float, has_saliency: bool
) -> FilePredictions:
    """The predictions for all images. Raises `ImageError` where the file holds only one, which is unusable."""
    if len(parsed.results) == 1 and not parsed.extensions and isinstance(err := parsed.results[0].image, ImageError):
        raise err.about(upload.name)
    usable = [
        NamedImage(upload.image_name(result), result.image)
        for result in parsed.results
        if isinstance(result.image, Image)
    ]
    scales = {"pixel_scale": upload.pixel_scale, "assumed_scale": assumed_scale(upload.networks)}
    work = [network.predict(usable, deadline, service.pool, **scales) for network in upload.networks]
    outcomes = iter(zip(*await together(work), strict=True))
    images = await service.pool.run(lambda: [_image(upload, result, outcomes) for result in parsed.results])
    if has_saliency:
        await _add_saliency(service, images)
    return FilePredictions(
        file=upload.name,
        extensions=[FileExtension(**extension._asdict()) for extension in parsed.extensions],
        images=[image.answer for image in images],
        is_cut=parsed.is_cut,
    )


class _PredictedImage(NamedTuple):
    """The answer for one image, and the outcome of each network."""

    answer: ImagePredictions
    outcomes: Sequence[ImageOutcome]


def _image(upload: Upload, result: ReadResult, outcomes: Iterator[Sequence[ImageOutcome]]) -> _PredictedImage:
    """The answer for one image; a usable one takes the next of the outcomes."""
    name, image = upload.image_name(result), result.image
    if isinstance(image, ImageError):
        return _PredictedImage(ImagePredictions(id=name, number=result.number, error=str(image.about(name))), [])
    own = next(outcomes)
    framed = zip(own, upload.networks, strict=True)
    first = next(((outcome.counts, network) for outcome, network in framed if outcome.counts is not None), None)
    counts, scale = first[0] if first else None, upload.pixel_scale or image.pixel_scale
    pixels: Pixels = "counts"
    if first:
        scale, pixels = first[1].predictor.pixel_scale or scale, first[1].pixels
    elif max(image.pixels.shape) <= MAX_SHOWN:
        counts = image.counts()
    answer = ImagePredictions(
        id=name,
        number=result.number,
        ra=image.ra,
        dec=image.dec,
        counts=None if counts is None else plane(counts, pixels),
        pixels=pixels,
        pixel_scale=scale,
        is_scale_known=upload.pixel_scale is not None or image.pixel_scale is not None,
        predictions=[outcome.prediction for outcome in own],
    )
    return _PredictedImage(answer, own)


async def _add_saliency(service: Service, images: Sequence[_PredictedImage]) -> None:
    """Add the saliency map of each network's label."""
    for image in images:
        for prediction, counts in image.outcomes:
            if counts is not None and prediction.label is not None:
                network = service.network(prediction.network)
                prediction.saliency = await service.saliency(network, counts, prediction.label)


CORRECTION = (
    tables.Column("correction", "text", "Class that a person assigned", "meta.code.class"),
    tables.Column("comment", "text", "Comment of that person", "meta.note"),
)


def _table(network: ServedNetwork, rows: Sequence[CatalogueRow], form: str) -> bytes:
    """The bytes of a table in that format."""
    columns = [*tables.columns(network.card.classes, **tables.heads(network.card)), *CORRECTION]
    records = [_record(network, row) for row in rows]
    with scratch.folder() as folder:
        path = Path(folder, f"table.{form}")
        tables.WRITERS[path.suffix](path, columns, lambda: iter(records))
        return path.read_bytes()


def _record(network: ServedNetwork, row: CatalogueRow) -> tables.Record:
    """The row as `sublens predict` writes it, with the correction."""
    card = network.card
    plain = predictor.Row(
        path=Path(row.path),
        prediction=_prediction(row, card.classes) if row.label else None,
        error=row.error,
        notes=tuple(row.notes),
        ra=row.ra,
        dec=row.dec,
        id=row.id,
        noise=row.noise or "",
        psf_fwhm=row.psf_fwhm,
        n_masked=row.n_masked,
    )
    own = {"path": row.path, "correction": row.correction, "comment": row.comment}
    record = tables.record(plain, card.classes, card.identity, version("sublens"), **tables.heads(card))
    return {**record, **own}


def _prediction(row: CatalogueRow, classes: Sequence[str]) -> Prediction:
    """The prediction that a row holds. Raises `Problem` 422 where it is one of other classes."""
    if row.probs.keys() != set(classes):
        raise Problem(
            422,
            f"The row {row.id!r} has probabilities of {', '.join(row.probs) or 'no class'}",
            need=f"one for each class of the network: {', '.join(classes)}",
            next="Name the network that made the prediction.",
        )
    return Prediction(
        label=row.label,
        probs=row.probs,
        prediction_set=None if row.prediction_set is None else tuple(row.prediction_set),
        ood=row.ood_score,
        is_ood=row.ood,
        limit_msun=row.limit_msun,
        macromodel={name: value for name in macro.COLUMNS if (value := getattr(row, name)) is not None} or None,
    )
