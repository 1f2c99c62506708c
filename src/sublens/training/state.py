"""A network in training, with all that learns beside it."""

from dataclasses import dataclass

import torch
from torch import nn

from sublens.config import field_of_view
from sublens.data.dataset import Dataset
from sublens.models import bundle
from sublens.models.bundle import CardMap, CardTeacher
from sublens.models.heads import MacroHead, TruthHead
from sublens.training import loop
from sublens.training.distillation import StudentMaps


@dataclass(frozen=True)
class TrainState:
    """A network in training, with its heads, optimiser and batches."""

    model: nn.Module
    head: TruthHead | None
    student: StudentMaps | None
    macro: MacroHead | None
    optimizer: torch.optim.Optimizer
    batches: loop.BatchSource
    has_bf16: bool
    start: CardTeacher | None = None
    """Card's entry of the network whose weights the training started from."""

    def card_map(self, dataset: Dataset) -> CardMap | None:
        """The card's entry of the truth head's map; None without a head."""
        if not (self.head and dataset.survey):
            return None
        side = field_of_view(self.batches.input, dataset.train.shape) * dataset.survey.camera.pixel_scale
        return CardMap(n_cells=self.batches.n_cells, cell_arcsec=side / self.batches.n_cells)

    @property
    def supervision(self) -> str:
        """What the network learns from, in words: "labels only, taught by lensnet@1a2b3c4d5e6f"."""
        highpass, teacher = self.batches.input.highpass, self.batches.teacher
        parts = [
            bundle.SIMULATOR if self.head else bundle.LABELS,
            f"taught by {teacher.identity}" if teacher else "",
            f"started from {self.start.network}@{self.start.weights_sha256[:12]}" if self.start else "",
            f"high-pass of {highpass:g} pixels" if highpass else "",
        ]
        return ", ".join(filter(None, parts))

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All modules with weights, by name."""
        named = {"model": self.model, "head": self.head, "student": self.student, "macro": self.macro}
        return {name: module for name, module in named.items() if module}
