"""Readers of a network's feature maps: the truth head, the macro head, and the moments behind the OOD score."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sublens.models.inputs import resample_weights
from sublens.models.macro import N_OUTPUTS

CELL = 8
"""Image pixels along one side of a cell of the truth head's map."""


def nearest_tap(model: nn.Module, cell: float) -> dict[str, Any]:
    """Description, as timm has it, of the feature map whose cells come closest to `cell` input pixels."""
    taps: list[dict[str, Any]] = list(model.feature_info)  # type: ignore[arg-type]
    return min(taps, key=lambda info: abs(np.log(info["reduction"] / cell)))


class FeatureMaps:
    """Feature maps of the last batch that `model` took, kept by forward hooks."""

    def __init__(self, model: nn.Module, taps: Sequence[dict[str, Any]]) -> None:
        """taps: descriptions of the maps, as in timm's `feature_info`."""
        self.taps = taps
        self._outputs: dict[int, Tensor] = {}
        self._hooks = [
            model.get_submodule(tap["module"]).register_forward_hook(partial(self._keep, number))
            for number, tap in enumerate(taps)
        ]

    def __getstate__(self) -> dict[str, Any]:
        """State of a copy, which has seen no batch."""
        return {**self.__dict__, "_outputs": {}}

    def _keep(self, number: int, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._outputs[number] = output

    def __call__(self) -> list[Tensor]:
        """The maps of the last batch, [b, c, g, g] each."""
        return [self._outputs[number] for number in sorted(self._outputs)]

    def fit_blank(self, model: nn.Module, channels: int, side: int) -> bool:
        """Run the model on a blank image of so many channels and pixels a side; then as `fit`."""
        with torch.no_grad():
            model.eval()(torch.zeros(1, channels, side, side))
        return self.fit()

    def fit(self) -> bool:
        """Whether the last outputs are maps of as many channels as described; if not, the hooks are removed.

        Outputs of transformers may be lists of tokens.
        """
        maps = self()
        if len(maps) == len(self.taps) and all(
            plane.ndim == 4 and plane.shape[1] == tap["num_chs"] for plane, tap in zip(maps, self.taps, strict=True)
        ):
            return True
        for hook in self._hooks:
            hook.remove()
        return False


class TruthHead(nn.Module):
    """A head that predicts where the substructure is.

    A 1x1 convolution on an early feature map of `model` predicts log(1 + M / `MASS_UNIT_MSUN`) in
    each cell. It reads the feature map whose cells come closest to `CELL` image pixels, and has
    to be called after the model, on the same batch.
    """

    def __init__(self, model: nn.Module, zoom: float) -> None:
        """zoom: input pixels for each pixel of the image, along a side; below 1 if binned."""
        super().__init__()
        tap = nearest_tap(model, CELL * zoom)
        self.convolution = nn.Conv2d(tap["num_chs"], 1, 1)
        self.maps = FeatureMaps(model, [tap])

    def forward(self) -> Tensor:
        """The map [b, g, g] for the last batch of the model."""
        (features,) = self.maps()
        predicted: Tensor = self.convolution(features)
        return predicted[:, 0]


class MacroHead(nn.Module):
    """A head that measures the smooth lens, its macromodel, and tells lenses from contaminants.

    Unlike the classifier it keeps where light lies: the feature map that the truth head would read is convolved,
    brought to a grid of cells and read as a whole. It has to be called after the model, on the same batch.
    """

    GRID, WIDTH, HIDDEN = 8, 32, 64
    """Cells along a side of the grid, channels of a cell, and units of the hidden layer."""

    def __init__(self, model: nn.Module, zoom: float) -> None:
        """zoom: input pixels for each pixel of the image, along a side; below 1 if binned."""
        super().__init__()
        tap = nearest_tap(model, CELL * zoom)
        self.convolution = nn.Conv2d(tap["num_chs"], self.WIDTH, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(self.WIDTH)
        self.hidden = nn.Linear(self.WIDTH * self.GRID**2, self.HIDDEN)
        self.output = nn.Linear(self.HIDDEN, N_OUTPUTS)
        nn.init.zeros_(self.output.weight)
        self.maps = FeatureMaps(model, [tap])

    def forward(self) -> Tensor:
        """Outputs [b, 7] as in `models.macro`, for the last batch of the model."""
        (features,) = self.maps()
        features = F.relu(self.norm(self.convolution(features)))
        rows = torch.from_numpy(resample_weights(features.shape[-1], self.GRID)).to(features, non_blocking=True)
        hidden = F.relu(self.hidden((rows @ features @ rows.T).flatten(1)))
        output: Tensor = self.output(hidden)
        return output


class Moments:
    """Moments of each channel of the first feature maps of `model`; called after it, on the same batch."""

    N_MAPS = 3
    """Number of feature maps."""

    def __init__(self, model: nn.Module) -> None:
        self._maps = FeatureMaps(model, list(getattr(model, "feature_info", []))[: self.N_MAPS])

    def __call__(self) -> list[Tensor]:
        """Mean, standard deviation and maximum over the image of c channels, [b, 3c] for each map."""
        maps = [features.float().flatten(2) for features in self._maps() if features.ndim == 4]
        return [torch.cat([rows.mean(2), rows.std(2, correction=0), rows.amax(2)], 1) for rows in maps]
