"""Frozen settings, one class a stage; read from TOML and from `--set key=value`.

Knows no torch, so that the command line can read settings before anything heavy is imported.
"""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from sublens.errors import ConfigError, nearest

Share = Annotated[float, Field(ge=0, lt=1)]
AUTO, NONE = "auto", "none"
"""A teacher that sublens chooses, or none."""
Pixels = Literal["counts", "signal-to-noise"]
"""Pixels of a data set: counts above each image's minimum, or codes of `images.signal_to_noise`."""
Plane = Literal["image", "detail", "mask"]
PLANES: tuple[Plane, ...] = ("image", "detail", "mask")
"""Channels that a network may take of signal to noise."""


class Frozen(BaseModel):
    """Base of all settings: immutable, and unknown keys are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


Settings = TypeVar("Settings", bound=Frozen)


def later(default: Any) -> Any:
    """Default of a setting that earlier versions lacked: left out where settings are saved, so that old ones stay."""
    return Field(default, exclude_if=lambda value: value == default)


class SplitConfig(Frozen):
    """Division of images into parts; a function of each image's id and the seed alone."""

    seed: NonNegativeInt = 0
    """Seed of the division."""
    selection: Share = 0.1
    """Share of the training images set aside as the selection part, which chooses the best epoch."""
    test: Share = 0.2
    """Share set aside as the test part where the data set has none of its own."""


STRETCH = 3.0
"""Signal to noise at which the stretch turns from linear to logarithmic, unless set otherwise."""


class InputConfig(Frozen):
    """Steps from an image to the network's input."""

    crop: PositiveInt | None = None
    """Side of the central square that is kept, pixels; the whole image if unset."""
    binning: PositiveInt = 1
    """Pixels summed along each side into one."""
    resize: PositiveInt | None = None
    """Side after bilinear resampling, pixels; not resampled if unset."""
    channels: Literal[1, 3] = 1
    """1, or 3 for three copies of the image."""
    transform: Literal["anscombe", "minmax", "signal-to-noise"] = "anscombe"
    """`anscombe` evens out photon noise; `minmax` is the plain [0, 1] pixel; `signal-to-noise` takes images of that
    kind alone."""
    highpass: PositiveFloat | None = None
    """Standard deviation of the Gaussian blur that is subtracted, pixels; nothing is subtracted if unset. The plane
    `detail` always has it subtracted: 4 pixels if unset."""
    planes: tuple[Plane, ...] = later(PLANES)
    """Channels of signal to noise: `image`, stretched; `detail`, the same less its blur; `mask`, the share of each
    pixel that is masked."""
    stretch: PositiveFloat = later(STRETCH)
    """Signal to noise at which the stretch, asinh(S/N / stretch), turns from linear to logarithmic."""

    @model_validator(mode="after")
    def _fits_transform(self) -> Self:
        if self.transform == "signal-to-noise":
            if self.channels > 1:
                raise ValueError("channels counts copies of one plane; needs planes alone for signal-to-noise")
            if not self.planes or len(set(self.planes)) < len(self.planes):
                raise ValueError("planes needs one or more of image, detail and mask, each once")
        elif (self.planes, self.stretch) != (PLANES, STRETCH):
            raise ValueError("planes and stretch need transform = signal-to-noise")
        return self

    @property
    def takes_noise(self) -> bool:
        """Whether the network sees signal to noise, so that the noise of each image is read or estimated."""
        return self.transform == "signal-to-noise"

    @property
    def n_channels(self) -> int:
        """Channels of the network's input."""
        return len(self.planes) if self.transform == "signal-to-noise" else self.channels


class ModelConfig(Frozen):
    """Network and initial weights."""

    name: str = "lensnet"
    """One of ours (`sublens networks` lists them) or any timm name."""
    pretrained: bool = False
    """Start from ImageNet weights."""
    start: str | None = later(None)
    """Trained network whose weights the training starts from, of the same kind, classes and channels, if of another
    camera: its folder, or a name that `sublens networks` lists."""


MACRO_WEIGHT = 0.3
"""Weight of the macro head's loss beside the labels'."""


class TrainConfig(Frozen):
    """Settings of one training."""

    epochs: PositiveInt = 20
    """Number of epochs; the selection part is measured after each."""
    epoch_images: PositiveInt | None = None
    """Training images an epoch, in whole batches. Unset: one pass over all of them, or 30,000 of a survey."""
    cache: PositiveInt | None = None
    """Images of a survey that are kept to draw batches from on a processor. Unset: 10,000."""
    reuse: PositiveInt = later(8)
    """Times that an image of a survey is drawn on a processor before it leaves the cache, on average. Fewer take longer
    to render, and keep a network from learning images by heart where what they show is faint."""
    matched: bool = later(False)
    """Whether fresh images of a survey come in sets of lenses, one of each class, that differ in substructure and noise
    alone and are in the same batch: what does not decide the class then cancels in the gradient."""
    minutes: PositiveFloat | None = None
    """Length of the training, minutes, instead of `epochs`."""
    batch_size: PositiveInt | None = None
    """Images a step. Unset: the network's own value."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """`muon`: Muon on convolutions and AdamW on the rest; `adamw`: AdamW on everything."""
    lr: PositiveFloat | None = None
    """Peak learning rate: Muon's, or AdamW's where the optimizer is `adamw`. Unset: the network's own value."""
    adamw_lr: PositiveFloat | None = None
    """Peak learning rate of AdamW; the same as `lr` where the optimizer is `adamw`. Unset: the network's own value."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    warmup: Share = 0.05
    """Share of training spent rising to the peak rate; the rest is a cosine to zero."""
    flips: bool = True
    """Whether images are mirrored in x and y at random, the true symmetries of the data."""
    truth_weight: NonNegativeFloat | None = None
    """Weight of the substructure-map loss, where the data set has truth. Unset: the network's own value."""
    macro_weight: NonNegativeFloat = later(MACRO_WEIGHT)
    """Weight of the loss of the lens's Einstein radius, axis ratio and position angle, where the data set has truth and
    its pixels are signal to noise."""
    contaminant_weight: NonNegativeFloat = later(1.0)
    """Weight of the loss that tells lenses from contaminants, where the data set has these."""
    teacher: Annotated[str | None, BeforeValidator(lambda name: None if name == NONE else name)] = AUTO
    """Trained network whose feature maps are imitated: its folder, or a name that `sublens networks` lists; `none` for
    no teacher. Unset, where there are labels alone: lensnet where it knows such images, else a high-pass."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, the order of images and the flips."""


class RunConfig(Frozen):
    """All settings of one run."""

    model: ModelConfig = ModelConfig()
    input: InputConfig | None = None
    """Steps from an image to the network's input. Unset: the network's own steps."""
    split: SplitConfig = SplitConfig()
    train: TrainConfig = TrainConfig()


def load(path: Path | None, overrides: Iterable[str] = ()) -> RunConfig:
    """Settings from a TOML file with `section.key=value` overrides on top.

    Raises `ConfigError`, which lists every problem.
    """
    tree = read_toml(path) if path else {}
    for override in overrides:
        _apply(tree, override)
    return checked(tree, RunConfig)


def checked(
    tree: Mapping[str, Any], kind: type[Settings], context: Mapping[str, Any] | None = None, path: Path | None = None
) -> Settings:
    """`tree` as settings of that kind; raises `ConfigError`, about `path`, that lists all problems."""
    try:
        return kind.model_validate(tree, context=context)
    except ValidationError as err:
        problems = [_explain(kind, dict(problem)) for problem in err.errors()]
        raise ConfigError(
            f"{len(problems)} setting{'s' if len(problems) > 1 else ''} cannot be used",
            need="settings that exist, with values in their range",
            next="\n  ".join(["Correct:", *problems]),
            path=path,
        ) from err


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file; `ConfigError` where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(
            f"cannot be read ({err.strerror})",
            need="a readable TOML file of settings",
            next="Correct the path, or the file's permissions.",
            path=path,
        ) from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ConfigError(f"is not valid TOML ({err})", need="TOML 1.0", next="Mend that line.", path=path) from err


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"--set {override} has no key and value",
            need="the form section.key=value",
            next="Write it as in --set train.lr=0.01.",
        )
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(
                f"--set {override}: {section} is a value",
                need="a section before the dot",
                next=f"Leave out what follows {section}.",
            )
    tree[last] = _value(text)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(kind: type[Frozen], problem: dict[str, Any]) -> str:
    """One problem in a line: the setting, the fault and the value."""
    is_unknown = problem["type"] == "extra_forbidden"
    names = [str(name) for name in problem["loc"]]
    sections, where = [kind], []
    for name in names[: -1 if is_unknown else None]:
        holders = [section for section in sections if name in section.model_fields]
        if holders:  # else it is not a setting but the name of one of several classes
            where.append(name)
            sections = [part for holder in holders for part in _sections(holder.model_fields[name].annotation)]
    if is_unknown:
        known = [name for section in sections for name in section.model_fields]
        return f"{'.'.join([*where, names[-1]])}: no such setting. {nearest(names[-1], known)}"
    setting = ".".join(where) or "the whole"
    fault = problem["msg"].removeprefix("Value error, ")
    value = "" if isinstance(problem["input"], Mapping) or len(where) == 0 else f" (got {problem['input']!r})"
    return f"{setting}: {fault}{value}"


def _sections(annotation: Any) -> list[type[Frozen]]:
    """The settings classes that a field may hold."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Frozen) else []
    return [section for option in get_args(annotation) for section in _sections(option)]


def field_of_view(config: InputConfig, shape: tuple[int, int]) -> int:
    """Side of the central square that is kept of images of this shape, pixels.

    Raises `ConfigError` where it is larger than the images or not a multiple of the binning.
    """
    side = config.crop or min(shape)
    if side > min(shape):
        raise ConfigError(
            f"input.crop is {side} pixels but the images are {shape[0]} x {shape[1]}",
            need="a crop that fits the images",
            next=f"Set input.crop to {min(shape)} or less.",
        )
    if side % config.binning:
        raise ConfigError(
            f"input.binning {config.binning} does not divide the side of {side} pixels",
            need="a divisor of the side",
            next="Change input.binning or input.crop.",
        )
    return side


def input_side(config: InputConfig, shape: tuple[int, int]) -> int:
    """Side of the network's input for images of this shape, input pixels."""
    return config.resize or field_of_view(config, shape) // config.binning


def zoom(config: InputConfig, shape: tuple[int, int]) -> float:
    """Input pixels for each pixel of images of this shape, along a side; below 1 if binned."""
    return input_side(config, shape) / field_of_view(config, shape)
