"""The truth table: parameters of simulated images, by image and by subhalo."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sublens.surveys.extra import blank

_REALS = (
    *("z_lens", "z_source", "exposure_s", "background", "noise_rms"),
    *("lens_mass_msun", "theta_e", "halo_mass_msun", "halo_theta_e", "halo_q", "halo_angle", "gamma", "shear_angle"),
    *("source_x", "source_y", "source_q", "source_angle", "source_n", "source_r_eff", "source_intensity"),
    *("lens_n", "lens_r_eff", "lens_intensity"),
    *("string_x", "string_y", "string_angle", "string_half_length", "string_mass_msun", "string_theta_e"),
)
SCENE = np.dtype([("index", "<i8"), ("label", "<i8"), *((name, "<f8") for name in _REALS), ("n_subhaloes", "<i8")])
"""Columns of the truth table, one row an image. Lengths are arcsec, angles radians, light electrons a pixel in
the whole exposure; lens light and string have intensity or mass 0 where a scene has none.

lens_mass_msun and theta_e describe the smooth lens that `smoothed` puts in the scene's place: the mass inside its
Einstein radius, and that radius. halo_mass_msun and halo_theta_e are left for the halo once substructure has its
share, see `weigh`. string_theta_e is the Einstein radius of a point of the string's mass."""

_SUBHALO_REALS = ("x", "y", "mass_msun", "m200_msun", "theta_e", "r_s", "alpha_rs", "r_t")
SUBHALO = np.dtype([(name, "<f8") for name in _SUBHALO_REALS])
"""Columns of the table of subhaloes, one row each, in the order of the images that hold them.

mass_msun is the whole mass, which for a truncated halo is what truncation leaves of m200_msun; that of an NFW halo
without truncation has no bound, and its mass_msun is m200_msun. theta_e is that of a point of mass_msun. m200_msun, r_s
and alpha_rs are 0 for a point, r_t where it is not truncated."""


@dataclass(frozen=True)
class Truth:
    """Parameters of simulated images: `scenes` [n] of dtype SCENE, `subhaloes` [any] of dtype SUBHALO.

    `extra` [n] of dtype EXTRA is there where the survey has one of the settings that it records, else None.
    """

    scenes: NDArray[np.void]
    subhaloes: NDArray[np.void]
    extra: NDArray[np.void] | None = None

    def __len__(self) -> int:
        return len(self.scenes)

    def extra_or_blank(self) -> NDArray[np.void]:
        """The rows of `extra`, or those with every setting off."""
        return blank(len(self)) if self.extra is None else self.extra

    def owners(self) -> NDArray[np.int64]:
        """Position in `scenes` of each subhalo's image, [any]."""
        return np.repeat(np.arange(len(self)), self.scenes["n_subhaloes"])

    def take(self, positions: NDArray[np.int64]) -> Self:
        """The rows at these positions, in this order, with their subhaloes."""
        counts = self.scenes["n_subhaloes"]
        starts = np.cumsum(counts) - counts
        chosen = counts[positions]
        within = np.arange(chosen.sum()) - np.repeat(np.cumsum(chosen) - chosen, chosen)
        rows = np.repeat(starts[positions], chosen) + within
        extra = None if self.extra is None else self.extra[positions]
        return type(self)(self.scenes[positions], self.subhaloes[rows], extra)


def joined(truths: Sequence[Truth]) -> Truth | None:
    """The rows of all these truths, of one survey, in this order; None where there are none."""
    if not truths:
        return None
    scenes, subhaloes = (np.concatenate([getattr(t, name) for t in truths]) for name in ("scenes", "subhaloes"))
    more = [truth.extra for truth in truths if truth.extra is not None]
    return Truth(scenes, subhaloes, np.concatenate(more) if more else None)


def smoothed(truth: Truth) -> Truth:
    """The smooth lenses with the same rings, or with the same total masses where the survey conserves those."""
    scenes = truth.scenes.copy()
    take_substructure_away(scenes)
    return Truth(scenes, truth.subhaloes[:0], truth.extra)


def take_substructure_away(scenes: NDArray[np.void]) -> None:
    """Give the mass of substructure to the halo, in scenes of dtype SCENE; rows of subhaloes are the caller's."""
    scenes["halo_mass_msun"], scenes["halo_theta_e"] = scenes["lens_mass_msun"], scenes["theta_e"]
    for name in ("n_subhaloes", "string_mass_msun", "string_theta_e"):
        scenes[name] = 0


def of_format_2(scenes: NDArray[np.void], subhaloes: NDArray[np.void]) -> Truth:
    """The truth in tables of stores of format 2: of point masses, theta_e the halo's own, and total mass conserved."""
    truth = Truth(np.zeros(len(scenes), SCENE), np.zeros(len(subhaloes), SUBHALO))
    for table, old in ((truth.scenes, scenes), (truth.subhaloes, subhaloes)):
        for name in old.dtype.names or ():
            table[name] = old[name]
    whole = truth.scenes
    substructure = np.bincount(truth.owners(), subhaloes["mass_msun"], minlength=len(scenes))
    whole["lens_mass_msun"] = scenes["halo_mass_msun"] + (scenes["string_mass_msun"] + substructure)
    whole["halo_theta_e"] = scenes["theta_e"]
    whole["theta_e"] = scenes["theta_e"] * np.sqrt(whole["lens_mass_msun"] / whole["halo_mass_msun"])
    return truth
