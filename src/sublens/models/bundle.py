"""A trained model on disk: its files, and a JSON card that vouches for them. Knows no torch.

card.json                  what it is, and the hashes of the other files
weights.safetensors        the weights; `sublens.models.weights` makes the network of them
graph.onnx                 what to compute with them, for engines other than torch
calibration.safetensors    what makes its word honest
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from sublens.config import Frozen, InputConfig, RunConfig
from sublens.errors import BundleError, nearest
from sublens.models.calibration import Calibration, Layer
from sublens.storage import object_store
from sublens.storage.files import sha256, write_bytes

WEIGHTS, CARD, CALIBRATION, GRAPH = "weights.safetensors", "card.json", "calibration.safetensors", "graph.onnx"
BUNDLE_FOLDERS = tuple(Path(__file__).parents[levels] / "bundles" for levels in (1, 3))
"""Where the trained networks that come with sublens lie, in an installation and in a source tree."""


class CardData(Frozen):
    """The data set that a network was trained on, and the number of images in each part."""

    name: str
    hash: str
    train: int
    selection: int
    test: int


class CardTraining(Frozen):
    """How the training went; the scores are those of the best epoch on the selection part."""

    steps: int
    images: int
    seconds: float
    best_epoch: int
    selection_loss: float
    selection_accuracy: float
    selection_auc: float
    interrupted: bool


class CardMap(Frozen):
    """The map of substructure mass that the truth head draws, centred on the image."""

    n_cells: int
    """Cells along each side."""
    cell_arcsec: float


Track = Literal["labels only", "simulator in the loop"]
"""What a run learned from: images and labels, or also what the simulator knows."""
LABELS: Track = "labels only"
SIMULATOR: Track = "simulator in the loop"


class CardTeacher(Frozen):
    """The trained network whose feature maps this one learned to imitate."""

    network: str
    weights_sha256: str
    trained_on: str
    """Hash of the data set."""
    track: Track


class CardScores(Frozen):
    """How one run did on a test part that nothing was chosen by."""

    track: Track
    seed: int
    trained_on: str
    """Hash of the data set."""
    tested_on: str
    images: int
    """Images seen in training."""
    selection_loss: float
    n: int
    """Test images."""
    auc: float
    auc_low: float
    auc_high: float
    """95 % interval of the macro AUC over resampled test images."""
    accuracy: float
    loss: float


class CardCalibration(Frozen):
    """How its word is made honest: see `sublens.models.calibration.Calibration`."""

    temperature: float
    cutoff: float
    """Least probability of a class in a prediction set."""
    coverage: float
    """Share of images whose set holds the truth."""
    ood_threshold: float | None
    """None where the network has no feature maps to look at."""
    false_alarms: float
    """Share of familiar images whose score is above the threshold."""
    n: int
    """Selection images it was fitted to."""
    usual: tuple[tuple[float, float], ...]
    """Of each layer: mean and standard deviation of its log squared distances."""
    sha256: str
    """Of `calibration.safetensors`."""


class CardGraph(Frozen):
    """The graph that engines other than torch run, and how closely they follow it."""

    sha256: str
    """Of `graph.onnx`."""
    precision: Literal["float32", "int8"]
    is_alone: bool
    """Whether the weights are in it too; else they are those of `weights.safetensors`."""
    n: int
    """Selection images it was compared with torch in double precision on, in batches of several sizes."""
    deviation: float
    """The most that any probability differed; of an int8 graph, from those of the float32 graph."""
    auc_change: tuple[float, float, float] | None = None
    """Of an int8 graph: how much its macro AUC is greater than the float32 graph's, and the 95 % interval."""
    mirror_gain: tuple[float, float, float] | None = None
    """Of a graph that judges each image by the mean over its four mirror images: how much that raises the
    macro AUC on the selection part, and the 95 % interval."""


class CardMachine(Frozen):
    """Where it was trained."""

    processor: str
    processes: int = 1
    threads: int
    """Of each process."""
    device: str


class Card(Frozen):
    """What `card.json` says of a trained model."""

    format: Literal[1] = 1
    network: str
    """A name that `sublens.models.networks.build` knows."""
    classes: tuple[str, ...]
    image_shape: tuple[int, int]
    """Height and width of the images it was trained on, pixels."""
    input: InputConfig
    """What it sees of them."""
    settings: RunConfig
    """Everything that decided the training."""
    data: CardData
    training: CardTraining
    versions: dict[str, str]
    """sublens, torch, timm and Python."""
    machine: CardMachine
    weights_sha256: str
    """Of `weights.safetensors`."""
    map: CardMap | None = None
    """What the truth head draws, where it was trained with one."""
    teacher: CardTeacher | None = None
    """Who taught it, where it had a teacher."""
    calibration: CardCalibration | None = None
    """None while it is trained."""
    graph: CardGraph | None = None
    """None while it is trained, and where the network cannot be made into one."""
    scores: tuple[CardScores, ...] = ()
    """Of published runs: this one's, then those of its other seeds and tracks."""
    rounding: float | None = None
    """Of published runs: the most that rounding the weights to 16 bits changed any probability of the
    selection part of the data they were tested on."""

    @property
    def judge(self) -> str:
        """Who judged, in a table: the network, its weights, and how its graph computes if not plainly."""
        told = f"{self.network} {self.weights_sha256[:12]}"
        if self.graph and self.graph.precision != "float32":
            told += f" {self.graph.precision}"
        return f"{told} mean of mirror images" if self.graph and self.graph.mirror_gain else told

    @property
    def track(self) -> Track:
        """What it learned from; a teacher that knew more than its pupil's images and labels counts too."""
        by_labels = self.teacher is None or (self.teacher.track, self.teacher.trained_on) == (LABELS, self.data.hash)
        return LABELS if self.map is None and by_labels else SIMULATOR


def write_card(folder: Path, **fields: Any) -> None:
    """Write the card of the weights in `folder`; fields: those of `Card` but the hash."""
    save_card(folder, Card(**fields, weights_sha256=sha256(folder / WEIGHTS)))


def save_card(folder: Path, card: Card) -> None:
    """Write a card, as it is."""
    write_bytes(folder / CARD, (card.model_dump_json(indent=1) + "\n").encode())


def save_calibration(folder: Path, calibration: Calibration, n: int) -> CardCalibration:
    """Write the Gaussians of a calibration on `n` images; returns what the card has to say of it."""
    tensors = {
        f"{number}.{name}": np.ascontiguousarray(getattr(layer, name), dtype=np.float32)
        for number, layer in enumerate(calibration.layers)
        for name in ("mean", "precision")
    }
    write_bytes(folder / CALIBRATION, to_bytes(tensors))
    return CardCalibration(
        temperature=calibration.temperature,
        cutoff=calibration.cutoff,
        coverage=calibration.coverage,
        ood_threshold=calibration.ood_threshold if calibration.layers else None,
        false_alarms=calibration.false_alarms,
        n=n,
        usual=tuple(layer.usual for layer in calibration.layers),
        sha256=sha256(folder / CALIBRATION),
    )


def load_calibration(folder: Path, card: Card) -> Calibration | None:
    """The calibration of the trained network in `folder`; None where it has none. Raises as `load` does."""
    told = card.calibration
    if told is None:
        return None
    tensors = from_bytes(read_verified(folder / CALIBRATION, told.sha256))
    layers = [
        Layer(tensors[f"{number}.mean"].astype(np.float64), tensors[f"{number}.precision"].astype(np.float64), usual)
        for number, usual in enumerate(told.usual)
    ]
    threshold = np.inf if told.ood_threshold is None else told.ood_threshold
    return Calibration(told.temperature, told.cutoff, told.coverage, tuple(layers), threshold, told.false_alarms)


def read_verified(path: Path, digest: str) -> bytes:
    """The content of a file that the card has the hash of, or a `BundleError`."""
    try:
        data = path.read_bytes()
    except OSError as err:
        raise BundleError(f"{path.parent}: has no {path.name}. Copy the whole folder again, or train again.") from err
    if hashlib.sha256(data).hexdigest() != digest:
        raise BundleError(
            f"{path}: is not what its card was written for (sha256 differs). Copy the "
            "whole folder again, or train again."
        )
    return data


def graph(folder: Path, card: Card) -> Path:
    """The graph of the trained network in `folder`, vouched for; `BundleError` where it has none."""
    if card.graph is None:
        raise BundleError(f"{folder}: has no {GRAPH}. Make one with `sublens export`, or use --engine torch.")
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
            f"{name}: no such folder, and no trained network of that name comes with this installation. "
            f"{nearest(str(name), known)} Or name a folder that `sublens train` wrote."
        )
    return known[str(name)]


def shipped() -> dict[str, Path]:
    """The trained networks that come with sublens, by name: all in a source tree, the smallest in a wheel."""
    cards = [card for folder in reversed(BUNDLE_FOLDERS) for card in sorted(folder.glob(f"*/{CARD}"))]
    return {card.parent.name: card.parent for card in cards}


def read_card(folder: Path) -> Card:
    """The card in `folder`, or a `BundleError` where there is none that we understand."""
    try:
        return Card.model_validate(json.loads((folder / CARD).read_text(encoding="utf-8")))
    except OSError as err:
        raise BundleError(
            f"{folder}: not a trained model (no {CARD}). Name a folder that `sublens train` wrote."
        ) from err
    except (ValueError, ValidationError) as err:
        raise BundleError(
            f"{folder / CARD}: is damaged, or of another version of sublens. Copy it again, or train again."
        ) from err
