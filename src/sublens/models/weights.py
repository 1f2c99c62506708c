"""The weights of a trained network: torch modules -> a safetensors file, and back."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from sublens.config import zoom
from sublens.errors import BundleError
from sublens.models.bundle import CARD, WEIGHTS, Card, read_verified
from sublens.models.heads import MacroHead, TruthHead
from sublens.models.networks import build, to_device
from sublens.storage.files import whole_file

HEAD, MACRO = "truth_head.", "macro_head."
"""Prefixes of the names of the weights of the truth head and of the macro head."""
LARGE = 2**14
"""Least number of elements of a tensor that is narrowed."""


def save(
    folder: Path,
    model: nn.Module,
    head: TruthHead | None = None,
    macro: MacroHead | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Write the weights of the model and its heads, and return their sha256; the card of the former is removed.

    dtype: of large real tensors, if not their own; small ones, such as the filters of depthwise
    convolutions, weigh little and keep theirs.
    """
    state = {
        **model.state_dict(),
        **({f"{HEAD}{name}": value for name, value in head.state_dict().items()} if head else {}),
        **({f"{MACRO}{name}": value for name, value in macro.state_dict().items()} if macro else {}),
    }
    narrowed = {name: _narrowed(value, dtype) for name, value in state.items()}
    data = to_bytes({name: value.detach().cpu().contiguous() for name, value in narrowed.items()})
    with whole_file(folder / WEIGHTS) as partial:
        partial.write_bytes(data)
        (folder / CARD).unlink(missing_ok=True)
    return hashlib.sha256(data).hexdigest()


def _narrowed(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.to(dtype) if dtype and value.numel() >= LARGE and value.is_floating_point() else value


def load(folder: Path, card: Card, device: str = "cpu") -> tuple[nn.Module, TruthHead | None, MacroHead | None]:
    """The model, in evaluation mode on `device`, and its truth head and macro head if it has them.

    Raises `BundleError` where a file is missing, or the weights do not match the card's hash.
    """
    data = read_verified(folder / WEIGHTS, card.weights_sha256)
    model = build(card.network, len(card.classes), card.input.n_channels)
    finer = zoom(card.input, card.image_shape)
    head, macro = TruthHead(model, finer) if card.map else None, MacroHead(model, finer) if card.has_macro else None
    try:
        state = from_bytes(data)
        for part, prefix in ((head, HEAD), (macro, MACRO)):
            if part:
                part.load_state_dict({name: state.pop(f"{prefix}{name}") for name in part.state_dict()})
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError, KeyError) as err:
        raise BundleError(
            f"does not fit the network {card.network}",
            need="the weights of that network as this version of sublens builds it",
            next="Copy the whole folder again, or train again with this version.",
            path=folder / WEIGHTS,
        ) from err
    for network in filter(None, (model, head, macro)):
        to_device(network, device).eval()
    return model, head, macro


def copy_into(folder: Path, card: Card, model: nn.Module, head: nn.Module | None, macro: nn.Module | None) -> None:
    """Copy the weights of a trained network to another of its kind, and to its heads; heads that it lacks stay.

    Raises `BundleError` as `load` does.
    """
    theirs = load(folder, card)
    for ours, trained in zip((model, head, macro), theirs, strict=True):
        if ours and trained:
            ours.load_state_dict(trained.state_dict())
