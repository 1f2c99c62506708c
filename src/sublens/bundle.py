"""A trained model on disk: safetensors weights and a JSON card that vouches for them."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from sublens.calibrate import Calibration, Layer
from sublens.config import Frozen, InputConfig, RunConfig
from sublens.errors import BundleError, nearest
from sublens.files import sha256, whole_file, write_bytes
from sublens.models import TruthHead, build, placed, zoom

WEIGHTS, CARD, CALIBRATION = "weights.safetensors", "card.json", "calibration.safetensors"
HEAD = "truth_head."
"""What the names of the truth head's weights begin with."""
LARGE = 2**14
"""Elements of a tensor that is worth narrowing."""
SHELVES = (Path(__file__).parent / "bundles", Path(__file__).parents[2] / "bundles")
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


class CardScores(Frozen):
    """How one run did on a test part that nothing was chosen by."""

    track: Literal["labels only", "simulator in the loop"]
    """What it learned from: images and labels, or also what the simulator knows."""
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
    """How its word is made honest: see `sublens.calibrate.Calibration`."""

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


class CardMachine(Frozen):
    """Where it was trained."""

    processor: str
    threads: int
    device: str


class Card(Frozen):
    """What `card.json` says of a trained model."""

    format: Literal[1] = 1
    network: str
    """A name that `sublens.models.build` knows."""
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
    calibration: CardCalibration | None = None
    """None while it is trained."""
    scores: tuple[CardScores, ...] = ()
    """Of published runs: this one's, then those of its other seeds and tracks."""
    rounding: float | None = None
    """Of published runs: the most that rounding the weights to 16 bits changed any probability of the
    selection part of the data they were tested on."""


def save_weights(
    folder: Path, model: nn.Module, head: TruthHead | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write the weights of the model and its truth head; the card of those they replace is removed.

    dtype: of large real tensors, if not their own; small ones, such as the filters of depthwise
    convolutions, weigh little and keep theirs.
    """
    state = {
        **model.state_dict(),
        **({f"{HEAD}{name}": value for name, value in head.state_dict().items()} if head else {}),
    }
    narrowed = {name: _narrowed(value, dtype) for name, value in state.items()}
    with whole_file(folder / WEIGHTS) as partial:
        partial.write_bytes(to_bytes({name: value.detach().cpu().contiguous() for name, value in narrowed.items()}))
        (folder / CARD).unlink(missing_ok=True)


def _narrowed(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.to(dtype) if dtype and value.numel() >= LARGE and value.is_floating_point() else value


def write_card(folder: Path, **fields: Any) -> None:
    """Write the card of the weights in `folder`; fields: those of `Card` but the hash."""
    card = Card(**fields, weights_sha256=sha256(folder / WEIGHTS))
    write_bytes(folder / CARD, (card.model_dump_json(indent=1) + "\n").encode())


def save_calibration(folder: Path, calibration: Calibration, n: int) -> CardCalibration:
    """Write the Gaussians of a calibration on `n` images; returns what the card has to say of it."""
    tensors = {
        f"{number}.{name}": torch.from_numpy(getattr(layer, name)).float().contiguous()
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
    tensors = from_bytes(_vouched(folder / CALIBRATION, told.sha256))
    layers = [
        Layer(tensors[f"{number}.mean"].double().numpy(), tensors[f"{number}.precision"].double().numpy(), usual)
        for number, usual in enumerate(told.usual)
    ]
    threshold = np.inf if told.ood_threshold is None else told.ood_threshold
    return Calibration(told.temperature, told.cutoff, told.coverage, tuple(layers), threshold, told.false_alarms)


def _vouched(path: Path, digest: str) -> bytes:
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


def is_bundle(name: str | Path) -> bool:
    """Whether that is the folder of a trained network, or the name of one that comes with sublens."""
    return (Path(name) / CARD).is_file() or str(name) in references()


def located(name: str | Path) -> Path:
    """The folder of that name, or that of the trained network of that name that comes with sublens."""
    path = Path(name)
    if path.exists():
        return path
    shipped = references()
    if str(name) not in shipped:
        raise BundleError(
            f"{name}: no such folder, and no trained network of that name comes with this installation. "
            f"{nearest(str(name), shipped)} Or name a folder that `sublens train` wrote."
        )
    return shipped[str(name)]


def references() -> dict[str, Path]:
    """The trained networks that come with sublens, by name: all in a source tree, the smallest in a wheel."""
    return {card.parent.name: card.parent for shelf in reversed(SHELVES) for card in sorted(shelf.glob(f"*/{CARD}"))}


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


def load(folder: Path, device: str = "cpu") -> tuple[nn.Module, TruthHead | None, Card]:
    """The model, in evaluation mode on `device`, its truth head if it has one, and its card.

    Raises `BundleError` where a file is missing, or the weights do not match the card's hash.
    """
    card = read_card(folder)
    data = _vouched(folder / WEIGHTS, card.weights_sha256)
    model = build(card.network, len(card.classes), card.input.channels)
    head = TruthHead(model, zoom(card.input, card.image_shape)) if card.map else None
    try:
        state = from_bytes(data)
        if head:
            head.load_state_dict({name: state.pop(f"{HEAD}{name}") for name in head.state_dict()})
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError, KeyError) as err:
        raise BundleError(
            f"{folder / WEIGHTS}: does not fit the network {card.network}. Train again with this version of sublens."
        ) from err
    return placed(model, device).eval(), placed(head, device).eval() if head else None, card
