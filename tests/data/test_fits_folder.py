from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits as astropy_fits

from sublens.config import SplitConfig
from sublens.data import dataset, generate
from sublens.errors import ConfigError
from sublens.images import formats
from sublens.sim import render
from sublens.sim.population import CLASSES
from sublens.surveys.survey import Survey


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_survey: Survey) -> Path:
    out = tmp_path_factory.mktemp("fits") / "f"
    generate.simulate(small_survey, {"train": 12, "test": 6}, out, seed=3, form="fits", save_maps=True)
    return out


def test_there_is_a_file_for_every_image(folder: Path) -> None:
    assert [len(list((folder / "train" / name).glob("*.fits"))) for name in CLASSES] == [4, 4, 4]
    assert (folder / "test" / "vort" / "0000005.fits").is_file()


def test_a_file_holds_the_image_its_truth_and_its_maps(folder: Path, small_survey: Survey) -> None:
    truth, counts = render.simulate(small_survey, 3, "train", range(12))
    with astropy_fits.open(folder / "train" / "sphere" / "0000004.fits") as hdus:
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "SCI", "KAPPA", "NOISELES", "SUBHALO"]
        assert np.array_equal(hdus["SCI"].data, counts[4])
        header = hdus["SCI"].header
        assert header["CLASS"] == "sphere"
        for name in truth.scenes.dtype.names or ():
            assert header[f"SUBLENS {name}"] == pytest.approx(truth.scenes[name][4])
        own = truth.take(np.array([4])).subhaloes
        assert all(np.array_equal(hdus["SUBHALO"].data[name], own[name]) for name in own.dtype.names or ())
        expected = render.maps(truth.take(np.array([4])), small_survey)
        assert np.array_equal(hdus["KAPPA"].data, expected["convergence"][0])
        assert np.array_equal(hdus["NOISELES"].data, expected["noiseless"][0])


def test_pixels_have_a_place_on_the_sky(folder: Path) -> None:
    header = astropy_fits.getheader(folder / "train" / "no" / "0000000.fits", "SCI")
    assert (header["CDELT1"], header["CUNIT1"]) == (0.15, "arcsec")
    assert (1 - header["CRPIX1"]) * header["CDELT1"] == pytest.approx(-23.5 * 0.15)


def test_the_standard_is_kept(folder: Path) -> None:
    for name in CLASSES:
        with astropy_fits.open(next((folder / "train" / name).glob("*.fits"))) as hdus:
            hdus.verify("exception")


def test_the_folder_can_be_trained_on(folder: Path, small_survey: Survey) -> None:
    opened = dataset.open_dataset(folder, SplitConfig(selection=0.6, seed=1))
    assert (opened.classes, len(opened.train) + len(opened.selection), len(opened.test)) == (CLASSES, 12, 6)
    _, counts = render.simulate(small_survey, 3, "train", range(1))
    assert np.array_equal(formats.read_counts(folder / "train" / "no" / "0000000.fits"), counts[0])


def test_npy_folders_hold_no_maps(tmp_path: Path, small_survey: Survey) -> None:
    with pytest.raises(ConfigError, match="hold no maps; needs the format store or fits"):
        generate.simulate(small_survey, {"train": 3}, tmp_path / "f", seed=1, form="folder", save_maps=True)
    assert list(tmp_path.iterdir()) == []
