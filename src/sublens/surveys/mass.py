"""Settings of the mass: redshifts, halo, shear and substructure."""

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import (
    Field,
    PositiveFloat,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sublens.config import Frozen
from sublens.surveys.priors import AxisRatio, Fraction, NonNegative, Positive, Prior, bounded


class Cosmology(Frozen):
    """Redshifts of lens and source, and the distances between them."""

    convention: Literal["angular-diameter", "deeplense"] = "angular-diameter"
    """Convention by which distances enter the Einstein radius; see `sublens.lensing.cosmology`."""
    h0: PositiveFloat = 70
    """Hubble constant, km/s/Mpc."""
    om0: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Matter density of the flat LCDM universe."""
    z_lens: Positive
    """Lens redshift."""
    z_source: Positive
    """Source redshift, always above the lens's."""

    @field_validator("z_source")
    @classmethod
    def _behind(cls, z_source: Prior, info: ValidationInfo) -> Prior:
        z_lens = info.data.get("z_lens")
        if z_lens and z_source.low <= z_lens.high:
            raise ValueError(
                f"the source may be at {z_source.low:g}, in front of a lens at up to {z_lens.high:g}; "
                "needs to be behind it"
            )
        return z_source


class Halo(Frozen):
    """The lens galaxy's mass: a singular isothermal ellipsoid at the origin; a sphere where q is 1."""

    mass_msun: Positive
    """Mass of halo and substructure together inside the Einstein radius, solar masses."""
    conserves: Literal["ring", "total-mass"] = "ring"
    """Quantity that is the same with and without substructure. `ring`: the radius in which the mean convergence is 1;
    the halo lacks what substructure holds inside it. `total-mass`: the halo lacks all substructure, wherever it lies,
    and the size of the ring tells the class."""
    q: AxisRatio = Prior(kind="fixed", values=(1.0,))
    """Axis ratio of the convergence."""
    angle: Prior = Prior(kind="uniform", values=(0.0, float(np.pi)))
    """Position angle."""


class Shear(Frozen):
    """External shear about the origin."""

    gamma: Fraction
    """Strength."""
    angle: Prior
    """Position angle: images are drawn out along it."""


class Subhaloes(Frozen):
    """The dark substructure of a `sphere` image."""

    profile: Literal["point", "nfw", "tnfw"] = "point"
    """Point masses, NFW haloes, or NFW haloes truncated as (1 + r^2 / r_t^2)^-1."""
    number: Annotated[Prior, bounded(0, 1500, "within 0 and 1500")]
    """Number of subhaloes; rounded to a whole number."""
    mass_msun: Positive
    """Mass of one, solar masses; M200 at the lens redshift, before truncation, for the NFW kinds."""
    radius: NonNegative
    """Distance from the origin, in a uniform direction, arcsec."""
    concentration: Positive | None = None
    """r_200 over the scale radius; NFW kinds only."""
    truncation: Positive | None = None
    """Truncation radius over the scale radius; `tnfw` only."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.profile != "point") != (self.concentration is not None):
            raise ValueError("concentration goes with the profiles nfw and tnfw, and they with it")
        if (self.profile == "tnfw") != (self.truncation is not None):
            raise ValueError("truncation goes with the profile tnfw, and it with truncation")
        return self


class Vortex(Frozen):
    """The straight uniform string of a `vort` image."""

    mass_fraction: Fraction
    """Mass over the halo's `mass_msun`."""
    x: Prior
    """Position of the middle along x, arcsec."""
    y: Prior
    """Position of the middle along y, arcsec."""
    half_length: Positive
    """Half of its length, arcsec."""
    angle: Prior = Prior(kind="uniform", values=(0.0, float(2 * np.pi)))
    """Position angle."""
