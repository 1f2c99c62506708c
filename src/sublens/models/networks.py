"""The networks: one table from name to module, with the settings that each is trained with by default."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sublens.config import InputConfig, Pixels, RunConfig, TrainConfig, input_side
from sublens.errors import ConfigError

Module = TypeVar("Module", bound=nn.Module)
SMALLEST_BF16_SIDE = 33
"""Least input side that is trained in bfloat16, pixels: networks that reduce by 32 keep more than one pixel of it."""


@dataclass(frozen=True)
class Network:
    """One row of the table of networks."""

    timm_name: str | None
    """Name in timm; None for `LensNet`, which is ours."""
    n_parameters: int
    """Weights of the network for three classes and one channel."""
    input: InputConfig
    """Input that the network takes by default."""
    truth_weight: float
    """Weight of the truth head's loss that leaves the plateau soonest (measured, 40,000-70,000 images)."""
    has_bf16_gain: bool
    """Whether bfloat16 makes it faster on a processor that has it (measured)."""
    batch_size: int
    """Images a step that let it learn most in a given time (measured, 5 minutes of one core)."""
    lr: float
    """Muon's peak rate at which it leaves the plateau before the rate falls (measured, 360,000 images)."""
    adamw_lr: float
    """AdamW's peak rate."""
    has_even_start: bool = False
    """Whether its classifier starts at zero, at even odds. timm draws those of EfficientNet-B5 and
    MobileNetV3-small 26 and 19 times wider than torch would, which drowns what the first layers are to learn."""


NETWORKS = {
    "mobilenetv3-small": Network(
        "mobilenetv3_small_100", 1_520_643, InputConfig(crop=96, resize=144), 100, False, 32, 0.01, 1.5e-3, True
    ),
    "resnet18": Network("resnet18", 11_171_779, InputConfig(crop=96), 10, True, 32, 0.02, 3e-3),
    "efficientnet-b5": Network(
        "efficientnet_b5", 28_346_067, InputConfig(crop=96, binning=2), 100, False, 32, 5e-3, 5e-4, True
    ),
    "lensnet": Network(None, 381_667, InputConfig(crop=96, binning=2), 10, True, 64, 0.02, 3e-3),
}
SIGNAL_TO_NOISE_CROP = 120
"""Side of the central square that networks take of signal to noise by default, pixels."""
OWN_CHOICES = "truth_weight", "batch_size", "lr", "adamw_lr"
"""Settings of training that each network has its own values for."""
DEFAULT = Network(None, 0, InputConfig(), 30, False, 32, 0.01, 1.5e-3)
"""Settings assumed for networks that are not in the table."""


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
    point-spread function and of a dent; its maps are pooled only at the end.
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
        """Feature map that is averaged over the image before the classifier, [b, 128, h / 8, w / 8]."""
        features: Tensor = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return features

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def resolved(config: RunConfig, shape: tuple[int, int], pixels: Pixels = "counts") -> RunConfig:
    """The settings with the network's own choices filled in, for images of this shape and kind.

    Raises `ConfigError` where there is no such network, its input does not fit such images, or AdamW alone is given
    two rates.
    """
    name = config.model.name
    timm_name(name)
    network_input = config.input or _default_input(name, shape, pixels)
    _refuse_other_pixels(network_input, pixels)
    input_side(network_input, shape)
    train = _with_own_choices(config.train, NETWORKS.get(name, DEFAULT))
    return config.model_copy(update={"input": network_input, "train": train})


def pixels_of(config: InputConfig) -> Pixels:
    """Pixels that a network of that input takes."""
    return "signal-to-noise" if config.transform == "signal-to-noise" else "counts"


def _refuse_other_pixels(config: InputConfig, pixels: Pixels) -> None:
    if pixels_of(config) != pixels:
        fitting = "signal-to-noise" if pixels == "signal-to-noise" else "anscombe"
        raise ConfigError(
            f"input.transform is {config.transform}, and the pixels of these images are {pixels}",
            need="a transform that takes such pixels",
            next=f"Set input.transform to {fitting}, or leave out the settings of input.",
        )


def _default_input(name: str, shape: tuple[int, int], pixels: Pixels) -> InputConfig:
    default = NETWORKS.get(name, DEFAULT).input
    if pixels == "signal-to-noise":
        default = default.model_copy(update={"transform": pixels, "crop": SIGNAL_TO_NOISE_CROP})
    side = min(shape) - min(shape) % default.binning
    return default if default.crop is None or default.crop <= side else default.model_copy(update={"crop": side})


def _with_own_choices(train: TrainConfig, network: Network) -> TrainConfig:
    choices = {key: getattr(network, key) for key in OWN_CHOICES}
    if train.optimizer == "adamw":
        choices |= dict.fromkeys(("lr", "adamw_lr"), _adamw_rate(train) or network.adamw_lr)
    return train.model_copy(update={key: value for key, value in choices.items() if getattr(train, key) is None})


def _adamw_rate(train: TrainConfig) -> float | None:
    """The rate given for AdamW alone, under either name; None where there is none."""
    if train.lr and train.adamw_lr and train.lr != train.adamw_lr:
        raise ConfigError(
            f"train.lr is {train.lr:g} and train.adamw_lr {train.adamw_lr:g}",
            need="one rate where train.optimizer is adamw",
            next="Leave one of them out.",
        )
    return train.lr or train.adamw_lr


def describe_input(config: InputConfig) -> str:
    """The steps from an image to the network's input, in words: "central 96 x 96 pixels, binned 2 x 2"."""
    crop, binning, resize = config.crop, config.binning, config.resize
    steps = [
        f"central {crop} x {crop} pixels" if crop else "whole image",
        f"binned {binning} x {binning}" if binning > 1 else "",
        "scaled to [0, 1]" if config.transform == "minmax" else "",
        f"planes of signal to noise: {', '.join(config.planes)}" if config.transform == "signal-to-noise" else "",
        f"high-pass of {config.highpass:g} pixels" if config.highpass else "",
        f"resampled to {resize} x {resize}" if resize else "",
        f"{config.channels} equal channels" if config.channels > 1 else "",
    ]
    return ", ".join(filter(None, steps))


def has_bf16_gain(name: str, device: str, side: int) -> bool:
    """Whether bfloat16 makes training this network faster on this device.

    side: pixels along a side of its input. False for small inputs: on a map of a single pixel the
    CPU's bfloat16 gradient of a strided 3x3 convolution is made of unset memory (torch 2.13).
    """
    if side < SMALLEST_BF16_SIDE:
        return False
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    able = processor_facts()
    return NETWORKS.get(name, DEFAULT).has_bf16_gain and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def timm_name(name: str) -> str | None:
    """Name in timm of the network of that name; None for `LensNet`.

    Raises `ConfigError` where there is no such network.
    """
    if name in NETWORKS:
        return NETWORKS[name].timm_name
    from sublens.models.timm_import import import_timm

    timm = import_timm()
    is_tagged = "." in name  # as in resnet18.a1_in1k; is_model ignores the tag
    if not timm.is_model(name) or (is_tagged and name not in timm.list_models(pretrained=True)):
        raise ConfigError(
            f"there is no network called {name!r}",
            need=f"one of {', '.join(NETWORKS)} or a name of timm's",
            next=_nearest_networks(name, [*NETWORKS, *timm.list_models()]),
        )
    return name


def _nearest_networks(name: str, known: list[str]) -> str:
    """A sentence that offers up to five known names close to `name`, and one on where all are listed."""
    close = list(dict.fromkeys(get_close_matches(name, known, n=6)))[:5]
    offer = f"Did you mean {', '.join(close)}? " if close else ""
    return f"{offer}`sublens networks --all PATTERN` lists timm's names."


def timm_names(pattern: str = "*") -> list[str]:
    """All names in timm that match a pattern, sorted; without * or ? it may stand anywhere in the name."""
    from sublens.models.timm_import import import_timm

    whole = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    names: list[str] = import_timm().list_models(whole.lower())
    return names


def build(name: str, n_classes: int, channels: int = 1, *, pretrained: bool = False) -> nn.Module:
    """The network of that name: images [b, channels, h, w] -> logits [b, n_classes].

    name: one of ours or any timm name. pretrained: start from ImageNet weights, fetched by timm.
    Raises `ConfigError` where there is no such network, or its weights cannot be had.
    """
    theirs = timm_name(name)
    if theirs is None:
        if pretrained:
            raise ConfigError(
                f"{name} has no ImageNet weights",
                need="a network of timm's for model.pretrained",
                next="Leave out model.pretrained, or choose another network.",
            )
        return LensNet(n_classes, channels)
    from sublens.models.timm_import import import_timm

    create = import_timm().create_model
    try:
        model: nn.Module = create(theirs, pretrained=pretrained, in_chans=channels, num_classes=n_classes)
    except Exception as err:
        if not pretrained:
            raise
        raise ConfigError(
            f"the ImageNet weights of {name} could not be fetched ({type(err).__name__}: {str(err)[:120]})",
            need="a connection once, after which timm keeps them",
            next="Go online, or leave out model.pretrained.",
        ) from err
    if NETWORKS.get(name, DEFAULT).has_even_start:
        for parameter in model.get_classifier().parameters():  # type: ignore[operator]
            nn.init.zeros_(parameter)
    return model


def check_input_size(model: nn.Module, name: str, channels: int, side: int) -> None:
    """Run the model on one blank image; raises `ConfigError` where it cannot take one of that size."""
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, channels, side, side))
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as err:
        raise ConfigError(
            f"{name} cannot take images of {side} x {side} pixels ({str(err)[:120]})",
            need="the size that the network was made for",
            next="Set input.resize to it, such as 224.",
        ) from err


def processor_facts() -> Mapping[str, Any]:
    """What torch knows of the processor: its name, and the instructions that it has; empty before torch could say."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def device() -> str:
    """The device that networks run on: a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def to_device(model: Module, device: str) -> Module:
    """The model, moved in place to `device`, its weights laid out as convolutions are fastest."""
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
