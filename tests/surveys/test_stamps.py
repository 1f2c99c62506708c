import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from sublens.errors import ConfigError
from sublens.surveys import stamps
from sublens.surveys.presets import files, source
from sublens.surveys.stamps import StampFiles, clean


def galaxy(side: int = 48, x: float = 0, noise: float = 1, flux: float = 20_000, sigma: float = 3) -> np.ndarray:
    """A Gaussian galaxy on a sky of 7 with noise."""
    axis = np.arange(side) - (side - 1) / 2
    light = np.exp(-0.5 * ((axis - x) ** 2 + axis[:, None] ** 2) / sigma**2) * flux / (2 * np.pi * sigma**2)
    return np.asarray(light + 7 + noise * np.random.default_rng(0).normal(size=light.shape))


def read(path: Path, **settings: Any) -> StampFiles:
    kind = "folder" if path.is_dir() else "file"
    return StampFiles.model_validate({kind: path.name, **settings}, context={"folder": path.parent})


def test_cleaning_keeps_the_light_without_sky_and_centres_it() -> None:
    light = clean(galaxy(x=6))
    assert light.sum() == pytest.approx(20_000, rel=0.02)
    middle = (light.shape[1] - 1) / 2
    assert (light.sum(axis=0) @ np.arange(light.shape[1])) / light.sum() == pytest.approx(middle, abs=0.6)


def test_cleaning_empties_what_is_not_connected_to_the_galaxy() -> None:
    alone, beside = galaxy(64, x=-16), galaxy(64, x=18, flux=4000, noise=0, sigma=2)
    assert clean(alone + beside - 7).sum() == pytest.approx(clean(alone).sum(), rel=0.01)


def test_cleaning_leaves_a_margin_without_light_and_nothing_negative() -> None:
    light = clean(galaxy())
    edges = (light[:2], light[-2:], light[:, :2], light[:, -2:])
    assert not any(edge.any() for edge in edges)
    assert light.min() == 0


def test_cleaning_cuts_the_noise_of_faint_parts() -> None:
    light = clean(galaxy(flux=1000, sigma=5))
    row, column = (side // 2 for side in light.shape)
    bends = np.diff(light[row - 4 : row + 5, column - 4 : column + 5], n=2, axis=0)
    assert np.std(bends) < 0.6 * 6**0.5  # of noise of 1


def test_images_of_noise_alone_are_left_out(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).normal(size=(48, 48))
    np.save(tmp_path / "a.npy", np.stack([noise, galaxy()]))
    np.save(tmp_path / "b.npy", noise)
    assert len(read(tmp_path / "a.npy", scale=0.03).stamps()) == 1
    with pytest.raises(ValueError, match="no galaxy stands out"):
        read(tmp_path / "b.npy", scale=0.03)


def test_stamps_without_a_scale_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", galaxy())
    with pytest.raises(ValueError, match="no pixel scale"):
        read(tmp_path / "a.npy")


def test_a_scale_is_read_from_the_header(tmp_path: Path) -> None:
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -2e-5, "CDELT2": 2e-5})
    fits.writeto(tmp_path / "a.fits", galaxy(), header)
    (stamp,) = read(tmp_path / "a.fits").stamps()
    assert stamp.scale == pytest.approx(0.072)


@pytest.mark.parametrize("side", [5, stamps.MAX_STAMP + 1])
def test_stamps_that_are_too_small_or_large_are_refused(tmp_path: Path, side: int) -> None:
    np.save(tmp_path / "a.npy", galaxy(side))
    with pytest.raises(ValueError, match=f"has {side} x {side} pixels; needs"):
        read(tmp_path / "a.npy", scale=0.03)


def test_a_folder_without_stamps_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match="holds no stamps"):
        read(tmp_path, scale=0.03)


def test_too_many_stamps_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "MAX_STAMPS", 2)
    np.save(tmp_path / "a.npy", np.stack([galaxy()] * 3))
    with pytest.raises(ValueError, match="more than 2 stamps"):
        read(tmp_path / "a.npy", scale=0.03)


def test_a_stack_and_a_folder_of_the_same_images_give_the_same_stamps(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    images = [galaxy(x=x) for x in (0, 3)]
    np.save(tmp_path / "stack.npy", np.stack(images))
    for number, image in enumerate(images):
        np.save(tmp_path / "many" / f"{number}.npy", image)
    pairs = zip(*(read(tmp_path / name, scale=0.03).stamps() for name in ("stack.npy", "many")), strict=True)
    assert all(np.array_equal(one.pixels, other.pixels) for one, other in pairs)


def test_noise_maps_among_the_extensions_are_no_stamps(tmp_path: Path) -> None:
    extensions = [fits.ImageHDU(galaxy(), name="A"), fits.ImageHDU(np.ones((48, 48)) + np.eye(48), name="ERR")]
    fits.HDUList([fits.PrimaryHDU(), *extensions]).writeto(tmp_path / "a.fits")
    assert len(read(tmp_path / "a.fits", scale=0.03).stamps()) == 1


def test_files_that_have_changed_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", galaxy())
    files = read(tmp_path / "a.npy", scale=0.03)
    np.save(tmp_path / "a.npy", galaxy(x=1))
    with pytest.raises(ConfigError, match="does not hold the stamps"):
        files.stamps()


def test_a_manifest_names_files_without_their_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", galaxy())
    saved = read(tmp_path / "a.npy", scale=0.03).model_dump()
    assert saved["file"] == "a.npy"
    assert re.fullmatch("[0-9a-f]{64}", saved["sha256"])


@pytest.mark.parametrize("files", [{}, {"file": "a.npy", "folder": "b"}])
def test_one_of_file_and_folder_is_needed(files: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="needs either file or folder"):
        StampFiles.model_validate(files)


def test_galaxies_of_hubble_are_read_as_stamps(real_data: Path) -> None:
    read_stamps = read(real_data / "sources" / "btk_real_galaxy_images_extension.fits", scale=0.03).stamps()
    assert len(read_stamps) == 98  # one fills its stamp, one is as faint as the noise
    assert all(stamp.pixels.sum() == pytest.approx(1, abs=1e-5) for stamp in read_stamps)


def test_a_folder_of_stamps_is_among_the_files_of_its_survey(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    np.save(tmp_path / "many" / "0.npy", galaxy())
    text = source("hst").read_text().split("[source]")
    stamps_of = (
        '[source]\nprofile = "stamps"\nfolder = "many"\nscale = 0.03\nmagnitude = 22\nx = 0\ny = 0\n[lens_light]'
    )
    (tmp_path / "own.toml").write_text(text[0] + stamps_of + text[1].split("[lens_light]")[1])
    assert files(str(tmp_path / "own.toml")) == [tmp_path / "own.toml", tmp_path / "many"]
