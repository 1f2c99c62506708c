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
from sublens.surveys.priors import AxisRatio, Fraction, NonNegative, Positive, Prior, bounded, later


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


NOUGHT, ISOTHERMAL = Prior(kind="fixed", values=(0.0,)), Prior(kind="fixed", values=(2.0,))
HALF_TURN = Prior(kind="uniform", values=(0.0, float(np.pi)))
TURN = Prior(kind="uniform", values=(0.0, float(2 * np.pi)))
Amplitude = Annotated[Prior, bounded(0, 0.1, "within 0 and 0.1")]
Slope = Annotated[Prior, bounded(1.2, 2.8, "within 1.2 and 2.8")]


class Halo(Frozen):
    """The lens galaxy's mass: an elliptical power law, isothermal and at the origin unless set otherwise.

    Its size follows from one of `mass_msun`, `theta_e` and `sigma_v`.
    """

    mass_msun: Positive | None = None
    """Mass of halo and substructure together inside the Einstein radius, solar masses."""
    theta_e: Positive | None = later(None)
    """Einstein radius of halo and substructure together, arcsec."""
    sigma_v: Positive | None = later(None)
    """Velocity dispersion of the isothermal sphere of that Einstein radius, km/s."""
    conserves: Literal["ring", "total-mass"] = "ring"
    """Quantity that is the same with and without substructure. `ring`: the radius in which the mean convergence is 1;
    the halo lacks what substructure holds inside it. `total-mass`: the halo lacks all substructure, wherever it lies,
    and the size of the ring tells the class."""
    q: AxisRatio = Prior(kind="fixed", values=(1.0,))
    """Axis ratio of the convergence."""
    angle: Prior = HALF_TURN
    """Position angle."""
    slope: Slope = later(ISOTHERMAL)
    """Slope of the density, r^-slope: 2 is isothermal."""
    x: Prior = later(NOUGHT)
    """Centre of the mass along x, arcsec; the lens galaxy's light stays at the origin."""
    y: Prior = later(NOUGHT)
    """Centre of the mass along y, arcsec."""
    m3: Amplitude = later(NOUGHT)
    """Amplitude of the multipole of order 3, relative to the convergence; see `sublens.lensing.power_law`."""
    m3_angle: Prior = later(TURN)
    """Angle at which the multipole of order 3 adds most."""
    m4: Amplitude = later(NOUGHT)
    """Amplitude of the multipole of order 4, relative to the convergence."""
    m4_angle: Prior = later(TURN)
    """Angle at which the multipole of order 4 adds most."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if sum(size is not None for size in (self.mass_msun, self.theta_e, self.sigma_v)) != 1:
            raise ValueError("needs exactly one of mass_msun, theta_e and sigma_v")
        return self

    @property
    def is_general(self) -> bool:
        """Whether the halo may be other than an isothermal ellipsoid at the origin."""
        return self.slope != ISOTHERMAL or any(prior != NOUGHT for prior in (self.x, self.y, self.m3, self.m4))


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
    angle: Prior = TURN
    """Position angle."""
