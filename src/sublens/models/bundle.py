"""A trained model on disk: its files, and a JSON card that holds their hashes. Knows no torch.

card.json                  how it was trained, and the hashes of the other files and of the card itself
weights.safetensors        the weights; `sublens.models.weights` makes the network of them
graph.onnx                 the computation, for engines other than torch
calibration.safetensors    parameters of the calibration and of the out-of-distribution score
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from sublens.config import Frozen, InputConfig, RunConfig, later
from sublens.errors import BundleError, nearest
from sublens.models.calibration import Calibration, Layer
from sublens.models.detection import Detection
from sublens.storage import object_store
from sublens.storage.files import sha256, write_bytes
from sublens.storage.seal import SEAL, unsealed, write_sealed

WEIGHTS, CARD, CALIBRATION, GRAPH = "weights.safetensors", "card.json", "calibration.safetensors", "graph.onnx"
PREDICTING = {"input", "classes", "weights_sha256", "graph", "calibration", "detection"}
"""Fields of a card that decide a prediction."""
FORMAT: Literal[2] = 2
"""Format of the card; those of format 1 are read as well, and need no seal."""
COPY_AGAIN = "Copy the whole folder again, or train again."
"""Advice for a damaged bundle."""
BUNDLE_FOLDERS = tuple(Path(__file__).parents[levels] / "bundles" for levels in (1, 3))
"""Folders of the trained networks that come with sublens, in an installation and in a source tree."""


class CardData(Frozen):
    """The data set that a network was trained on, and the number of images in each part."""

    name: str
    hash: str
    train: int
    selection: int
    test: int


class CardTraining(Frozen):
    """Cost and outcome of a training; the scores are those of the best epoch on the selection part."""

    steps: int
    images: int
    seconds: float
    best_epoch: int
    selection_loss: float
    selection_accuracy: float
    selection_auc: float
    selection_macro_loss: float | None = later(None)
    """Loss of the macro head, which counts by `train.macro_weight` where the best epoch is chosen."""
    interrupted: bool


class CardMap(Frozen):
    """The map of substructure mass that the truth head draws, centred on the image."""

    n_cells: int
    """Cells along each side."""
    cell_arcsec: float
    """Side of a cell, arcsec."""


Track = Literal["labels only", "labels and a trained teacher", "simulator in the loop"]
"""Source of supervision: images and labels; besides, a teacher that learned from more; or the simulator's truth."""
LABELS: Track = "labels only"
TAUGHT: Track = "labels and a trained teacher"
SIMULATOR: Track = "simulator in the loop"


class CardTeacher(Frozen):
    """The trained network whose feature maps this one learned to imitate."""

    network: str
    weights_sha256: str
    trained_on: str
    """Hash of the teacher's data set."""
    track: Track


class CardScores(Frozen):
    """Scores of one run on a test part that nothing was chosen by."""

    track: Track
    seed: int
    trained_on: str
    """Hash of the data set that it learned from."""
    tested_on: str
    """Hash of the data set whose test part was measured."""
    images: int
    """Images that training went through, repeats included."""
    selection_loss: float
    n: int
    """Number of test images."""
    auc: float
    auc_low: float
    """Lower end of the 95 % interval of the macro AUC over resampled test images."""
    auc_high: float
    """Upper end of that interval."""
    accuracy: float
    loss: float


def _as_tuple(value: object) -> object:
    """A single cutoff, as in cards of sublens up to 0.2, as that of all classes."""
    return (value,) if isinstance(value, float) else value


class CardCalibration(Frozen):
    """Calibration parameters; see `sublens.models.calibration.Calibration`."""

    model_config = ConfigDict(serialize_by_alias=True)

    temperature: float
    cutoffs: Annotated[tuple[float, ...], BeforeValidator(_as_tuple)] = Field(
        validation_alias=AliasChoices("cutoffs", "cutoff")
    )
    """Least probability of each class in a prediction set; up to 0.2 it was a single `cutoff`."""
    coverage: float
    """Share of the images of each class whose set holds the truth; with a single cutoff, of all images."""
    ood_threshold: float | None
    """Least out-of-distribution score of an image that is flagged; None where the network has no feature maps."""
    false_alarms: float
    """Share of the in-distribution images of each class whose score is above the threshold, at most: 1 %, or
    1 / (n + 1) where n < 99 images of a class allow no less; with a single cutoff, of all images."""
    n: int
    """Number of selection images that temperature, sets and threshold were fitted to."""
    log_distances: tuple[tuple[float, float], ...] = Field(
        validation_alias=AliasChoices("usual", "log_distances"), serialization_alias="usual"
    )
    """Mean and standard deviation of the log squared distances, for each layer; `usual` in the file."""
    sha256: str
    """Hash of `calibration.safetensors`."""
    ood_offsets: tuple[float, ...] = ()
    """Part of the score that belongs to each class; empty where none is taken off."""
    macro_scales: tuple[float, float, float] | None = later(None)
    """Factors of the standard deviations of Einstein radius, axis ratio and position angle; None without a macro
    head."""
    contaminant_score: tuple[float, float] | None = later(None)
    """Offset and factor that make an OOD score of the contaminants' logit; None where none were trained on."""


class CardGraph(Frozen):
    """The graph that engines other than torch run, and how closely it follows the network in torch."""

    sha256: str
    """Hash of `graph.onnx`."""
    precision: Literal["float32", "int8"]
    is_alone: bool
    """Whether the graph holds the weights as well; if not, they are those of `weights.safetensors`."""
    n: int
    """Number of selection images on which it was compared with torch in double precision, in batches of several
    sizes."""
    deviation: float
    """Largest difference of any probability; for an int8 graph, from the float32 graph's."""
    auc_change: tuple[float, float, float] | None = None
    """Macro AUC of an int8 graph minus that of the float32 graph, and its 95 % interval."""
    mirror_gain: tuple[float, float, float] | None = None
    """Gain in macro AUC on the selection part from the mean over each image's four mirror images, and its 95 %
    interval; None for a graph that predicts from the image alone."""


class CardMachine(Frozen):
    """The machine of a training."""

    processor: str
    processes: int = 1
    threads: int
    """Threads of each process."""
    device: str


class CardLog(Frozen):
    """The log of a training at the time of its card."""

    n_bytes: int
    """Length from its beginning; a training that was killed may have left more."""
    sha256: str
    """Hash of that length."""

    @classmethod
    def of(cls, log: bytes) -> Self:
        """The entry of a log."""
        return cls(n_bytes=len(log), sha256=hashlib.sha256(log).hexdigest())

    def begins(self, log: bytes) -> bool:
        """Whether a log begins with this one."""
        return hashlib.sha256(log[: self.n_bytes]).hexdigest() == self.sha256


class Card(Frozen):
    """Content of `card.json`: all that is known of a trained model."""

    format: Literal[1, 2] = FORMAT
    network: str
    """A name that `sublens.models.networks.build` knows."""
    classes: tuple[str, ...]
    image_shape: tuple[int, int]
    """Height and width of the images it was trained on, pixels."""
    input: InputConfig
    """Steps from those images to the network's input."""
    settings: RunConfig
    """Everything that decided the training."""
    data: CardData
    training: CardTraining
    versions: dict[str, str]
    """sublens, torch, timm and Python."""
    machine: CardMachine
    weights_sha256: str
    """Hash of `weights.safetensors`."""
    map: CardMap | None = None
    """Map that the truth head predicts; None where it was trained without one."""
    has_macro: bool = later(False)
    """Whether a macro head measures the lens."""
    teacher: CardTeacher | None = None
    """Teacher of a distilled network; None for others."""
    start: CardTeacher | None = later(None)
    """Trained network whose weights it started from; None for others."""
    supervision: str | None = None
    """What the network learned from, in words; None in cards of earlier versions."""
    calibration: CardCalibration | None = None
    """Calibration parameters; None until the training is complete."""
    detection: Detection | None = Field(None, exclude_if=lambda value: value is None)
    """Chance that a subhalo is found, for the detection limit of each image; None, and not in the file, for networks
    of counts and until the training is complete."""
    graph: CardGraph | None = None
    """Exported graph; None until the training is complete, and where the network cannot be exported."""
    scores: tuple[CardScores, ...] = ()
    """Scores of a published run, then those of its other seeds and tracks; empty before it is published."""
    log: CardLog | None = None
    """Log of the training; None in cards of format 1."""
    rounding: float | None = None
    """Largest change of any probability from rounding the weights of a published run to 16 bits, over the
    selection part of the data it was tested on."""

    @property
    def knows_contaminants(self) -> bool:
        """Whether the network learned from images that are no lens, as its calibration says."""
        return self.calibration is not None and self.calibration.contaminant_score is not None

    @property
    def identity(self) -> str:
        """Origin of a prediction in a table: the network, its weights, and its graph's computation unless plain."""
        parts = [self.network, self.weights_sha256[:12]]
        if self.graph and self.graph.precision != "float32":
            parts.append(self.graph.precision)
        if self.graph and self.graph.mirror_gain:
            parts.append("mean of mirror images")
        return " ".join(parts)

    @property
    def digest(self) -> str:
        """Hash of all that decides a prediction: input, classes, weights, graph and calibration."""
        parts = self.model_dump_json(include=PREDICTING)
        return hashlib.sha256(parts.encode()).hexdigest()

    @property
    def track(self) -> Track:
        """Source of supervision; a teacher counts where it had more than its student's images and labels."""
        if self.map is not None:
            return SIMULATOR
        by_labels = self.teacher is None or (self.teacher.track, self.teacher.trained_on) == (LABELS, self.data.hash)
        return LABELS if by_labels else TAUGHT


def save_card(folder: Path, card: Card) -> None:
    """Write a card, sealed: with the sha256 of its content, which `read_card` checks."""
    write_sealed(folder / CARD, card.model_dump(mode="json") | {"format": FORMAT})


def save_calibration(folder: Path, calibration: Calibration, n: int) -> CardCalibration:
    """Write the Gaussians of a calibration on `n` images; returns its entry for the card."""
    tensors = {
        f"{number}.{name}": np.ascontiguousarray(getattr(layer, name), dtype=np.float32)
        for number, layer in enumerate(calibration.layers)
        for name in ("mean", "precision")
    }
    write_bytes(folder / CALIBRATION, to_bytes(tensors))
    return CardCalibration(
        temperature=calibration.temperature,
        cutoffs=calibration.cutoffs,
        coverage=calibration.coverage,
        ood_threshold=calibration.ood_threshold if calibration.layers else None,
        false_alarms=calibration.false_alarms,
        n=n,
        log_distances=tuple(layer.log_distance for layer in calibration.layers),
        sha256=sha256(folder / CALIBRATION),
        ood_offsets=calibration.ood_offsets,
        macro_scales=calibration.macro_scales,
        contaminant_score=calibration.contaminant_score,
    )


def load_calibration(folder: Path, card: Card) -> Calibration | None:
    """The calibration of the trained network in `folder`; None where it has none. Raises as `load` does."""
    entry = card.calibration
    if entry is None:
        return None
    tensors = from_bytes(read_verified(folder / CALIBRATION, entry.sha256))
    doubles = {name: value.astype(np.float64) for name, value in tensors.items()}
    layers = [
        Layer(doubles[f"{number}.mean"], doubles[f"{number}.precision"], log_distance)
        for number, log_distance in enumerate(entry.log_distances)
    ]
    return Calibration(
        temperature=entry.temperature,
        cutoffs=entry.cutoffs,
        coverage=entry.coverage,
        layers=tuple(layers),
        ood_threshold=np.inf if entry.ood_threshold is None else entry.ood_threshold,
        false_alarms=entry.false_alarms,
        n=entry.n,
        ood_offsets=entry.ood_offsets,
        macro_scales=entry.macro_scales,
        contaminant_score=entry.contaminant_score,
    )


def read_verified(path: Path, digest: str) -> bytes:
    """The content of a file, whose sha256 the card gives; `BundleError` where it is missing or another."""
    try:
        data = path.read_bytes()
    except OSError as err:
        raise BundleError(
            f"has no {path.name}", need="all files that its card names", next=COPY_AGAIN, path=path.parent
        ) from err
    if hashlib.sha256(data).hexdigest() != digest:
        raise BundleError(
            "is not what its card was written for (sha256 differs)",
            need=f"the one whose sha256 begins with {digest[:12]}",
            next=COPY_AGAIN,
            path=path,
        )
    return data


def graph(folder: Path, card: Card) -> Path:
    """The graph of the trained network in `folder`, its hashes checked; `BundleError` where it has none."""
    if card.graph is None:
        raise BundleError(
            f"has no {GRAPH}",
            need="one for every engine other than torch",
            next="Make one with `sublens export`, or use --engine torch.",
            path=folder,
        )
    read_verified(folder / GRAPH, card.graph.sha256)
    if not card.graph.is_alone:
        read_verified(folder / WEIGHTS, card.weights_sha256)
    return folder / GRAPH


def is_bundle(name: str | Path) -> bool:
    """Whether that is the folder of a trained network, or the name of one that comes with sublens."""
    return (object_store.parse_path(name) / CARD).is_file() or str(name) in shipped()


def locate(name: str | Path) -> Path:
    """The folder of that name, or that of the trained network of that name that comes with sublens."""
    path = object_store.parse_path(name)
    if path.exists():
        return object_store.local(path)
    known = shipped()
    if str(name) not in known:
        raise BundleError(
            "no such folder, and no trained network of that name comes with this installation",
            need="a folder that `sublens train` wrote, or a name that `sublens networks` lists",
            next=nearest(str(name), known),
            path=name,
        )
    return known[str(name)]


def shipped() -> dict[str, Path]:
    """The trained networks that come with sublens, by name: all in a source tree, the smallest in a wheel."""
    cards = [card for folder in reversed(BUNDLE_FOLDERS) for card in sorted(folder.glob(f"*/{CARD}"))]
    return {card.parent.name: card.parent for card in cards}


def shipped_for(survey: str) -> dict[str, Path]:
    """The trained networks that come with sublens and learned from images of that survey, by name."""
    return {name: folder for name, folder in shipped().items() if read_card(folder).data.name == survey}


def other_network(name: str | Path) -> BundleError:
    """The error of a worker that finds another network by that name than the one it is to run."""
    return BundleError(
        "is another network there",
        need="the same network on all machines",
        next="Copy the folder of the network to the worker's machine.",
        path=name,
    )


def read_card(folder: Path) -> Card:
    """The card in `folder`; `BundleError` where there is none, it has changed, or this version cannot read it."""
    path = folder / CARD
    try:
        content = json.loads(path.read_bytes())
        is_old = content.get("format") == 1 and SEAL not in content
        return Card.model_validate(content if is_old else unsealed(content))
    except OSError as err:
        raise BundleError(
            f"not a trained model (no {CARD})",
            need="a folder that `sublens train` wrote",
            next="Name one, or train one first.",
            path=folder,
        ) from err
    except (ValueError, AttributeError, RecursionError) as err:  # ValidationError is a ValueError
        raise BundleError(
            "is damaged, or of another version of sublens",
            need=f"the card as it was written, of format {FORMAT} or 1",
            next=COPY_AGAIN,
            path=path,
        ) from err
