from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED

from sublens.config import checked
from sublens.errors import ConfigError
from sublens.surveys import presets
from sublens.surveys.psf_set import PsfSet, usable
from sublens.surveys.survey import Survey

TEXT = presets.source("common-test-1").read_text()
PSF = '{ profile = "gaussian", fwhm = 0.20522256694 }'
SPOT = np.hanning(9)[1:-1, None] * np.hanning(9)[1:-1]


def reading(tmp_path: Path, psf: str) -> Survey:
    (tmp_path / "mine.toml").write_text(TEXT.replace(PSF, psf))
    return presets.preset(str(tmp_path / "mine.toml"))


def set_of(tmp_path: Path, file: str, more: str = "") -> PsfSet:
    psf = reading(tmp_path, f'{{ profile = "pixelated-set", file = "{file}"{more} }}').camera.psf
    assert isinstance(psf, PsfSet)
    return psf


def test_a_set_is_a_stack_or_a_folder_of_images(tmp_path: Path) -> None:
    np.save(tmp_path / "psf.npy", np.stack([SPOT, 2 * SPOT, 3 * SPOT]))
    (tmp_path / "psfs").mkdir()
    for number, scale in enumerate((1, 2, 3)):
        np.save(tmp_path / "psfs" / f"{number}.npy", scale * SPOT)
    stack, folder = (set_of(tmp_path, name).kernels(0.05) for name in ("psf.npy", "psfs"))
    np.testing.assert_array_equal(stack, folder)


def test_smaller_images_of_a_set_are_padded(tmp_path: Path) -> None:
    (tmp_path / "psfs").mkdir()
    np.save(tmp_path / "psfs" / "a.npy", SPOT)
    np.save(tmp_path / "psfs" / "b.npy", SPOT[1:-1, 1:-1])
    kernels = set_of(tmp_path, "psfs").kernels(0.05)
    assert kernels.shape == (2, 7, 7)
    np.testing.assert_array_equal(kernels[1, 1:-1, 1:-1], SPOT[1:-1, 1:-1])


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (np.stack([SPOT, np.roll(SPOT, 3, 0)]), r"psf\.npy, image 1 is not brightest in its middle"),
        (np.stack([SPOT, -SPOT]), "image 1: cannot be normalised"),
        (np.stack([SPOT[:, :-1]] * 2), "7 x 6 pixels; needs a square of odd sides"),
    ],
)
def test_an_unusable_image_of_a_set_is_named(tmp_path: Path, images: np.ndarray, complaint: str) -> None:
    np.save(tmp_path / "psf.npy", images)
    with pytest.raises(ConfigError, match=complaint):
        set_of(tmp_path, "psf.npy")


def test_a_folder_without_images_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "psfs").mkdir()
    with pytest.raises(ConfigError, match="psfs: holds no image files"):
        set_of(tmp_path, "psfs")
    with pytest.raises(ConfigError, match=r"no\.npy: no such file"):
        set_of(tmp_path, "no.npy")


def test_a_set_that_changed_since_the_survey_was_read_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "psf.npy", np.stack([SPOT, SPOT]))
    psf = set_of(tmp_path, "psf.npy")
    np.save(tmp_path / "psf.npy", np.stack([SPOT, 2 * SPOT]))
    with pytest.raises(ConfigError, match="does not hold the images that this survey was made with"):
        psf.kernels(0.05)


def test_a_manifest_of_a_set_is_read_where_the_file_is_not(tmp_path: Path) -> None:
    np.save(tmp_path / "psf.npy", np.stack([SPOT, SPOT]))
    survey = reading(tmp_path, '{ profile = "pixelated-set", file = "psf.npy", turned = true, broadening = 0.02 }')
    (tmp_path / "psf.npy").unlink()
    assert checked(survey.model_dump(), Survey).model_dump() == survey.model_dump()


def test_a_pedestal_is_subtracted_and_faint_wings_are_kept() -> None:
    image = np.pad(SPOT, 6)
    np.testing.assert_allclose(usable(image + 1.5), image, atol=1e-12)
    np.testing.assert_array_equal(usable(image + 0.002), image + 0.002)


def test_all_empirical_psfs_of_acs_are_as_narrow_as_hubbles() -> None:
    path = SHARED / "data/sources/paltax_emp_psf_f814w_1x.npy"
    if not path.exists():
        pytest.skip("no empirical PSFs here")
    tree = {"profile": "pixelated-set", "file": str(path)}
    kernels = PsfSet.model_validate(tree, context={"folder": Path()}).kernels(0.05)
    assert kernels.shape == (56, 27, 27)
    assert (kernels.max((1, 2)) / kernels.sum((1, 2)) > 0.09).all()


@pytest.mark.parametrize("name", ["hst-acs", "hst-wfc3", "euclid-vis", "jwst-nircam"])
def test_a_copy_of_a_preset_finds_the_sets_that_come_with_sublens(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(presets.source(name).read_text())
    copy, preset = presets.preset(str(tmp_path / "mine.toml")).camera.psf, presets.preset(name).camera.psf
    assert copy == preset


def test_the_survey_in_a_manifest_finds_the_set_of_its_preset() -> None:
    survey = checked(presets.preset("hst-acs").model_dump(), Survey)
    assert isinstance(survey.camera.psf, PsfSet)
    assert survey.camera.psf.n_images == 16
