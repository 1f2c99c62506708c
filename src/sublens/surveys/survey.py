"""A survey: the distributions that scenes are drawn from, and the camera that observes them.

A survey is data: a TOML file with the sections below. Wherever a `Prior` stands, a number means
a fixed value; `{ uniform = [low, high] }` and the others of `PRIORS` mean a distribution.
Sky angles are arcsec; position angles are radians, counter-clockwise from x, of the long axis.
Knows no torch.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
)

from sublens.config import Extended
from sublens.surveys.camera import Camera
from sublens.surveys.defects import Defects
from sublens.surveys.light import LensLight, Light, PixelatedSource, SersicSource
from sublens.surveys.mass import Cosmology, Halo, Shear, Subhaloes, Vortex


class Survey(Extended):
    """A survey: the distributions of its lenses and sources, and its camera."""

    ADDED = frozenset(("defects",))

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    """Name of the survey and of its data sets: letters, digits, dots, dashes and underscores."""
    description: Annotated[str, Field(pattern=r"\S")]
    """Purpose in a sentence; below it, corrections and the sources of its numbers."""
    cosmology: Cosmology
    """Redshifts of lens and source, and the distances between them."""
    camera: Camera
    """Pixels, point-spread function and noise."""
    halo: Halo
    """Mass of the lens galaxy."""
    shear: Shear
    """Shear from the mass around the lens."""
    source: Annotated[SersicSource | PixelatedSource, Field(discriminator="profile")]
    """Lensed galaxy."""
    lens_light: LensLight | None = None
    """Light of the lens galaxy; dark if left out."""
    subhaloes: Subhaloes
    """Substructure of the class `sphere`."""
    vortex: Vortex
    """Substructure of the class `vort`."""
    defects: Defects | None = None
    """Defects of the images."""

    @field_validator("source", mode="before")
    @classmethod
    def _sersic_by_default(cls, value: Any) -> Any:
        return {"profile": "sersic", **value} if isinstance(value, Mapping) else value

    @field_validator("source", "lens_light")
    @classmethod
    def _has_zero_point(cls, light: Light | None, info: ValidationInfo) -> Light | None:
        camera = info.data.get("camera")
        if light and light.magnitude and camera and camera.zero_point is None:
            raise ValueError("magnitude needs camera.zero_point")
        return light

    @field_validator("defects")
    @classmethod
    def _can_be_masked(cls, defects: Defects | None, info: ValidationInfo) -> Defects | None:
        camera = info.data.get("camera")
        if camera and camera.pixels == "counts" and defects and defects.has_masks:
            raise ValueError('masked pixels need camera.pixels = "signal-to-noise"; or set masked = 0')
        return defects

    @property
    def field(self) -> float:
        """Side of the image, arcsec."""
        return self.camera.n_pixels * self.camera.pixel_scale
