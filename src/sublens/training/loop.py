"""fit(): the whole training loop on one screen, and what it needs."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sublens.config import InputConfig, TrainConfig, field_of_view, side_seen, zoom
from sublens.data.dataset import Dataset, Part
from sublens.inference.engines import MASS_UNIT_MSUN
from sublens.models.heads import TruthHead
from sublens.models.inputs import counts_to_input
from sublens.parallel.torchrun import ALONE, Ranks
from sublens.sim.population import mass_map
from sublens.sim.survey import Survey
from sublens.training.distillation import StudentMaps, Teacher, distill_loss


@dataclass(frozen=True)
class Batch:
    """What one step learns from."""

    images: Tensor
    """[b, channels, s, s], prepared."""
    labels: Tensor
    """[b]"""
    masses: Tensor | None = None
    """log(1 + M / 1e9 Msun) in each cell, [b, g, g], where truth is known and wanted."""
    shown: list[Tensor] | None = None
    """Feature maps of the teacher, [b, c, g, g], where there is one."""


@dataclass(frozen=True)
class Step:
    """What one step did."""

    number: int
    epoch: int
    loss: float
    truth_loss: float | None
    distill_loss: float | None
    n_images: int
    share_done: float


def fit(
    model: nn.Module,
    head: TruthHead | None,
    optimizer: torch.optim.Optimizer,
    epochs: Iterable[Iterable[Batch]],
    *,
    config: TrainConfig,
    share_done: Callable[[int], float],
    on_step: Callable[[Step], object],
    on_epoch: Callable[[int], object],
    hints: StudentMaps | None = None,
    has_bf16: bool = False,
    after: tuple[int, int] = (0, 0),
    ranks: Ranks = ALONE,
) -> None:
    """Train `model` in place.

    optimizer: over all parameters of all three, as `make_optimizer` gives it. share_done: from the
    number of steps taken to the share of training that is behind us; the learning rate follows
    it, and training ends where it reaches 1. `on_epoch` is called after each epoch and at the
    end. after: the epoch that `epochs` begins in, and the steps taken before. ranks: the processes that
    train it together, each with its share of every batch; what a `Step` tells is of all of them.
    """
    device = next(model.parameters()).device.type
    whole = ranks.together(_Learning(model, head, hints))
    first_epoch, number = after
    for epoch, batches in enumerate(epochs, start=first_epoch):
        model.train()
        for batch in batches:
            done = share_done(number)
            if done >= 1:
                break
            set_rate(optimizer, rate_at(done, config.warmup))
            ranks.begin_step(config.seed, number)
            with torch.autocast(device, torch.bfloat16, enabled=has_bf16):
                logits, mapped, hinted = whole(batch.images)
            loss = F.cross_entropy(logits.float(), batch.labels)
            truth_loss = None if mapped is None or batch.masses is None else F.mse_loss(mapped.float(), batch.masses)
            guided = None if hinted is None or batch.shown is None else distill_loss(hinted, batch.shown)
            total = loss if truth_loss is None else loss + (config.truth_weight or 0) * truth_loss
            total = total if guided is None else total + HINT_WEIGHT * guided
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            number += 1
            told = [None if one is None else ranks.mean(one.item()) for one in (truth_loss, guided)]
            on_step(Step(number, epoch, ranks.mean(loss.item()), told[0], told[1], ranks.n * len(batch.labels), done))
        on_epoch(epoch)
        if share_done(number) >= 1:
            return


class _Learning(nn.Module):
    """A network and the heads that listen to it."""

    def __init__(self, model: nn.Module, head: TruthHead | None, hints: StudentMaps | None) -> None:
        super().__init__()
        self.model, self.head, self.hints = model, head, hints

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor] | None]:
        """Logits, and what the heads make of what the network has seen."""
        logits = self.model(images)
        return logits, self.head() if self.head else None, self.hints() if self.hints else None


HINT_WEIGHT = 16.0
"""Of the teacher's feature maps beside the labels: of 1, 4 and 16 it left chance soonest (38,400 images)."""


def rate_at(done: float, warmup: float) -> float:
    """Learning rate over its peak: a rise over the share `warmup`, then half a cosine to zero."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def make_optimizer(modules: Sequence[nn.Module], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, or Muon on convolutions with AdamW on the rest.

    Muon: Jordan et al. 2024, kellerjordan.github.io/posts/muon, as implemented in timm. It makes
    the rows of a matrix orthogonal, so depthwise convolutions, whose filters do not share an
    input, are left to AdamW, as are the classifier, the truth head, and the largest filters,
    which would take longer to orthogonalise than to differentiate.
    """
    assert config.lr is not None, "settings must be resolved"
    assert config.adamw_lr is not None, "settings must be resolved"
    parameters = [parameter for module in modules for parameter in module.parameters()]
    if config.optimizer == "adamw":
        groups = [{"params": parameters, "lr": config.adamw_lr}]
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    else:
        from sublens.models.timm_import import import_timm

        import_timm()
        from timm.optim.muon import Muon

        layers = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Conv2d)]
        filters = [layer.weight for layer in layers if layer.groups == 1 and 1 < _rank(layer.weight) < MUON_RANK]
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


MUON_RANK = 512
"""Matrices of this rank and above are left to AdamW."""


def _rank(weight: Tensor) -> int:
    return min(weight.flatten(1).shape)


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group's rate to this share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share


def is_out_of_memory(err: Exception) -> bool:
    """Whether this is how a lack of memory shows, on a GPU or a processor."""
    return isinstance(err, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(err)


def fitting_batch(model: nn.Module, feed: "BatchSource", *, has_bf16: bool) -> int:
    """The largest of half, a quarter ... of a batch whose gradient memory is enough for; 0 if none is.

    Found by trying, on blank images. What the optimiser needs besides is not counted.
    """
    side, size = side_seen(feed.seen, feed.part.shape), feed.size // feed.ranks.n // 2
    while size:
        try:
            with torch.autocast(feed.device, torch.bfloat16, enabled=has_bf16):
                images = torch.zeros(size, feed.seen.channels, side, side, device=feed.device)
                model(images.contiguous(memory_format=torch.channels_last)).float().sum().backward()
            return size * feed.ranks.n
        except (MemoryError, RuntimeError, ValueError) as err:  # ValueError: a norm over a single value
            if not isinstance(err, ValueError) and not is_out_of_memory(err):
                raise
        finally:
            model.zero_grad(set_to_none=True)
        size //= 2
    return 0


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
    head = TruthHead(model, zoom(seen, dataset.train.shape))
    with torch.no_grad():
        model.eval()(torch.zeros(1, seen.channels, side, side))
        return (head, head().shape[-1]) if head.maps.fit() else (None, 0)


@dataclass(frozen=True)
class BatchSource:
    """Prepared batches of one part of a data set."""

    part: Part
    seen: InputConfig
    config: TrainConfig
    device: str
    survey: Survey | None = None
    """The simulation's settings, where truth maps are wanted."""
    n_cells: int = 0
    teacher: Teacher | None = None
    ranks: Ranks = ALONE
    """The processes that share every batch."""

    def __len__(self) -> int:
        """Steps an epoch."""
        return self._per_pass if self.config.epoch_images is None else -(-self.config.epoch_images // self.size)

    @property
    def size(self) -> int:
        """Images in each batch."""
        assert self.config.batch_size is not None, "settings must be resolved"
        return min(self.config.batch_size, len(self.part))

    @property
    def _per_pass(self) -> int:
        """Batches in one pass over the part; a last, smaller one is left out unless it is the only one."""
        return len(self.part) // self.size

    def epochs(self, epoch: int = 0, n_done: int = 0) -> Iterator[Iterator[Batch]]:
        """Endless epochs from this one on, without its first `n_done` batches."""
        yield self.epoch(epoch, n_done)
        yield from map(self.epoch, itertools.count(epoch + 1))

    def epoch(self, epoch: int, n_done: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, without the first `n_done`.

        Epochs cut an endless sequence of passes, each of which visits every image once in an order
        of its own, but for the few that fill no batch.
        """
        for number in range(epoch * len(self) + n_done, (epoch + 1) * len(self)):
            passes, place = divmod(number, self._per_pass)
            positions = _order(len(self.part), self.config.seed, passes)[place * self.size :][: self.size]
            draws = np.random.default_rng((self.config.seed, FLIPS, number)).random((self.size, 2))
            flips = draws < (0.5 if self.config.flips else 0)
            yield self._batch(positions[self.ranks.share], flips[self.ranks.share])

    def _batch(self, positions: NDArray[np.int64], flips: NDArray[np.bool_]) -> Batch:
        part = self.part.take(positions)
        counts = self.part.counts(positions)
        images, masses, shown = self._seen(counts, self.seen, flips), None, None
        if self.survey and part.truth:
            field = field_of_view(self.seen, self.part.shape) * self.survey.camera.pixel_scale
            mapped = torch.from_numpy(np.log1p(mass_map(part.truth, self.n_cells, field) / MASS_UNIT_MSUN)).float()
            masses = mirrored(mapped, flips).to(self.device)
        if self.teacher:
            shown = self.teacher.show(self._seen(counts, self.teacher.card.input, flips))
        return Batch(images, torch.from_numpy(part.labels).to(self.device), masses, shown)

    def _seen(self, counts: NDArray[np.uint16], seen: InputConfig, flips: NDArray[np.bool_]) -> Tensor:
        return mirrored(counts_to_input(counts, seen), flips).to(self.device, memory_format=torch.channels_last)


FLIPS, ORDER = 0, 1
"""What a random sequence decides, so that no two share their numbers."""


@lru_cache(maxsize=2)
def _order(n: int, seed: int, passes: int) -> NDArray[np.int64]:
    """The order in which one pass visits `n` images."""
    return np.random.default_rng((seed, ORDER, passes)).permutation(n)


def mirrored(planes: Tensor, flips: NDArray[np.bool_]) -> Tensor:
    """Planes [b, ..., h, w], mirrored in x where flips[:, 0] and in y where flips[:, 1]."""
    planes = planes.clone()
    for column, axis in ((0, -1), (1, -2)):
        chosen = torch.from_numpy(np.flatnonzero(flips[:, column]))
        planes[chosen] = planes[chosen].flip(axis)
    return planes
