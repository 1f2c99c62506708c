import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sublens.config import SimConfig
from sublens.errors import ConfigError
from sublens.sim import camera, presets, render
from sublens.sim.population import CLASSES, Truth, draw
from sublens.sim.workers import slices


@pytest.fixture(scope="module")
def truth(small_survey: SimConfig) -> Truth:
    return draw(small_survey, 2, "train", range(24))


@settings(max_examples=12)
@given(start=st.integers(0, 20), n=st.integers(1, 12))
def test_any_slice_rendered_alone_is_the_same_to_the_last_bit(small_survey: SimConfig, start: int, n: int) -> None:
    _, whole = render.simulate(small_survey, 8, "train", range(32))
    _, alone = render.simulate(small_survey, 8, "train", range(start, start + n))
    assert np.array_equal(whole[start : start + n], alone)


def test_images_do_not_depend_on_the_size_of_a_block(
    truth: Truth, small_survey: SimConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = render.render(truth, small_survey)
    for block in (1, 5, 24):
        monkeypatch.setattr(render, "CPU_BLOCK", block)
        assert torch.equal(render.render(truth, small_survey), expected)


def without_substructure(truth: Truth) -> Truth:
    bare = Truth(truth.scenes.copy(), truth.subhaloes[:0])
    bare.scenes["n_subhaloes"] = 0
    bare.scenes["string_mass_msun"] = bare.scenes["string_theta_e"] = 0
    return bare


def test_a_massless_lens_shows_the_source_itself(truth: Truth, small_survey: SimConfig) -> None:
    empty = without_substructure(truth)
    empty.scenes["theta_e"] = empty.scenes["gamma"] = 0
    image = render.render(empty, small_survey)[0]
    axis = camera.pixel_centres(small_survey.n_pixels, small_survey.pixel_scale)
    row, column = np.unravel_index(int(image.argmax()), image.shape)
    assert float(axis[column]) == pytest.approx(truth.scenes["source_x"][0], abs=small_survey.pixel_scale)
    assert float(axis[row]) == pytest.approx(truth.scenes["source_y"][0], abs=small_survey.pixel_scale)


def test_a_source_behind_a_sphere_makes_a_ring_at_theta_e(truth: Truth, small_survey: SimConfig) -> None:
    ring = without_substructure(truth.take(np.array([0])))
    for column in ("gamma", "source_x", "source_y"):
        ring.scenes[column] = 0
    ring.scenes["source_q"] = 1
    sharp = small_survey.model_copy(update={"n_pixels": 300, "pixel_scale": 0.02, "psf_sigma": 0.1})
    image = render.render(ring, sharp)[0]
    axis = camera.pixel_centres(300, 0.02)
    radius = torch.hypot(axis[:, None], axis)
    assert float(radius.flatten()[image.argmax()]) == pytest.approx(ring.scenes["theta_e"][0], abs=0.02)


@pytest.mark.parametrize("label", [1, 2])
def test_substructure_dents_the_arcs(truth: Truth, small_survey: SimConfig, label: int) -> None:
    chosen = truth.take(np.flatnonzero(truth.scenes["label"] == label))
    change = render.render(chosen, small_survey) - render.render(without_substructure(chosen), small_survey)
    assert float(change.abs().amax((1, 2)).median()) > 5


def test_deflection_has_no_curl_and_only_the_halos_convergence(truth: Truth) -> None:
    axis = torch.linspace(-2.9, 2.9, 31, dtype=torch.float64)
    y, x = (plane[None].clone().requires_grad_() for plane in torch.meshgrid(axis, axis, indexing="ij"))
    for position in (0, 1, 2):
        one = truth.take(np.array([position]))
        alpha_x, alpha_y = render.deflection(one, x, y)
        xx, xy = torch.autograd.grad(alpha_x.sum(), (x, y), retain_graph=True)
        yx, yy = torch.autograd.grad(alpha_y.sum(), (x, y))
        kappa = float(one.scenes["theta_e"][0]) / (2 * torch.hypot(x, y).clamp_min(1e-9))
        away = torch.hypot(x, y) > 0.1
        torch.testing.assert_close(((xx + yy) / 2)[away], kappa[away], rtol=1e-5, atol=1e-5)
        assert (yx - xy).abs()[away].max() < 1e-6


def test_rotating_the_truth_rotates_the_image(truth: Truth, small_survey: SimConfig) -> None:
    turned = Truth(truth.scenes.copy(), truth.subhaloes.copy())
    for table, x, y in (
        (turned.scenes, "source_x", "source_y"),
        (turned.scenes, "string_x", "string_y"),
        (turned.subhaloes, "x", "y"),
    ):
        table[x], table[y] = -table[y], table[x].copy()
    for angle in ("shear_angle", "source_angle", "string_angle"):
        turned.scenes[angle] += np.pi / 2
    expected = render.render(truth, small_survey).transpose(1, 2).flip(2)
    torch.testing.assert_close(render.render(turned, small_survey), expected, rtol=2e-3, atol=2e-2)


def test_mirroring_the_truth_mirrors_the_image(truth: Truth, small_survey: SimConfig) -> None:
    mirrored = Truth(truth.scenes.copy(), truth.subhaloes.copy())
    for table, y in ((mirrored.scenes, "source_y"), (mirrored.scenes, "string_y"), (mirrored.subhaloes, "y")):
        table[y] *= -1
    for angle in ("shear_angle", "source_angle", "string_angle"):
        mirrored.scenes[angle] *= -1
    torch.testing.assert_close(
        render.render(mirrored, small_survey), render.render(truth, small_survey).flip(1), rtol=2e-3, atol=2e-2
    )


def test_simulated_images_are_counts_above_their_minimum(small_survey: SimConfig) -> None:
    _, counts = render.simulate(small_survey, 1, "test", range(6))
    assert counts.dtype == np.uint16
    assert (counts.min(axis=(1, 2)) == 0).all()
    assert (counts.max(axis=(1, 2)) > 20).all()


def test_the_preset_makes_150_pixel_images_with_the_published_peak() -> None:
    truth, counts = render.simulate(presets.COMMON_TEST_1, 1, "train", range(60))
    assert counts.shape == (60, 150, 150)
    assert set(truth.scenes["label"]) == set(range(len(CLASSES)))
    assert counts.max(axis=(1, 2)).mean() == pytest.approx(802, abs=4 * 46 / np.sqrt(60))


GOLDEN = [[23, 99, 203, 23], [17, 116, 83, 51], [12, 177, 103, 82]]


def test_golden_images_do_not_change() -> None:
    """Four pixels of each of three images. A change here changes everyone's data: say so in the commit."""
    _, counts = render.simulate(presets.COMMON_TEST_1, 1, "train", range(3))
    assert counts[:, 75, [10, 50, 95, 120]].tolist() == GOLDEN


def test_slices_do_not_depend_on_the_number_of_workers(
    small_survey: SimConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sublens.sim.workers.SLICE", 4)
    alone, shared = (list(slices(small_survey, 9, "test", 10, workers)) for workers in (1, 2))
    assert [len(counts) for _, counts in shared] == [4, 4, 2]
    for (truth, counts), (other_truth, other_counts) in zip(alone, shared, strict=True):
        assert np.array_equal(truth.scenes, other_truth.scenes)
        assert np.array_equal(counts, other_counts)


def test_an_unknown_preset_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean common-test-1"):
        presets.preset("comon-test-1")
