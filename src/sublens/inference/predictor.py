"""Predictor: the only path from pixels to probabilities. Knows no torch, unless that is the engine."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sublens.config import InputConfig, field_of_view
from sublens.errors import BundleError, ImageError
from sublens.images import formats, resample
from sublens.images.pixels import Image, counts_above_minimum, usable
from sublens.images.reader import Found
from sublens.inference.engines import MASS_UNIT_MSUN, Engine, EngineName, OnnxRuntime, OpenVino
from sublens.models import bundle
from sublens.models.bundle import Card, CardMap
from sublens.models.calibration import Calibration, softmax

BATCH = 64
SLICE = 256
"""Inputs whose images may share a batch. So a slice of them can be judged anywhere, with the same result to the last
digit."""
NO_MAP = (
    "This network draws no maps: it was trained without a truth head. Use lensnet, which comes with "
    "sublens, or train on a simulated data set with train.truth_weight above 0."
)


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image."""

    label: str
    """The most probable class."""
    probs: dict[str, float]
    """Probability of each class; they sum to one."""
    prediction_set: tuple[str, ...] | None = None
    """Classes that together hold the truth as often as the network's card promises; empty where none is
    probable enough to be held to that. None where the network is not calibrated."""
    ood: float | None = None
    """How unlike the training images it is: 0 is usual."""
    is_strange: bool = False
    """Whether that is more than nearly all familiar images have: then nothing here is to be trusted."""
    masses: NDArray[np.float64] | None = field(default=None, compare=False)
    """Substructure mass in each cell of the network's map, Msun, [g, g]; see `Predictor.masses`."""


class Look(NamedTuple):
    """What a network sees in b images."""

    logits: NDArray[np.float64]
    """[b, c]"""
    probs: NDArray[np.float64]
    """[b, c], calibrated where the network is."""
    masses: NDArray[np.float64] | None
    """Msun in each cell, [b, g, g]; None where there is no truth head."""
    moments: list[NDArray[np.float64]]
    """Of each feature map, [b, d]; empty where nobody listens."""


@dataclass(frozen=True)
class Row:
    """What became of one image of a file."""

    path: Path
    number: int | None = None
    """Place in a file that holds many."""
    prediction: Prediction | None = None
    """None where the image could not be judged; `error` says why."""
    error: str = ""
    notes: tuple[str, ...] = ()
    """What was done to the image, and what looks wrong with it."""
    place: tuple[int, int] = (0, 0)
    """Number of the input, and of the image in it."""
    ra: float | None = None
    dec: float | None = None
    """Centre of the image, degrees, where its file tells."""
    id: str = ""
    """Name in a catalogue of positions, where it is from one that has names."""

    @property
    def name(self) -> str:
        """The file, and which image in it."""
        return str(self.path) if self.number is None else f"{self.path}#{self.number}"


@dataclass(frozen=True)
class Predictions:
    """The prediction table: one row an image."""

    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    """[n], positions in `classes`."""
    probs: NDArray[np.float64]
    """[n, c]"""
    classes: tuple[str, ...]
    masses: NDArray[np.float64] | None = None
    """[n, g, g], Msun in each cell, where the network draws maps."""
    ood: NDArray[np.float64] | None = None
    """[n], how strange each image is, where the network is calibrated."""


@dataclass(frozen=True)
class Predictor:
    """A trained network and all it needs to judge images.

    predictor = Predictor.load("lensnet")
    predictor([pixels]) -> [Prediction(label="sphere", probs={"no": 0.02, ...})]
    """

    engine: Engine
    classes: tuple[str, ...]
    image_shape: tuple[int, int]
    input: InputConfig
    map: CardMap | None = None
    """Cells of the maps of substructure that it draws, where it was trained with a truth head."""
    calibration: Calibration | None = None
    """What makes its word honest; while it is trained there is none."""

    @classmethod
    def load(cls, name: str | Path, engine: EngineName | None = None, device: str = "cpu") -> Self:
        """A network that comes with sublens, by name, or the one that `sublens train` left in a folder.

        engine: ONNX Runtime unless another is named, or torch where the bundle has no graph; device is
        where torch runs. Raises `BundleError` where it cannot be used.
        """
        folder = bundle.located(name)
        card = bundle.read_card(folder)
        opened = open_engine(folder, card, engine, device)
        calibration = bundle.load_calibration(folder, card)
        return cls(opened, card.classes, card.image_shape, card.input, card.map, calibration)

    def __call__(self, pixels: Iterable[ArrayLike]) -> list[Prediction]:
        """Judge images, each [h, w] or [1, h, w] in any linear scale.

        Raises `ImageError` for an image that is not finite, constant or of another size.
        """
        counts = [self.counts(np.asarray(one), f"image {number}") for number, one in enumerate(pixels)]
        return self._judged(counts)

    def files(self, paths: Iterable[str | Path]) -> list[Prediction]:
        """Judge image files; `ImageError` names the first that cannot be used."""
        counts = [(formats.read_counts(Path(path)), str(path)) for path in paths]
        for one, name in counts:
            self.check_size(one.shape, name)
        return self._judged([one for one, _ in counts])

    def rows(self, found: Iterable[Found], pixel_scale: float | None = None) -> Iterator[Row]:
        """Judge what was found, a row each, in order; what cannot be used is a row with its error.

        pixel_scale: arcsec a pixel of the images, where the user knows better than the files.
        """
        rows: list[Row] = []
        counts: list[NDArray[np.uint16]] = []
        for one in found:
            if rows and one.place[0] // SLICE != rows[-1].place[0] // SLICE:
                yield from self._filled(rows, counts)
                rows, counts = [], []
            row = Row(one.path, one.number, place=one.place, ra=one.ra, dec=one.dec, id=one.id)
            try:
                image = self.framed(one.image, pixel_scale)
                counts.append(image.counts())
                rows.append(replace(row, notes=tuple(image.notes), ra=image.ra, dec=image.dec))
            except ImageError as err:
                told = str(err)
                is_named = told.startswith(str(one.path))
                rows.append(replace(row, error=told if is_named else f"{row.name}: {told}"))
            if len(rows) == BATCH:  # whatever failed: so the same images always share a batch
                yield from self._filled(rows, counts)
                rows, counts = [], []
        yield from self._filled(rows, counts)

    def framed(self, image: Image | ImageError, pixel_scale: float | None) -> Image:
        """What was found, in the frame that the network was trained on; raises what it is, if it is an error."""
        if isinstance(image, ImageError):
            raise image
        side = field_of_view(self.input, self.image_shape)
        return resample.framed(image, self.image_shape, side, self.pixel_scale, pixel_scale)

    def _filled(self, rows: list[Row], counts: list[NDArray[np.uint16]]) -> Iterator[Row]:
        judged = iter(self._judged(counts))
        for row in rows:
            yield row if row.error else replace(row, prediction=next(judged))

    @property
    def pixel_scale(self) -> float | None:
        """Arcsec a pixel of the images it was trained on, where they were simulated."""
        if self.map is None:
            return None
        return self.map.n_cells * self.map.cell_arcsec / field_of_view(self.input, self.image_shape)

    def probs(self, counts: NDArray[np.uint16]) -> NDArray[np.float64]:
        """Probabilities [b, c] of images [b, h, w] given as counts above their minimum."""
        return self.look(counts).probs

    def masses(self, counts: NDArray[np.uint16]) -> NDArray[np.float64]:
        """Substructure mass in each cell, Msun, [b, g, g] with rows along y, of images [b, h, w].

        The truth head learns the mean of log(1 + M / 1e9 Msun), which is undone here: where it is
        unsure the result lies below the mean mass. Raises `BundleError` where there is no such head.
        """
        masses = self.look(counts).masses
        if masses is None:
            raise BundleError(NO_MAP)
        return masses

    def look(self, counts: NDArray[np.uint16]) -> Look:
        """All that it sees in images [b, h, w] at one glance."""
        logits, logs, moments = self.engine(counts)
        probs = self.calibration.probs(logits) if self.calibration else softmax(logits)
        return Look(logits, probs, None if logs is None else MASS_UNIT_MSUN * np.expm1(logs.clip(0)), moments)

    def counts(self, pixels: NDArray[np.generic], name: str) -> NDArray[np.uint16]:
        """Counts above the minimum of an image [h, w] or [1, h, w] in any linear scale.

        Raises `ImageError`, which calls it `name`, where it is not finite, constant or of another size.
        """
        if pixels.ndim in (2, 3):
            self.check_size(pixels.shape[-2:], name)  # before it is looked at, which takes a while
        return counts_above_minimum(usable(pixels, name))

    def check_size(self, shape: tuple[int, ...], name: str) -> None:
        """Raise `ImageError`, which calls the image `name`, where it is not [h, w] of the training images."""
        if shape != self.image_shape:
            have, need = (f"{h} x {w}" for h, w in (shape, self.image_shape))
            raise ImageError(
                f"{name}: is {have} pixels; this network was trained on {need}. Crop or resample the image."
            )

    def _judged(self, counts: list[NDArray[np.uint16]]) -> list[Prediction]:
        judged = []
        for start in range(0, len(counts), BATCH):
            look = self.look(np.stack(counts[start : start + BATCH]))
            sets, ood = self.trust(look)
            for number, row in enumerate(look.probs):
                judged.append(
                    Prediction(
                        self.classes[int(row.argmax())],
                        dict(zip(self.classes, map(float, row), strict=True)),
                        None if sets is None else self._held(sets[number]),
                        None if ood is None else float(ood[number]),
                        bool(self.calibration and ood is not None and ood[number] > self.calibration.ood_threshold),
                        None if look.masses is None else look.masses[number],
                    )
                )
        return judged

    def trust(self, look: Look) -> tuple[NDArray[np.bool_] | None, NDArray[np.float64] | None]:
        """Which classes each prediction set holds, [b, c], and how strange each image is, [b].

        None where the network is not calibrated, and where it has no feature map to tell strange images by.
        """
        if self.calibration is None:
            return None, None
        ood = self.calibration.ood(look.moments) if self.calibration.layers else None
        return self.calibration.sets(look.probs), ood

    def _held(self, row: NDArray[np.bool_]) -> tuple[str, ...]:
        return tuple(name for name, is_held in zip(self.classes, row, strict=True) if is_held)


def open_engine(folder: Path, card: Card, name: EngineName | None = None, device: str = "cpu") -> Engine:
    """What runs the network in `folder`: see `Predictor.load`."""
    name = name or ("onnxruntime" if card.graph else "torch")
    if name != "torch":
        engine = OnnxRuntime if name == "onnxruntime" else OpenVino
        return engine(bundle.graph(folder, card))
    from sublens.inference import torch_engine
    from sublens.models import heads, weights

    model, head = weights.load(folder, card, device)
    return torch_engine.Eager(torch_engine.Whole(model, card.input, head, heads.Moments(model)), device)
