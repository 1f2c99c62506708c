"""The training loop `fit`, with its batches, optimiser and learning rate."""

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sublens.config import InputConfig, TrainConfig, field_of_view, input_side, zoom
from sublens.data import survey_stream
from sublens.data.dataset import Dataset, Part
from sublens.data.survey_stream import Cells, Sample, SurveyStream
from sublens.inference.engines import MASS_UNIT_MSUN
from sublens.models.heads import MacroHead, TruthHead
from sublens.models.inputs import to_input
from sublens.models.macro import CONTAMINANT, lenses, targets
from sublens.parallel.threads import torch_threads
from sublens.parallel.torchrun import ALONE, Ranks
from sublens.sim.mass_map import mass_map
from sublens.sim.population import CLASSES
from sublens.surveys.survey import Survey
from sublens.training import macromodel
from sublens.training.distillation import StudentMaps, Teacher, distill_loss
from sublens.training.replicas import Gradients, ahead


@dataclass(frozen=True)
class Batch:
    """Images and targets of one step."""

    images: Tensor
    """Network input [b, channels, s, s]."""
    labels: Tensor
    """Positions in the classes, [b]; `macro.CONTAMINANT` for images that are no lens."""
    masses: Tensor | None = None
    """log(1 + M / 1e9 Msun) in each cell, [b, g, g], where a truth head is trained."""
    teacher_maps: list[Tensor] | None = None
    """Feature maps of the teacher, [b, c, g, g], where there is one."""
    macro: Tensor | None = None
    """Targets of the macro head, [b, 3], where one is trained."""
    is_contaminant: Tensor | None = None
    """1 for images that are no lens and 0 for others, [b], where the data set has both."""
    lens_weights: Tensor | None = None
    """Weights of the images in the mean over lenses, [b]: images over lenses, and 0 for a contaminant; None where all
    are lenses."""


@dataclass(frozen=True)
class Step:
    """Outcome of one step."""

    number: int
    epoch: int
    loss: float
    truth_loss: float | None
    distill_loss: float | None
    n_images: int
    share_done: float
    macro_loss: float | None = None
    contaminant_loss: float | None = None


class _Sums:
    """Losses summed on their device since the last log line: reading one there would wait for all work before it."""

    def __init__(self) -> None:
        self.n_steps = self.n_images = 0
        self._losses: list[Tensor | None] = []

    def add(self, losses: Sequence[Tensor | None], n_images: int) -> None:
        """Add the losses of one step; None for those that it lacks."""
        detached = [None if loss is None else loss.detach() for loss in losses]
        if self.n_steps:
            pairs = zip(self._losses, detached, strict=True)
            detached = [None if total is None or loss is None else total + loss for total, loss in pairs]
        self._losses = detached
        self.n_steps, self.n_images = self.n_steps + 1, self.n_images + n_images

    def means(self, ranks: Ranks) -> list[float | None]:
        """The mean of each loss over the steps and all processes."""
        return [None if loss is None else ranks.mean(loss.item() / self.n_steps) for loss in self._losses]


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
    student: StudentMaps | None = None,
    macro: MacroHead | None = None,
    has_bf16: bool = False,
    after: tuple[int, int] = (0, 0),
    ranks: Ranks = ALONE,
    log_every: int = 1,
    is_ending: Callable[[], bool] = lambda: False,
) -> None:
    """Train `model` in place, with its heads.

    optimizer: `make_optimizer` of model, head and student. share_done: from the number of steps taken to
    the share of training done; the learning rate follows it, and training ends where it reaches 1.
    on_epoch: called after each epoch and at the end. student: predicts the teacher's maps. macro: measures the
    lens. after: the epoch that `epochs` begins in, and the steps taken before. ranks: the processes that train
    together, each with its share of every batch; a `Step` holds means and sums over all of them. log_every: steps
    from one call of on_step to the next, which then covers them all; the end of an epoch makes one as well, and so
    does a step after which `is_ending` is true.
    """
    whole = ranks.together(_WithHeads(model, head, student, macro))
    first_epoch, number = after
    with Gradients(whole, partial(_backward, config, has_bf16), is_alone=ranks.n == 1) as gradients:
        for epoch, batches in enumerate(epochs, start=first_epoch):
            whole.train()
            sums, done = _Sums(), 0.0
            with closing(ahead(batches)) as batches_ahead:
                for batch in batches_ahead:
                    done = share_done(number)
                    if done >= 1:
                        break
                    set_rate(optimizer, rate_at(done, config.warmup))
                    ranks.begin_step(config.seed, number)
                    optimizer.zero_grad(set_to_none=True)
                    losses = gradients.add(batch)
                    with torch_threads(1):  # its many small sums would wake the others for each
                        optimizer.step()
                    number += 1
                    sums.add(losses, ranks.n * len(batch.labels))
                    if sums.n_steps == log_every or is_ending():
                        on_step(_step(number, epoch, sums, ranks, done))
                        sums = _Sums()
            if sums.n_steps:
                on_step(_step(number, epoch, sums, ranks, done))
            on_epoch(epoch)
            if share_done(number) >= 1:
                return


def _backward(
    config: TrainConfig, has_bf16: bool, module: nn.Module, batch: Batch, share: float
) -> list[Tensor | None]:
    """Losses of a part of a batch times its share of the whole, whose gradients are added to those of the weights."""
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=has_bf16):
        outputs = module(batch.images)
    loss, *others = losses = _losses(outputs, batch)
    weighted = zip(_weights(config), others, strict=True)
    total = sum((weight * term for weight, term in weighted if term is not None), loss)
    (share * total).backward()  # type: ignore[no-untyped-call]
    return [None if term is None else share * term.detach() for term in losses]


def _step(number: int, epoch: int, sums: _Sums, ranks: Ranks, done: float) -> Step:
    loss, truth, distill, macro, contaminant = sums.means(ranks)
    assert loss is not None, "there are always labels"
    return Step(number, epoch, loss, truth, distill, sums.n_images, done, macro, contaminant)


Outputs = tuple[Tensor, Tensor | None, list[Tensor] | None, Tensor | None]
"""Logits, the truth head's map, the predicted maps of the teacher and the macro head's outputs; None without a head."""
Losses = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""Losses of the labels, the truth head's map, the teacher's maps, the macromodel and the contaminants."""


def _weights(config: TrainConfig) -> tuple[float, float, float, float]:
    """Weights of the losses that follow the labels'."""
    return config.truth_weight or 0, DISTILL_WEIGHT, config.macro_weight, config.contaminant_weight


def _losses(outputs: Outputs, batch: Batch) -> Losses:
    logits, masses, student_maps, lens = outputs
    loss, truth, distill = macromodel.label_loss(logits.float(), batch.labels, batch.lens_weights), None, None
    if masses is not None and batch.masses is not None:
        truth = F.mse_loss(masses.float(), batch.masses)
    if student_maps is not None and batch.teacher_maps is not None:
        distill = distill_loss(student_maps, batch.teacher_maps)
    return loss, truth, distill, *macromodel.losses(lens, batch.macro, batch.is_contaminant, batch.lens_weights)


class _WithHeads(nn.Module):
    """A network and the heads that read its feature maps."""

    def __init__(
        self, model: nn.Module, head: TruthHead | None, student: StudentMaps | None, macro: MacroHead | None
    ) -> None:
        super().__init__()
        self.model, self.head, self.student, self.macro = model, head, student, macro

    def forward(self, images: Tensor) -> Outputs:
        logits, student_maps = self.model(images), self.student() if self.student else None
        return logits, self.head() if self.head else None, student_maps, self.macro() if self.macro else None


DISTILL_WEIGHT = 16.0
"""Weight of the distillation loss beside the labels': of 1, 4 and 16 it left chance soonest (38,400 images)."""


def rate_at(done: float, warmup: float) -> float:
    """Learning rate over its peak: a rise over the share `warmup`, then half a cosine to zero."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def make_optimizer(modules: Sequence[nn.Module], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, or Muon on convolutions with AdamW on the rest; the settings must be resolved.

    Muon: Jordan et al. 2024, kellerjordan.github.io/posts/muon, as implemented in timm; see `stacked_muon`. It makes
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
        from sublens.training.stacked_muon import GramMuon, StackedMuon

        layers = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Conv2d)]
        filters = [layer.weight for layer in layers if layer.groups == 1 and 1 < _rank(layer.weight) < MUON_RANK]
        taken = set(map(id, filters))
        rest = [parameter for parameter in parameters if id(parameter) not in taken]
        is_on_gpu = any(weight.is_cuda for weight in filters)
        optimizer = (StackedMuon if is_on_gpu else GramMuon)(
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
    """Whether an error is a lack of memory, on a GPU or a processor."""
    return isinstance(err, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(err)


def fitting_batch(model: nn.Module, batches: "BatchSource", *, has_bf16: bool) -> int:
    """The largest of half, a quarter ... of a batch whose gradient fits into memory; 0 if none does.

    Measured on blank images; the optimiser's own memory is not counted.
    """
    side, size = input_side(batches.input, batches.part.shape), batches.size // batches.ranks.n // 2
    while size:
        try:
            with torch.autocast(batches.device, torch.bfloat16, enabled=has_bf16):
                images = torch.zeros(size, batches.input.n_channels, side, side, device=batches.device)
                model(images.contiguous(memory_format=torch.channels_last)).float().sum().backward()
            return size * batches.ranks.n
        except (MemoryError, RuntimeError, ValueError) as err:  # ValueError: a norm over a single value
            if not isinstance(err, ValueError) and not is_out_of_memory(err):
                raise
        finally:
            model.zero_grad(set_to_none=True)
        size //= 2
    return 0


def truth_head(
    model: nn.Module, network_input: InputConfig, dataset: Dataset, config: TrainConfig
) -> tuple[TruthHead | None, int]:
    """A truth head for this network and the number of cells along its map's side.

    None and 0 where the data set has no truth, its weight is 0, or the network has no early feature map.
    """
    assert config.truth_weight is not None, "settings must be resolved"
    if not (dataset.survey and dataset.train.truth and config.truth_weight and getattr(model, "feature_info", None)):
        return None, 0
    side = input_side(network_input, dataset.train.shape)
    head = TruthHead(model, zoom(network_input, dataset.train.shape))
    if not head.maps.fit_blank(model, network_input.n_channels, side):
        return None, 0
    return head, head().shape[-1]


@dataclass(frozen=True)
class BatchSource:
    """Prepared batches of one part of a data set."""

    part: Part
    input: InputConfig
    config: TrainConfig
    device: str
    survey: Survey | None = None
    """Settings of the simulation, where a truth head is trained."""
    n_cells: int = 0
    """Cells along the side of the truth head's map."""
    teacher: Teacher | None = None
    ranks: Ranks = ALONE
    """The processes that share every batch."""
    endless: Survey | None = None
    """Survey whose fresh images are trained on, instead of those of the part."""
    has_macro: bool = False
    """Whether a macro head is trained."""

    def __len__(self) -> int:
        """Number of steps an epoch."""
        if self.endless:
            return -(-(self.config.epoch_images or survey_stream.EPOCH) // self.size)
        return self._per_pass if self.config.epoch_images is None else -(-self.config.epoch_images // self.size)

    @property
    def size(self) -> int:
        """Number of images in each batch."""
        assert self.config.batch_size is not None, "settings must be resolved"
        if not self.endless:
            return min(self.config.batch_size, len(self.part))
        shared = self._set if self._set == 1 else math.lcm(self._set, self.ranks.n)
        return max(shared, self.config.batch_size - self.config.batch_size % shared)

    @property
    def _set(self) -> int:
        """Images of a batch that share their scene."""
        return len(CLASSES) if self.endless and self.config.matched else 1

    @property
    def has_contaminants(self) -> bool:
        """Whether some of the images are no lens."""
        return self.endless.contaminants is not None if self.endless else self.part.has_contaminants

    @property
    def log_every(self) -> int:
        """Steps from one line of the log to the next: more on a GPU, which every line keeps waiting."""
        return 1 if self.device == "cpu" else max(1, min(MOST_UNLOGGED, len(self) // LEAST_LINES))

    @property
    def _per_pass(self) -> int:
        """Number of batches in one pass over the part; a last, smaller one is left out."""
        return len(self.part) // self.size

    def epochs(self, epoch: int = 0, n_done: int = 0) -> Generator[Iterator[Batch], None, None]:
        """Endless epochs that begin with this one, without its first `n_done` batches."""
        if not self.endless:
            yield self.epoch(epoch, n_done)
            yield from map(self.epoch, itertools.count(epoch + 1))
            return
        with closing(self._fresh(self._stream(self.endless), epoch * len(self) + n_done)) as batches:
            yield itertools.islice(batches, len(self) - n_done)
            while True:
                yield itertools.islice(batches, len(self))

    def epoch(self, epoch: int, n_done: int = 0) -> Iterator[Batch]:
        """The batches of one epoch of the part, without the first `n_done`.

        Epochs cut an endless sequence of passes, each of which visits every image once in an order
        of its own, but for the few that fill no batch.
        """
        for number in range(epoch * len(self) + n_done, (epoch + 1) * len(self)):
            passes, batch = divmod(number, self._per_pass)
            positions = _order(len(self.part), self.config.seed, passes)[batch * self.size :][: self.size]
            yield self._batch(self._of_part(positions[self.ranks.share]), self._flips(number))

    def n_images(self, steps: int) -> int:
        """Number of different training images by then."""
        return self._stream(self.endless).n_images(self.device, steps) if self.endless else len(self.part)

    def _fresh(self, stream: SurveyStream, start: int) -> Generator[Batch, None, None]:
        """Batches of fresh images from that of step `start` on."""
        with closing(stream.samples(self.device, start)) as samples:
            for number, sample in enumerate(samples, start):
                yield self._batch(sample.take(self.ranks.share), self._flips(number))

    def _stream(self, survey: Survey) -> SurveyStream:
        cells = Cells(self.n_cells, self._field(survey)) if self.survey else None
        cache = self.config.cache or survey_stream.POOL
        settings = self.config
        return SurveyStream(survey, self.size, settings.seed, cells, cache, settings.reuse, settings.matched)

    def _field(self, survey: Survey) -> float:
        return field_of_view(self.input, self.part.shape) * survey.camera.pixel_scale

    def _of_part(self, positions: NDArray[np.int64]) -> Sample:
        """Images of the part at these positions."""
        part, msun = self.part.take(positions), None
        if self.survey and part.truth:
            msun = torch.from_numpy(mass_map(part.truth, self.n_cells, self._field(self.survey)))
        counts = torch.from_numpy(self.part.counts(positions).astype(np.float32))
        lens = torch.from_numpy(targets(*lenses(part.truth.scenes))) if part.truth else None
        return Sample(counts, torch.from_numpy(part.labels), msun, lens)

    def _flips(self, number: int) -> Tensor:
        """Whether each image of a step's batch is mirrored in x and in y, [b, 2]: alike in a set."""
        draws = np.random.default_rng((self.config.seed, FLIPS, number)).random((self.size // self._set, 2))
        flips = np.repeat(draws < (0.5 if self.config.flips else 0), self._set, axis=0)
        return torch.from_numpy(flips[self.ranks.share])

    def _batch(self, sample: Sample, flips: Tensor) -> Batch:
        counts, labels, msun, lens = sample.to(self.device)
        flips, masses, teacher_maps = flips.to(self.device, non_blocking=True), None, None
        if msun is not None:
            masses = mirrored(torch.log1p(msun / MASS_UNIT_MSUN).float(), flips)
        if self.teacher:
            teacher_maps = self.teacher.feature_maps(self._prepared(counts, self.teacher.card.input, flips))
        weights = macromodel.lens_weights(labels) if self.has_contaminants else None
        batch = Batch(self._prepared(counts, self.input, flips), labels, masses, teacher_maps, lens_weights=weights)
        if not self.has_macro or lens is None:
            return batch
        is_contaminant = (labels == CONTAMINANT).float() if self.has_contaminants else None
        return replace(batch, macro=macromodel.mirrored(lens.float(), flips), is_contaminant=is_contaminant)

    def _prepared(self, counts: Tensor, config: InputConfig, flips: Tensor) -> Tensor:
        return mirrored(to_input(counts, config), flips).contiguous(memory_format=torch.channels_last)


MOST_UNLOGGED, LEAST_LINES = 20, 50
"""Steps between two lines of the log at most, and lines an epoch at least, on a GPU."""
FLIPS, ORDER = 0, 1
"""Purposes of random sequences, so that no two share their numbers."""


@lru_cache(maxsize=2)
def _order(n: int, seed: int, passes: int) -> NDArray[np.int64]:
    """The order in which one pass visits `n` images."""
    return np.random.default_rng((seed, ORDER, passes)).permutation(n)


def mirrored(planes: Tensor, flips: Tensor) -> Tensor:
    """Planes [b, ..., h, w], mirrored in x where flips[:, 0] and in y where flips[:, 1]."""
    across, along = (column.view(-1, *(1,) * (planes.ndim - 1)) for column in flips.unbind(1))
    planes = torch.where(across, planes.flip(-1), planes)
    return torch.where(along, planes.flip(-2), planes)
