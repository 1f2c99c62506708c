"""Settings of point-spread functions as images: their resampling, and sets of which each scene draws one."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import ValidationInfo, field_serializer, model_validator

from sublens.config import Frozen
from sublens.errors import ConfigError, ImageError
from sublens.images import formats
from sublens.images.limits import check_exists
from sublens.images.pixels import Image
from sublens.images.resample import SAME_SCALE
from sublens.surveys.image_file import digest, image_files
from sublens.surveys.priors import Floats, NonNegative, Prior

FOLDER = Path(__file__).parent
"""Folder of the presets and their point-spread functions, which surveys made of a preset use as well."""
MIN_KERNEL = 3
"""Least number of the camera's pixels along a side of a point-spread function."""
MAX_REACH = 512
"""Farthest that a point-spread function reaches from its middle, pixels: half of the largest image."""
PEDESTAL = 0.2
"""Least height of a pedestal, over the peak."""
WIDE = 11
"""Least number of pixels along a side of an image whose outer half shows no more than wings."""
MAX_IMAGES = 4096
"""Most images in a set."""


def resampled(pixels: Floats, zoom: float, most: int) -> Floats:
    """A point-spread function [k, k] of odd k with pixels `zoom` times as large, on pixels of 1.

    Interpolated at their centres. most: pixels to either side of the middle that are kept.
    """
    if abs(zoom - 1) <= SAME_SCALE:
        return pixels
    from scipy import ndimage  # slow to import

    middle = len(pixels) // 2
    reach = min(int(middle * zoom + 1e-6), most)
    centres = middle + np.arange(-reach, reach + 1) / zoom
    grid = np.meshgrid(centres, centres, indexing="ij")
    return np.asarray(ndimage.map_coordinates(pixels, grid, mode="nearest").clip(0))


def usable(pixels: Floats) -> Floats:
    """A point-spread function without negative noise and without a pedestal, [k, k].

    A pedestal is the median of its outer half, without the border, which may be cut, where that is above `PEDESTAL` of
    the peak: some of the empirical ones in circulation stand on 40 %. Images with fewer than `WIDE` pixels a side are
    taken to hold the core alone.
    """
    if len(pixels) < WIDE:
        return pixels.clip(0)
    rows, columns = (np.abs(np.arange(n) - n // 2) for n in pixels.shape)
    distance = np.maximum(rows[:, None], columns)
    middle = max(pixels.shape) // 2
    level = float(np.median(pixels[(distance > middle // 2) & (distance < middle)]))
    return (pixels - level if level > PEDESTAL * pixels.max() else pixels).clip(0)


def check_image(pixels: Floats, zoom: float, n_pixels: int | None, name: str) -> None:
    """Raise `ValueError` where a point-spread function does not fit an image of `n_pixels` a side.

    zoom: its pixels' size over the image's.
    """
    height, width = pixels.shape
    peak = np.unravel_index(pixels.argmax(), pixels.shape)
    if height != width or height % 2 == 0:
        raise ValueError(f"{name} has {height} x {width} pixels; needs a square of odd sides")
    size = len(resampled(pixels, zoom, MAX_REACH))
    if n_pixels and size > n_pixels:
        raise ValueError(f"{name} has {size} pixels a side; needs to fit the image's {n_pixels}")
    if size < MIN_KERNEL:
        raise ValueError(f"{name} covers one of the camera's pixels; needs to cover {MIN_KERNEL} a side")
    if np.abs(np.subtract(peak, height // 2)).max() > 1:
        raise ValueError(f"{name} is not brightest in its middle; cut it out around its peak")


class PsfSet(Frozen):
    """Point-spread functions as images with odd sides and a central peak, of which each scene draws one; on the
    camera's own pixels or a scale that their files give."""

    profile: Literal["pixelated-set"]
    file: Path
    """Path of a stack of images (.npy, FITS), or of a folder of images, relative to the survey's own file."""
    sha256: str = ""
    """Hash of the files' bytes; filled in when the survey is read."""
    turned: bool = False
    """Whether each scene turns it by a multiple of 90 degrees, and mirrors it, at random."""
    broadening: NonNegative = Prior(kind="fixed", values=(0.0,))
    """Full width at half maximum of a Gaussian that blurs it further, arcsec."""

    @model_validator(mode="after")
    def _resolved(self, info: ValidationInfo) -> Self:
        if not info.context:  # as in a manifest, which is read without the files
            return self.model_copy(update={"file": self._of_a_preset() or self.file})
        path = (info.context["folder"] / self.file).resolve()
        if not path.exists():
            path = self._of_a_preset() or path
        try:
            return self.model_copy(update={"file": path, "sha256": _hash(path)})
        except ImageError as err:
            raise ValueError(str(err)) from err

    def _of_a_preset(self) -> Path | None:
        """The file of a preset's that has this name, and these bytes where they are known."""
        path = FOLDER / self.file.name
        return path if path.is_file() and self.sha256 in ("", _hash(path)) else None

    @field_serializer("file")
    def _name(self, path: Path) -> str:
        return path.name

    def is_finer(self, pixel_scale: float) -> bool:
        """Whether its pixels are finer than those of `pixel_scale`, arcsec; raises as `kernels` does."""
        scale = self._images()[0].pixel_scale
        return scale is not None and scale * (1 + SAME_SCALE) < pixel_scale

    @property
    def n_images(self) -> int:
        """Number of its images; raises as `kernels` does."""
        return len(self._images())

    def kernels(self, pixel_scale: float, most: int = MAX_REACH) -> Floats:
        """The images on pixels of `pixel_scale`, arcsec, [n, k, k] of odd k, the smaller ones padded with zeros.

        most: pixels to either side of the middle that are kept. Raises `ConfigError` where the files are not those
        that the survey was read with.
        """
        planes = [
            resampled(usable(image.pixels), (image.pixel_scale or pixel_scale) / pixel_scale, most)
            for image in self._images()
        ]
        reach = max(len(plane) for plane in planes) // 2
        return np.stack([np.pad(plane, reach - len(plane) // 2) for plane in planes])

    def check(self, n_pixels: int | None, pixel_scale: float | None) -> None:
        """Raise `ValueError` where an image does not fit one of `n_pixels` of `pixel_scale`, arcsec, a side."""
        try:
            images = self._images()
        except ImageError as err:
            raise ValueError(str(err)) from err
        for number, image in enumerate(images):
            name = f"{self.file.name}, image {number}"
            pixels = image.pixels
            if pixels.sum() <= 0 or pixels.min() < -0.01 * pixels.max():
                raise ValueError(f"{name}: cannot be normalised, its pixels add up to {pixels.sum():g} or are negative")
            zoom = (image.pixel_scale or pixel_scale or 1) / (pixel_scale or image.pixel_scale or 1)
            check_image(usable(pixels), zoom, n_pixels, name)
        if len({image.pixel_scale for image in images}) > 1:
            raise ValueError(f"{self.file.name} has images of several pixel scales; needs a single one")

    def _images(self) -> tuple[Image, ...]:
        if self.sha256 and not (self.file.exists() and _hash(self.file) == self.sha256):
            raise ConfigError(
                "is missing, or does not hold the images that this survey was made with",
                need=f"those whose sha256 begins with {self.sha256[:12]}",
                next="Put them back, or read the survey again from its TOML file.",
                path=self.file,
            )
        return _read(self.file, self.sha256)


def _hash(path: Path) -> str:
    """Hash of the file, or of all image files of the folder; `ImageError` where there is none."""
    files = image_files(path)
    if not files:
        raise ImageError("holds no image files", need="a point-spread function or more", next="Add them.", path=path)
    check_exists(files[0])
    return digest(files)


@lru_cache(maxsize=4)
def _read(path: Path, sha256: str) -> tuple[Image, ...]:
    """All images of a file or folder. sha256: of its contents, by which what was read before is known again."""
    images = []
    for image in _every_image(path):
        if isinstance(image, ImageError):
            raise image
        images.append(image)
        if len(images) > MAX_IMAGES:
            raise ImageError(f"holds more than {MAX_IMAGES:,} images", need="fewer", next="Leave some out.", path=path)
    return tuple(images)


def _every_image(path: Path) -> Iterator[Image | ImageError]:
    for file in image_files(path):
        yield from formats.read_all(file)
