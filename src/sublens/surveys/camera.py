"""Settings of the camera: pixels, point-spread function and noise."""

from math import ceil
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sublens.config import Frozen
from sublens.images.resample import SAME_SCALE
from sublens.surveys.image_file import ImageFile
from sublens.surveys.priors import Floats, NonNegative, Positive, Prior

FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))
MIN_KERNEL = 3
"""Least number of the camera's pixels along a side of a point-spread function."""
MIN_FWHM = 1.5
"""Least number of points, at which light is computed, in the full width of a profile: else its width is off by 1 %."""
MAX_SUPERSAMPLING = 16
"""Most points along one side of a pixel."""
MAX_REACH = 512
"""Farthest that a point-spread function reaches from its middle, pixels: half of the largest image."""


class Gaussian(Frozen):
    """A Gaussian point-spread function."""

    profile: Literal["gaussian"]
    fwhm: PositiveFloat
    """Full width at half maximum, arcsec."""


class Moffat(Frozen):
    """A Moffat point-spread function, (1 + r^2 / a^2)^-beta."""

    profile: Literal["moffat"]
    fwhm: PositiveFloat
    """Full width at half maximum, arcsec."""
    beta: Annotated[float, Field(gt=1)]
    """Steepness of the wings."""


class PixelatedPsf(ImageFile):
    """A point-spread function as an image with odd sides and a central peak, on the camera's own pixels or a scale
    that its file gives."""

    profile: Literal["pixelated"]

    def is_finer(self, pixel_scale: float) -> bool:
        """Whether its pixels are finer than those of `pixel_scale`, arcsec; raises as `pixels` does."""
        scale = self.image().pixel_scale
        return scale is not None and scale * (1 + SAME_SCALE) < pixel_scale

    def kernel(self, pixel_scale: float, most: int = MAX_REACH) -> Floats:
        """The image [k, k] of odd k on pixels of `pixel_scale`, arcsec, interpolated at their centres.

        most: pixels to either side of the middle that are kept. Raises as `pixels` does.
        """
        image = self.image()
        pixels, zoom = image.pixels.clip(0), (image.pixel_scale or pixel_scale) / pixel_scale
        if abs(zoom - 1) <= SAME_SCALE:
            return pixels
        from scipy import ndimage  # slow to import

        middle = len(pixels) // 2
        reach = min(int(middle * zoom + 1e-6), most)
        centres = middle + np.arange(-reach, reach + 1) / zoom
        grid = np.meshgrid(centres, centres, indexing="ij")
        return np.asarray(ndimage.map_coordinates(pixels, grid, mode="nearest").clip(0))

    def check(self, n_pixels: int | None, pixel_scale: float | None) -> None:
        """Raise `ValueError` where it does not fit an image of `n_pixels` of `pixel_scale`, arcsec, a side."""
        pixels, name = self.pixels(), self.file.name
        height, width = pixels.shape
        peak = np.unravel_index(pixels.argmax(), pixels.shape)
        if height != width or height % 2 == 0:
            raise ValueError(f"{name} has {height} x {width} pixels; needs a square of odd sides")
        size = len(self.kernel(pixel_scale)) if pixel_scale else height
        if n_pixels and size > n_pixels:
            raise ValueError(f"{name} has {size} pixels a side; needs to fit the image's {n_pixels}")
        if size < MIN_KERNEL:
            raise ValueError(f"{name} covers one of the camera's pixels; needs to cover {MIN_KERNEL} a side")
        if np.abs(np.subtract(peak, height // 2)).max() > 1:
            raise ValueError(f"{name} is not brightest in its middle; cut it out around its peak")


Psf = Annotated[Gaussian | Moffat | PixelatedPsf, Field(discriminator="profile")]


class Camera(Frozen):
    """Pixels, point-spread function and noise. Light is measured in electrons, and saved in counts."""

    n_pixels: Annotated[int, Field(ge=8, le=1024)]
    """Pixels along one side of the image."""
    pixel_scale: PositiveFloat
    """Arcsec a pixel."""
    supersampling: Annotated[int, Field(ge=1, le=MAX_SUPERSAMPLING)] = 1
    """Points along one side of a pixel at which light is computed, blurred and then averaged; from 2 on, more points
    where light is steep. At 1 a pixel holds the light at its centre."""
    psf: Psf
    """Point-spread function, without the pixel's own blur; but a picture on the camera's pixels is taken to hold it,
    and is applied to whole pixels."""
    exposure_s: Positive = Prior(kind="fixed", values=(1.0,))
    """Length of one exposure, s."""
    n_exposures: PositiveInt = 1
    """Number of exposures that are added up."""
    zero_point: float | None = None
    """Magnitude of one electron a second."""
    background: NonNegative | None = None
    """Sky, electrons a pixel a second; alternative to `sky_magnitude`."""
    sky_magnitude: Prior | None = None
    """Sky, magnitudes a square arcsec; alternative to `background`."""
    background_rms: NonNegativeFloat = 0
    """Gaussian noise that grows with the exposure, electrons a pixel a second."""
    read_noise: NonNegativeFloat = 0
    """Gaussian noise of one read-out, electrons a pixel."""
    gain: PositiveFloat = 1
    """Electrons a count."""

    @field_validator("psf")
    @classmethod
    def _fits(cls, psf: Psf, info: ValidationInfo) -> Psf:
        n_pixels, scale = info.data.get("n_pixels"), info.data.get("pixel_scale")
        if isinstance(psf, PixelatedPsf):
            if info.context:
                psf.check(n_pixels, scale)
        elif n_pixels and scale and psf.fwhm > n_pixels * scale / 4:
            raise ValueError(
                f"is {psf.fwhm:g} arcsec wide; needs to fit the image's {n_pixels * scale:g} four times over"
            )
        elif info.context and scale and psf.fwhm < MIN_FWHM * scale / info.data.get("supersampling", 1):
            least = ceil(MIN_FWHM * scale / psf.fwhm)
            remedy = f"Set camera.supersampling = {least}" if least <= MAX_SUPERSAMPLING else "Choose smaller pixels"
            raise ValueError(
                f"is {psf.fwhm:g} arcsec wide on points {scale / info.data.get('supersampling', 1):g} apart; needs "
                f"{MIN_FWHM} of them. {remedy}"
            )
        return psf

    @model_validator(mode="after")
    def _one_sky(self) -> Self:
        if (self.background is None) == (self.sky_magnitude is None):
            raise ValueError("needs either background or sky_magnitude")
        if self.sky_magnitude and self.zero_point is None:
            raise ValueError("sky_magnitude needs zero_point")
        return self
