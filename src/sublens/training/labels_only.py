"""Settings for data sets that have labels alone, with which networks stay at chance for long.

lensnet as the teacher of what takes the same part of the image, else a high-pass; docs/recipe.md has the measurements.
"""

from pathlib import Path

from sublens.config import AUTO, RunConfig, field_of_view
from sublens.data.dataset import Dataset
from sublens.models import bundle, networks

TEACHER = "lensnet"
"""The trained network that comes with sublens and teaches the others."""
HIGHPASS = 3.0
"""Standard deviation of the blur that is subtracted where there is no teacher, pixels."""


def with_defaults(config: RunConfig, dataset: Dataset, *, has_own_input: bool) -> RunConfig:
    """Resolved settings with the teacher, or the high-pass in its place, that is left to sublens.

    has_own_input: whether the input is the user's choice, and stays as it is.
    """
    if config.train.teacher != AUTO:
        return config
    if dataset.survey:
        return _with_teacher(config, None)
    if can_be_taught(config, dataset):
        return _with_teacher(config, _shipped_teacher())
    assert config.input is not None, "settings must be resolved"
    network_input = config.input.model_copy(update={"highpass": HIGHPASS})
    return _with_teacher(config, None).model_copy(update={} if has_own_input else {"input": network_input})


def _with_teacher(config: RunConfig, teacher: str | None) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"teacher": teacher})})


def can_be_taught(config: RunConfig, dataset: Dataset) -> bool:
    """Whether the shipped teacher takes the same part of these images as this network, which has feature maps."""
    if config.model.name not in networks.NETWORKS or TEACHER not in bundle.shipped():
        return False
    assert config.input is not None, "settings must be resolved"
    card, shape = bundle.read_card(bundle.shipped()[TEACHER]), dataset.train.shape
    is_same_field = field_of_view(card.input, card.image_shape) == field_of_view(config.input, shape)
    is_same_kind = networks.pixels_of(card.input) == networks.pixels_of(config.input)
    return card.image_shape == shape and is_same_field and is_same_kind


def _shipped_teacher() -> str:
    """Its name; its folder where something else of that name lies here."""
    return str(bundle.shipped()[TEACHER]) if Path(TEACHER).exists() else TEACHER


def as_begun(config: RunConfig, before: RunConfig | None, dataset: Dataset) -> RunConfig:
    """Settings with the teacher and high-pass that a run on this data set began with, where they are left to sublens.

    before: the settings of that run, if there is one; an earlier sublens chose neither.
    """
    if before is None or config.train.teacher != AUTO or before.train.teacher not in (None, _shipped_teacher()):
        return config
    begun = _with_teacher(config, before.train.teacher)
    default = networks.resolved(config, dataset.train.shape, dataset.pixels).input
    assert default is not None, "settings are resolved"
    choices = [default.model_copy(update={"highpass": highpass}) for highpass in (default.highpass, HIGHPASS)]
    is_choice = config.input is None and before.input in choices
    return begun.model_copy(update={"input": before.input}) if is_choice else begun


def note(config: RunConfig, resolved: RunConfig) -> str:
    """How to do without the teacher or high-pass that was chosen for the settings in `config`; empty if none was."""
    is_taught = config.train.teacher == AUTO and resolved.train.teacher
    is_filtered = config.input is None and resolved.input and resolved.input.highpass
    return ", as the data set has no truth; --set train.teacher=none goes without" if is_taught or is_filtered else ""


def remedy(config: RunConfig, dataset: Dataset) -> str:
    """What may lead a network away from chance that these settings leave there."""
    assert config.input is not None, "settings must be resolved"
    if not config.train.teacher and can_be_taught(config, dataset):
        return f"--set train.teacher={_shipped_teacher()}"
    if config.input.highpass:
        return "more epochs or minutes, or --model lensnet"
    chosen = config.input.model_copy(update={"highpass": HIGHPASS}).model_dump(exclude_defaults=True)
    return " ".join(f"--set input.{key}={str(value).removesuffix('.0')}" for key, value in chosen.items())
