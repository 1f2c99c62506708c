"""Named surveys, and a user's own: TOML files, the named ones beside this file."""

from pathlib import Path

from sublens.config import checked, read_toml
from sublens.errors import ConfigError, nearest
from sublens.surveys.psf_set import FOLDER
from sublens.surveys.survey import Survey


def names() -> list[str]:
    """The names of all presets."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def preset(name: str) -> Survey:
    """The survey of that name, or that of a TOML file if `name` is the path of one.

    Raises `ConfigError`, with every problem at once, where it cannot be used.
    """
    path = source(name)
    return checked(read_toml(path), Survey, {"folder": path.absolute().parent}, path)


def files(name: str) -> list[Path]:
    """What a preset is read from: its TOML, and files or folders of its point-spread function and its source."""
    survey = preset(name)
    images = (getattr(part, kind, None) for part in (survey.camera.psf, survey.source) for kind in ("file", "folder"))
    return [source(name), *filter(None, images)]


def source(name: str) -> Path:
    """The TOML file behind a preset's name or a path."""
    if name.endswith(".toml"):
        return Path(name)
    if name not in names():
        raise ConfigError(
            f"there is no preset called {name!r}",
            need=f"one of {', '.join(names())}, or the path of a survey of your own, which ends in .toml",
            next=nearest(name, names()),
        )
    return FOLDER / f"{name}.toml"
