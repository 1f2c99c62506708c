"""Frozen settings, one class a stage; read from TOML and from `--set key=value`.

Knows no torch, so that the command line can read settings before anything heavy is imported.
"""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from sublens.errors import ConfigError, nearest

Share = Annotated[float, Field(ge=0, lt=1)]


class Frozen(BaseModel):
    """Base of all settings: immutable, and unknown keys are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


Settings = TypeVar("Settings", bound=Frozen)


class SplitConfig(Frozen):
    """How images are divided; a function of each image's id and the seed alone."""

    seed: NonNegativeInt = 0
    """Seed of the division."""
    selection: Share = 0.1
    """Share of the training images that choose the best epoch and are not trained on."""
    test: Share = 0.2
    """Share set aside as the test part where the data set has none of its own."""


class InputConfig(Frozen):
    """What a network sees of an image."""

    crop: PositiveInt | None = None
    """Side of the central square that is kept, pixels; everything if unset."""
    binning: PositiveInt = 1
    """Pixels summed along each side into one."""
    resize: PositiveInt | None = None
    """Side after bilinear resampling, pixels; not resampled if unset."""
    channels: Literal[1, 3] = 1
    """1, or 3 to copy the image three times."""
    transform: Literal["anscombe", "minmax"] = "anscombe"
    """`anscombe` evens out photon noise; `minmax` is the plain [0, 1] pixel."""
    highpass: PositiveFloat | None = None
    """Standard deviation of the Gaussian whose blurred image is subtracted, pixels; nothing if unset."""


class ModelConfig(Frozen):
    """Which network, and where its weights start."""

    name: str = "lensnet"
    """One of ours (`sublens networks` lists them) or any timm name."""
    pretrained: bool = False
    """Start from ImageNet weights."""


class TrainConfig(Frozen):
    """How one run is trained; where files go is not its business."""

    epochs: PositiveInt = 20
    """Epochs; after each, the selection part is looked at."""
    epoch_images: PositiveInt | None = None
    """Training images an epoch, in whole batches. Unset: one pass over all of them."""
    minutes: PositiveFloat | None = None
    """Train for this long instead of for `epochs`."""
    batch_size: PositiveInt | None = None
    """Images a step. Unset: the network's own choice."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon turns convolutions and matrices; AdamW takes the rest, or everything."""
    lr: PositiveFloat | None = None
    """Peak learning rate of Muon. Unset: the network's own choice."""
    adamw_lr: PositiveFloat | None = None
    """Peak learning rate of AdamW. Unset: the network's own choice."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    warmup: Share = 0.05
    """Share of training spent rising to the peak rate; the rest is a cosine to zero."""
    flips: bool = True
    """Mirror images in x and y at random: the data's true symmetries."""
    truth_weight: NonNegativeFloat | None = None
    """Weight of the substructure-map loss, where the data set has truth. Unset: the network's own choice."""
    teacher: str | None = None
    """Trained network whose feature maps are imitated: its folder, or a name that `sublens networks` lists."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, the order of images and the flips."""


class RunConfig(Frozen):
    """Everything that decides one run."""

    model: ModelConfig = ModelConfig()
    input: InputConfig | None = None
    """Unset: the network's own choice."""
    split: SplitConfig = SplitConfig()
    train: TrainConfig = TrainConfig()


def load(path: Path | None, overrides: Iterable[str] = ()) -> RunConfig:
    """Settings from a TOML file, then `section.key=value` overrides on top.

    Raises `ConfigError` naming every problem at once.
    """
    tree = read_toml(path) if path else {}
    for override in overrides:
        _apply(tree, override)
    return checked(tree, RunConfig)


def checked(tree: Mapping[str, Any], kind: type[Settings], context: Mapping[str, Any] | None = None) -> Settings:
    """`tree` as settings of that kind, or a `ConfigError` that lists all problems."""
    try:
        return kind.model_validate(tree, context=context)
    except ValidationError as err:
        problems = [_explain(kind, dict(problem)) for problem in err.errors()]
        raise ConfigError("These settings cannot be used:\n  " + "\n  ".join(problems)) from err


def read_toml(path: Path) -> dict[str, Any]:
    """The file's content, or a `ConfigError`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(f"{path}: cannot be read ({err.strerror}). Name a TOML file of settings.") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ConfigError(f"{path}: is not valid TOML ({err}). Mend that line.") from err


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: needs the form section.key=value, such as train.lr=0.01.")
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section. Leave out what follows it.")
    tree[last] = _value(text)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(kind: type[Frozen], problem: dict[str, Any]) -> str:
    """One problem in a line: where, what is wrong, what was given."""
    is_unknown = problem["type"] == "extra_forbidden"
    names = [str(name) for name in problem["loc"]]
    sections, where = [kind], []
    for name in names[: -1 if is_unknown else None]:
        holders = [section for section in sections if name in section.model_fields]
        if holders:  # else it is not a setting, but says which of several classes was tried
            where.append(name)
            sections = [part for holder in holders for part in _sections(holder.model_fields[name].annotation)]
    if is_unknown:
        known = [name for section in sections for name in section.model_fields]
        return f"{'.'.join([*where, names[-1]])}: no such setting. {nearest(names[-1], known)}"
    place = ".".join(where) or "the whole"
    words = problem["msg"].removeprefix("Value error, ")
    given = "" if isinstance(problem["input"], Mapping) or len(where) == 0 else f" (got {problem['input']!r})"
    return f"{place}: {words}{given}"


def _sections(annotation: Any) -> list[type[Frozen]]:
    """The settings classes that a field may hold."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Frozen) else []
    return [section for option in get_args(annotation) for section in _sections(option)]


def field_of_view(seen: InputConfig, shape: tuple[int, int]) -> int:
    """Side of the square that is kept of images of this shape, pixels.

    Raises `ConfigError` where they cannot be cropped and binned so.
    """
    side = seen.crop or min(shape)
    if side > min(shape):
        raise ConfigError(
            f"input.crop is {side} pixels but the images are {shape[0]} x {shape[1]}. Set input.crop "
            f"to {min(shape)} or less."
        )
    if side % seen.binning:
        raise ConfigError(
            f"input.binning {seen.binning} does not divide the side of {side} pixels. Choose a divisor of it."
        )
    return side


def side_seen(seen: InputConfig, shape: tuple[int, int]) -> int:
    """Side of the square that the network gets of images of this shape, its own pixels."""
    return seen.resize or field_of_view(seen, shape) // seen.binning


def zoom(seen: InputConfig, shape: tuple[int, int]) -> float:
    """Pixels that the network sees along a side for each pixel of images of this shape; below 1 if binned."""
    return side_seen(seen, shape) / field_of_view(seen, shape)
