"""A lens set up by hand: its physics agrees with the surveys', and mass is conserved."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sublens.errors import ConfigError
from sublens.images.signal_to_noise import MASKED, decode
from sublens.sim import scene
from sublens.sim.population import CLASSES, draw
from sublens.sim.render import render, simulate
from sublens.sim.scene import Scene, String, Subhalo
from sublens.surveys import presets
from sublens.surveys.truth import smoothed


@pytest.mark.parametrize("name", ["common-test-1", "model-1"])
@pytest.mark.parametrize("label", CLASSES)
def test_a_drawn_scene_has_the_image_of_its_survey(name: str, label: str) -> None:
    survey, index = presets.preset(name), CLASSES.index(label)
    whole = render(draw(survey, 11, "test", range(index, index + 1)), survey)[0].numpy()
    again = scene.noiseless(scene.drawn(name, label, 11))  # type: ignore[arg-type]
    assert np.abs(again - whole).max() < 0.02 * whole.max()  # four digits of each number are kept


@pytest.mark.parametrize("name", presets.names())
@pytest.mark.parametrize("label", CLASSES)
def test_every_survey_can_be_drawn_from_and_observed(name: str, label: str) -> None:
    lens = scene.drawn(name, label, 3)  # type: ignore[arg-type]
    side = presets.preset(name).camera.n_pixels
    assert scene.observed(lens).shape == (1, side, side)
    assert Scene.model_validate_json(lens.model_dump_json()) == lens


TELESCOPES = [name for name in presets.names() if presets.preset(name).camera.pixels == "signal-to-noise"]


@pytest.mark.parametrize("name", TELESCOPES)
def test_a_scene_of_a_telescope_is_as_bright_as_its_survey_has_it(name: str) -> None:
    lens = scene.drawn(name, "no", 4)
    codes, (_, drawn) = scene.observed(lens)[0], simulate(presets.preset(name), 4, "test", range(1))
    assert (codes > MASKED).all()
    own, of_survey = (np.nanpercentile(decode(plane), (20, 99)) for plane in (codes, drawn[0]))
    assert own == pytest.approx(of_survey, rel=0.5, abs=1)


def test_the_lens_galaxy_shines_in_surveys_of_signal_to_noise_alone() -> None:
    lens = scene.drawn("hst-acs", "no", 4)
    dark = scene.noiseless(lens.model_copy(update={"lens_light": None}))
    assert scene.noiseless(lens)[60, 60] > 10 * dark[60, 60]
    assert scene.drawn("euclid", "no", 4).lens_light is None


def test_a_width_beyond_the_images_of_a_survey_blurs_them() -> None:
    lens = scene.drawn("hst-acs", "no", 4)
    narrow, wide = (lens.model_copy(update={"psf_fwhm": width}) for width in (0.03, 0.3))
    np.testing.assert_allclose(scene.noiseless(narrow), scene.noiseless(lens), rtol=1e-5)
    assert scene.noiseless(wide).max() < 0.9 * scene.noiseless(lens).max()


def test_substructure_is_taken_out_of_the_halo() -> None:
    lens = Scene(
        subhaloes=(Subhalo(x=1, y=0, mass_msun=1e10),),
        string=String(x=0, y=1, angle=0, half_length=0.5, mass_msun=3e10),
    )
    row, subhalo = scene.truth(lens).scenes[0], scene.truth(lens).subhaloes[0]
    assert row["halo_mass_msun"] + 4e10 == pytest.approx(scene.total_msun(lens), rel=1e-12)
    squares = row["halo_theta_e"] ** 2 + row["string_theta_e"] ** 2 + subhalo["theta_e"] ** 2
    assert squares == pytest.approx(lens.theta_e**2, rel=1e-12)


def test_only_substructure_inside_the_ring_is_taken_out_where_the_ring_is_conserved() -> None:
    inside, outside = Subhalo(x=1, y=0, mass_msun=1e10), Subhalo(x=2, y=0, mass_msun=1e10)
    lens = Scene(survey="hst", subhaloes=(inside, outside))
    assert scene.halo_msun(lens) + 1e10 == pytest.approx(scene.total_msun(lens), rel=1e-12)
    row = scene.truth(lens).scenes[0]
    share = scene.halo_msun(lens) / scene.total_msun(lens)
    assert (row["theta_e"], row["halo_theta_e"]) == pytest.approx((lens.theta_e, lens.theta_e * share), rel=1e-12)


def test_the_residual_is_that_of_a_smooth_lens_with_the_same_ring() -> None:
    lens = scene.drawn("model-1", "vort", 4)
    smooth = scene.truth(scene.smooth(lens))
    assert smooth.scenes["halo_theta_e"] == scene.truth(lens).scenes["theta_e"]
    np.testing.assert_array_equal(smoothed(scene.truth(lens)).scenes["halo_theta_e"], smooth.scenes["halo_theta_e"])


def test_substructure_may_not_outweigh_the_halo() -> None:
    with pytest.raises(ConfigError, match="Take some out, or raise the Einstein radius"):
        scene.truth(Scene(theta_e=0.1, subhaloes=(Subhalo(x=0, y=0, mass_msun=1e11),)))


@given(x=st.floats(-2, 2), y=st.floats(-2, 2))
def test_a_heavier_subhalo_changes_more_light(x: float, y: float) -> None:
    ring = Scene(theta_e=1.2, source={"r_eff": 1.0})  # type: ignore[arg-type]
    with_subhalo = ring.model_copy(update={"subhaloes": (Subhalo(x=x, y=y, mass_msun=1e6),)})
    heavier = ring.model_copy(update={"subhaloes": (Subhalo(x=x, y=y, mass_msun=1e9),)})
    smooth = scene.noiseless(ring)
    light, heavy = (np.abs(scene.noiseless(lens) - smooth).sum() for lens in (with_subhalo, heavier))
    assert light < heavy


def test_without_substructure_there_is_no_residual() -> None:
    lens = scene.drawn("common-test-1", "sphere", 4)
    assert not np.array_equal(scene.noiseless(lens), scene.noiseless(scene.smooth(lens)))
    assert scene.smooth(scene.smooth(lens)) == scene.smooth(lens)


def test_noise_follows_from_the_seed() -> None:
    lens = scene.drawn("common-test-1", "no", 4)
    two = scene.observed(lens, 2)
    np.testing.assert_array_equal(two[:1], scene.observed(lens))
    np.testing.assert_array_equal(two[1:], scene.observed(lens.model_copy(update={"seed": lens.seed + 1})))
    assert not np.array_equal(two[0], two[1])


def test_a_survey_is_named_never_a_path() -> None:
    with pytest.raises(ConfigError, match="needs one of common-test-1"):
        scene.truth(Scene(survey="../../etc/passwd.toml"))


@pytest.mark.parametrize("wrong", [{"theta_e": float("nan")}, {"theta_e": 99}, {"colour": 1}, {"seed": -1}])
def test_what_no_scene_can_have_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Scene.model_validate(wrong)
