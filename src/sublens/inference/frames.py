"""The frame in which a network takes images: their size, pixel scale and unit."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from sublens.config import InputConfig, field_of_view
from sublens.errors import ImageError
from sublens.images import resample, signal_to_noise
from sublens.images.limits import name_errors
from sublens.images.pixels import Image, RawImage, TangentPlane, fill_missing
from sublens.models.bundle import CardMap


class KnownNoise(NamedTuple):
    """Noise, point-spread function and mask of an image, as far as they are known."""

    noise: str = ""
    """Source of its noise, as `Companions.noise_source` has it; empty where the network takes no signal to noise."""
    psf_fwhm: float | None = None
    """Full width of its point-spread function at half maximum, arcsec; None where it is not known."""
    n_masked: int | None = None
    """Number of masked pixels in the network's input; None where the network takes no signal to noise."""


UNKNOWN = KnownNoise()
"""Noise of an image for a network that takes no signal to noise."""


@dataclass(frozen=True)
class Frame:
    """Size, pixel scale and unit of the images that a network was trained on."""

    shape: tuple[int, int]
    """Height and width, pixels."""
    side: int
    """Side of the central square that the network takes in, pixels."""
    takes_noise: bool
    """Whether it takes codes of signal to noise, instead of counts above the minimum."""
    map: CardMap | None = None
    """Cells of the network's maps, which cover that square; None where it was not trained on simulated images."""

    @classmethod
    def of(cls, shape: tuple[int, int], config: InputConfig, cells: CardMap | None) -> Self:
        """The frame of a network with these training images, input and maps."""
        return cls(shape, field_of_view(config, shape), config.takes_noise, cells)

    @property
    def pixel_scale(self) -> float | None:
        """Arcsec a pixel; None where the training images were not simulated."""
        return self.map.n_cells * self.map.cell_arcsec / self.side if self.map else None

    def framed(self, image: Image, pixel_scale: float | None) -> Image:
        """An image, of that many arcsec a pixel where its file is not to be trusted, in this frame.

        Raises `ImageError` as `resample.resample_image` and `resample.resample_weighed` do.
        """
        resampled = resample.resample_weighed if self.takes_noise else resample.resample_image
        return resampled(image, self.shape, self.side, self.pixel_scale, pixel_scale)

    def image(self, array: ArrayLike, name: str) -> Image:
        """The checked image of an array [h, w] or [1, h, w] of this size, masked or not, in any linear scale.

        Raises `ImageError`, which calls it `name`, where it is infinite, constant, all missing or of another size.
        """
        mask = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else None
        pixels = np.asarray(array)
        if pixels.ndim in (2, 3):
            self.check_size(pixels.shape[-2:], name)  # before the pixels are checked, which takes a while
        with name_errors(name):
            return fill_missing(RawImage(pixels, mask=mask), name)

    def check_size(self, shape: tuple[int, ...], name: str) -> None:
        """Raise `ImageError`, which calls the image `name`, where it is not [h, w] of the training images."""
        if shape != self.shape:
            have, need = (f"{h} x {w}" for h, w in (shape, self.shape))
            raise ImageError(
                f"is {have} pixels",
                need=f"{need} pixels, as in the network's training images",
                next="Crop or resample the image.",
                path=name,
            )

    def map_plane(self, plane: TangentPlane | None) -> TangentPlane | None:
        """The coordinates of the network's map in those of an image in this frame."""
        if self.map is None or plane is None:
            return None
        return plane.cut(self.shape, (self.side, self.side)).zoomed(self.map.n_cells / self.side)

    def known_noise(self, image: Image) -> KnownNoise:
        """The noise of an image in this frame."""
        if image.codes is None:
            return UNKNOWN
        masked = resample.central(image.codes, self.side) == signal_to_noise.MASKED
        source = image.companions.noise_source.replace("weight", "map")
        return KnownNoise(source, image.psf_fwhm, int(masked.sum()))
