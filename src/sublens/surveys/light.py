"""Settings of the light: the lensed galaxy and the lens galaxy."""

from typing import Annotated, Literal, Self

from pydantic import (
    PositiveFloat,
    model_validator,
)

from sublens.config import Frozen
from sublens.surveys.image_file import ImageFile
from sublens.surveys.priors import AxisRatio, NonNegative, Positive, Prior, bounded


class Light(Frozen):
    """Brightness of a light component."""

    intensity: Positive | None = None
    """Electrons a pixel a second at the effective radius, or at the peak of a pixelated source; alternative to
    `magnitude`."""
    magnitude: Prior | None = None
    """Total magnitude, unlensed; alternative to `intensity`."""

    @model_validator(mode="after")
    def _one_brightness(self) -> Self:
        if (self.intensity is None) == (self.magnitude is None):
            raise ValueError("needs either intensity or magnitude")
        return self


class Placed(Light):
    """Brightness and position of a source: within a circle around the origin, or x and y independently."""

    angle: Prior
    """Position angle."""
    offset: NonNegative | None = None
    """Distance from the origin, in a uniform direction, arcsec; alternative to `x` and `y`."""
    x: Prior | None = None
    """Position of the centre along x, arcsec."""
    y: Prior | None = None
    """Position of the centre along y, arcsec."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.offset is None) == (self.x is None) or (self.x is None) != (self.y is None):
            raise ValueError("needs either offset, or x and y")
        return self


class SersicSource(Placed):
    """An elliptical Sersic source."""

    profile: Literal["sersic"] = "sersic"
    n: Annotated[Prior, bounded(0.3, 10, "within 0.3 and 10")]
    """Sersic index."""
    r_eff: Positive
    """Effective radius, arcsec."""
    q: AxisRatio = Prior(kind="fixed", values=(1.0,))
    """Axis ratio."""


class PixelatedSource(Placed, ImageFile):
    """A picture of a real galaxy, without its sky, as the source."""

    profile: Literal["pixelated"]
    scale: PositiveFloat
    """Arcsec a pixel of the picture, in the source plane."""


class LensLight(Light):
    """The lens galaxy's own light: a Sersic profile at the origin with the halo's q and angle."""

    n: Annotated[Prior, bounded(0.3, 10, "within 0.3 and 10")]
    """Sersic index."""
    r_eff: Positive
    """Effective radius, arcsec."""
