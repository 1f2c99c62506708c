"""The answers of `/v1`, as pydantic models: what `/openapi.json` describes is what is sent."""

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, RootModel
from pydantic.json_schema import models_json_schema

from sublens.config import Pixels, later
from sublens.errors import SublensError
from sublens.images import signal_to_noise
from sublens.inference.frames import UNKNOWN, KnownNoise
from sublens.inference.predictor import Prediction
from sublens.models.bundle import Card, CardData, CardMachine, CardMap, CardScores, CardTraining
from sublens.web.problem import ProblemDetails

SCHEMAS = "#/components/schemas/{model}"


class Answer(BaseModel):
    """A JSON object, or a part of one, whose field docstrings are its documentation."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Array(Answer):
    """An array of numbers."""

    dtype: Literal["uint16", "float32"]
    shape: tuple[int, ...]
    data: str
    """Little-endian bytes in base64, rows along y first."""


class Measured(Answer):
    """Numbers that only some networks give for an image; those that are not known are left out."""

    theta_e: FiniteFloat | None = later(None)
    """Einstein radius of the lens, arcsec."""
    theta_e_sigma: FiniteFloat | None = later(None)
    """Its standard deviation, arcsec."""
    axis_ratio: FiniteFloat | None = later(None)
    """Axis ratio of the lens's mass."""
    axis_ratio_sigma: FiniteFloat | None = later(None)
    """Its standard deviation."""
    position_angle: FiniteFloat | None = later(None)
    """Angle from the image's x axis to the long axis of the mass, counter-clockwise, degrees."""
    position_angle_sigma: FiniteFloat | None = later(None)
    """Its standard deviation, degrees."""
    limit_msun: FiniteFloat | None = later(None)
    """Least mass of one subhalo on the arc that would have been found nine times in ten, Msun."""
    noise: Annotated[str, Field(max_length=100)] | None = later(None)
    """Source of the noise: a map, or estimated."""
    psf_fwhm: FiniteFloat | None = later(None)
    """Full width of the point-spread function at half maximum, arcsec."""
    n_masked: Annotated[int, Field(ge=0)] | None = later(None)
    """Number of masked pixels in the network's input."""


class NetworkPrediction(Measured):
    """The prediction of one network for one image, or the error in its place."""

    network: str
    error: str | None = None
    label: str | None = None
    """The most probable class."""
    probs: dict[str, float] = {}
    """Probability of each class."""
    prediction_set: list[str] | None = None
    """Classes that together hold the truth as often as the card promises; null where the network is not calibrated,
    or the image out of distribution."""
    ood_score: float | None = None
    """Distance from the training images; null where the network has no score."""
    ood: bool | None = None
    """Whether the image is out of distribution; null where that is unknown."""
    notes: list[str] = []
    """Changes made to the image, and faults of it."""
    latency_ms: float | None = None
    """Time that the network took for the batch that held the image."""
    map: Array | None = None
    """Substructure mass in each cell, Msun; null where the network has no truth head."""
    saliency: Array | None = None
    """Evidence for the label in each pixel, 1 at the peak; null unless requested."""


class FileExtension(Answer):
    """An image extension of a FITS file."""

    number: int
    name: str
    shape: tuple[int, ...]


class ImagePredictions(Answer):
    """One image of a file and the predictions for it, or the error in their place."""

    id: str
    """Name of the file, and number of the image where the file holds several."""
    number: int | None
    ra: float | None = None
    """Right ascension of the centre, degrees."""
    dec: float | None = None
    """Declination of the centre, degrees."""
    error: str | None = None
    counts: Array | None = None
    """The image in the frame of the first network that can use it; null where the image is unusable or large."""
    pixels: Pixels = later("counts")
    """Unit of `counts`; in signal to noise, masked pixels are 0. Left out for counts above the least."""
    pixel_scale: float | None = None
    """Arcsec a pixel of `counts`."""
    is_scale_known: bool = False
    """Whether the file or the request has the pixel scale; otherwise the network's is assumed."""
    predictions: list[NetworkPrediction] = []


class FilePredictions(Answer):
    """The predictions for every image of a file."""

    file: str
    extensions: list[FileExtension]
    images: list[ImagePredictions]
    is_cut: bool
    """Whether the file holds more images than one request may."""


class SimulatedImage(Answer):
    """The image of a scene and the predictions for it."""

    counts: Array
    """The image with noise, counts above the minimum or signal to noise."""
    pixels: Pixels = later("counts")
    """Unit of `counts`. Left out for counts above the least."""
    noiseless: Array
    """The image without sky and noise, electrons a pixel."""
    residual: Array
    """The change that the substructure makes to `noiseless`."""
    pixel_scale: float
    """Arcsec a pixel."""
    halo_mass_msun: float
    """Mass of the halo inside the Einstein radius, without substructure."""
    render_ms: float
    predictions: list[NetworkPrediction]


class SearchStep(Answer):
    """One mass of a bisection."""

    step: int
    """Number of the step, from 1 on."""
    of: int
    """Steps at most."""
    mass_msun: float
    """0 for the smooth lens."""
    probability: float
    """Probability of substructure, mean over the noise draws."""
    visible: bool


class SearchResult(Answer):
    """The end of a bisection."""

    done: Literal[True] = True
    smallest_msun: float | None
    """The smallest visible mass; null where not even the greatest is visible."""
    low_msun: float
    """The smallest mass of the search."""
    high_msun: float
    """The greatest mass of the search."""
    n_noise: int
    """Noise draws at each mass."""


class SearchLine(RootModel[SearchStep | SearchResult | ProblemDetails]):
    """A line of a bisection: steps, then the result or the problem that ended it."""


class SurveySummary(Answer):
    """A survey whose camera can be used."""

    name: str
    description: str
    n_pixels: int
    pixel_scale: float
    """Arcsec a pixel."""
    sliders: dict[str, tuple[float, float]]
    """Least and greatest value of the scene's numbers."""


class SurveyList(Answer):
    """The surveys."""

    surveys: list[SurveySummary]


class NetworkSummary(Answer):
    """A served network."""

    name: str
    bundle: str
    """The network and the beginning of its weights' sha256."""
    classes: tuple[str, ...]
    image_shape: tuple[int, int]
    """Height and width of the training images, pixels."""
    pixel_scale: float | None
    """Arcsec a pixel of the training images, where they were simulated."""
    side: int
    """Side of the square around the centre that the network uses, pixels."""
    map: CardMap | None
    ood_threshold: float | None
    """OOD score above which an image is out of distribution."""
    coverage: float | None
    """Share of images whose prediction set holds the truth: of each class where the card has a cutoff for each, else
    of all."""
    temperature: float | None
    scores: tuple[CardScores, ...]
    training: CardTraining
    data: CardData
    versions: dict[str, str]
    machine: CardMachine
    card: Card


class NetworkList(Answer):
    """The networks, and what the service can do."""

    networks: list[NetworkSummary]
    formats: list[str]
    """Ends of the names of readable image files."""
    report: bool
    """Whether `/report` exists."""
    version: str


class Speed(Answer):
    """The speed of a network on this machine."""

    network: str
    one_ms: float
    """Time for an image by itself."""
    one_per_s: float
    batch: int
    """Images in a full batch."""
    batch_per_s: float
    """Images a second in full batches."""
    threads: int


def array(values: NDArray[np.generic]) -> Array:
    """The array as it is sent; float64 as float32."""
    plain = np.ascontiguousarray(values, np.float32 if values.dtype == np.float64 else None)
    data = plain.astype(plain.dtype.newbyteorder("<"), copy=False).tobytes()
    return Array.model_validate(
        {"dtype": plain.dtype.name, "shape": plain.shape, "data": base64.b64encode(data).decode()}
    )


def plane(pixels: NDArray[np.uint16], unit: Pixels) -> Array:
    """The image of a network's frame as it is sent: counts as they are, codes as signal to noise, 0 where masked."""
    return array(pixels if unit == "counts" else np.nan_to_num(signal_to_noise.decode(pixels)))


def network_prediction(
    network: str,
    prediction: Prediction,
    *,
    seconds: float,
    notes: Sequence[str] = (),
    known: KnownNoise = UNKNOWN,
) -> NetworkPrediction:
    """A prediction as it is sent. seconds: time that the network took for its batch. known: noise of the image."""
    classes, masses = prediction.prediction_set, prediction.masses
    measured: dict[str, Any] = {**(prediction.macromodel or {}), **known._asdict(), "noise": known.noise or None}
    return NetworkPrediction(
        network=network,
        label=prediction.label,
        probs=prediction.probs,
        prediction_set=None if classes is None else list(classes),
        ood_score=prediction.ood,
        ood=prediction.is_ood,
        notes=list(notes),
        latency_ms=round(1e3 * seconds, 3),
        map=None if masses is None else array(masses),
        limit_msun=prediction.limit_msun,
        **measured,
    )


def failed_prediction(network: str, err: SublensError) -> NetworkPrediction:
    """The error of a network that cannot use an image."""
    return NetworkPrediction(network=network, error=str(err))


def as_json(answer: BaseModel) -> Response:
    """The response; FastAPI alone would walk through every array once more."""
    return Response(answer.model_dump_json(), media_type="application/json")


def schemas(*models: type[BaseModel]) -> dict[str, Any]:
    """The JSON schemas of the models and of their parts, by name, for `components` of OpenAPI."""
    _, definitions = models_json_schema([(model, "serialization") for model in models], ref_template=SCHEMAS)
    return dict(definitions["$defs"])
