"""A trained network run by torch: the reference for the other engines."""

from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.backends import cudnn

from sublens.config import InputConfig
from sublens.inference.engines import Outputs
from sublens.models.heads import MacroHead, Moments, TruthHead
from sublens.models.inputs import to_input


class TensorOutputs(NamedTuple):
    """Outputs of a full network: those of `engines.Outputs`, as tensors."""

    logits: Tensor
    logs: Tensor | None
    moments: list[Tensor]
    macro: Tensor | None


class FullNetwork(nn.Module):
    """A network with its input transform, heads and moments of feature maps: counts in, all outputs out."""

    def __init__(
        self,
        model: nn.Module,
        config: InputConfig,
        head: TruthHead | None = None,
        moments: Moments | None = None,
        macro: MacroHead | None = None,
    ) -> None:
        """config: the input transform; heads and moments read feature maps of the model through hooks."""
        super().__init__()
        self.model, self.config, self.head, self.moments, self.macro = model, config, head, moments, macro

    def forward(self, counts: Tensor) -> TensorOutputs:
        """Counts or codes [b, h, w], float32 -> all outputs."""
        images = to_input(counts, self.config)
        logits = self.model(images.contiguous(memory_format=torch.channels_last))
        logs, moments = self.head() if self.head else None, self.moments() if self.moments else []
        return TensorOutputs(logits, logs, moments, self.macro() if self.macro else None)


class MirroredNetwork(FullNetwork):
    """A full network whose probabilities are the mean over the four mirror images of each image."""

    def forward(self, counts: Tensor) -> TensorOutputs:
        """The log of the mean probabilities, the mean map and macromodel, and the moments of the image as it is."""
        logits, logs, moments, macro = super().forward(torch.cat([counts.flip(axes) for axes in MIRRORS]))
        probs = _by_view(logits.softmax(1)).mean(0)
        if logs is not None:
            views = [view.flip(axes) for view, axes in zip(_by_view(logs), MIRRORS, strict=True)]
            logs = torch.stack(views).mean(0)
        if macro is not None:
            macro = (_by_view(macro) * torch.tensor(MIRRORED_MACRO).to(macro)[:, None]).mean(0)
        logits, moments = probs.clamp_min(SMALLEST_PROBABILITY).log(), [_by_view(layer)[0] for layer in moments]
        return TensorOutputs(logits, logs, moments, macro)


def _by_view(values: Tensor) -> Tensor:
    """[4 b, ...] -> [4, b, ...]"""
    return values.reshape(len(MIRRORS), -1, *values.shape[1:])


MIRRORS: tuple[list[int], ...] = [], [1], [2], [1, 2]
"""Axes of a stack of images along which each mirror image is flipped: the data's true symmetries."""
MIRRORED_MACRO = [[1, 1, -1 if len(axes) == 1 else 1, 1, 1, 1, 1] for axes in MIRRORS]
"""Factors of the macro head's outputs in each mirror image: e2 changes its sign with the angle's."""
SMALLEST_PROBABILITY = 1e-30
"""Floor under probabilities before their logarithm is taken."""


class TorchEngine:
    """Runs a network with torch, layer by layer: the engine that others are compared with.

    Hooks keep the feature maps of the last batch, so threads take turns.
    """

    def __init__(self, whole: FullNetwork, device: str = "cpu") -> None:
        """whole: on that device; it computes in the precision of its weights."""
        self.whole, self.device = whole, device
        self._dtype = next((parameter.dtype for parameter in whole.parameters()), torch.float32)
        self._lock = Lock()
        if device != "cpu":  # else a GPU's convolutions are off by 1e-3; this holds for the whole process
            cudnn.allow_tf32 = False

    def __call__(self, counts: NDArray[np.uint16]) -> Outputs:
        """Network outputs for images [b, h, w]."""
        with self._lock, torch.inference_mode():
            images = torch.from_numpy(counts.astype(np.float32)).to(self.device, self._dtype)
            logits, logs, moments, macro = self.whole(images)
        maps, macros = (None if values is None else _to_numpy(values) for values in (logs, macro))
        return Outputs(_to_numpy(logits), maps, list(map(_to_numpy, moments)), macros)


def _to_numpy(values: Tensor) -> NDArray[np.float64]:
    return np.asarray(values.double().cpu().numpy())
