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

from sublens.config import Frozen, later
from sublens.surveys.camera import Camera
from sublens.surveys.contaminants import Contaminants
from sublens.surveys.defects import Defects
from sublens.surveys.light import (
    Beside,
    ClumpySource,
    LensLight,
    Light,
    Neighbours,
    PixelatedSource,
    SersicSource,
    StampSource,
    Stars,
)
from sublens.surveys.mass import Cosmology, Halo, Shear, Subhaloes, Vortex

MOST_CONTAMINANTS = 0.5
"""Greatest share of a training's images that may be no lens."""
Source = SersicSource | PixelatedSource | StampSource | ClumpySource


class Survey(Frozen):
    """A survey: the distributions of its lenses and sources, and its camera."""

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
    source: Annotated[Source, Field(discriminator="profile")]
    """Lensed galaxy."""
    lens_light: LensLight | None = None
    """Light of the lens galaxy; dark if left out."""
    neighbours: Neighbours | None = later(None)
    """Galaxies beside the lens; none if left out."""
    stars: Stars | None = later(None)
    """Stars in the field; none if left out."""
    subhaloes: Subhaloes
    """Substructure of the class `sphere`."""
    vortex: Vortex
    """Substructure of the class `vort`."""
    defects: Defects | None = later(None)
    """Defects of the images."""
    contaminants: Contaminants | None = later(None)
    """Images in a training on fresh ones that are no lens; none if left out."""

    @field_validator("source", mode="before")
    @classmethod
    def _sersic_by_default(cls, value: Any) -> Any:
        return {"profile": "sersic", **value} if isinstance(value, Mapping) else value

    @field_validator("source", "lens_light", "neighbours", "stars")
    @classmethod
    def _has_zero_point(cls, light: Light | Beside | None, info: ValidationInfo) -> Light | Beside | None:
        camera = info.data.get("camera")
        has_intensity = light is None or (isinstance(light, Light) and light.intensity is not None)
        if not has_intensity and camera and camera.zero_point is None:
            raise ValueError("magnitude needs camera.zero_point")
        return light

    @field_validator("defects")
    @classmethod
    def _can_be_masked(cls, defects: Defects | None, info: ValidationInfo) -> Defects | None:
        camera = info.data.get("camera")
        if camera and camera.pixels == "counts" and defects and defects.has_masks:
            raise ValueError('masked pixels need camera.pixels = "signal-to-noise"; or set masked = 0')
        return defects

    @field_validator("contaminants")
    @classmethod
    def _can_be_learned(cls, contaminants: Contaminants | None, info: ValidationInfo) -> Contaminants | None:
        camera = info.data.get("camera")
        if contaminants and camera and camera.pixels == "counts":
            raise ValueError('needs camera.pixels = "signal-to-noise": networks of counts do not tell contaminants')
        if contaminants and contaminants.share > MOST_CONTAMINANTS:
            raise ValueError(f"share is {contaminants.share:g}; needs {MOST_CONTAMINANTS:g} or less, to leave lenses")
        return contaminants

    @property
    def has_general_light(self) -> bool:
        """Whether scenes have light beyond one source and a lens galaxy that shares the halo's shape."""
        is_general = bool(self.lens_light and self.lens_light.is_general)
        has_more = is_general or bool(self.neighbours or self.stars)
        return has_more or isinstance(self.source, StampSource | ClumpySource)

    @property
    def field(self) -> float:
        """Side of the image, arcsec."""
        return self.camera.n_pixels * self.camera.pixel_scale
