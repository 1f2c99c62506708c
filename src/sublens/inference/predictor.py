"""Predictor: the only path from pixels to probabilities. Imports torch only where that is the engine."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sublens.config import InputConfig, Pixels
from sublens.errors import BundleError, ConfigError, ImageError
from sublens.images import listing
from sublens.images.formats import NO_FILES, CompanionFiles
from sublens.images.limits import name_errors
from sublens.images.pixels import Image, TangentPlane
from sublens.images.reader import Reader, ReadResult
from sublens.inference.engines import MASS_UNIT_MSUN, Engine, EngineName, OnnxRuntime, OpenVino
from sublens.inference.frames import Frame
from sublens.models import arc, bundle, macro
from sublens.models.bundle import Card, CardMap
from sublens.models.calibration import Calibration, softmax
from sublens.models.detection import Detection
from sublens.models.macro import FittedLens
from sublens.parallel.mapper import in_order
from sublens.parallel.threads import n_threads
from sublens.storage.object_store import parse_path

BATCH = 64
"""Largest number of images in one batch of the network."""
SLICE = 256
"""Number of inputs whose images may share a batch: to the last digit, a slice gives the same on any worker."""


@dataclass(frozen=True)
class Prediction:
    """The prediction of a network for one image."""

    label: str
    """The most probable class."""
    probs: dict[str, float]
    """Probability of each class; they sum to one."""
    prediction_set: tuple[str, ...] | None = None
    """Classes that together hold the truth as often as the network's card promises for each class; empty where none
    is probable enough for that. None where the network is not calibrated, or the image out of distribution."""
    ood: float | None = None
    """OOD score: distance from the training images, about 0 for an average one. None where the network has no
    feature maps to measure it on."""
    is_ood: bool | None = None
    """Whether the image is out of distribution, so that nothing else here can be trusted: by its score, or since
    more pixels are missing than can be filled. None without a score, if none are."""
    limit_msun: float | None = None
    """Detection limit: the least mass of one subhalo on the arc, solar masses, that the network would have found nine
    times in ten. None where not even the greatest simulated mass would be, where the image is out of distribution,
    and where the network has no fit of it."""
    masses: NDArray[np.float64] | None = field(default=None, compare=False)
    """Substructure mass in each cell of the network's map, Msun, [g, g]; see `Predictor.masses`."""
    macromodel: dict[str, float] | None = None
    """Einstein radius, axis ratio and position angle of the lens with their standard deviations, by the names of
    `macro.COLUMNS`; None where the network has no macro head."""


@dataclass(frozen=True)
class BatchPrediction:
    """The output of a network for b images, calibrated where the network is."""

    classes: tuple[str, ...]
    logits: NDArray[np.float64]
    """Logits before calibration, [b, c]."""
    probs: NDArray[np.float64]
    """Probabilities, [b, c]."""
    moments: list[NDArray[np.float64]]
    """Moments of each feature map, [b, d]; empty where the network has none."""
    masses: NDArray[np.float64] | None = None
    """Substructure mass in each cell, Msun, [b, g, g]; None where there is no truth head."""
    sets: NDArray[np.bool_] | None = None
    """Classes in each prediction set, [b, c], none of an image out of distribution; None without calibration."""
    ood: NDArray[np.float64] | None = None
    """OOD scores, [b]; None where the network is not calibrated or has no feature maps."""
    is_ood: NDArray[np.bool_] | None = None
    """Images out of distribution, [b]; None without scores."""
    macro: NDArray[np.float64] | None = None
    """Outputs of the macro head before calibration, [b, 7]; None where there is none."""
    macromodels: NDArray[np.float64] | None = None
    """The `macro.COLUMNS` of each lens, [b, 6]; None without a macro head."""
    limit_msun: NDArray[np.float64] | None = None
    """Detection limits, solar masses, [b], NaN where there is none; None where the network has no fit of them."""
    has_hole: NDArray[np.bool_] | None = None
    """Images with a hole in the field of view, [b], which are out of distribution; None where there are none."""

    def __len__(self) -> int:
        return len(self.probs)

    def prediction(self, row: int) -> Prediction:
        """The prediction for one of the images."""
        probs, is_ood = self.probs[row], None if self.is_ood is None else bool(self.is_ood[row])
        if self.has_hole is not None and self.has_hole[row]:
            is_ood = True
        members = None if self.sets is None or is_ood else self.sets[row]
        return Prediction(
            label=self.classes[int(probs.argmax())],
            probs=dict(zip(self.classes, map(float, probs), strict=True)),
            prediction_set=None if members is None else tuple(compress(self.classes, members)),
            ood=None if self.ood is None else float(self.ood[row]),
            is_ood=is_ood,
            limit_msun=None if is_ood else self._limit(row),
            masses=None if self.masses is None else self.masses[row],
            macromodel=None
            if self.macromodels is None
            else dict(zip(macro.COLUMNS, map(float, self.macromodels[row]), strict=True)),
        )

    def _limit(self, row: int) -> float | None:
        limit = np.nan if self.limit_msun is None else float(self.limit_msun[row])
        return limit if np.isfinite(limit) else None

    def with_holes(self, has_hole: NDArray[np.bool_]) -> "BatchPrediction":
        """The output for images [b] of which some have a hole in the field of view."""
        if not has_hole.any():
            return self
        sets = None if self.sets is None else self.sets & ~has_hole[:, None]
        return replace(
            self, has_hole=has_hole, sets=sets, is_ood=None if self.is_ood is None else self.is_ood | has_hole
        )

    def take(self, rows: slice) -> "BatchPrediction":
        """The output for some of the images."""
        names = ["logits", "probs", "masses", "sets", "ood", "is_ood", "macro", "macromodels", "limit_msun", "has_hole"]
        arrays = {name: array[rows] for name in names if (array := getattr(self, name)) is not None}
        return replace(self, moments=[layer[rows] for layer in self.moments], **arrays)

    def __iter__(self) -> Iterator[Prediction]:
        return map(self.prediction, range(len(self)))


@dataclass(frozen=True)
class Row:
    """One image of a file: its prediction, or the error in place of it."""

    path: Path
    number: int | None = None
    """Number of the image in a file that holds many; None in one that holds one."""
    prediction: Prediction | None = None
    """None where the image has none; `error` says why."""
    error: str = ""
    notes: tuple[str, ...] = ()
    """What was done to the image, and what looks wrong with it."""
    source_index: tuple[int, int] = (0, 0)
    """Number of the input, and of the image in it."""
    ra: float | None = None
    dec: float | None = None
    """Centre of the image, degrees; None where neither its file nor the catalogue has it."""
    id: str = ""
    """Name in the catalogue of positions, or among the files of a listing; empty where there is none."""
    plane: TangentPlane | None = None
    """Coordinates on the sky of the map of substructure; None where the image's are not known."""
    noise: str = ""
    """Source of its noise; it and the next two as in `KnownNoise`."""
    psf_fwhm: float | None = None
    n_masked: int | None = None
    fit: FittedLens | None = None
    """The lens that was fitted to it, see `lens_fits`; None where none was."""

    @property
    def name(self) -> str:
        """The file, and which image in it."""
        return str(self.path) if self.number is None else f"{self.path}#{self.number}"


@dataclass(frozen=True)
class PredictionTable:
    """The prediction table: one row an image."""

    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    """True classes, as indices of `classes`, [n]."""
    probs: NDArray[np.float64]
    """Probabilities, [n, c]."""
    classes: tuple[str, ...]
    masses: NDArray[np.float64] | None = None
    """Substructure mass in each cell, Msun, [n, g, g]; None where the network draws no maps."""
    ood: NDArray[np.float64] | None = None
    """OOD scores, [n]; None where the network is not calibrated or has no feature maps."""
    macromodels: NDArray[np.float64] | None = None
    """The `macro.COLUMNS` of each lens, [n, 6]; None where the network has no macro head."""


class _Input(NamedTuple):
    """What the network needs of an image in its frame."""

    counts: NDArray[np.uint16]
    """Counts above the minimum, [h, w]."""
    has_hole: bool

    @classmethod
    def of(cls, image: Image) -> Self:
        return cls(image.counts(), image.has_hole)


@dataclass(frozen=True)
class Predictor:
    """A trained network with its calibration: from images to predictions.

    predictor = Predictor.load("lensnet")
    predictor([pixels]) -> [Prediction(label="sphere", probs={"no": 0.02, ...})]
    """

    engine: Engine
    classes: tuple[str, ...]
    image_shape: tuple[int, int]
    input: InputConfig
    map: CardMap | None = None
    """Cells of the network's maps of substructure mass; None where it was trained without a truth head."""
    calibration: Calibration | None = None
    """Temperature, prediction sets and OOD score; None during training."""
    detection: Detection | None = None
    """Chance that a subhalo is found; None where no limits are given."""

    @classmethod
    def load(cls, name: str | Path, engine: EngineName | None = None, device: str = "cpu") -> Self:
        """A network that comes with sublens, by name, or the one that `sublens train` left in a folder.

        engine: ONNX Runtime unless another is named, or torch where the bundle has no graph; device is
        where torch runs. Raises `BundleError` where it cannot be used.
        """
        folder = bundle.locate(name)
        card = bundle.read_card(folder)
        runner = open_engine(folder, card, engine, device)
        calibration = bundle.load_calibration(folder, card)
        return cls(runner, card.classes, card.image_shape, card.input, card.map, calibration, card.detection)

    def __call__(self, pixels: Iterable[ArrayLike]) -> list[Prediction]:
        """Predictions for images, each [h, w] or [1, h, w] in any linear scale.

        NaN, and masked pixels of a masked array, are missing and filled from their neighbours. Raises `ImageError`
        for an image that is infinite, constant, mostly missing or of another size.
        """
        return self.predict_images([self.image(array, f"image {number}") for number, array in enumerate(pixels)])

    def files(self, paths: Iterable[str | Path]) -> list[Prediction]:
        """Predictions for the images in files, folders and patterns, the same as those of `sublens predict`.

        Each image is resampled by the pixel scale in its header and cut to size; a stack gives a prediction an
        image. Raises `ImageError` for the first image that cannot be used.
        """
        with Reader(companions=self.companions(), n_children=n_threads()) as reader:
            results = reader.read(listing.list_images(map(parse_path, paths)))
            images = [self._usable(result, None) for result in results]
        return self.predict_images(images)

    def rows(self, results: Iterable[ReadResult], pixel_scale: float | None = None) -> Iterator[Row]:
        """A row for each image that was read, in order; an image that cannot be used has its error there.

        pixel_scale: arcsec a pixel of the images, where the user knows better than the files. While the network runs
        on a batch in a thread, the next batch is read.
        """
        with ThreadPoolExecutor(1) as pool:
            batches = self._batches(results, pixel_scale)
            try:
                for rows in in_order((pool.submit(self._with_predictions, batch) for batch in batches), lambda: 2):
                    yield from rows
            finally:
                pool.shutdown(cancel_futures=True)

    def _batches(
        self, results: Iterable[ReadResult], pixel_scale: float | None
    ) -> Iterator[list[tuple[Row, _Input | None]]]:
        """Rows that share a batch, failures included, so that the same images always do."""
        batch: list[tuple[Row, _Input | None]] = []
        for result in results:
            is_next_slice = batch and result.source_index[0] // SLICE != batch[-1][0].source_index[0] // SLICE
            if is_next_slice or len(batch) == BATCH:
                yield batch
                batch = []
            batch.append(self._row(result, pixel_scale))
        if batch:
            yield batch

    def _row(self, result: ReadResult, pixel_scale: float | None) -> tuple[Row, _Input | None]:
        """The row of an image without its prediction, and what the network needs of it."""
        try:
            image = self._usable(result, pixel_scale)
        except ImageError as err:
            return _row_of(result, result.image, str(err)), None
        row = _row_of(result, image, plane=self.frame.map_plane(image.plane))
        return replace(row, **self.frame.known_noise(image)._asdict()), _Input.of(image)

    def companions(self, files: CompanionFiles = NO_FILES) -> CompanionFiles | None:
        """The files with noise, PSF and mask that are read with images for this network; None for counts of photons.

        Raises `ConfigError` where such a file is named for a network that takes none.
        """
        if self.input.takes_noise:
            return files
        if named := [f"--{kind}" for kind, name in files._asdict().items() if name]:
            raise ConfigError(
                f"{', '.join(named)} with a network that takes no noise",
                need="a network for signal to noise",
                next="Leave it out, or name such a network.",
            )
        return None

    def _usable(self, result: ReadResult, pixel_scale: float | None) -> Image:
        """An image in the frame that the network was trained on; raises `ImageError`, with the image's name."""
        try:
            return self.framed(result.image, pixel_scale)
        except ImageError as err:
            if err.path:
                raise
            raise err.about(Row(result.path, result.number).name) from err

    def framed(self, image: Image | ImageError, pixel_scale: float | None) -> Image:
        """An image in the frame that the network was trained on; raises the error that stands in place of one."""
        if isinstance(image, ImageError):
            raise image
        framed = self.frame.framed(image, pixel_scale)
        caution = self.calibration.caution if self.calibration else ""
        return replace(framed, notes=(*framed.notes, caution)) if caution else framed

    @property
    def frame(self) -> Frame:
        """Size, pixel scale and unit of the images that the network takes."""
        return Frame.of(self.image_shape, self.input, self.map)

    def _with_predictions(self, batch: Sequence[tuple[Row, _Input | None]]) -> list[Row]:
        predictions = self._predict([image for _, image in batch if image])
        return [replace(row, prediction=next(predictions)) if image else row for row, image in batch]

    @property
    def pixel_scale(self) -> float | None:
        """Arcsec a pixel of the training images; None where they were not simulated."""
        return self.frame.pixel_scale

    def probs(self, counts: NDArray[np.uint16]) -> NDArray[np.float64]:
        """Probabilities [b, c] of images [b, h, w], in counts above their minimum."""
        return self.forward(counts).probs

    def masses(self, counts: NDArray[np.uint16]) -> NDArray[np.float64]:
        """Substructure mass in each cell, Msun, [b, g, g] with rows along y, of images [b, h, w].

        The truth head learns the mean of log(1 + M / 1e9 Msun), which is undone here: where it is
        unsure the result lies below the mean mass. Raises `BundleError` where there is no such head.
        """
        masses = self.forward(counts).masses
        if masses is None:
            raise no_map()
        return masses

    def forward(self, counts: NDArray[np.uint16]) -> BatchPrediction:
        """The network's output for images [b, h, w], in counts above their minimum or codes of signal to noise."""
        logits, log_masses, moments, lens = self.engine(counts)
        calibration, contaminant_logits = self.calibration, None if lens is None else lens[:, macro.CONTAMINANT]
        probs = calibration.probs(logits) if calibration else softmax(logits)
        ood = calibration.ood(moments, probs, contaminant_logits) if calibration and calibration.layers else None
        is_ood = None if calibration is None or ood is None else calibration.is_ood(ood)
        sets = calibration.sets(probs) if calibration else None
        macromodels = None if lens is None else macro.measured(lens, self._macro_scales)
        x = self.ring_features(counts, macromodels) if self.detection else None
        return BatchPrediction(
            classes=self.classes,
            logits=logits,
            probs=probs,
            moments=moments,
            masses=None if log_masses is None else MASS_UNIT_MSUN * np.expm1(log_masses.clip(0)),
            sets=sets if sets is None or is_ood is None else sets & ~is_ood[:, None],
            ood=ood,
            is_ood=is_ood,
            macro=lens,
            macromodels=macromodels,
            limit_msun=None if self.detection is None or x is None else 10 ** self.detection.log_limits(x),
        )

    def ring_features(self, counts: NDArray[np.uint16], macromodels: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Features of images [b, h, w], and of their lenses [b, 6] where they are measured, for `Detection`, [b, k]."""
        pixels: Pixels = "signal-to-noise" if self.input.transform == "signal-to-noise" else "counts"
        lens = None
        if macromodels is not None and self.pixel_scale:
            theta_e, sigma, axis_ratio = macromodels[:, :3].T
            lens = arc.MeasuredLens(theta_e / self.pixel_scale, sigma / theta_e, axis_ratio)
        return arc.features(counts, pixels, lens)

    @property
    def _macro_scales(self) -> macro.Scales:
        return (self.calibration and self.calibration.macro_scales) or (1.0, 1.0, 1.0)

    def image(self, array: ArrayLike, name: str) -> Image:
        """The image of an array [h, w] or [1, h, w], masked or not, in any linear scale; it is not resampled.

        Raises `ImageError`, which calls it `name`, where it is infinite, constant, mostly missing or of another size.
        """
        image = self.frame.image(array, name)
        with name_errors(name):
            return self.framed(image, self.pixel_scale)

    def predict_images(self, images: Sequence[Image]) -> list[Prediction]:
        """Predictions for images in the frame of the network, as `framed` makes them, `BATCH` at a time."""
        starts = range(0, len(images), BATCH)
        batches = ([_Input.of(image) for image in images[start : start + BATCH]] for start in starts)
        return [prediction for batch in batches for prediction in self._predict(batch)]

    def _predict(self, batch: Sequence[_Input]) -> Iterator[Prediction]:
        """Predictions for images that share a batch."""
        if not batch:
            return iter(())
        output = self.forward(np.stack([image.counts for image in batch]))
        return iter(output.with_holes(np.array([image.has_hole for image in batch])))


def _row_of(result: ReadResult, image: Image | ImageError, error: str = "", plane: TangentPlane | None = None) -> Row:
    """The row of an image that was read, without its prediction; its position is the image's where there is one."""
    position = image if isinstance(image, Image) else result
    return Row(
        path=result.path,
        number=result.number,
        error=error,
        notes=tuple(image.notes) if isinstance(image, Image) else (),
        source_index=result.source_index,
        ra=position.ra,
        dec=position.dec,
        id=result.id,
        plane=plane,
    )


def no_map() -> BundleError:
    """The error for a network that draws no maps of substructure."""
    return BundleError(
        "This network draws no maps",
        need="a network with a truth head",
        next="Use lensnet, which comes with sublens, or train on a simulated data set with train.truth_weight above 0.",
    )


def open_engine(folder: Path, card: Card, name: EngineName | None = None, device: str = "cpu") -> Engine:
    """The engine that runs the network in `folder`: see `Predictor.load`."""
    name = name or ("onnxruntime" if card.graph else "torch")
    if name != "torch":
        run = OnnxRuntime if name == "onnxruntime" else OpenVino
        return run(bundle.graph(folder, card))
    from sublens.inference import torch_engine
    from sublens.models import heads, weights

    model, head, macro_head = weights.load(folder, card, device)
    whole = torch_engine.FullNetwork(model, card.input, head, heads.Moments(model), macro_head)
    return torch_engine.TorchEngine(whole, device)
