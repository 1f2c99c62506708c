"""Predictor: the only path from pixels to probabilities."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from sublens import bundle, images
from sublens.config import InputConfig
from sublens.errors import ImageError
from sublens.models import prepare

BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image."""

    label: str
    """The most probable class."""
    probs: dict[str, float]
    """Probability of each class; they sum to one."""


@dataclass(frozen=True)
class Predictor:
    """A trained network and all it needs to judge images.

    predictor = Predictor.load("runs/lensnet")
    predictor([pixels]) -> [Prediction(label="sphere", probs={"no": 0.02, ...})]
    """

    model: nn.Module
    classes: tuple[str, ...]
    image_shape: tuple[int, int]
    input: InputConfig
    device: str = "cpu"

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> Self:
        """The network that `sublens train` left in `folder`; `BundleError` where it cannot be used."""
        model, card = bundle.load(Path(folder), device)
        return cls(model, card.classes, card.image_shape, card.input, device)

    def __call__(self, pixels: Iterable[ArrayLike]) -> list[Prediction]:
        """Judge images, each [h, w] or [1, h, w] in any linear scale.

        Raises `ImageError` for an image that is not finite, constant or of another size.
        """
        counts = [self._counts(np.asarray(one), f"image {number}") for number, one in enumerate(pixels)]
        return self._judged(counts)

    def files(self, paths: Iterable[str | Path]) -> list[Prediction]:
        """Judge image files; `ImageError` names the first that cannot be used."""
        return self._judged([self._sized(images.read_counts(Path(path)), str(path)) for path in paths])

    def probs(self, counts: NDArray[np.uint16]) -> NDArray[np.float64]:
        """Probabilities [b, c] of images [b, h, w] given as counts above their minimum."""
        seen = prepare(counts, self.input).to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode():
            return np.asarray(self.model(seen).double().softmax(dim=1).cpu().numpy())

    def _counts(self, pixels: NDArray[np.generic], name: str) -> NDArray[np.uint16]:
        return self._sized(images.counts_above_minimum(images.usable(pixels, name)), name)

    def _sized(self, counts: NDArray[np.uint16], name: str) -> NDArray[np.uint16]:
        if counts.shape != self.image_shape:
            have, need = (f"{h} x {w}" for h, w in (counts.shape, self.image_shape))
            raise ImageError(
                f"{name}: is {have} pixels; this network was trained on {need}. Crop or resample the image."
            )
        return counts

    def _judged(self, counts: list[NDArray[np.uint16]]) -> list[Prediction]:
        return [
            Prediction(self.classes[int(row.argmax())], dict(zip(self.classes, map(float, row), strict=True)))
            for start in range(0, len(counts), BATCH)
            for row in self.probs(np.stack(counts[start : start + BATCH]))
        ]
