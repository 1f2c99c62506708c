"""A lens set up by hand: its physics agrees with the surveys', and mass is conserved."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sublens.errors import ConfigError
from sublens.sim import presets, scene
from sublens.sim.population import CLASSES, draw
from sublens.sim.render import render
from sublens.sim.scene import Scene, String, Subhalo


@pytest.mark.parametrize("label", CLASSES)
def test_a_drawn_scene_has_the_image_of_its_survey(label: str) -> None:
    survey, index = presets.preset("common-test-1"), CLASSES.index(label)
    whole = render(draw(survey, 11, "test", range(index, index + 1)), survey)[0].numpy()
    again = scene.noiseless(scene.drawn("common-test-1", label, 11))  # type: ignore[arg-type]
    assert np.abs(again - whole).max() < 0.02 * whole.max()  # four digits of each number are kept


@pytest.mark.parametrize("name", presets.names())
@pytest.mark.parametrize("label", CLASSES)
def test_every_survey_can_be_drawn_from_and_observed(name: str, label: str) -> None:
    lens = scene.drawn(name, label, 3)  # type: ignore[arg-type]
    side = presets.preset(name).camera.n_pixels
    assert scene.observed(lens).shape == (1, side, side)
    assert Scene.model_validate_json(lens.model_dump_json()) == lens


def test_substructure_is_taken_out_of_the_halo() -> None:
    lens = Scene(
        subhaloes=(Subhalo(x=1, y=0, mass_msun=1e10),),
        string=String(x=0, y=1, angle=0, half_length=0.5, mass_msun=3e10),
    )
    row, subhalo = scene.truth(lens).scenes[0], scene.truth(lens).subhaloes[0]
    assert row["halo_mass_msun"] + 4e10 == pytest.approx(scene.total_msun(lens), rel=1e-12)
    squares = row["theta_e"] ** 2 + row["string_theta_e"] ** 2 + subhalo["theta_e"] ** 2
    assert squares == pytest.approx(lens.theta_e**2, rel=1e-12)


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
