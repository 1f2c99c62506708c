"""fit(): the whole training loop on one screen, and what it needs."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sublens.config import InputConfig, TrainConfig
from sublens.data import Dataset, Part
from sublens.models import TruthHead, field_of_view, prepare, side_seen
from sublens.sim.population import mass_map
from sublens.sim.survey import Survey

MASS_UNIT_MSUN = 1e9
"""The truth head predicts log(1 + M / this)."""


@dataclass(frozen=True)
class Batch:
    """What one step learns from."""

    images: Tensor
    """[b, channels, s, s], prepared."""
    labels: Tensor
    """[b]"""
    masses: Tensor | None = None
    """log(1 + M / 1e9 Msun) in each cell, [b, g, g], where truth is known and wanted."""


@dataclass(frozen=True)
class Step:
    """What one step did."""

    number: int
    epoch: int
    loss: float
    truth_loss: float | None
    n_images: int
    share_done: float


def fit(
    model: nn.Module,
    head: TruthHead | None,
    epochs: Iterable[Iterable[Batch]],
    config: TrainConfig,
    *,
    share_done: Callable[[int], float],
    on_step: Callable[[Step], object],
    on_epoch: Callable[[int], object],
    has_bf16: bool = False,
) -> None:
    """Train `model` in place.

    share_done: from the number of steps taken to the share of training that is behind us; the
    learning rate follows it, and training ends where it reaches 1. `on_epoch` is called after
    each epoch and at the end.
    """
    device = next(model.parameters()).device.type
    optimizer = make_optimizer([model, head] if head else [model], config)
    number = 0
    for epoch, batches in enumerate(epochs):
        model.train()
        for batch in batches:
            done = share_done(number)
            if done >= 1:
                break
            set_rate(optimizer, rate_at(done, config.warmup))
            with torch.autocast(device, torch.bfloat16, enabled=has_bf16):
                logits = model(batch.images)
                mapped = head() if head else None
            loss = F.cross_entropy(logits.float(), batch.labels)
            truth_loss = None if mapped is None or batch.masses is None else F.mse_loss(mapped.float(), batch.masses)
            total = loss if truth_loss is None else loss + (config.truth_weight or 0) * truth_loss
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            number += 1
            on_step(
                Step(
                    number,
                    epoch,
                    loss.item(),
                    truth_loss.item() if truth_loss is not None else None,
                    len(batch.labels),
                    done,
                )
            )
        on_epoch(epoch)
        if share_done(number) >= 1:
            return


def rate_at(done: float, warmup: float) -> float:
    """Learning rate over its peak: a rise over the share `warmup`, then half a cosine to zero."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def make_optimizer(modules: Sequence[nn.Module], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, or Muon on convolutions with AdamW on the rest.

    Muon: Jordan et al. 2024, kellerjordan.github.io/posts/muon, as implemented in timm. It makes
    the rows of a matrix orthogonal, so depthwise convolutions, whose filters do not share an
    input, are left to AdamW, as are the classifier and the truth head.
    """
    parameters = [parameter for module in modules for parameter in module.parameters()]
    if config.optimizer == "adamw":
        groups = [{"params": parameters, "lr": config.adamw_lr}]
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    else:
        from sublens.timm_import import import_timm

        import_timm()
        from timm.optim.muon import Muon

        layers = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Conv2d)]
        filters = [layer.weight for layer in layers if layer.groups == 1 and layer.out_channels > 1]
        taken = set(map(id, filters))
        rest = [parameter for parameter in parameters if id(parameter) not in taken]
        optimizer = Muon(
            [{"params": filters, "lr": config.lr}, {"params": rest, "lr": config.adamw_lr, "use_fallback": True}],
            weight_decay=config.weight_decay,
            adjust_lr_fn="original",
        )
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group's rate to this share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share


def truth_head(
    model: nn.Module, seen: InputConfig, dataset: Dataset, config: TrainConfig
) -> tuple[TruthHead | None, int]:
    """A truth head for this network and the number of cells along its map's side.

    None where the data set has no truth, the settings want none, or the network offers no early
    feature map.
    """
    assert config.truth_weight is not None, "settings must be resolved"
    if not (dataset.survey and dataset.train.truth and config.truth_weight and getattr(model, "feature_info", None)):
        return None, 0
    side = side_seen(seen, dataset.train.shape)
    head = TruthHead(model, side / field_of_view(seen, dataset.train.shape))
    with torch.no_grad():
        model.eval()(torch.zeros(1, seen.channels, side, side))
        return (head, head().shape[-1]) if head.fits() else (None, 0)


@dataclass(frozen=True)
class Feed:
    """Prepared batches of one part of a data set."""

    part: Part
    seen: InputConfig
    config: TrainConfig
    device: str
    survey: Survey | None = None
    """The simulation's settings, where truth maps are wanted."""
    n_cells: int = 0

    def __len__(self) -> int:
        """Steps an epoch."""
        return max(1, len(self.part) // self.config.batch_size)

    def epochs(self) -> Iterator[Iterator[Batch]]:
        """Endless epochs; each visits every image once, in an order of its own."""
        epoch = 0
        while True:
            yield self.epoch(epoch)
            epoch += 1

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch; a last, smaller one is left out unless it is the only one."""
        rng = np.random.default_rng((self.config.seed, epoch))
        order = rng.permutation(len(self.part))
        size = min(self.config.batch_size, len(order))
        for start in range(0, len(order) - size + 1, size):
            flips = rng.random((size, 2)) < 0.5 if self.config.flips else np.zeros((size, 2), bool)
            yield self._batch(order[start : start + size], flips)

    def _batch(self, positions: NDArray[np.int64], flips: NDArray[np.bool_]) -> Batch:
        part = self.part.take(positions)
        images = mirrored(prepare(self.part.counts(positions), self.seen), flips)
        masses = None
        if self.survey and part.truth:
            field = field_of_view(self.seen, self.part.shape) * self.survey.camera.pixel_scale
            mapped = torch.from_numpy(np.log1p(mass_map(part.truth, self.n_cells, field) / MASS_UNIT_MSUN)).float()
            masses = mirrored(mapped, flips).to(self.device)
        images = images.to(self.device, memory_format=torch.channels_last)
        return Batch(images, torch.from_numpy(part.labels).to(self.device), masses)


def mirrored(planes: Tensor, flips: NDArray[np.bool_]) -> Tensor:
    """Planes [b, ..., h, w], mirrored in x where flips[:, 0] and in y where flips[:, 1]."""
    for column, axis in ((0, -1), (1, -2)):
        mask = torch.from_numpy(flips[:, column]).view(-1, *[1] * (planes.ndim - 1))
        planes = torch.where(mask, planes.flip(axis), planes)
    return planes
