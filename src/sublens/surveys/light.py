"""Settings of the light: the lensed galaxy, the lens galaxy, and galaxies and stars beside it."""

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, PositiveFloat, model_validator

from sublens.config import Frozen, later
from sublens.surveys.image_file import ImageFile
from sublens.surveys.priors import AxisRatio, Fraction, NonNegative, Positive, Prior, bounded
from sublens.surveys.stamps import StampFiles

NOUGHT, ONE = Prior(kind="fixed", values=(0.0,)), Prior(kind="fixed", values=(1.0,))
TURN = Prior(kind="uniform", values=(0.0, float(2 * np.pi)))
SersicIndex = Annotated[Prior, bounded(0.3, 10, "within 0.3 and 10")]
Number = Annotated[Prior, bounded(0, 100, "within 0 and 100")]
Boxiness = Annotated[Prior, bounded(-0.1, 0.1, "within -0.1 and 0.1")]


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

    @property
    def brightness(self) -> Prior:
        """Intensity, or magnitude."""
        return self.intensity or self.magnitude or NOUGHT


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
    n: SersicIndex
    """Sersic index."""
    r_eff: Positive
    """Effective radius, arcsec."""
    q: AxisRatio = ONE
    """Axis ratio."""


class PixelatedSource(Placed, ImageFile):
    """A picture of a real galaxy, without its sky, as the source."""

    profile: Literal["pixelated"]
    scale: PositiveFloat
    """Arcsec a pixel of the picture, in the source plane."""


class StampSource(Placed, StampFiles):
    """Stamps of real galaxies as sources: each scene has one of them, turned and mirrored at random.

    Stamps are cleaned of sky and noise. They hold the blur of the telescope that took them, which a lens magnifies with
    the rest: such sources are a little smoother than galaxies are, and are never drawn larger than they were observed.
    """

    profile: Literal["stamps"]
    angle: Prior = TURN
    """Angle by which a stamp is turned."""
    zoom: Annotated[Prior, bounded(0, 1, "above 0 and up to 1", strict=True)] = ONE
    """Size over that on the stamp."""
    zero_point: float | None = None
    """Magnitude of a stamp whose pixels add up to 1, where its own brightness counts."""
    dimming: Prior | None = None
    """Magnitudes by which a source is fainter than its stamp; alternative to `magnitude`."""

    @model_validator(mode="after")
    def _one_brightness(self) -> Self:
        if self.intensity or (self.magnitude is None) == (self.dimming is None):
            raise ValueError("needs either magnitude, or zero_point and dimming")
        if (self.dimming is None) != (self.zero_point is None):
            raise ValueError("zero_point goes with dimming, and dimming with it")
        return self

    @property
    def brightness(self) -> Prior:
        """Magnitude, or magnitudes that are added to the stamp's."""
        return self.magnitude or self.dimming or NOUGHT


class Knots(Frozen):
    """Knots of star formation in a disc: Gaussians at an exponential disc's radii."""

    number: Number
    """Number of knots; rounded to a whole number."""
    share: Fraction
    """Share of the source's light in all knots together; their brightness is distributed as L^-2 over a factor of
    10."""
    size: Annotated[Prior, bounded(0.03, 0.5, "within 0.03 and 0.5")]
    """Standard deviation of a knot over the disc's effective radius."""
    arms: Annotated[int, Field(ge=0, le=8)] = 0
    """Number of spiral arms that the knots lie along; 0 for any direction."""
    pitch: Annotated[float, Field(ge=0.1, le=1.5)] = 0.35
    """Angle between an arm and a circle."""


class ClumpySource(Placed):
    """An elliptical Sersic disc with knots of star formation as the source."""

    profile: Literal["clumpy"]
    n: SersicIndex = ONE
    """Sersic index of the disc."""
    r_eff: Positive
    """Effective radius of the disc, arcsec."""
    q: AxisRatio = ONE
    """Axis ratio."""
    knots: Knots
    """Star-forming knots."""


class Disc(Frozen):
    """A second component of the lens galaxy's light, at the same centre."""

    share: Fraction
    """Share of the galaxy's light."""
    n: SersicIndex = ONE
    """Sersic index."""
    r_eff_ratio: Positive
    """Effective radius over that of the first component."""
    q: AxisRatio = ONE
    """Axis ratio."""
    twist: Prior = NOUGHT
    """Position angle against that of the first component."""


class Nucleus(Frozen):
    """An unresolved nucleus of the lens galaxy."""

    share: Fraction
    """Share of the galaxy's light."""


class LensLight(Light):
    """The lens galaxy's own light: a Sersic profile at the origin with the halo's q and angle, unless set otherwise.

    Brightness is that of all its components together; `intensity` is that of a galaxy without disc and nucleus.
    """

    n: SersicIndex
    """Sersic index."""
    r_eff: Positive
    """Effective radius, arcsec."""
    q: AxisRatio | None = later(None)
    """Axis ratio; unset, the halo's."""
    misalignment: Prior = later(NOUGHT)
    """Position angle against the halo's."""
    x: Prior = later(NOUGHT)
    """Position of the centre along x, arcsec."""
    y: Prior = later(NOUGHT)
    """Position of the centre along y, arcsec."""
    boxiness: Boxiness = later(NOUGHT)
    """Amplitude by which isophotes depart from ellipses, -a4 / a: above 0 they are boxy, below 0 discy."""
    disc: Disc | None = later(None)
    """Second component; none if left out."""
    nucleus: Nucleus | None = later(None)
    """Unresolved nucleus; none if left out."""

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if sum(part.share.high for part in (self.disc, self.nucleus) if part) > 1:
            raise ValueError("disc.share and nucleus.share may add up to more than 1; lower one of them")
        return self

    @property
    def is_general(self) -> bool:
        """Whether it may be other than one Sersic profile at the origin with the halo's shape."""
        has_parts = any(part is not None for part in (self.q, self.disc, self.nucleus))
        return has_parts or any(prior != NOUGHT for prior in (self.misalignment, self.x, self.y, self.boxiness))


class Beside(Frozen):
    """Number, brightness and distance of objects beside the lens, which it does not bend."""

    number: Number
    """Number of them; rounded to a whole number."""
    magnitude: Prior
    """Magnitude of one."""
    distance: NonNegative
    """Distance from the origin, in a uniform direction, arcsec; of the centre, which may lie outside the image."""


class Neighbours(Beside):
    """Galaxies beside the lens: elliptical Sersic profiles that point any way."""

    n: SersicIndex
    """Sersic index."""
    r_eff: Positive
    """Effective radius, arcsec."""
    q: AxisRatio = ONE
    """Axis ratio."""


class Stars(Beside):
    """Stars in the field: unresolved, of any brightness."""
