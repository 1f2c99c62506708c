"""Simulated `no` images beside real ones, and beside simulated ones that are a little wrong."""

from pathlib import Path

import numpy as np
import pytest
from conftest import changed

from sublens.errors import DataError, ImageError
from sublens.evaluation import fidelity
from sublens.evaluation.fidelity import compare, statistics, tell_apart
from sublens.images.formats import read_archive
from sublens.sim.presets import preset
from sublens.sim.render import simulate
from sublens.sim.survey import Survey


def smooth(survey: Survey, n: int, seed: int = 1) -> np.ndarray:
    """Images of class `no`."""
    return simulate(survey, seed, "train", range(0, 3 * n, 3))[1]


def test_smooth_lenses_are_distributed_like_the_real_ones(real_data: Path) -> None:
    real = read_archive(real_data / "common_test_1_no_1000.npz")
    rows = compare(real, smooth(preset("common-test-1"), 3000))
    assert len(rows) == 12
    assert min(row.p for row in rows) > 0.01, rows


@pytest.mark.slow
def test_a_network_cannot_tell_real_from_simulated(real_data: Path) -> None:
    rows, test = fidelity.fidelity(preset("common-test-1"), real_data / "common_test_1_no_1000.npz", "no")
    assert test.low < 0.5 < test.high
    assert len(rows) == 12


def test_a_network_tells_a_wider_psf(small_survey: Survey) -> None:
    wide = changed("common-test-1", camera={**small_survey.camera.model_dump(exclude_none=True), "background": 13})
    test = tell_apart(smooth(small_survey, 150), smooth(wide, 150, seed=2), epochs=6)
    assert test.low > 0.6


def test_a_network_cannot_tell_like_from_like(small_survey: Survey) -> None:
    test = tell_apart(smooth(small_survey, 150), smooth(small_survey, 150, seed=2), epochs=6)
    assert test.low < 0.5 < test.high


def test_statistics_notice_a_wrong_camera(small_survey: Survey) -> None:
    wide = changed("common-test-1", camera={"n_pixels": 48, "pixel_scale": 0.15, "background": 13})
    by_name = {row.name: row.p for row in compare(smooth(small_survey, 300), smooth(wide, 300, seed=2))}
    assert by_name["corner variance"] < 1e-6
    assert by_name["flux centroid x"] > 1e-3


def test_every_statistic_is_finite(small_survey: Survey) -> None:
    for name, values in statistics(smooth(small_survey, 20)).items():
        assert np.isfinite(values).all(), name


def test_a_folder_of_images_is_compared(tmp_path: Path, small_survey: Survey) -> None:
    (tmp_path / "real").mkdir()
    for number, counts in enumerate(smooth(small_survey, 60, seed=4)):
        np.save(tmp_path / "real" / f"{number}.npy", counts / counts.max())
    rows, test = fidelity.fidelity(small_survey, tmp_path / "real", "no")
    assert min(row.p for row in rows) > 1e-4
    assert test.low < 0.5 < test.high


def test_what_cannot_be_compared_is_named(tmp_path: Path, small_survey: Survey) -> None:
    with pytest.raises(DataError, match=r"holds no images; needs \.npy"):
        fidelity.fidelity(small_survey, tmp_path, "no")
    np.savez(tmp_path / "few.npz", counts=smooth(small_survey, 3))
    with pytest.raises(DataError, match="at least 50"):
        fidelity.fidelity(small_survey, tmp_path / "few.npz", "no")
    with pytest.raises(ImageError, match="images of 48 x 48 pixels; needs 80 x 80, which hst makes"):
        fidelity.fidelity(preset("hst"), tmp_path / "few.npz", "no")
    for side in (48, 40):
        np.save(tmp_path / f"{side}.npy", np.arange(side**2).reshape(side, side) / side**2)
    with pytest.raises(ImageError, match="48.npy: is 48 x 48 pixels; needs 40 x 40, as the first"):
        fidelity.fidelity(small_survey, tmp_path, "no")
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    with pytest.raises(ImageError, match="has no array .counts.; needs one of images"):
        fidelity.fidelity(small_survey, tmp_path / "other.npz", "no")
