"""A trained network run by torch: the reference for the other engines."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sublens.config import InputConfig
from sublens.inference.engines import Outputs
from sublens.models.heads import Moments, TruthHead
from sublens.models.inputs import to_input


class FullNetwork(nn.Module):
    """A trained network with all that belongs to it, from the counts on."""

    def __init__(
        self, model: nn.Module, seen: InputConfig, head: TruthHead | None = None, moments: Moments | None = None
    ) -> None:
        """seen: what the model sees of an image; head and moments listen to the model."""
        super().__init__()
        self.model, self.seen, self.head, self.moments = model, seen, head, moments

    def forward(self, counts: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Counts [b, h, w], float32 -> logits [b, c], the map [b, g, g] if there is a head, moments [b, d]."""
        images = to_input(counts, self.seen)
        logits = self.model(images.contiguous(memory_format=torch.channels_last))
        return logits, self.head() if self.head else None, self.moments() if self.moments else []


class MirroredNetwork(FullNetwork):
    """The same, but each image is judged by the mean over its four mirror images."""

    def forward(self, counts: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """The log of the mean probabilities, the mean map, and the moments of the image as it is."""
        logits, logs, moments = super().forward(torch.cat([counts.flip(axes) for axes in MIRRORS]))
        probs = _by_view(logits.softmax(1)).mean(0)
        if logs is not None:
            views = [view.flip(axes) for view, axes in zip(_by_view(logs), MIRRORS, strict=True)]
            logs = torch.stack(views).mean(0)
        return probs.clamp_min(SMALLEST_PROBABILITY).log(), logs, [_by_view(one)[0] for one in moments]


def _by_view(values: Tensor) -> Tensor:
    """[4 b, ...] -> [4, b, ...]"""
    return values.reshape(len(MIRRORS), -1, *values.shape[1:])


MIRRORS: tuple[list[int], ...] = [], [1], [2], [1, 2]
"""Axes of a stack of images along which each mirror image is turned over: the data's true symmetries."""
SMALLEST_PROBABILITY = 1e-30
"""Probability below which none is told from another."""


class TorchEngine:
    """Runs a network with torch, as the code stands: the engine that others are compared with."""

    def __init__(self, whole: FullNetwork, device: str = "cpu") -> None:
        """whole: on that device; it computes in the precision of its weights."""
        self.whole, self.device = whole, device
        self._dtype = next((parameter.dtype for parameter in whole.parameters()), torch.float32)

    def __call__(self, counts: NDArray[np.uint16]) -> Outputs:
        """Show it images [b, h, w]."""
        with torch.inference_mode():
            images = torch.from_numpy(counts.astype(np.float32)).to(self.device, self._dtype)
            logits, logs, moments = self.whole(images)
        return Outputs(
            _to_numpy(logits), None if logs is None else _to_numpy(logs), [_to_numpy(one) for one in moments]
        )


def _to_numpy(values: Tensor) -> NDArray[np.float64]:
    return np.asarray(values.double().cpu().numpy())
