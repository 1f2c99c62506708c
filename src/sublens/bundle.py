"""A trained model on disk: safetensors weights and a JSON card that vouches for them."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from sublens.config import Frozen, InputConfig, RunConfig
from sublens.errors import BundleError
from sublens.files import sha256, whole_file, write_bytes
from sublens.models import build, placed

WEIGHTS, CARD = "weights.safetensors", "card.json"


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


def save_weights(folder: Path, model: nn.Module) -> None:
    """Write the model's weights; the card of those they replace is removed."""
    with whole_file(folder / WEIGHTS) as partial:
        partial.write_bytes(to_bytes(_state(model)))
        (folder / CARD).unlink(missing_ok=True)


def write_card(folder: Path, **fields: Any) -> None:
    """Write the card of the weights in `folder`; fields: those of `Card` but the hash."""
    card = Card(**fields, weights_sha256=sha256(folder / WEIGHTS))
    write_bytes(folder / CARD, (card.model_dump_json(indent=1) + "\n").encode())


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


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


def load(folder: Path, device: str = "cpu") -> tuple[nn.Module, Card]:
    """The model, in evaluation mode on `device`, and its card.

    Raises `BundleError` where a file is missing, or the weights do not match the card's hash.
    """
    card = read_card(folder)
    try:
        data = (folder / WEIGHTS).read_bytes()
    except OSError as err:
        raise BundleError(f"{folder}: has no {WEIGHTS}. Copy the whole folder again, or train again.") from err
    if hashlib.sha256(data).hexdigest() != card.weights_sha256:
        raise BundleError(
            f"{folder / WEIGHTS}: is not what its card was written for (sha256 differs). Copy the "
            "whole folder again, or train again."
        )
    model = build(card.network, len(card.classes), card.input.channels)
    try:
        model.load_state_dict(from_bytes(data))
    except (SafetensorError, RuntimeError) as err:
        raise BundleError(
            f"{folder / WEIGHTS}: does not fit the network {card.network}. Train again with this version of sublens."
        ) from err
    return placed(model, device).eval(), card
