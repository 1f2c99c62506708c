"""Contaminants: scenes that are no lens of a survey's kind, drawn in the place of its lenses.

A contaminant keeps the sky, noise, defects, neighbours and stars of the scene that it replaces. `contaminant_shapes`
draws how its galaxies look.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.random import SFC64, Generator
from numpy.typing import NDArray

from sublens.lensing.lens_equation import Deflect, images
from sublens.lensing.pictures import picture
from sublens.lensing.sersic import sersic_total
from sublens.models.macro import CONTAMINANT
from sublens.sim.galaxies import Rows, columns_of, darken_source
from sublens.sim.halo import smooth_deflection
from sublens.surveys.contaminants import KINDS, Contaminants, Kind
from sublens.surveys.extra import N_POINTS
from sublens.surveys.light import PixelatedSource
from sublens.surveys.priors import Floats
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth, take_substructure_away

STAMP_SHARE: dict[Kind, tuple[float, float]] = {"spirals": (0.4, 1.0), "mergers": (0.05, 0.35), "rings": (0.2, 0.8)}
"""Least and greatest share of a contaminant's light in its disc, its tidal tails or its ring."""
STAMP_PIXEL = 1 / 24
"""Pixel of the image of these over the contaminant's size."""
DARK = 10.0
"""Light of a galaxy over that of the survey's source where lens galaxies are dark."""
OFF_CENTRE = 0.1
"""Standard deviation of a galaxy's position along an axis, Einstein radii of the lens that it replaces."""
SEARCHED = 4.0
"""Half of the side of the square that is searched for images of a quasar, Einstein radii."""


def replaced(truth: Truth, survey: Survey, settings: Contaminants, uniform: Floats) -> Truth:
    """The truth with contaminants in the place of a share of the scenes; their label is `macro.CONTAMINANT`.

    uniform: numbers in [0, 1), [n, at least 8], of which each scene's own decide whether and how it is replaced.
    """
    is_lens = uniform[:, 0] >= settings.share
    rows = np.flatnonzero(~is_lens)
    owners, scenes, more = truth.owners(), truth.scenes.copy(), truth.extra_or_blank().copy()
    own, beside = scenes[rows], more[rows]
    _draw(own, beside, survey, settings, uniform[rows].T)
    scenes[rows], more[rows] = own, beside
    return Truth(scenes, truth.subhaloes[is_lens[owners]], more)


def _draw(scenes: Rows, more: Rows, survey: Survey, settings: Contaminants, uniform: Floats) -> None:
    """Make contaminants of these scenes; uniform: [at least 8, n]."""
    numbers = np.array([KINDS.index(kind) for kind in settings.kinds])
    kinds = numbers[(uniform[1] * len(numbers)).astype(np.int64)]
    source, lens = _source_light(scenes, more, survey), _lens_light(scenes, more, survey)
    more["contaminant"], more["contaminant_seed"] = kinds + 1, np.floor(uniform[2] * 2**53)
    for name, column in zip(("size", "separation"), uniform[3:], strict=False):
        more[f"contaminant_{name}"] = getattr(settings, name).quantile(column) * scenes["theta_e"]
    light = settings.brightness.quantile(uniform[5]) * (lens if survey.lens_light else DARK * source)
    scenes["label"] = CONTAMINANT
    take_substructure_away(scenes)
    for kind, rows in _by_kind(kinds):
        own, beside = scenes[rows], more[rows]
        if kind == "quasars":
            _draw_quasars(own, beside, survey, settings.quasar.quantile(uniform[6, rows]) * source[rows])
        elif kind == "fields":
            _draw_field(own, beside, survey, light[rows])
        elif kind == "ellipticals" and survey.lens_light:
            _take_lens_away(own, beside)
        else:
            _draw_galaxies(own, beside, kind, survey, light[rows], uniform[7, rows])
        scenes[rows], more[rows] = own, beside


def _by_kind(kinds: NDArray[np.int64]) -> Iterator[tuple[Kind, NDArray[np.int64]]]:
    return ((KINDS[number], np.flatnonzero(kinds == number)) for number in np.unique(kinds))


def _source_light(scenes: Rows, more: Rows, survey: Survey) -> Floats:
    """Electrons of the sources without the lens, [n]."""
    if isinstance(source := survey.source, PixelatedSource):
        light = scenes["source_intensity"] * float(picture(source).sum()) * source.scale**2
    else:
        light = _sersic_light(scenes, "source") + more["stamp_intensity"] * more["source_scale"] ** 2
    return np.asarray(light / survey.camera.pixel_scale**2)


def _lens_light(scenes: Rows, more: Rows, survey: Survey) -> Floats:
    """Electrons of the lens galaxies, [n]."""
    extended = _sersic_light(scenes, "lens") + _sersic_light(more, "disc")
    return np.asarray(extended / survey.camera.pixel_scale**2 + more["nucleus_electrons"])


def _sersic_light(table: Rows, name: str) -> Floats:
    """Electrons a pixel times square arcsec of each profile of this name, [n]; 0 where there is none."""
    light, is_bright = np.zeros(len(table)), table[f"{name}_intensity"] > 0
    bright = table[is_bright]
    light[is_bright] = bright[f"{name}_intensity"] * sersic_total(bright[f"{name}_n"], bright[f"{name}_r_eff"])
    return light


def _take_lens_away(scenes: Rows, more: Rows) -> None:
    """Leave no source, and no mass before it; `lens_mass_msun` stays that of the galaxy."""
    darken_source(scenes, more)
    for name in ("theta_e", "halo_theta_e", "halo_mass_msun", "gamma"):
        scenes[name] = 0
    more["m3"] = more["m4"] = 0


def _darken_lens(scenes: Rows, more: Rows) -> None:
    scenes["lens_intensity"] = 0
    more["disc_intensity"] = more["nucleus_electrons"] = 0


def _draw_galaxies(scenes: Rows, more: Rows, kind: Kind, survey: Survey, light: Floats, share: Floats) -> None:
    """Draw galaxies in the place of the lens. light: electrons, [n]. share: uniform numbers, [n]."""
    normal = np.array([Generator(SFC64((int(seed), 1))).standard_normal(2) for seed in more["contaminant_seed"]])
    scenes["source_x"], scenes["source_y"] = OFF_CENTRE * normal.T * scenes["theta_e"]
    _take_lens_away(scenes, more)
    _darken_lens(scenes, more)
    low, high = STAMP_SHARE.get(kind, (0.0, 0.0))
    stamp_share = low + (high - low) * share
    more["source_scale"] = STAMP_PIXEL * more["contaminant_size"]
    more["contaminant_electrons"] = (1 - stamp_share) * light
    more["stamp_intensity"] = stamp_share * light * (survey.camera.pixel_scale / more["source_scale"]) ** 2


def _draw_field(scenes: Rows, more: Rows, survey: Survey, light: Floats) -> None:
    """Draw up to `N_POINTS` stars or none, anywhere. light: electrons that stars have together, [n]."""
    _take_lens_away(scenes, more)
    _darken_lens(scenes, more)
    for row, electrons in zip(more, light, strict=True):
        rng = Generator(SFC64((int(row["contaminant_seed"]), 2)))
        shares = rng.dirichlet(np.ones(N_POINTS)) * (np.arange(N_POINTS) < rng.integers(N_POINTS + 1))
        _set_points(row, np.stack([*(rng.random((2, N_POINTS)) - 0.5) * survey.field, shares * electrons], axis=1))


def _draw_quasars(scenes: Rows, more: Rows, survey: Survey, electrons: Floats) -> None:
    """Put a quasar of so many electrons, [n], in the middle of each source."""
    for number, (scene, row) in enumerate(zip(scenes, more, strict=True)):
        one_scene = slice(number, number + 1)
        deflect = _deflection(scenes[one_scene], more[one_scene], survey)
        points = images((scene["source_x"], scene["source_y"]), deflect, SEARCHED * scene["theta_e"])
        _set_points(row, points[:N_POINTS] * [1, 1, electrons[number]])


def _deflection(scene: Rows, row: Rows, survey: Survey) -> Deflect:
    """Deflection of one scene's halo and shear."""
    like = torch.zeros((), dtype=torch.float64)
    columns = columns_of(scene, like) | columns_of(row, like)

    def deflect(x: Floats, y: Floats) -> tuple[Floats, Floats]:
        flat = (torch.from_numpy(np.ascontiguousarray(places).reshape(1, -1, 1)) for places in (x, y))
        alpha_x, alpha_y = smooth_deflection(columns, survey, *flat)
        return alpha_x.numpy().reshape(x.shape), alpha_y.numpy().reshape(x.shape)

    return deflect


def _set_points(row: np.void, points: Floats) -> None:
    """Set the points of light of a scene, [up to N_POINTS, 3]: x and y, arcsec, and electrons."""
    for number, point in enumerate(points):
        row[f"point_x_{number}"], row[f"point_y_{number}"], row[f"point_electrons_{number}"] = point
