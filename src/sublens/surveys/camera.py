"""Settings of the camera: pixels, point-spread function and noise."""

from math import ceil
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sublens.config import Frozen, later
from sublens.images.resample import SAME_SCALE
from sublens.surveys.image_file import ImageFile
from sublens.surveys.priors import (
    ClippedPositive,
    Floats,
    Fraction,
    NonNegative,
    Positive,
    Prior,
    clipped_quantile,
)
from sublens.surveys.psf_set import MAX_REACH, PsfSet, check_image, resampled

FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))
MIN_FWHM = 1.5
"""Least number of points, at which light is computed, in the full width of a profile: else its width is off by 1 %."""
MAX_SUPERSAMPLING = 16
"""Most points along one side of a pixel."""
OFF, EXACT = Prior(kind="fixed", values=(0.0,)), Prior(kind="fixed", values=(1.0,))
"""Priors of a setting that adds nothing, and of a factor that changes nothing."""


def _number_or_prior(value: object) -> object:
    """A positive number as it is, a prior parsed."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return TypeAdapter(PositiveFloat).validate_python(value)
    return TypeAdapter(ClippedPositive).validate_python(value)


Width = Annotated[float | Prior, BeforeValidator(_number_or_prior)]
"""Full width at half maximum: a number, or a prior that each scene draws from, its tails cut."""


class Gaussian(Frozen):
    """A Gaussian point-spread function."""

    profile: Literal["gaussian"]
    fwhm: Width
    """Full width at half maximum, arcsec; a number, or a prior."""


class Moffat(Frozen):
    """A Moffat point-spread function, (1 + r^2 / a^2)^-beta."""

    profile: Literal["moffat"]
    fwhm: Width
    """Full width at half maximum, arcsec; a number, or a prior."""
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
        return resampled(image.pixels.clip(0), (image.pixel_scale or pixel_scale) / pixel_scale, most)

    def check(self, n_pixels: int | None, pixel_scale: float | None) -> None:
        """Raise `ValueError` where it does not fit an image of `n_pixels` of `pixel_scale`, arcsec, a side."""
        own_scale = self.image().pixel_scale
        zoom = own_scale / pixel_scale if own_scale and pixel_scale else 1
        check_image(self.pixels(), zoom, n_pixels, self.file.name)


Psf = Annotated[Gaussian | Moffat | PixelatedPsf | PsfSet, Field(discriminator="profile")]


def widths(psf: Psf) -> tuple[float, float] | None:
    """Least and greatest full width at half maximum, arcsec; None for images."""
    if isinstance(psf, PixelatedPsf | PsfSet):
        return None
    if isinstance(psf.fwhm, Prior):
        low, high = clipped_quantile(psf.fwhm, np.array([0.0, 1.0]))
        return float(low), float(high)
    return psf.fwhm, psf.fwhm


def is_drawn(psf: Psf) -> bool:
    """Whether each scene has a point-spread function of its own."""
    return isinstance(psf, PsfSet) or isinstance(getattr(psf, "fwhm", None), Prior)


def typical_fwhm(psf: Psf, otherwise: float) -> float:
    """The full width at half maximum, arcsec, its median where it is drawn; `otherwise` for images."""
    fwhm = getattr(psf, "fwhm", otherwise)
    return fwhm.median if isinstance(fwhm, Prior) else float(fwhm)


class Camera(Frozen):
    """Pixels, point-spread function and noise. Light is measured in electrons, and saved in counts or as signal to
    noise."""

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
    n_exposures: PositiveInt | Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = 1
    """Number of exposures that are added up; or a list of numbers, of which each scene draws one."""
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
    pixels: Literal["counts", "signal-to-noise"] = later("counts")
    """Values that are saved: counts above the image's minimum; or electrons above the sky over their noise, as
    `sublens.images.signal_to_noise` encodes them. The settings below need the latter."""
    noise_correlation: Fraction = later(OFF)
    """Side of the drops that a drizzled image is made of, over that of its pixels: 0 for none, 1 for pixels that are
    drizzled with pixfrac 1 onto their own scale."""
    sky_residual: Prior = later(OFF)
    """Sky that is left after subtraction, in standard deviations of the sky's noise in a pixel."""
    sky_gradient: Prior = later(OFF)
    """Change of the sky across the image in a random direction, in the same unit."""
    noise_error: ClippedPositive = later(EXACT)
    """Noise that the noise map states over the true one."""

    @field_validator("psf")
    @classmethod
    def _fits(cls, psf: Psf, info: ValidationInfo) -> Psf:
        n_pixels, scale = info.data.get("n_pixels"), info.data.get("pixel_scale")
        if isinstance(psf, PixelatedPsf | PsfSet):
            if info.context:
                psf.check(n_pixels, scale)
        elif scale:
            _check_width(psf, n_pixels, scale, info.data.get("supersampling", 1) if info.context else None)
        return psf

    @model_validator(mode="after")
    def _one_sky(self) -> Self:
        if (self.background is None) == (self.sky_magnitude is None):
            raise ValueError("needs either background or sky_magnitude")
        if self.sky_magnitude and self.zero_point is None:
            raise ValueError("sky_magnitude needs zero_point")
        return self

    @model_validator(mode="after")
    def _counts_are_plain(self) -> Self:
        off = {"noise_correlation": OFF, "sky_residual": OFF, "sky_gradient": OFF, "noise_error": EXACT}
        names = [name for name, value in off.items() if getattr(self, name) != value]
        if self.pixels == "counts" and names:
            raise ValueError(f'{" and ".join(names)} need{"s" * (len(names) == 1)} pixels = "signal-to-noise"')
        return self

    @property
    def is_drawn(self) -> bool:
        """Whether the observation differs between scenes in more than exposure and sky."""
        return is_drawn(self.psf) or isinstance(self.n_exposures, tuple) or self.pixels != "counts"


def _check_width(psf: Gaussian | Moffat, n_pixels: int | None, scale: float, parts: int | None) -> None:
    """Raise `ValueError` where a profile is too wide for the image, or too narrow for the points of its pixels.

    parts: points along a side of a pixel; None leaves the latter out.
    """
    low, high = widths(psf) or (scale, scale)
    if n_pixels and high > n_pixels * scale / 4:
        raise ValueError(f"is {high:g} arcsec wide; needs to fit the image's {n_pixels * scale:g} four times over")
    if parts and low < MIN_FWHM * scale / parts:
        least = ceil(MIN_FWHM * scale / low)
        remedy = f"Set camera.supersampling = {least}" if least <= MAX_SUPERSAMPLING else "Choose smaller pixels"
        raise ValueError(
            f"is {low:g} arcsec wide on points {scale / parts:g} apart; needs {MIN_FWHM} of them. {remedy}"
        )
