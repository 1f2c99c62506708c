from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED, changed

from sublens.images.signal_to_noise import MASKED, decode
from sublens.observation import defects
from sublens.sim import render
from sublens.sim.population import draw
from sublens.surveys.survey import Survey

SIDE = 48


def with_defects(pixels: str = "signal-to-noise", /, **kinds: dict[str, Any]) -> Survey:
    camera = {"n_pixels": SIDE, "pixel_scale": 0.15, "pixels": pixels}
    return changed("common-test-1", camera=camera, defects=kinds)


def struck(n: int = 200, /, **kinds: dict[str, Any]) -> defects.Marks:
    survey = with_defects(**kinds)
    return defects.marks(survey, draw(survey, 1, "train", range(n)).extra_or_blank())


def planes(at: np.ndarray, n: int) -> np.ndarray:
    """True where a pixel is listed, [n, h, w]."""
    flags = np.zeros(n * SIDE * SIDE, bool)
    flags[at] = True
    return flags.reshape(n, SIDE, SIDE)


def test_none_are_there_by_default() -> None:
    assert all(len(column) == 0 for column in struck(5))


def test_masked_and_unmasked_cosmic_rays_have_their_shares() -> None:
    hits = struck(cosmic_rays={"number": {"poisson": 8}, "size": 4, "level": 50, "masked": 0.75})
    assert len(hits.masked_at) / (len(hits.masked_at) + len(hits.added_at)) == pytest.approx(0.75, abs=0.04)
    assert len(hits.masked_at) / 200 == pytest.approx(8 * 4 * 0.75 * 0.96, rel=0.05)  # some lie across the border
    assert (hits.added % 50 == 0).all()


def test_a_track_is_in_one_piece() -> None:
    from scipy import ndimage

    hits = struck(cosmic_rays={"number": 1, "size": 12})
    pieces = [ndimage.label(plane, np.ones((3, 3)))[1] for plane in planes(hits.added_at, 200)]
    assert max(pieces) == 1


def test_combined_exposures_keep_fewer_cosmic_rays() -> None:
    survey = with_defects(cosmic_rays={"number": 40})
    survey = survey.model_copy(update={"camera": survey.camera.model_copy(update={"n_exposures": (1, 4)})})
    extra = draw(survey, 1, "train", range(50)).extra_or_blank()
    assert set(zip(extra["n_exposures"], extra["n_cosmic_rays"], strict=True)) == {(1, 40), (4, 10)}


def test_a_trail_is_straight_and_as_wide_as_stated() -> None:
    hits = struck(50, trails={"number": 1, "size": 6, "level": 10})
    for image in range(50):
        own = hits.within(image * SIDE**2, (image + 1) * SIDE**2)
        row, column = np.divmod(own.added_at[own.added > 5], SIDE)
        if len(row) > 6 * 45:  # not across a corner
            assert np.linalg.eigvalsh(np.cov(row, column))[0] == pytest.approx(6**2 / 12, rel=0.2)
    assert hits.added.max() == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize(("kind", "n"), [("columns", 3 * SIDE), ("gaps", 3 * SIDE)])
def test_bands_cross_the_whole_image(kind: str, n: int) -> None:
    hits = struck(**{kind: {"number": 1, "size": 3, "level": 5, "masked": 0}})
    flags = planes(hits.stuck_at if kind == "gaps" else hits.added_at, 200)
    full = flags.all(axis=1).sum(axis=1), flags.all(axis=2).sum(axis=1)
    assert ((full[0] == 0) != (full[1] == 0)).all()
    assert np.median(flags.sum((1, 2))) == n
    assert (full[0] > 0).mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(200))


def test_discs_are_masked_at_their_distance() -> None:
    flags = planes(struck(masked_discs={"number": 1, "size": 10, "distance": 15}).masked_at, 200)
    assert flags.sum((1, 2)).mean() == pytest.approx(np.pi * 25, rel=0.03)
    row, column = (np.array([np.mean(where) for where in axis]) for axis in zip(*map(np.nonzero, flags), strict=True))
    np.testing.assert_allclose(np.hypot(row + 0.5 - SIDE / 2, column + 0.5 - SIDE / 2), 15, atol=0.5)


def test_masked_pixels_are_0_in_the_plane_and_no_others() -> None:
    survey = with_defects(masked_discs={"number": 1, "size": 10, "distance": 15})
    truth, codes = render.simulate(survey, 1, "train", range(6))
    flags = planes(defects.marks(survey, truth.extra_or_blank()).masked_at, 6)
    assert np.array_equal(codes == MASKED, flags)


def test_dead_pixels_read_the_sky_and_hot_ones_their_brightness() -> None:
    camera = {"background": 10_000}
    survey = with_defects(dead_pixels={"number": 1, "size": 2, "level": -3}, hot_pixels={"number": 1, "level": 100})
    survey = changed_camera(survey, camera)
    truth, codes = render.simulate(survey, 1, "train", range(20))
    hits, values = defects.marks(survey, truth.extra_or_blank()), decode(codes).ravel()
    np.testing.assert_allclose(values[hits.stuck_at], -3, atol=0.01)
    hot = np.setdiff1d(hits.added_at, hits.stuck_at)
    assert np.median(values[hot]) == pytest.approx(100 / np.sqrt(2), rel=0.1)  # its own photons add to its noise


def changed_camera(survey: Survey, camera: dict[str, Any]) -> Survey:
    tree = survey.model_dump(exclude_none=True)
    tree["camera"] |= camera
    return Survey.model_validate(tree)


def test_defects_change_the_counts_of_their_pixels_alone() -> None:
    survey = with_defects("counts", dead_pixels={"number": 3}, hot_pixels={"number": 3, "level": 200})
    plain = with_defects("counts")
    truth, bad = render.simulate(survey, 1, "train", range(12))
    _, good = render.simulate(plain, 1, "train", range(12))
    hits = defects.marks(survey, truth.extra_or_blank())
    same = ~planes(np.union1d(hits.added_at, hits.stuck_at), 12)
    shift = bad.astype(int) - good
    assert all(len(np.unique(change[own])) == 1 for change, own in zip(shift, same, strict=True))
    assert (shift.reshape(-1)[hits.added_at] >= 200 * np.sqrt(10) - 10).all()


def test_counts_cannot_be_masked() -> None:
    with pytest.raises(ValueError, match='masked pixels need camera.pixels = "signal-to-noise"'):
        with_defects("counts", gaps={"number": 1})


def test_one_kind_of_defect_leaves_the_others_where_they_are() -> None:
    alone = struck(hot_pixels={"number": 3})
    beside = struck(hot_pixels={"number": 3}, gaps={"number": 1})
    assert np.array_equal(alone.added_at, beside.added_at)


def test_marks_within_a_stretch_are_those_of_its_scenes() -> None:
    kinds: dict[str, dict[str, float]] = {"cosmic_rays": {"number": 5, "masked": 0.5}, "dead_pixels": {"number": 2}}
    survey = with_defects(**kinds)
    extra = draw(survey, 1, "train", range(9)).extra_or_blank()
    part = defects.marks(survey, extra).within(3 * SIDE**2, 7 * SIDE**2)
    for column, expected in zip(part, defects.marks(survey, extra[3:7]), strict=True):
        np.testing.assert_array_equal(column, expected)


def test_no_defect_knows_the_class() -> None:
    survey = with_defects(cosmic_rays={"number": {"uniform": [0, 40]}}, trails={"number": {"poisson": 0.5}})
    truth = draw(survey, 1, "train", range(3000))
    for kind in ("cosmic_rays", "trails"):
        means = [truth.extra_or_blank()[f"n_{kind}"][truth.scenes["label"] == label].mean() for label in range(3)]
        spread = truth.extra_or_blank()[f"n_{kind}"].std() / np.sqrt(1000)
        assert np.ptp(means) < 5 * spread


def test_masks_of_cosmic_rays_are_like_those_of_a_snapshot_of_slacs() -> None:
    """Some 300 pieces of 4 or 5 pixels in 201 x 201, so 17 in 48 x 48."""
    from scipy import ndimage

    path = SHARED / "data/slacs/J1531-0105.fits"
    if not path.exists():
        pytest.skip("no real lenses here")
    from astropy.io import fits

    real = fits.getdata(path, "ERR") >= 1e8
    flags = planes(struck(cosmic_rays={"number": {"poisson": 16}, "masked": 1}).masked_at, 200)
    assert flags.mean() == pytest.approx(real.mean(), rel=0.25)
    sizes = [np.bincount(ndimage.label(plane, np.ones((3, 3)))[0].ravel())[1:] for plane in (real, *flags)]
    assert abs(np.median(np.concatenate(sizes[1:])) - np.median(sizes[0])) <= 2


def test_pixels_struck_on_another_precision_agree() -> None:
    hits = struck(4, hot_pixels={"number": 3}, dead_pixels={"number": 3})
    single, double = torch.ones(4, SIDE, SIDE), torch.ones(4, SIDE, SIDE, dtype=torch.float64)
    for pixels in (single, double):
        defects.strike(pixels, hits, torch.full((4,), 2.0).to(pixels), torch.zeros(4).to(pixels))
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=1e-6)
