"""One lens set up by hand, instead of drawn from a survey's distributions."""

from functools import lru_cache
from itertools import repeat
from math import pi
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sublens.config import Frozen, later
from sublens.errors import ConfigError, nearest
from sublens.images import signal_to_noise
from sublens.lensing.cosmology import einstein_radius
from sublens.observation.defects import marks
from sublens.observation.exposure import observe
from sublens.sim.population import CLASSES, draw, weigh
from sublens.sim.render import render
from sublens.sim.substructure import extend
from sublens.surveys import extra, light, presets
from sublens.surveys.camera import Gaussian, Psf, typical_fwhm
from sublens.surveys.light import ClumpySource, SersicSource
from sublens.surveys.psf_set import PsfSet
from sublens.surveys.survey import Survey
from sublens.surveys.truth import SCENE, SUBHALO, Truth

MASSES_MSUN = 1e6, 1e11
"""Least and greatest mass of a subhalo, solar masses."""
DEFAULT_FWHM = 0.2
"""Full width at half maximum, arcsec, where a survey's point-spread function is a picture."""
DIGITS = 4
"""Significant digits of a drawn scene's numbers, which keep a link to it short."""

Angle = Annotated[float, Field(ge=-2 * pi, le=2 * pi)]
Offset = Annotated[float, Field(ge=-10, le=10)]


class Source(Frozen):
    """The lensed galaxy: an elliptical Sersic profile."""

    x: Offset = 0.0
    """Position of its centre along x, arcsec."""
    y: Offset = 0.0
    """Position of its centre along y, arcsec."""
    q: Annotated[float, Field(ge=0.1, le=1)] = 1.0
    """Axis ratio."""
    angle: Angle = 0.0
    """Position angle of the long axis, radians."""
    n: Annotated[float, Field(ge=0.3, le=10)] = 1.0
    """Sersic index."""
    r_eff: Annotated[float, Field(ge=0.01, le=5)] = 0.25
    """Effective radius, arcsec."""
    intensity: Annotated[float, Field(gt=0, le=1e7)] = 40.0
    """Electrons a pixel at the effective radius, in the whole exposure."""


class LensLight(Frozen):
    """The lens galaxy's light: a Sersic profile at the origin with the halo's axis ratio and angle."""

    n: Annotated[float, Field(ge=0.3, le=10)] = 4.0
    """Sersic index."""
    r_eff: Annotated[float, Field(ge=0.01, le=20)] = 1.0
    """Effective radius, arcsec."""
    intensity: Annotated[float, Field(gt=0, le=1e7)] = 40.0
    """Electrons a pixel at the effective radius, in the whole exposure."""


class Subhalo(Frozen):
    """One dark subhalo."""

    x: Offset
    """Position along x from the lens, arcsec."""
    y: Offset
    """Position along y from the lens, arcsec."""
    mass_msun: Annotated[float, Field(ge=MASSES_MSUN[0], le=MASSES_MSUN[1])]
    """Mass, solar masses; M200 where the survey has NFW haloes."""


class String(Frozen):
    """A vortex: a straight uniform string."""

    x: Offset
    """Position of its middle along x, arcsec."""
    y: Offset
    """Position of its middle along y, arcsec."""
    angle: Angle
    """Position angle, radians."""
    half_length: Annotated[float, Field(ge=0.01, le=5)]
    """Half of its length, arcsec."""
    mass_msun: Annotated[float, Field(ge=MASSES_MSUN[0], le=1e12)]
    """Mass, solar masses."""


class Scene(Frozen):
    """A lens, its substructure and its observation; redshifts are the survey's medians."""

    survey: Annotated[str, Field(max_length=64)] = "common-test-1"
    """Preset of camera and cosmology."""
    theta_e: Annotated[float, Field(ge=0.1, le=5)] = 1.2
    """Einstein radius of the smooth lens that has the same ring, arcsec; that has the same total mass, where the
    survey conserves it."""
    halo_q: Annotated[float, Field(ge=0.2, le=1)] = 1.0
    """Axis ratio of the halo."""
    halo_angle: Angle = 0.0
    """Position angle of the halo's long axis, radians."""
    gamma: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Strength of the external shear."""
    shear_angle: Angle = 0.0
    """Position angle of the external shear, radians."""
    source: Source = Source()
    """Lensed galaxy."""
    lens_light: LensLight | None = later(None)
    """Light of the lens galaxy; dark if left out."""
    psf_fwhm: Annotated[float, Field(ge=0.02, le=1)] = DEFAULT_FWHM
    """Full width at half maximum of the point-spread function, arcsec: of a Gaussian, or, in a survey with a set of
    images, of the first of these, blurred to that width where its own is smaller."""
    background: Annotated[float, Field(ge=0, le=1e7)] = 10.0
    """Sky, electrons a pixel."""
    noise_rms: Annotated[float, Field(ge=0, le=1e4)] = 0.0
    """Gaussian noise, electrons a pixel."""
    subhaloes: Annotated[tuple[Subhalo, ...], Field(max_length=500)] = ()
    """Dark subhaloes of the lens."""
    string: String | None = None
    """Vortex of the lens; none if left out."""
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 1
    """Seed of the noise."""

    @property
    def substructure_msun(self) -> float:
        """Mass of subhaloes and string, solar masses."""
        return sum(subhalo.mass_msun for subhalo in self.subhaloes) + (self.string.mass_msun if self.string else 0.0)


def survey_of(scene: Scene) -> Survey:
    """The survey of the scene, with its camera, halo and source; `ConfigError` where there is none of that name."""
    if scene.survey not in presets.names():  # never a path
        raise ConfigError(
            f"there is no preset called {scene.survey!r}",
            need=f"one of {', '.join(presets.names())}",
            next=nearest(scene.survey, presets.names()),
        )
    base = _preset(scene.survey)
    has_set = isinstance(base.camera.psf, PsfSet)
    psf = base.camera.psf if has_set else Gaussian(profile="gaussian", fwhm=scene.psf_fwhm)
    return base.model_copy(
        update={
            "camera": base.camera.model_copy(update={"psf": psf}),
            "halo": base.halo.isothermal(scene.halo_q),
            "source": SersicSource(n=1, r_eff=1, angle=0, x=0, y=0, intensity=1),  # type: ignore[arg-type]
            "lens_light": light.LensLight(n=1, r_eff=1, intensity=1) if scene.lens_light else None,  # type: ignore[arg-type]
            **dict.fromkeys(("neighbours", "stars")),
        }
    )


@lru_cache(maxsize=16)
def _preset(name: str) -> Survey:
    return presets.preset(name)


@lru_cache(maxsize=16)
def _fwhm(psf: Psf, pixel_scale: float) -> float:
    """Full width at half maximum, arcsec: the typical one, or that of the first image of a set."""
    if isinstance(psf, PsfSet):
        return signal_to_noise.fwhm(psf.kernels(pixel_scale)[0]) * pixel_scale
    return typical_fwhm(psf, DEFAULT_FWHM)


@lru_cache(maxsize=16)
def _unit(name: str) -> float:
    """Einstein radius of one solar mass at the survey's median redshifts, arcsec."""
    survey = _preset(name)
    return float(einstein_radius(np.ones(1), *_redshifts(survey), survey.cosmology)[0])


def _redshifts(survey: Survey) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    cosmology = survey.cosmology
    return np.array([cosmology.z_lens.median]), np.array([cosmology.z_source.median])


def total_msun(scene: Scene) -> float:
    """Mass inside the Einstein radius at these redshifts, of halo and substructure together, solar masses."""
    return (scene.theta_e / _unit(scene.survey)) ** 2


def truth(scene: Scene) -> Truth:
    """The scene as a truth table of one row. Raises `ConfigError` where substructure outweighs the halo."""
    survey, row = survey_of(scene), np.zeros(1, SCENE)
    row["z_lens"], row["z_source"] = _redshifts(survey)
    row["exposure_s"], row["background"], row["noise_rms"] = 1.0, scene.background, scene.noise_rms
    row["lens_mass_msun"] = total_msun(scene)
    for name in ("halo_q", "halo_angle", "gamma", "shear_angle"):
        row[name] = getattr(scene, name)
    for name, value in scene.source:
        row[f"source_{name}"] = value
    for name, value in scene.lens_light or ():
        row[f"lens_{name}"] = value
    for name, value in scene.string or ():
        row[f"string_{name}"] = value
    row["n_subhaloes"] = len(scene.subhaloes)
    row["label"] = CLASSES.index("vort" if scene.string else "sphere" if scene.subhaloes else "no")
    table = Truth(row, _subhaloes(scene, survey, row), _extra(scene, survey) if extra.is_kept(survey) else None)
    weigh(table, survey)
    _refuse_outweighed(scene, table)
    return table


def _extra(scene: Scene, survey: Survey) -> NDArray[np.void]:
    """The scene's row of dtype EXTRA: without defects and sky that is left over, but with the survey's correlation."""
    row, camera = extra.blank(1), survey.camera
    row["lens_q"], row["lens_angle"] = scene.halo_q, scene.halo_angle
    row["noise_correlation"] = camera.noise_correlation.median
    row["psf_fwhm"] = scene.psf_fwhm
    row["psf_broadening"] = max(scene.psf_fwhm**2 - _fwhm(camera.psf, camera.pixel_scale) ** 2, 0) ** 0.5
    return row


def _refuse_outweighed(scene: Scene, table: Truth) -> None:
    if table.scenes["halo_mass_msun"][0] <= 0:
        where = "inside the ring" if survey_of(scene).halo.conserves == "ring" else "in all"
        raise ConfigError(
            f"the substructure outweighs the lens's {total_msun(scene):.3g} solar masses",
            need=f"less {where}",
            next="Take some out, or raise the Einstein radius.",
        )


def halo_msun(scene: Scene) -> float:
    """Mass of the halo inside the Einstein radius, without substructure, solar masses."""
    return float(truth(scene).scenes["halo_mass_msun"][0])


def _subhaloes(scene: Scene, survey: Survey, row: NDArray[np.void]) -> NDArray[np.void]:
    """The scene's subhaloes with the survey's profile, at its median concentration and truncation."""
    rows = np.zeros(len(scene.subhaloes), SUBHALO)
    for subhalo_row, subhalo in zip(rows, scene.subhaloes, strict=True):
        for name, value in subhalo:
            subhalo_row[name] = value
    extend(rows, repeat(np.full(len(rows), 0.5)), row, survey)
    return rows


def smooth(scene: Scene) -> Scene:
    """The same lens without substructure: of the same ring, or the same total mass where the survey conserves that."""
    return scene.model_copy(update={"subhaloes": (), "string": None})


def noiseless(scene: Scene) -> NDArray[np.float32]:
    """Electrons a pixel, without sky, [h, w]."""
    image: NDArray[np.float32] = render(truth(scene), survey_of(scene))[0].numpy()
    return image


def observed(scene: Scene, n_noise: int = 1) -> NDArray[np.uint16]:
    """Noisy images [n, h, w], with the noise of this seed and those after it.

    Counts above the minimum, or codes of signal to noise where the survey has these; no pixel is masked.
    """
    survey, single = survey_of(scene), truth(scene)
    image = render(single, survey).expand(n_noise, -1, -1).contiguous()
    rows = single.take(np.zeros(n_noise, np.int64))
    struck = marks(survey, rows.extra_or_blank())
    return observe(rows, image, survey, struck, range(scene.seed, scene.seed + n_noise))


def drawn(survey: str, label: Literal["no", "sphere", "vort"], seed: int) -> Scene:
    """A scene of this class from the survey's own distributions.

    Its redshifts become the medians, and each mass keeps its share of the whole. The lens galaxy is dark unless the
    survey has signal to noise; all light of source and galaxy is that of one profile each. Raises `ConfigError` where
    there is no survey of that name, or its source is a picture.
    """
    survey_of(Scene(survey=survey))  # raises for an unknown name
    base = _preset(survey)
    if not isinstance(base.source, SersicSource | ClumpySource):
        raise ConfigError(
            "has a picture for a source", need="a Sersic source", next="Choose another survey.", path=survey
        )
    has_light = bool(base.lens_light) and base.camera.pixels == "signal-to-noise"
    whole = draw(_plain(base), seed, "test", range(CLASSES.index(label), CLASSES.index(label) + 1))
    row = whole.scenes[0]
    theta_e = float(row["theta_e"])
    scale = (theta_e / _unit(survey)) ** 2 / float(row["lens_mass_msun"])
    return Scene(
        survey=survey,
        theta_e=_short(theta_e),
        **_columns(row, "", "halo_q", "halo_angle", "gamma", "shear_angle", "background", "noise_rms"),
        source=Source(**_columns(row, "source_", "x", "y", "q", "angle", "n", "r_eff", "intensity")),
        lens_light=LensLight(**_columns(row, "lens_", "n", "r_eff", "intensity")) if has_light else None,
        psf_fwhm=_short(_fwhm(base.camera.psf, base.camera.pixel_scale)),
        subhaloes=_drawn_subhaloes(whole, scale),
        string=_drawn_string(row, scale) if label == "vort" else None,
        seed=seed,
    )


def _plain(survey: Survey) -> Survey:
    """The survey with all light of its source, and of its lens galaxy, in one profile each."""
    source, lens = survey.source, survey.lens_light
    if isinstance(source, ClumpySource):
        names = SersicSource.model_fields.keys() - {"profile"}
        source = SersicSource(**{name: getattr(source, name) for name in names})
    parts = {"disc": None, "nucleus": None}
    return survey.model_copy(update={"source": source, "lens_light": lens and lens.model_copy(update=parts)})


def _drawn_subhaloes(whole: Truth, scale: float) -> tuple[Subhalo, ...]:
    """The subhaloes of a drawn scene, their masses times `scale`."""
    masses = whole.subhaloes["m200_msun" if whole.subhaloes["r_s"].any() else "mass_msun"]
    masses = np.clip(masses * scale, *MASSES_MSUN)
    return tuple(
        Subhalo(x=_short(row["x"]), y=_short(row["y"]), mass_msun=_short(mass_msun))
        for row, mass_msun in zip(whole.subhaloes, masses, strict=True)
    )


def _drawn_string(row: np.void, scale: float) -> String:
    """The string of a drawn scene, its mass times `scale`."""
    mass_msun = _short(row["string_mass_msun"] * scale)
    return String(**_columns(row, "string_", "x", "y", "angle", "half_length"), mass_msun=mass_msun)


def _columns(row: np.void, prefix: str, *names: str) -> dict[str, Any]:
    return {name: _short(row[prefix + name]) for name in names}


def _short(value: Any) -> float:
    return float(f"{float(value):.{DIGITS}g}")
