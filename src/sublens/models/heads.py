"""What reads the feature maps of a network: the truth head, and the moments behind the OOD score."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CELL = 8
"""Image pixels along one side of a cell that shows where something is."""


def nearest_tap(model: nn.Module, cell: float) -> dict[str, Any]:
    """What a timm network tells of its feature map whose cells come closest to `cell` of the pixels that it sees."""
    taps: list[dict[str, Any]] = list(model.feature_info)  # type: ignore[arg-type]
    return min(taps, key=lambda info: abs(np.log(info["reduction"] / cell)))


class FeatureMaps:
    """Feature maps of `model`; to be called after it, on the same batch."""

    def __init__(self, model: nn.Module, taps: Sequence[dict[str, Any]]) -> None:
        """taps: what timm tells of them."""
        self.taps = taps
        self._seen: dict[int, Tensor] = {}
        self._hooks = [
            model.get_submodule(tap["module"]).register_forward_hook(partial(self._listen, number))
            for number, tap in enumerate(taps)
        ]

    def _listen(self, number: int, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._seen[number] = output

    def __call__(self) -> list[Tensor]:
        """Of the batch that the model saw last, [b, c, g, g] each."""
        return [self._seen[number] for number in sorted(self._seen)]

    def fit(self) -> bool:
        """Whether what the model gave last are maps of as many channels as timm tells; if not, listen no more.

        Those of transformers may be lists of tokens.
        """
        seen = self()
        is_whole = len(seen) == len(self.taps)
        if is_whole and all(
            one.ndim == 4 and one.shape[1] == tap["num_chs"] for one, tap in zip(seen, self.taps, strict=True)
        ):
            return True
        for hook in self._hooks:
            hook.remove()
        return False


class TruthHead(nn.Module):
    """A training-only head that shows where the substructure is.

    A 1x1 convolution on an early feature map of `model` predicts log(1 + M / `MASS_UNIT_MSUN`) in
    each cell. It listens to the feature map whose cells come closest to `CELL` image pixels, and has
    to be called after the model, on the same batch.
    """

    def __init__(self, model: nn.Module, zoom: float) -> None:
        """zoom: pixels that the network sees for each pixel of the image; below 1 if binned."""
        super().__init__()
        tap = nearest_tap(model, CELL * zoom)
        self.convolution = nn.Conv2d(tap["num_chs"], 1, 1)
        self.maps = FeatureMaps(model, [tap])

    def forward(self) -> Tensor:
        """The map [b, g, g] for the batch that the model saw last."""
        (seen,) = self.maps()
        mapped: Tensor = self.convolution(seen)
        return mapped[:, 0]


class Moments:
    """What an image looks like to a network: moments of each channel of its first feature maps.

    Listens to `model`; to be called after it, on the same batch.
    """

    N_MAPS = 3

    def __init__(self, model: nn.Module) -> None:
        self._maps = FeatureMaps(model, list(getattr(model, "feature_info", []))[: self.N_MAPS])

    def __call__(self) -> list[Tensor]:
        """Mean, standard deviation and maximum over the image of c channels, [b, 3c] for each map."""
        maps = [seen.float().flatten(2) for seen in self._maps() if seen.ndim == 4]
        return [torch.cat([one.mean(2), one.std(2, correction=0), one.amax(2)], 1) for one in maps]
