from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import changed
from hypothesis import given, settings
from hypothesis import strategies as st

from sublens.errors import ConfigError
from sublens.lensing.sersic import sersic_total
from sublens.sim import galaxies, render
from sublens.sim.population import draw
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth

OFF: dict[str, Any] = {"lens_light": None, "neighbours": None, "stars": None}
CAMERA: dict[str, Any] = {
    "n_pixels": 80,
    "pixel_scale": 0.05,
    "supersampling": 2,
    "psf": {"profile": "gaussian", "fwhm": 0.1},
}
CAMERA["gain"] = 200
KNOTS = {"number": {"poisson": 12}, "share": 0.4, "size": {"uniform": [0.04, 0.15]}, "arms": 2}
CLUMPY = {"profile": "clumpy", "r_eff": 0.2, "q": 0.6, "angle": 0.5, "x": 0.1, "y": 0, "magnitude": 22, "knots": KNOTS}
LENS = {
    **{"magnitude": 18, "n": 4, "r_eff": 1, "q": {"uniform": [0.6, 1]}, "misalignment": 0.1, "x": 0.03, "y": -0.01},
    **{"boxiness": {"uniform": [-0.02, 0.02]}, "nucleus": {"share": 0.02}},
    "disc": {"share": 0.3, "r_eff_ratio": 1.5, "q": 0.4, "twist": 0.3},
}
NEIGHBOURS = {"number": 3, "magnitude": 21, "n": 2, "r_eff": 0.2, "q": 0.6, "distance": {"uniform": [1.5, 3]}}
STARS = {"number": 2, "magnitude": {"uniform": [18, 24]}, "distance": {"uniform": [1, 3]}}


def survey(source: dict[str, Any], **changes: Any) -> Survey:
    """Hubble's camera on 80 pixels, with a source that nothing stands beside but what is given."""
    tree = changed("hst", camera=CAMERA, **OFF).model_dump(exclude_none=True)
    return Survey.model_validate(tree | {"source": source} | changes)


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a source that is one of two lopsided stamps, of fluxes 2 to 1 and 0.05 arcsec a pixel."""
    axis = np.arange(40) - 19.5
    light = np.exp(-0.5 * ((axis / 3) ** 2 + (axis[:, None] / 2) ** 2)) * (1 + 0.5 * np.tanh(axis))
    path = tmp_path_factory.mktemp("stamps") / "stamps.npy"
    np.save(path, np.stack([2 * light, light.T + 1e-6]))
    return {"profile": "stamps", "file": path, "scale": 0.05, "x": 0, "y": 0, "magnitude": 22}


@pytest.fixture(scope="module")
def full(stamps: dict[str, Any]) -> Survey:
    """A survey with every part of the light."""
    return survey(stamps, lens_light=LENS, neighbours=NEIGHBOURS, stars=STARS)


def unlensed(truth: Truth) -> Truth:
    """The scenes without their lenses' mass."""
    scenes = truth.scenes.copy()
    for name in ("halo_theta_e", "gamma", "string_mass_msun", "string_theta_e", "n_subhaloes"):
        scenes[name] = 0
    return Truth(scenes, truth.subhaloes[:0], truth.extra)


def electrons(truth: Truth, magnitude: float, zero_point: float = 25.94) -> np.ndarray:
    return np.asarray(truth.scenes["exposure_s"] * 10 ** (-0.4 * (magnitude - zero_point)))


def flux(truth: Truth, of: Survey) -> np.ndarray:
    return render.render(unlensed(truth), of, dtype=torch.float64).sum((1, 2)).numpy()


@pytest.mark.parametrize("kind", ["stamps", "clumpy"])
def test_compiled_light_is_that_of_torch_to_a_hundredth_of_the_noise(full: Survey, kind: str) -> None:
    own = full if kind == "stamps" else survey(CLUMPY, lens_light=LENS, neighbours=NEIGHBOURS)
    truth = draw(own, 1, "train", range(6))
    fast, exact = render.render(truth, own), render.render(truth, own, dtype=torch.float64)
    noise = (
        exact + torch.from_numpy(truth.scenes["background"] + truth.scenes["noise_rms"] ** 2)[:, None, None]
    ).sqrt()
    assert float(((fast - exact) / noise).abs().max()) < 0.02


@settings(max_examples=6)
@given(start=st.integers(0, 8), n=st.integers(1, 4))
def test_any_slice_alone_is_the_same_to_the_last_bit(full: Survey, start: int, n: int) -> None:
    whole = render.simulate(full, 8, "train", range(12))[1]
    assert np.array_equal(whole[start : start + n], render.simulate(full, 8, "train", range(start, start + n))[1])


def test_the_light_of_a_stamp_is_that_of_its_magnitude(stamps: dict[str, Any]) -> None:
    own = survey(stamps | {"zoom": {"uniform": [0.5, 1]}})
    truth = draw(own, 1, "train", range(8))
    np.testing.assert_allclose(flux(truth, own), electrons(truth, 22), rtol=2e-3)


def test_a_dimmed_stamp_has_its_own_light_less_the_dimming(stamps: dict[str, Any]) -> None:
    own = survey({**stamps, "magnitude": None, "zero_point": 26, "dimming": 1})
    truth = draw(own, 1, "train", range(12))
    own_flux = np.array([stamp.flux for stamp in own.source.stamps()])  # type: ignore[union-attr]
    magnitudes = 27 - 2.5 * np.log10(own_flux[truth.extra["source_stamp"].astype(int)])  # type: ignore[index]
    np.testing.assert_allclose(flux(truth, own), electrons(truth, 0) * 10 ** (-0.4 * magnitudes), rtol=2e-3)


def test_every_stamp_is_drawn_both_ways_round(stamps: dict[str, Any]) -> None:
    more = draw(survey(stamps), 1, "train", range(60)).extra
    assert more is not None
    kinds = set(zip(more["source_stamp"].tolist(), more["source_mirror"].tolist(), strict=True))
    assert kinds == {(0, -1), (0, 1), (1, -1), (1, 1)}


def test_a_mirrored_stamp_shows_its_mirror_image(stamps: dict[str, Any]) -> None:
    own = survey(stamps | {"angle": 0})
    truth = unlensed(draw(own, 1, "train", range(1)))
    more = truth.extra
    assert more is not None
    more["source_stamp"], images = 0, []
    for mirror in (1, -1):
        more["source_mirror"] = mirror
        images.append(render.render(truth, own, dtype=torch.float64))
    torch.testing.assert_close(images[0].flip(2), images[1], rtol=1e-3, atol=1e-3 * float(images[0].max()))
    assert float((images[0] - images[1]).abs().max()) > 0.05 * float(images[0].max())


def test_a_turned_stamp_has_its_rows_along_the_angle(stamps: dict[str, Any]) -> None:
    own = survey(stamps | {"angle": np.pi / 2})
    truth = unlensed(draw(own, 1, "train", range(1)))
    truth.extra["source_stamp"] = 0  # type: ignore[index]
    image = render.render(truth, own)[0].numpy()
    assert image.sum(axis=1).std() < image.sum(axis=0).std()  # longer along y


def test_knots_hold_their_share_of_the_light() -> None:
    own, dark = (survey(CLUMPY | {"knots": KNOTS | {"share": share}}) for share in (0.4, 0))
    truth = draw(own, 1, "train", range(6))
    np.testing.assert_allclose(flux(truth, own), electrons(truth, 22), rtol=0.02)  # the disc reaches past the image
    disc = flux(draw(dark, 1, "train", range(6)), dark)
    np.testing.assert_allclose(flux(truth, own) - 0.6 * disc, 0.4 * electrons(truth, 22), rtol=2e-3)


def test_knots_are_those_of_their_scene_and_differ_between_scenes() -> None:
    own = survey(CLUMPY)
    truth = draw(own, 1, "train", range(3))
    first, again = (galaxies.glows(truth.scenes, truth.extra, own) for _ in range(2))
    assert all(np.array_equal(one.stamp, other.stamp) for one, other in zip(first, again, strict=True))
    assert not np.array_equal(first[0].stamp, first[1].stamp)
    assert all(one.stamp.sum() == pytest.approx(1, abs=1e-5) for one in first)


def test_without_knots_a_disc_has_all_the_light() -> None:
    own = survey(CLUMPY | {"knots": KNOTS | {"number": 0}})
    truth = draw(own, 1, "train", range(3))
    np.testing.assert_allclose(flux(truth, own), electrons(truth, 22), rtol=0.02)


def test_the_components_of_a_lens_share_its_light() -> None:
    own = survey(CLUMPY, lens_light=LENS)
    truth = draw(own, 1, "train", range(4))
    more, pixel = truth.extra, own.camera.pixel_scale**2
    assert more is not None
    parts = [
        truth.scenes["lens_intensity"] * sersic_total(truth.scenes["lens_n"], truth.scenes["lens_r_eff"]) / pixel,
        more["disc_intensity"] * sersic_total(more["disc_n"], more["disc_r_eff"]) / pixel,
        more["nucleus_electrons"],
    ]
    np.testing.assert_allclose(parts, np.array([[0.68], [0.3], [0.02]]) * electrons(truth, 18), rtol=1e-9)


def test_the_lens_is_brightest_at_its_own_centre() -> None:
    own = survey(CLUMPY, lens_light=LENS | {"x": 0.525, "y": -0.325})
    image = render.render(draw(own, 1, "train", range(1)), own)[0]
    assert divmod(int(image.argmax()), image.shape[1]) == (33, 50)


def test_by_default_a_general_lens_has_the_shape_of_its_halo() -> None:
    own = survey(CLUMPY, lens_light={"magnitude": 18, "n": 4, "r_eff": 1})
    truth = draw(own, 1, "train", range(5))
    (bulge,) = galaxies.glows(truth.scenes, truth.extra, own)[2].galaxies
    assert (bulge["q"], bulge["angle"]) == (truth.scenes["halo_q"][2], truth.scenes["halo_angle"][2])


def test_neighbours_keep_their_distance_and_number(full: Survey) -> None:
    truth = draw(full, 1, "train", range(30))
    for glow in galaxies.glows(truth.scenes, truth.extra, full):
        beside = glow.galaxies[2:]
        assert len(beside) == 3
        assert np.hypot(beside["x"], beside["y"]).min() >= 1.5


def test_outside_its_box_a_neighbour_is_fainter_than_a_hundredth_of_the_noise(full: Survey) -> None:
    from sublens.lensing.sersic import sersic

    truth = draw(full, 1, "train", range(3))
    for glow, scene in zip(galaxies.glows(truth.scenes, truth.extra, full), truth.scenes, strict=True):
        for row in glow.galaxies[2:]:
            shape = {name: torch.tensor(row[name]) for name in ("q", "angle", "n", "r_eff", "intensity")}
            across = torch.linspace(0, 6.3, 50, dtype=torch.float64)
            edge = sersic(row["reach"] * torch.cos(across), row["reach"] * torch.sin(across), **shape)
            assert float(edge.max()) <= 0.0101 * (scene["background"] + scene["noise_rms"] ** 2) ** 0.5


def test_neighbours_change_nothing_else(full: Survey) -> None:
    tree = full.model_dump(exclude_none=True)
    other = Survey.model_validate({**tree, "source": {**tree["source"], "file": full.source.path}, "neighbours": None})  # type: ignore[union-attr]
    one, two = (draw(own, 1, "train", range(5)) for own in (full, other))
    assert np.array_equal(one.scenes, two.scenes)
    assert one.extra is not None
    np.testing.assert_equal(two.extra, one.extra)
    before, after = (galaxies.points_of_light(truth.scenes, truth.extra, full)[1] for truth in (one, two))
    assert np.array_equal(before, after)


FAULTS = [
    ({"lens_light": LENS | {"disc": LENS["disc"] | {"share": 0.99}}}, "may add up to more than 1"),  # type: ignore[operator]
    ({"stars": STARS, "camera": CAMERA | {"zero_point": None, "background": 0.1}}, "magnitude needs camera.zero_point"),
    ({"source": CLUMPY | {"knots": KNOTS | {"size": 0.001}}}, "within 0.03 and 0.5"),
    ({"neighbours": NEIGHBOURS | {"number": 1000}}, "within 0 and 100"),
    ({"source": {"profile": "stamps", "file": "a", "x": 0, "y": 0}}, "either magnitude, or zero_point and dimming"),
    ({"source": {"profile": "stamps", "file": "a", "x": 0, "y": 0, "dimming": 1}}, "zero_point goes with dimming"),
    ({"source": {"profile": "stamps", "file": "a", "x": 0, "y": 0, "magnitude": 1, "zoom": 2}}, "up to 1"),
]


@pytest.mark.parametrize(("changes", "error"), FAULTS)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        survey(**({"source": CLUMPY} | changes))


def test_a_survey_without_its_stamps_says_which_are_missing(tmp_path: Path) -> None:
    lost = {"profile": "stamps", "file": tmp_path / "a.npy", "sha256": "ab" * 32, "x": 0, "y": 0, "magnitude": 22}
    with pytest.raises(ConfigError, match="sha256 begins with abababababab"):
        draw(survey(lost), 1, "train", range(1))
