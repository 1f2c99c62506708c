"""Settings of what detectors, satellites and cosmic rays leave in an image; none of it changes the class.

Lengths are pixels. Brightness is in standard deviations of the noise that sky and read-out make in a pixel.
"""

from typing import Annotated, Literal

from pydantic import Field

from sublens.config import Frozen
from sublens.surveys.priors import NonNegative, Positive, Prior

Kind = Literal["trails", "cosmic_rays", "hot_pixels", "dead_pixels", "columns", "gaps", "masked_discs"]
ZERO, ONE = Prior(kind="fixed", values=(0.0,)), Prior(kind="fixed", values=(1.0,))


class Defect(Frozen):
    """Defects of one kind."""

    number: NonNegative
    """Number in an image, rounded."""
    size: Positive = ONE
    """Size of each, pixels."""
    level: Prior = ZERO
    """Brightness of each."""
    masked: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Chance that the pixels of each are masked."""


class Trails(Defect):
    """Straight trails of satellites across the image, each through a random point in a random direction."""

    size: Positive = Prior(kind="log_uniform", values=(2.0, 8.0))
    """Full width at half maximum."""
    level: NonNegative = Prior(kind="log_uniform", values=(1.0, 50.0))
    """Brightness along its middle."""


class CosmicRays(Defect):
    """Tracks of cosmic rays, anywhere. Of those in one exposure, an image of n exposures keeps an n-th."""

    size: Positive = Prior(kind="log_uniform", values=(1.0, 20.0))
    """Number of pixels that it hits."""
    level: NonNegative = Prior(kind="log_uniform", values=(5.0, 500.0))
    """Brightness of each of its pixels."""


class HotPixels(Defect):
    """Squares of bright pixels, anywhere."""

    size: Positive = ONE
    """Side, rounded."""
    level: NonNegative = Prior(kind="log_uniform", values=(5.0, 500.0))
    """Brightness."""


class DeadPixels(Defect):
    """Squares of pixels that do not answer to light, anywhere."""

    size: Positive = ONE
    """Side, rounded."""
    level: Prior = ZERO
    """Value above the sky, in the same unit as brightness."""


class Columns(Defect):
    """Bad columns or, as often, rows."""

    size: Positive = ONE
    """Width, rounded."""
    level: Prior = Prior(kind="log_uniform", values=(1.0, 50.0))
    """Brightness; darker than the sky where it is negative."""


class Gaps(Defect):
    """Gaps between chips: bands without light along columns or, as often, rows."""

    size: Positive = Prior(kind="uniform", values=(2.0, 20.0))
    """Width, rounded."""
    level: Prior = ZERO
    """Value above the sky of those that are not masked."""
    masked: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Chance that the pixels of each are masked."""


class MaskedDiscs(Defect):
    """Discs that are masked, as astronomers mask neighbouring galaxies."""

    size: Positive = Prior(kind="log_uniform", values=(8.0, 40.0))
    """Diameter."""
    distance: NonNegative = Prior(kind="uniform", values=(50.0, 85.0))
    """Distance of its middle from the image's."""
    level: NonNegative = ZERO
    """Brightness of those that are not masked."""
    masked: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Chance that the pixels of each are masked."""


class Defects(Frozen):
    """Defects of the images; each kind is left out by default."""

    trails: Trails | None = None
    """Trails of satellites."""
    cosmic_rays: CosmicRays | None = None
    """Cosmic rays."""
    hot_pixels: HotPixels | None = None
    """Bright pixels."""
    dead_pixels: DeadPixels | None = None
    """Pixels that do not answer to light."""
    columns: Columns | None = None
    """Bad columns and rows."""
    gaps: Gaps | None = None
    """Gaps between chips."""
    masked_discs: MaskedDiscs | None = None
    """Discs that are masked."""

    def of_kind(self, kind: Kind) -> Defect | None:
        """The settings of a kind; None where it is left out."""
        defect: Defect | None = getattr(self, kind)
        return defect

    @property
    def has_masks(self) -> bool:
        """Whether any pixels are masked."""
        kinds = (defect for _, defect in self)
        return any(defect is not None and defect.masked > 0 for defect in kinds)
