"""The networks: one table from name to module, what each sees, and the training-only head."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sublens.config import InputConfig, RunConfig, field_of_view, side_seen
from sublens.errors import ConfigError, nearest
from sublens.images.pixels import QUANTISED_PEAK
from sublens.inference.engines import Sight

NOMINAL_PEAK = 801.0
"""Counts given to the peak of an image whose photon counts are unknown: the median of common-test-1."""
SKY = 9.3
"""Counts of empty sky above the minimum in common-test-1; the Anscombe input is zero there."""
DETAIL_GAIN = 6.0
"""Makes detail of common-test-1 about as wide as 1 when a blur of 3 pixels is subtracted."""

Module = TypeVar("Module", bound=nn.Module)
SMALLEST_BF16_SIDE = 33
"""Twice what the usual networks shrink into one pixel, and one more."""


@dataclass(frozen=True)
class Network:
    """One row of the table of networks."""

    timm_name: str | None
    """None: `LensNet`, which is ours."""
    input: InputConfig
    """What it sees unless the user says otherwise."""
    truth_weight: float
    """Weight of the truth head's loss that leaves the plateau soonest (measured, 40,000-70,000 images)."""
    has_bf16_gain: bool
    """Whether bfloat16 makes it faster on a processor that has it (measured)."""
    batch_size: int
    """Images a step that let it learn most in a given time (measured, 5 minutes of one core)."""
    lr: float
    """Muon's peak rate at which it leaves the plateau before the rate falls (measured, 360,000 images)."""
    adamw_lr: float
    """AdamW's."""
    has_even_start: bool = False
    """Whether its classifier starts at zero, at even odds. timm draws those of EfficientNet-B5 and
    MobileNetV3-small 26 and 19 times wider than torch would, which drowns what the first layers are to learn."""


NETWORKS = {
    "mobilenetv3-small": Network(
        "mobilenetv3_small_100", InputConfig(crop=96, resize=144), 100, False, 32, 0.01, 1.5e-3, True
    ),
    "resnet18": Network("resnet18", InputConfig(crop=96), 10, True, 32, 0.02, 3e-3),
    "efficientnet-b5": Network("efficientnet_b5", InputConfig(crop=96, binning=2), 100, False, 32, 5e-3, 5e-4, True),
    "lensnet": Network(None, InputConfig(crop=96, binning=2), 10, True, 64, 0.02, 3e-3),
}
OWN_CHOICES = "truth_weight", "batch_size", "lr", "adamw_lr"
"""Settings of training that a network has its own values for."""
USUAL = Network(None, InputConfig(), 30, False, 32, 0.01, 1.5e-3)
"""What is assumed of networks that are not in the table."""


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut: the basic block of He et al. 2015, arXiv:1512.03385."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(n_out),
        )
        is_same = stride == 1 and n_in == n_out
        self.shortcut = (
            nn.Identity()
            if is_same
            else nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


class LensNet(nn.Module):
    """A residual network of 0.38 M parameters for faint local dents on smooth arcs.

    Three quarters of its work are done on cells of 4 and 8 image pixels, the size of the
    point-spread function and of a dent; what they show is pooled only at the end.
    """

    def __init__(self, n_classes: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 32, 5, 2, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)
        )
        self.stage1 = Block(32, 32, 1)
        self.stage2 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1))
        self.stage3 = Block(64, 128, 2)
        self.classifier = nn.Linear(128, n_classes)
        self.feature_info = [
            {"module": "stem", "reduction": 2, "num_chs": 32},
            {"module": "stage1", "reduction": 2, "num_chs": 32},
            {"module": "stage2", "reduction": 4, "num_chs": 64},
        ]

    def features(self, x: Tensor) -> Tensor:
        """What is averaged over the image before the decision, [b, 128, h / 8, w / 8]."""
        seen: Tensor = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return seen

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


CELL = 8
"""Image pixels along one side of a cell that shows where something is."""


def nearest_tap(model: nn.Module, cell: float) -> dict[str, Any]:
    """What a timm network tells of its feature map whose cells come closest to `cell` of the pixels that it sees."""
    taps: list[dict[str, Any]] = list(model.feature_info)  # type: ignore[arg-type]
    return min(taps, key=lambda info: abs(np.log(info["reduction"] / cell)))


class Maps:
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
        self.maps = Maps(model, [tap])

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
        self._maps = Maps(model, list(getattr(model, "feature_info", []))[: self.N_MAPS])

    def __call__(self) -> list[Tensor]:
        """Mean, standard deviation and maximum over the image of c channels, [b, 3c] for each map."""
        maps = [seen.float().flatten(2) for seen in self._maps() if seen.ndim == 4]
        return [torch.cat([one.mean(2), one.std(2, correction=0), one.amax(2)], 1) for one in maps]


def resolved(config: RunConfig, shape: tuple[int, int]) -> RunConfig:
    """The settings with the network's own choices filled in, for images of this shape.

    Raises `ConfigError` where there is no such network, or it cannot see images of this shape so.
    """
    name = config.model.name
    timm_name(name)
    seen = config.input or _usual_input(name, shape)
    side_seen(seen, shape)
    usual = NETWORKS.get(name, USUAL)
    chosen = {key: getattr(usual, key) for key in OWN_CHOICES if getattr(config.train, key) is None}
    return config.model_copy(update={"input": seen, "train": config.train.model_copy(update=chosen)})


def _usual_input(name: str, shape: tuple[int, int]) -> InputConfig:
    seen = NETWORKS.get(name, USUAL).input
    side = min(shape) - min(shape) % seen.binning
    return seen if seen.crop is None or seen.crop <= side else seen.model_copy(update={"crop": side})


def has_bf16_gain(name: str, device: str, side: int) -> bool:
    """Whether bfloat16 makes training this network faster on this device.

    side: that of the square that it sees. Never for small ones: on a map of a single pixel the
    CPU's bfloat16 gradient of a strided 3x3 convolution is made of unset memory (torch 2.13).
    """
    if side < SMALLEST_BF16_SIDE:
        return False
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    able = torch.cpu.get_capabilities()
    return NETWORKS.get(name, USUAL).has_bf16_gain and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def timm_name(name: str) -> str | None:
    """What timm calls the network of that name; None for `LensNet`.

    Raises `ConfigError` where there is no such network.
    """
    if name in NETWORKS:
        return NETWORKS[name].timm_name
    from sublens.models.timm_import import import_timm

    timm = import_timm()
    is_tagged = "." in name  # as in resnet18.a1_in1k; is_model looks at what comes before the tag
    if not timm.is_model(name) or (is_tagged and name not in timm.list_models(pretrained=True)):
        raise ConfigError(f"There is no network called {name!r}. {nearest(name, [*NETWORKS, *timm.list_models()])}")
    return name


def build(name: str, n_classes: int, channels: int = 1, *, pretrained: bool = False) -> nn.Module:
    """The network of that name: images [b, channels, h, w] -> logits [b, n_classes].

    name: one of ours or any timm name. pretrained: start from ImageNet weights, fetched by timm.
    Raises `ConfigError` where there is no such network, or its weights cannot be had.
    """
    theirs = timm_name(name)
    if theirs is None:
        if pretrained:
            raise ConfigError(f"{name} has no ImageNet weights. Leave out model.pretrained.")
        return LensNet(n_classes, channels)
    from sublens.models.timm_import import import_timm

    create = import_timm().create_model
    try:
        model: nn.Module = create(theirs, pretrained=pretrained, in_chans=channels, num_classes=n_classes)
    except Exception as err:
        if not pretrained:
            raise
        raise ConfigError(
            f"The ImageNet weights of {name} could not be fetched ({type(err).__name__}: "
            f"{str(err)[:120]}). "
            "Go online once so that they are cached, or leave out model.pretrained."
        ) from err
    if NETWORKS.get(name, USUAL).has_even_start:
        for parameter in model.get_classifier().parameters():  # type: ignore[operator]
            nn.init.zeros_(parameter)
    return model


def try_out(model: nn.Module, name: str, channels: int, side: int) -> None:
    """Show the model one blank image; `ConfigError` where it cannot take one of that size."""
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, channels, side, side))
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as err:
        raise ConfigError(
            f"{name} cannot take images of {side} x {side} pixels ({str(err)[:120]}). "
            "Set input.resize to the side it was made for, such as 224."
        ) from err


def device() -> str:
    """Where networks run: a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def placed(model: Module, device: str) -> Module:
    """The model, moved in place to `device`, its weights laid out as convolutions are fastest."""
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def prepare(counts: NDArray[np.uint16], seen: InputConfig) -> Tensor:
    """What a network sees: counts above the minimum [b, h, w] -> [b, channels, s, s] float32; see `prepared`."""
    return prepared(torch.from_numpy(counts.astype(np.float32)), seen)


def prepared(images: Tensor, seen: InputConfig) -> Tensor:
    """Counts above the minimum [b, h, w], float32 -> what a network sees of them [b, channels, s, s].

    Cropped to the centre, binned, transformed, high-passed, resampled, copied to `channels`, in that
    order. `anscombe` is 2 sqrt(k + 3/8), which has unit noise for Poisson counts k (Anscombe 1948,
    Biometrika 35, 246), shifted so that empty sky is 0 and divided by 10 times the binning. What a
    high-pass leaves is multiplied by `DETAIL_GAIN`.
    """
    peak = images.amax((1, 2), keepdim=True)
    if seen.transform == "minmax":
        images = images / peak
    else:
        images = torch.where(peak == QUANTISED_PEAK, images * (NOMINAL_PEAK / QUANTISED_PEAK), images)
    images = _binned(_cropped(images, field_of_view(seen, (images.shape[1], images.shape[2]))), seen.binning)
    if seen.transform == "anscombe":
        area = seen.binning**2
        images = (2 * torch.sqrt(images * area + 0.375) - 2 * math.sqrt(SKY * area + 0.375)) / (10 * seen.binning)
    images = images[:, None]
    if seen.highpass:
        rows = torch.from_numpy(_blurring(images.shape[-1], seen.highpass / seen.binning)).to(images.device)
        blurred = rows @ images.double() @ rows.T  # in float32 its errors would be the largest of all
        images = (DETAIL_GAIN * (images - blurred)).to(images.dtype)
    if seen.resize:
        rows = torch.from_numpy(_resampling(images.shape[-1], seen.resize)).to(images)
        images = rows @ images @ rows.T
    return images.expand(-1, seen.channels, -1, -1)


@lru_cache
def _blurring(side: int, sigma: float) -> NDArray[np.float64]:
    """Weights [side, side] of a Gaussian blur that ends at the edge."""
    weights = np.exp(-0.5 * ((np.arange(side) - np.arange(side)[:, None]) / sigma) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


@lru_cache
def _resampling(side: int, size: int) -> NDArray[np.float64]:
    """Weights [size, side] that resample linearly, over as many pixels as become one where there are fewer.

    As torch's antialiased bilinear interpolation, which works out its weights in float32; those errors
    are the largest of all in what a network gives.
    """
    centres = (np.arange(size) + 0.5) * side / size - 0.5
    reach = max(1.0, side / size)
    weights = np.clip(1 - np.abs(np.arange(side) - centres[:, None]) / reach, 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _cropped(images: Tensor, side: int) -> Tensor:
    top, left = ((size - side) // 2 for size in images.shape[1:])
    return images[:, top : top + side, left : left + side]


def _binned(images: Tensor, binning: int) -> Tensor:
    return F.avg_pool2d(images, binning) if binning > 1 else images


class Whole(nn.Module):
    """A trained network with all that belongs to it, from the counts on."""

    def __init__(
        self, model: nn.Module, seen: InputConfig, head: TruthHead | None = None, moments: Moments | None = None
    ) -> None:
        """seen: what the model sees of an image; head and moments listen to the model."""
        super().__init__()
        self.model, self.seen, self.head, self.moments = model, seen, head, moments

    def forward(self, counts: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Counts [b, h, w], float32 -> logits [b, c], the map [b, g, g] if there is a head, moments [b, d]."""
        images = prepared(counts, self.seen)
        logits = self.model(images.contiguous(memory_format=torch.channels_last))
        return logits, self.head() if self.head else None, self.moments() if self.moments else []


class Mirrored(Whole):
    """The same, but each image is judged by the mean over its four mirror images."""

    def forward(self, counts: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """The log of the mean probabilities, the mean map, and the moments of the image as it is."""
        logits, logs, moments = super().forward(torch.cat([counts.flip(axes) for axes in MIRRORS]))
        probs = _by_view(logits.softmax(1)).mean(0)
        if logs is not None:
            views = [view.flip(axes) for view, axes in zip(_by_view(logs), MIRRORS, strict=True)]
            logs = torch.stack(views).mean(0)
        return probs.clamp_min(LEAST).log(), logs, [_by_view(one)[0] for one in moments]


def _by_view(values: Tensor) -> Tensor:
    """[4 b, ...] -> [4, b, ...]"""
    return values.reshape(len(MIRRORS), -1, *values.shape[1:])


MIRRORS: tuple[list[int], ...] = [], [1], [2], [1, 2]
"""Axes of a stack of images along which each mirror image is turned over: the data's true symmetries."""
LEAST = 1e-30
"""Probability below which none is told from another."""


class Eager:
    """Runs a network with torch, as the code stands: the engine that others are compared with."""

    def __init__(self, whole: Whole, device: str = "cpu") -> None:
        """whole: on that device; it computes in the precision of its weights."""
        self.whole, self.device = whole, device
        self._dtype = next((parameter.dtype for parameter in whole.parameters()), torch.float32)

    def __call__(self, counts: NDArray[np.uint16]) -> Sight:
        """Show it images [b, h, w]."""
        with torch.inference_mode():
            images = torch.from_numpy(counts.astype(np.float32)).to(self.device, self._dtype)
            logits, logs, moments = self.whole(images)
        return Sight(_told(logits), None if logs is None else _told(logs), [_told(one) for one in moments])


def _told(values: Tensor) -> NDArray[np.float64]:
    return np.asarray(values.double().cpu().numpy())
