"""Feature distillation: a student network learns to reproduce feature maps of a trained teacher.

FitNets: Romero et al. 2015, arXiv:1412.6550. The teacher's probabilities hold little more than the
labels; the feature maps of its first layers are what leads the student away from chance.
"""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sublens.config import InputConfig, RunConfig, field_of_view, input_side, zoom
from sublens.data.dataset import Dataset
from sublens.errors import ConfigError
from sublens.models import bundle, weights
from sublens.models.bundle import Card, CardTeacher
from sublens.models.heads import FeatureMaps, nearest_tap
from sublens.models.networks import pixels_of, to_device


@dataclass(frozen=True)
class Teacher:
    """A trained network whose feature maps a student imitates."""

    card: Card
    model: nn.Module
    maps: FeatureMaps
    """The last feature map of each cell size."""

    @classmethod
    def load(cls, name: str, dataset: Dataset, student_input: InputConfig, device: str) -> Self:
        """The trained network of that name or folder, for a student that takes the images of `dataset` so.

        Raises `ConfigError` where the two take different fields of view, where the teacher learned from the
        student's selection or test part, and where it has no feature maps.
        """
        folder = bundle.locate(name)
        card, shape = bundle.read_card(folder), dataset.train.shape
        _refuse_other_field(name, card, student_input, shape)
        _refuse_other_split(name, card, dataset)
        model = to_device(weights.load(folder, card)[0], device)
        last = {tap["reduction"]: tap for tap in getattr(model, "feature_info", [])}
        teacher, side = cls(card, model, FeatureMaps(model, list(last.values()))), input_side(card.input, shape)
        blank = torch.zeros(1, card.input.n_channels, side, side, device=device)
        if not teacher.feature_maps(blank) or not teacher.maps.fit():
            raise ConfigError(
                f"train.teacher {name}: {card.network} has no feature maps",
                need="a teacher with feature maps, such as lensnet",
                next="Name another one.",
            )
        return teacher

    @property
    def identity(self) -> str:
        """The network and the beginning of its weights' sha256: "lensnet@1a2b3c4d5e6f"."""
        return f"{self.card.network}@{self.card.weights_sha256[:12]}"

    @property
    def card_entry(self) -> CardTeacher:
        """The teacher's entry in its student's card."""
        return card_entry(self.card)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Its feature maps [b, c, g, g] of images prepared for it."""
        with torch.no_grad():
            self.model(images)
        return self.maps()


def card_entry(card: Card) -> CardTeacher:
    """Entry of a trained network in the card of one that learned from it."""
    return CardTeacher(
        network=card.network, weights_sha256=card.weights_sha256, trained_on=card.data.hash, track=card.track
    )


def start_from(
    name: str, config: RunConfig, dataset: Dataset, model: nn.Module, head: nn.Module | None, macro: nn.Module | None
) -> CardTeacher:
    """Give a network, and its heads, the weights of a trained one; returns the entry of that in the card.

    name: its folder, or that of a bundle. Size, field of view and binning of its images may differ. Raises
    `ConfigError` where it is another network, has other classes or channels, or learned from the selection part.
    """
    folder = bundle.locate(name)
    card = bundle.read_card(folder)
    assert config.input is not None, "settings must be resolved"
    theirs = card.network, card.classes, _channels(card.input)
    ours = config.model.name, dataset.classes, _channels(config.input)
    for what, before, now in zip(("network", "classes", "input"), theirs, ours, strict=True):
        if before != now:
            raise ConfigError(
                f"model.start {name}: its {what} is {before}, and this one's {now}",
                need="a network of the same kind, for the same classes and channels",
                next="Set the same, or leave out model.start.",
            )
    _refuse_other_split(name, card, dataset)
    weights.copy_into(folder, card, model, head, macro)
    return card_entry(card)


def _channels(config: InputConfig) -> str:
    """The transform and the channels of a network's input, such as "signal-to-noise of image, detail, mask"."""
    planes = ", ".join(config.planes) if config.transform == "signal-to-noise" else str(config.channels)
    return f"{config.transform} of {planes}"


def _refuse_other_field(name: str, card: Card, student_input: InputConfig, shape: tuple[int, int]) -> None:
    if pixels_of(card.input) != pixels_of(student_input):
        raise ConfigError(
            f"train.teacher {name} takes {pixels_of(card.input)}, and this network {pixels_of(student_input)}",
            need="the same pixels for both",
            next="Name another teacher, or set train.teacher to none.",
        )
    theirs, ours = field_of_view(card.input, card.image_shape), field_of_view(student_input, shape)
    if (card.image_shape, theirs) != (shape, ours):
        raise ConfigError(
            f"train.teacher {name} takes the central {theirs} of {card.image_shape} pixels, this network {ours} of "
            f"{shape}",
            need="the same field of view for both",
            next="Set input.crop, or name another teacher.",
        )


def _refuse_other_split(name: str, card: Card, dataset: Dataset) -> None:
    if card.data.hash == dataset.hash and card.settings.split != dataset.split:
        raise ConfigError(
            f"{name} learned from images that are not in this network's training part",
            need="the same division of the data for both",
            next="Give its split.seed, split.selection and split.test.",
        )


class StudentMaps(nn.Module):
    """A training-only head: 1x1 convolutions on feature maps of `model` predict the teacher's.

    Each of the teacher's maps is predicted from the one whose cells come closest to its own. Called after
    the model, on the same batch.
    """

    def __init__(self, model: nn.Module, config: InputConfig, teacher: Teacher) -> None:
        """config: the input of `model`. Raises `ConfigError` where `model` has no feature maps."""
        super().__init__()
        shape, side = teacher.card.image_shape, input_side(config, teacher.card.image_shape)
        if not getattr(model, "feature_info", None):
            raise _no_feature_maps()
        finer = zoom(config, shape) / zoom(teacher.card.input, shape)
        taps = [nearest_tap(model, tap["reduction"] * finer) for tap in teacher.maps.taps]
        self._maps = FeatureMaps(model, taps)
        if not self._maps.fit_blank(model, config.n_channels, side):
            raise _no_feature_maps()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(ours["num_chs"], theirs["num_chs"], 1)
            for ours, theirs in zip(taps, teacher.maps.taps, strict=True)
        )

    def forward(self) -> list[Tensor]:
        """Predictions [b, c, g, g] of the teacher's maps for the last batch of the model."""
        return [convolution(maps) for convolution, maps in zip(self.convolutions, self._maps(), strict=True)]


def _no_feature_maps() -> ConfigError:
    return ConfigError(
        "train.teacher: this network has no feature maps",
        need="a student with feature maps, such as lensnet",
        next="Leave out train.teacher, or choose another network.",
    )


def distill_loss(student_maps: list[Tensor], teacher_maps: list[Tensor]) -> Tensor:
    """Sum over maps of the mean squared error, in units of each channel's variance over the batch."""
    pairs = zip(student_maps, teacher_maps, strict=True)
    return torch.stack([F.mse_loss(ours.float(), _standard(theirs, ours)) for ours, theirs in pairs]).sum()


def _standard(planes: Tensor, like: Tensor) -> Tensor:
    """The planes on the grid of `like`, each channel with zero mean and unit variance."""
    resampled = F.interpolate(planes, like.shape[2:], mode="bilinear", antialias=True)
    return F.batch_norm(resampled, None, None, training=True, eps=LEAST_VARIANCE)


LEAST_VARIANCE = 1e-4
"""Variance added to each channel's, so that constant channels stay finite."""
