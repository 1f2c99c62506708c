"""A trained network shows another one what to look at, layer by layer, while that is trained.

FitNets: Romero et al. 2015, arXiv:1412.6550. What leads a network away from chance is not the
teacher's word, which says no more than the labels do, but what its first layers see.
"""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sublens.config import InputConfig, field_of_view, side_seen, zoom
from sublens.data.dataset import Dataset
from sublens.errors import ConfigError
from sublens.models import bundle, weights
from sublens.models.bundle import Card, CardTeacher
from sublens.models.heads import FeatureMaps, nearest_tap
from sublens.models.networks import to_device


@dataclass(frozen=True)
class Teacher:
    """A trained network whose feature maps another one imitates."""

    card: Card
    model: nn.Module
    maps: FeatureMaps
    """Of all whose cells have the same size, the last."""

    @classmethod
    def load(cls, name: str, dataset: Dataset, seen: InputConfig, device: str) -> Self:
        """The trained network of that name or folder, for a pupil that sees the images of `dataset` so.

        Raises `ConfigError` where it cannot teach that one, or learned from what the pupil is chosen by.
        """
        folder = bundle.locate(name)
        card, shape = bundle.read_card(folder), dataset.train.shape
        sides = [field_of_view(one, size) for one, size in ((card.input, card.image_shape), (seen, shape))]
        if (card.image_shape, sides[0]) != (shape, sides[1]):
            raise ConfigError(
                f"train.teacher {name}: sees the central {sides[0]} of {card.image_shape} pixels, this network "
                f"{sides[1]} of {shape}. Both must see the same: set input.crop, or name another teacher."
            )
        if card.data.hash == dataset.hash and card.settings.split != dataset.split:
            raise ConfigError(
                f"train.teacher {name}: learned from images that this network is not to know of. "
                "Divide the data as it did: give its split.seed, split.selection and split.test."
            )
        model = to_device(weights.load(folder, card)[0], device)
        last = {tap["reduction"]: tap for tap in getattr(model, "feature_info", [])}
        teacher, side = cls(card, model, FeatureMaps(model, list(last.values()))), side_seen(card.input, shape)
        if not teacher.show(torch.zeros(1, card.input.channels, side, side, device=device)) or not teacher.maps.fit():
            raise ConfigError(f"train.teacher {name}: {card.network} has no feature maps to imitate. Name another one.")
        return teacher

    @property
    def told(self) -> CardTeacher:
        """What the pupil's card has to say."""
        return CardTeacher(
            network=self.card.network,
            weights_sha256=self.card.weights_sha256,
            trained_on=self.card.data.hash,
            track=self.card.track,
        )

    def show(self, images: Tensor) -> list[Tensor]:
        """Its feature maps [b, c, g, g] of images prepared for it."""
        with torch.no_grad():
            self.model(images)
        return self.maps()


class StudentMaps(nn.Module):
    """A training-only head: from feature maps of `model`, 1x1 convolutions tell what the teacher's show.

    Each of the teacher's is told from the one whose cells come closest to its own. To be called
    after the model, on the same batch.
    """

    def __init__(self, model: nn.Module, seen: InputConfig, teacher: Teacher) -> None:
        """seen: what `model` sees of the teacher's images. Raises `ConfigError` where it has no feature maps."""
        super().__init__()
        shape, told = teacher.card.image_shape, "train.teacher: this network has no feature maps. Leave it out."
        if not getattr(model, "feature_info", None):
            raise ConfigError(told)
        finer, side = zoom(seen, shape) / zoom(teacher.card.input, shape), side_seen(seen, shape)
        taps = [nearest_tap(model, tap["reduction"] * finer) for tap in teacher.maps.taps]
        self._maps = FeatureMaps(model, taps)
        with torch.no_grad():
            model.eval()(torch.zeros(1, seen.channels, side, side))
        if not self._maps.fit():
            raise ConfigError(told)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(mine["num_chs"], theirs["num_chs"], 1)
            for mine, theirs in zip(taps, teacher.maps.taps, strict=True)
        )

    def forward(self) -> list[Tensor]:
        """What the teacher's maps would show of the batch that the model saw last."""
        return [convolution(seen) for convolution, seen in zip(self.convolutions, self._maps(), strict=True)]


def distill_loss(told: list[Tensor], shown: list[Tensor]) -> Tensor:
    """Sum over maps of the mean squared error, in units of each channel's variance over the batch."""
    return torch.stack(
        [F.mse_loss(mine.float(), _standard(one, mine)) for mine, one in zip(told, shown, strict=True)]
    ).sum()


def _standard(shown: Tensor, mine: Tensor) -> Tensor:
    """On the grid of `mine`, each channel with zero mean and unit variance."""
    resampled = F.interpolate(shown, mine.shape[2:], mode="bilinear", antialias=True)
    return F.batch_norm(resampled, None, None, training=True, eps=LEAST_VARIANCE)


LEAST_VARIANCE = 1e-4
"""Of a channel that has anything to show."""
