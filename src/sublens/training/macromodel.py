"""Training of the macro head: its targets, its losses beside the labels', and weights that leave contaminants out."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sublens.config import InputConfig, TrainConfig, input_side, zoom
from sublens.data.dataset import Dataset
from sublens.models import macro
from sublens.models.heads import MacroHead
from sublens.models.macro import CONTAMINANT, LOG_SIGMAS


def head(model: nn.Module, network_input: InputConfig, dataset: Dataset, config: TrainConfig) -> MacroHead | None:
    """A macro head for this network.

    None where the data set has no truth or its pixels are counts, its weight is 0, or the network has no early feature
    map.
    """
    has_truth = dataset.survey and dataset.train.truth and dataset.pixels == "signal-to-noise"
    if not (has_truth and config.macro_weight and getattr(model, "feature_info", None)):
        return None
    side = input_side(network_input, dataset.train.shape)
    macro_head = MacroHead(model, zoom(network_input, dataset.train.shape))
    return macro_head if macro_head.maps.fit_blank(model, network_input.n_channels, side) else None


def mirrored(targets: Tensor, flips: Tensor) -> Tensor:
    """Targets [b, 3] of images mirrored in x and in y where flips [b, 2] says so: e2 changes its sign with each."""
    sign = torch.where(flips[:, 0] == flips[:, 1], 1.0, -1.0)
    return torch.stack([targets[:, 0], targets[:, 1], sign * targets[:, 2]], 1)


def losses(
    outputs: Tensor | None, targets: Tensor | None, is_contaminant: Tensor | None, lens_weights: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Losses of a macro head's outputs [b, 7]: of the macromodel and of the contaminants; None without what they need.

    targets: [b, 3]; those of contaminants are not used. is_contaminant: 1 for images that are no lens and 0 for others,
    [b]. lens_weights: weights of the images in the mean over lenses, [b].
    """
    if outputs is None or targets is None:
        return None, None
    contaminant, outputs = None, outputs.float()
    if is_contaminant is not None:
        contaminant = F.binary_cross_entropy_with_logits(outputs[:, CONTAMINANT], is_contaminant)
    weights = torch.ones(len(outputs), device=outputs.device) if lens_weights is None else lens_weights
    return macro_loss(outputs, targets, weights), contaminant


def macro_loss(outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean negative log likelihood of targets [b, 3] under the Gaussians of the outputs [b, 7], by weights [b]."""
    logs = outputs[:, 3:6].clamp(*LOG_SIGMAS)
    off = torch.where(weights[:, None] > 0, outputs[:, :3] - targets, 0)
    likelihood = (0.5 * (off * torch.exp(-logs)) ** 2 + logs).mean(1)
    return (likelihood * weights).mean()


def mean_loss(outputs: NDArray[np.float64], scenes: NDArray[np.void]) -> float:
    """`macro_loss` of a head's outputs [n, 7] for the scenes [n] of a truth table."""
    targets = macro.targets(*macro.lenses(scenes))
    return float(macro_loss(*map(torch.from_numpy, (outputs, targets, np.ones(len(outputs))))))


def label_loss(logits: Tensor, labels: Tensor, lens_weights: Tensor | None) -> Tensor:
    """Mean cross-entropy of the lenses among the images; 0 where all are contaminants."""
    if lens_weights is None:
        return F.cross_entropy(logits, labels)
    each = F.cross_entropy(logits, labels, ignore_index=CONTAMINANT, reduction="none")
    return (each * lens_weights).mean()


def lens_weights(labels: Tensor) -> Tensor:
    """Weights [b] by which a mean over images is one over lenses, however the images are shared out."""
    is_lens = (labels != CONTAMINANT).float()
    return is_lens * (len(labels) / is_lens.sum().clamp_min(1))
