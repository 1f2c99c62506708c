"""Random draws of whole scenes: the truth table.

One image is decided by (seed, split, index) alone: its class is index modulo the number of
classes, and its random numbers are a fixed stretch of a counter-based generator's sequence.
Any slice of a data set can therefore be drawn by itself, in any order, on any number of workers;
and each quantity has a position of its own in that stretch, so that changing one prior leaves all
else as it was, and more subhaloes are added to the same ones.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.random import Generator, Philox, SeedSequence
from numpy.typing import NDArray

from sublens.errors import ConfigError
from sublens.lensing import mass, power_law
from sublens.lensing.cosmology import einstein_radius, isothermal_radius
from sublens.lensing.pictures import picture
from sublens.lensing.sersic import sersic_total
from sublens.observation import defects, exposure
from sublens.sim import substructure
from sublens.sim.contaminants import replaced
from sublens.sim.galaxies import draw_light, per_second
from sublens.surveys import extra
from sublens.surveys.camera import Camera
from sublens.surveys.contaminants import Contaminants
from sublens.surveys.light import Light, PixelatedSource, StampSource
from sublens.surveys.priors import Floats, Prior
from sublens.surveys.survey import Survey
from sublens.surveys.truth import SCENE, SUBHALO, Truth

CLASSES = ("no", "sphere", "vort")
"""Smooth halo, subhaloes and vortex; a label is a position in this tuple."""

Split = Literal["train", "test"]
Purpose = Literal["scene", "number", "subhaloes", "noise", "mass", "light", "camera", "defects", "contaminants"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
"""Purposes of random sequences; a new one stands at the end, so that the others keep their numbers."""

SCENE_WIDTH = 32
"""Uniform numbers set aside for one scene."""
MASS_WIDTH = 16
"""Uniform numbers set aside for the columns `extra.MASS` of one scene."""
LIGHT_WIDTH = 32
"""Uniform numbers set aside for the columns `extra.LIGHT` of one scene."""
CAMERA_WIDTH, DEFECTS_WIDTH = 16, 8
"""Uniform numbers set aside for the observation and for the defects of one scene."""
CONTAMINANTS_WIDTH = 16
"""Uniform numbers set aside for what takes the place of one scene."""
SUBHALO_WIDTH = 5
"""Uniform numbers set aside for one subhalo."""
MOST_NUMBERS = 2**16
"""Uniform numbers set aside for the subhaloes of one image."""


def _stream(seed: int, split: Split, purpose: Purpose, index: int, width: int) -> Generator:
    """Generator of uniform numbers that starts at image `index`; width: numbers an image, a multiple of 4."""
    key = SeedSequence((seed, ("train", "test").index(split), PURPOSES.index(purpose)))
    counter = index * width // 4  # four numbers a count
    return Generator(Philox(key=key.generate_state(2, np.uint64), counter=counter))


def _uniform(seed: int, split: Split, purpose: Purpose, indices: Sequence[int], width: int) -> Floats:
    """Uniform numbers in [0, 1), `width` an image, [n, width]; indices ascend, and may repeat."""
    if not indices:
        return np.zeros((0, width))
    first, n = indices[0], indices[-1] - indices[0] + 1
    return _stream(seed, split, purpose, first, width).random((n, width))[np.subtract(indices, first)]


def noise_seeds(seed: int, split: Split, indices: range) -> list[int]:
    """Seeds of the noise, one an image."""
    return [int(number) for number in _uniform(seed, split, "noise", indices, 4)[:, 0] * 2**53]


def draw(
    survey: Survey,
    seed: int,
    split: Split,
    indices: range,
    contaminants: Contaminants | None = None,
    *,
    is_matched: bool = False,
) -> Truth:
    """The scenes of these images, whose indices must ascend from 0 or above.

    contaminants: what takes the place of a share of them, which (seed, split, index) decides alone; all others stay as
    they are. None by default, since `survey.contaminants` are for its training. is_matched: whether the lenses of each
    consecutive set, one of each class, share all random numbers of the first but those of the noise, so that nothing
    but substructure tells them apart; a set becomes contaminants as a whole, of kinds of their own. Raises
    `ConfigError` where substructure outweighs its halo.
    """
    if indices.step < 1 or indices.start < 0:
        raise ValueError(f"{indices}: needs indices that ascend from 0 or above")
    scenes = np.zeros(len(indices), SCENE)
    scenes["index"] = indices
    scenes["label"] = scenes["index"] % len(CLASSES)
    shared = [index - index % len(CLASSES) for index in indices] if is_matched else indices
    columns = iter(_uniform(seed, split, "scene", shared, SCENE_WIDTH).T)

    def drawn(prior: Prior) -> Floats:
        return prior.quantile(next(columns))

    _draw_lens(scenes, survey, drawn)
    _draw_string(scenes, survey, drawn)
    more = extra.blank(len(scenes)) if extra.is_kept(survey) or contaminants else None
    if more is not None:
        exposure.draw_columns(more, survey.camera, _uniform(seed, split, "camera", shared, CAMERA_WIDTH))
        defects.draw_numbers(more, survey.defects, _uniform(seed, split, "defects", shared, DEFECTS_WIDTH))
    _draw_light(scenes, survey, drawn, survey.camera.n_exposures if more is None else more["n_exposures"])
    if more is not None:
        _draw_mass(more, survey, _uniform(seed, split, "mass", shared, MASS_WIDTH))
        draw_light(scenes, more, survey, _uniform(seed, split, "light", shared, LIGHT_WIDTH))
    smooth = Truth(scenes, np.zeros(0, SUBHALO), more)
    truth = Truth(scenes, _draw_subhaloes(smooth, survey, seed, split, indices), more)
    weigh(truth, survey)
    _refuse_outweighed(scenes, survey)
    if contaminants:
        uniform = _uniform(seed, split, "contaminants", indices, CONTAMINANTS_WIDTH)
        uniform[:, 0] = _uniform(seed, split, "contaminants", shared, CONTAMINANTS_WIDTH)[:, 0]  # all of a set, or none
        return replaced(truth, survey, contaminants, uniform)
    return truth


NOTHING = Prior(kind="fixed", values=(0.0,))
"""Prior that takes a random number for a quantity that the survey lacks, so that the others keep theirs."""
UNIT = Prior(kind="uniform", values=(0.0, 1.0))
"""Prior of a uniform number in [0, 1)."""
Drawn = Callable[[Prior], Floats]
"""From a prior to its draws, one a scene."""


def _draw_lens(scenes: NDArray[np.void], survey: Survey, drawn: Drawn) -> None:
    scenes["z_lens"] = drawn(survey.cosmology.z_lens)
    scenes["z_source"] = drawn(survey.cosmology.z_source)
    size = drawn(survey.halo.size)
    scenes["lens_mass_msun"] = size if survey.halo.mass_msun else _mass_msun(size, scenes, survey)
    if survey.subhaloes.fraction or survey.subhaloes.placement == "ring":  # else `weigh` is early enough
        scenes["theta_e"] = einstein_radius(
            scenes["lens_mass_msun"], scenes["z_lens"], scenes["z_source"], survey.cosmology
        )
    scenes["halo_q"] = drawn(survey.halo.q)
    scenes["halo_angle"] = drawn(survey.halo.angle)
    scenes["gamma"] = drawn(survey.shear.gamma)
    scenes["shear_angle"] = drawn(survey.shear.angle)


def _mass_msun(size: Floats, scenes: NDArray[np.void], survey: Survey) -> Floats:
    """Mass inside the Einstein radius `size`, arcsec, or inside that of the velocity dispersion `size`, km/s."""
    redshifts = scenes["z_lens"], scenes["z_source"], survey.cosmology
    theta_e = size if survey.halo.theta_e else isothermal_radius(size, *redshifts)
    return np.asarray((theta_e / einstein_radius(np.ones(len(size)), *redshifts)) ** 2)


def _draw_mass(more: NDArray[np.void], survey: Survey, uniform: Floats) -> None:
    """Draw what a general halo has beside the columns of SCENE; uniform: [n, MASS_WIDTH]."""
    for name, column in zip(extra.MASS, uniform.T, strict=False):
        more[name] = getattr(survey.halo, name.removeprefix("halo_")).quantile(column)


def _draw_light(scenes: NDArray[np.void], survey: Survey, drawn: Drawn, n_exposures: Any) -> None:
    """Draw exposures, sky and light. n_exposures: number of exposures that are added up, of all scenes or each, [n]."""
    camera, source, lens = survey.camera, survey.source, survey.lens_light
    exposure = scenes["exposure_s"] = drawn(camera.exposure_s) * n_exposures
    sky = drawn(camera.background or camera.sky_magnitude or NOTHING)
    rate = sky if camera.background else per_second(sky, camera) * camera.pixel_scale**2
    scenes["background"] = rate * exposure
    scenes["noise_rms"] = np.hypot(camera.background_rms * exposure, camera.read_noise * n_exposures**0.5)

    scenes["source_angle"] = drawn(source.angle)
    if source.offset:
        radius, direction = drawn(source.offset), 2 * np.pi * drawn(UNIT)
        scenes["source_x"], scenes["source_y"] = radius * np.cos(direction), radius * np.sin(direction)
    else:
        scenes["source_x"], scenes["source_y"] = drawn(source.x or NOTHING), drawn(source.y or NOTHING)
    brightness = drawn(source.brightness)
    if isinstance(source, PixelatedSource | StampSource):
        for _ in ("q", "n", "r_eff"):  # their random numbers stay unused
            drawn(NOTHING)
        area = 1.0 if isinstance(source, StampSource) else float(picture(source).sum()) * source.scale**2
        total = np.full(len(scenes), area)
    else:
        for name in ("q", "n", "r_eff"):
            scenes[f"source_{name}"] = drawn(getattr(source, name))
        total = sersic_total(scenes["source_n"], scenes["source_r_eff"])
    scenes["source_intensity"] = _intensity(source, brightness, total, camera) * exposure

    if lens:
        scenes["lens_n"], scenes["lens_r_eff"] = drawn(lens.n), drawn(lens.r_eff)
        total = sersic_total(scenes["lens_n"], scenes["lens_r_eff"])
        brightness = drawn(lens.brightness)
        scenes["lens_intensity"] = _intensity(lens, brightness, total, camera) * exposure


def _intensity(component: Light, brightness: Floats, total: Floats, camera: Camera) -> Floats:
    """Electrons a pixel a second at the effective radius. total: all light over that, arcsec^2."""
    return brightness if component.intensity else per_second(brightness, camera) * camera.pixel_scale**2 / total


def _draw_string(scenes: NDArray[np.void], survey: Survey, drawn: Drawn) -> None:
    """Draw the strings of the rows of class `vort`."""
    is_strung = scenes["label"] == CLASSES.index("vort")
    for name in ("x", "y", "half_length", "angle"):
        scenes[f"string_{name}"] = np.where(is_strung, drawn(getattr(survey.vortex, name)), 0)
    scenes["string_mass_msun"] = np.where(is_strung, drawn(survey.vortex.mass_fraction) * scenes["lens_mass_msun"], 0)


def _draw_subhaloes(truth: Truth, survey: Survey, seed: int, split: Split, indices: range) -> NDArray[np.void]:
    """The subhaloes of the rows of class `sphere`; `n_subhaloes` is filled in."""
    scenes, more = truth.scenes, truth.extra
    numbers = substructure.numbers(scenes, more, survey, _uniform(seed, split, "number", indices, 4))
    scenes["n_subhaloes"] = np.where(scenes["label"] == CLASSES.index("sphere"), numbers, 0)
    holders = scenes[scenes["n_subhaloes"] > 0]
    each = [
        _stream(seed, split, "subhaloes", int(row["index"]), MOST_NUMBERS).random((row["n_subhaloes"], SUBHALO_WIDTH))
        for row in holders
    ]
    columns = iter(np.concatenate([np.zeros((0, SUBHALO_WIDTH)), *each]).T)
    subhaloes, owners = np.zeros(int(scenes["n_subhaloes"].sum()), SUBHALO), truth.owners()
    own = scenes[owners], None if more is None else more[owners]
    subhaloes["x"], subhaloes["y"] = substructure.positions(*own, survey.subhaloes, columns)
    subhaloes["mass_msun"] = survey.subhaloes.mass_msun.quantile(next(columns))
    substructure.extend(subhaloes, columns, scenes[owners], survey)
    return subhaloes


def weigh(truth: Truth, survey: Survey) -> None:
    """Leave for the halo what substructure does not hold of `lens_mass_msun`, and fill in every Einstein radius.

    Where the survey conserves the ring, the mean convergence inside its circle stays 1: the mass of an isothermal
    halo inside a radius grows with that radius, so both its mass inside theta_e and its own Einstein radius lose
    the share that substructure holds inside the circle (of another slope, the power slope - 1 of that radius does).
    Where it conserves the total mass, the halo loses all substructure, wherever it lies, and its own Einstein radius
    is that of the mass left. What is left is 0 or less where substructure outweighs the halo.
    """
    scenes, subhaloes, owners = truth.scenes, truth.subhaloes, truth.owners()
    unit = einstein_radius(np.ones(len(scenes)), scenes["z_lens"], scenes["z_source"], survey.cosmology)
    scenes["theta_e"] = unit * np.sqrt(scenes["lens_mass_msun"])
    scenes["string_theta_e"] = unit * np.sqrt(scenes["string_mass_msun"])
    subhaloes["theta_e"] = unit[owners] * np.sqrt(subhaloes["mass_msun"])
    if survey.halo.conserves == "ring":
        share = 1 - share_inside_ring(truth)
        scenes["halo_mass_msun"] = scenes["lens_mass_msun"] * share
        scenes["halo_theta_e"] = scenes["theta_e"] * (share if truth.extra is None else _shrunk(share, truth.extra))
    else:
        substructure = np.bincount(owners, subhaloes["mass_msun"], minlength=len(scenes))
        scenes["halo_mass_msun"] = scenes["lens_mass_msun"] - (scenes["string_mass_msun"] + substructure)
        scenes["halo_theta_e"] = unit * np.sqrt(np.maximum(scenes["halo_mass_msun"], 0))


def _shrunk(share: Floats, more: NDArray[np.void]) -> Floats:
    """Einstein radius of halos that lack all but this share of their mass, over the one before; 0 of none left."""
    return np.asarray(np.maximum(share, 0) ** (1 / (more["slope"] - 1)))


def _refuse_outweighed(scenes: NDArray[np.void], survey: Survey) -> None:
    if (scenes["halo_mass_msun"] <= 0).any():
        raise ConfigError(
            f"the substructure of image {scenes['index'][scenes['halo_mass_msun'] <= 0][0]} outweighs its halo",
            need="a heavier halo or lighter substructure",
            next="Raise halo.mass_msun, or lower subhaloes.number or their mass_msun.",
            path=survey.name,
        )


def share_inside_ring(truth: Truth) -> Floats:
    """Share of the mass inside the ring of each scene that substructure holds, [n].

    The ring is the circle around the halo's centre in which the mean convergence of the smooth lens is 1.
    """
    if truth.extra is not None:
        truth = _about_halo(truth, truth.extra)
    scenes, subhaloes, owners = truth.scenes, truth.subhaloes, truth.owners()
    ring = _ring(truth)
    inside = scenes["string_theta_e"] ** 2 * _string_share(scenes, ring)
    inside += np.bincount(owners, _inside(subhaloes, ring[owners]), minlength=len(scenes))
    return np.asarray(inside / ring**2)


def _about_halo(truth: Truth, more: NDArray[np.void]) -> Truth:
    """The truth with positions of substructure from the centres of the halos."""
    scenes, subhaloes, owners = truth.scenes.copy(), truth.subhaloes.copy(), truth.owners()
    for axis in "xy":
        subhaloes[axis] -= more[f"halo_{axis}"][owners]
        scenes[f"string_{axis}"] -= more[f"halo_{axis}"]
    return Truth(scenes, subhaloes, more)


def _ring(truth: Truth) -> Floats:
    shape = truth.scenes["theta_e"], truth.scenes["halo_q"]
    return mass.sie_ring(*shape) if truth.extra is None else power_law.power_law_ring(*shape, truth.extra["slope"])


def _string_share(scenes: NDArray[np.void], radius: Floats) -> Floats:
    """Share of each string's length within a circle of this radius around the origin, [n]."""
    x, y, half = scenes["string_x"], scenes["string_y"], scenes["string_half_length"]
    along = x * np.cos(scenes["string_angle"]) + y * np.sin(scenes["string_angle"])
    chord = np.sqrt(np.maximum(radius**2 - (x * x + y * y - along**2), 0))  # half of the line's chord
    within = np.minimum(half, chord - along) - np.maximum(-half, -chord - along)
    return np.asarray(np.divide(within.clip(0), 2 * half, out=np.zeros_like(half), where=half > 0))


def _inside(subhaloes: NDArray[np.void], radius: Floats) -> Floats:
    """Mass of each subhalo within a circle of this radius around the origin, [n], as theta_e squared."""
    distance = np.hypot(subhaloes["x"], subhaloes["y"])
    inside = np.where(distance < radius, subhaloes["theta_e"] ** 2, 0)
    if (large := np.flatnonzero(subhaloes["r_s"])).size:
        far, edge = distance[large, None], radius[large, None]
        r, theta_e2 = annuli(subhaloes[large], (distance + radius)[large])
        cosine = (r**2 + far**2 - edge**2) / np.maximum(2 * r * far, 1e-30)  # of half the arc inside
        inside[large] = (theta_e2 * np.arccos(cosine.clip(-1, 1)) / np.pi).sum(axis=1)
    return inside


ANNULI, ANGLES = 48, 16
"""Annuli that an extended subhalo is cut into, and pieces of each of them."""


def annuli(subhaloes: NDArray[np.void], reach: Floats) -> tuple[Floats, Floats]:
    """Radius of each annulus of extended subhaloes, and its mass as theta_e squared, [n, ANNULI], out to `reach`."""
    edges = reach[:, None] * np.geomspace(0.01, 1, ANNULI + 1)
    inside = edges * _halo_deflection(subhaloes, edges)
    inside[:, 0] = 0
    return np.sqrt(edges[:, 1:] * edges[:, :-1]), np.diff(inside, axis=1)


def _halo_deflection(subhaloes: NDArray[np.void], radii: Floats) -> Floats:
    """Deflection of each extended subhalo at these distances from its centre, [n, k]."""
    r = torch.from_numpy(radii)
    alpha_rs, r_s, r_t = (torch.from_numpy(subhaloes[name][:, None].copy()) for name in ("alpha_rs", "r_s", "r_t"))
    place, nought = (r, torch.zeros_like(r)), torch.zeros(())
    if r_t.any():
        return mass.tnfw_deflection(*place, nought, nought, alpha_rs, r_s, r_t)[0].numpy()
    return mass.nfw_deflection(*place, nought, nought, alpha_rs, r_s)[0].numpy()
