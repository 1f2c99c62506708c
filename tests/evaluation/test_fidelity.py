"""Simulated `no` images beside real ones, and beside simulated ones that are a little wrong."""

from pathlib import Path

import numpy as np
import pytest
from conftest import changed
from scipy.stats import ks_2samp

from sublens import metrics
from sublens.errors import DataError, ImageError
from sublens.evaluation import fidelity
from sublens.evaluation.fidelity import _combined, _permutation_test, chance_of_one, compare, statistics, tell_apart
from sublens.images.formats import read_archive
from sublens.sim.render import simulate
from sublens.surveys.presets import preset
from sublens.surveys.survey import Survey


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
    rows, chance, test = fidelity.fidelity(preset("common-test-1"), real_data / "common_test_1_no_1000.npz", "no")
    assert test.p > 0.05
    assert test.auc < 0.53
    assert chance > 0.05
    assert len(rows) == 12


def test_a_network_tells_a_wider_psf(small_survey: Survey) -> None:
    wide = changed("common-test-1", camera={**small_survey.camera.model_dump(exclude_none=True), "background": 13})
    test = tell_apart(smooth(small_survey, 150), smooth(wide, 150, seed=2), epochs=6)
    assert test.auc > 0.6
    assert test.p < 1e-3


def test_a_network_cannot_tell_like_from_like(small_survey: Survey) -> None:
    test = tell_apart(smooth(small_survey, 150), smooth(small_survey, 150, seed=2), epochs=6)
    assert test.p > 0.05


def test_two_halves_that_learn_from_each_other_raise_no_more_false_alarms_than_they_say() -> None:
    """Linear classifiers of 20 numbers: what the halves differ by, by chance, decides both AUCs."""
    rng, is_real, ps, aucs = np.random.default_rng(0), np.arange(60) % 2 == 0, [], []
    for _ in range(400):
        halves = rng.normal(size=(2, 60, 20))
        normals = [half[is_real].mean(axis=0) - half[~is_real].mean(axis=0) for half in halves]
        tests = [_permutation_test(halves[number] @ normals[1 - number], is_real) for number in (0, 1)]
        aucs.append([test.auc for test in tests])
        ps.append(_combined(tests).p)
    assert np.corrcoef(np.array(aucs).T)[0, 1] > 0.5
    assert 0.02 < np.mean(np.array(ps) < 0.05) < 0.06


def test_the_p_of_an_auc_is_the_share_of_permuted_labels_that_have_one_as_great() -> None:
    rng, is_real = np.random.default_rng(3), np.arange(80) < 30
    scores = rng.normal(0.4 * is_real).round(1)
    test = _permutation_test(scores, is_real)
    permuted = [metrics.auc(scores, rng.permutation(is_real)) for _ in range(4000)]
    assert test.auc == pytest.approx(metrics.auc(scores, is_real))
    assert test.p == pytest.approx(np.mean(np.array(permuted) >= test.auc), abs=0.02)


def noise(seed: int, n: int, sky: float = 20) -> np.ndarray:
    return np.random.default_rng(seed).poisson(sky, (n, 16, 16)).astype(np.uint16)


def test_some_statistic_differs_by_chance_as_often_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "PERMUTATIONS", 99)
    alike = [(noise(2 * seed, 30), noise(2 * seed + 1, 30)) for seed in range(100)]
    least = [min(row.p for row in compare(real, simulated)) for real, simulated in alike]
    chances = [chance_of_one(real, simulated) for real, simulated in alike]
    assert np.mean(np.array(least) < 0.05) > 0.2
    assert 0.01 <= np.mean(np.array(chances) <= 0.05) <= 0.1
    assert chance_of_one(noise(0, 30), noise(1, 30, sky=25)) == 0.01


def test_distances_are_those_of_kolmogorov_and_smirnov() -> None:
    rng, is_real = np.random.default_rng(1), np.arange(50) < 20
    values = rng.normal(0.5 * is_real).round(1)
    distance = fidelity._Pooled.of(values).distance(is_real)
    assert distance == pytest.approx(ks_2samp(values[is_real], values[~is_real]).statistic)


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
    rows, chance, test = fidelity.fidelity(small_survey, tmp_path / "real", "no")
    assert min(row.p for row in rows) > 1e-4
    assert chance > 0.01
    assert test.p > 0.01


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
