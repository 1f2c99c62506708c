"""Images that a survey needs, in files beside its own."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Self

from pydantic import (
    ValidationInfo,
    field_serializer,
    model_validator,
)

from sublens.config import Frozen
from sublens.errors import ConfigError, ImageError
from sublens.images import formats
from sublens.images.pixels import Image
from sublens.storage.files import sha256
from sublens.surveys.priors import Floats


class ImageFile(Frozen):
    """An image that a survey needs, named beside its TOML file."""

    file: Path
    """Path of a FITS, .npy or PNG file, relative to the survey's own file."""
    sha256: str = ""
    """Hash of the file's bytes; filled in when the survey is read."""

    @model_validator(mode="after")
    def _resolved(self, info: ValidationInfo) -> Self:
        if not info.context:  # as in a manifest, which is read without the file
            return self
        path = (info.context["folder"] / self.file).resolve()
        try:
            pixels = formats.read(path).pixels
        except ImageError as err:
            raise ValueError(str(err)) from err
        if pixels.sum() <= 0 or pixels.min() < -0.01 * pixels.max():
            raise ValueError(f"{path}: cannot be normalised, its pixels add up to {pixels.sum():g} or are negative")
        return self.model_copy(update={"file": path, "sha256": sha256(path)})

    def pixels(self) -> Floats:
        """The image, its negative noise set to zero.

        Raises `ConfigError` where the file is not the one that the survey was read with.
        """
        return self.image().pixels.clip(0)

    def image(self) -> Image:
        """The image as its file holds it; raises as `pixels` does."""
        if self.sha256 and not (self.file.is_file() and sha256(self.file) == self.sha256):
            raise ConfigError(
                "is missing, or not the file that this survey was made with",
                need=f"the file whose sha256 begins with {self.sha256[:12]}",
                next="Put it back, or read the survey again from its TOML file.",
                path=self.file,
            )
        return formats.read(self.file)

    @field_serializer("file")
    def _name(self, path: Path) -> str:
        return path.name


def image_files(path: Path) -> list[Path]:
    """The images of a folder by name, or the file itself."""
    return sorted(file for file in path.iterdir() if formats.is_image(file)) if path.is_dir() else [path]


def digest(files: Sequence[Path]) -> str:
    """The sha256 of one file, or of the names and hashes of several; raises `OSError`."""
    stats = ((file, file.stat()) for file in files)
    return _digest_of(tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats))


@lru_cache(maxsize=64)
def _digest_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Files come with sizes and times, so that changed ones are read again."""
    if len(files) == 1:
        return sha256(files[0][0])
    return hashlib.sha256("\n".join(f"{file.name} {sha256(file)}" for file, *_ in files).encode()).hexdigest()
