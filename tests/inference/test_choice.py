"""The network that fits images for which none is named."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from sublens.config import InputConfig
from sublens.inference import choice
from sublens.inference.predict_files import Query
from sublens.models import bundle
from sublens.models.bundle import CardMap


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards of lensnet and of networks of signal to noise at 0.05 and 0.08 arcsec a pixel as those that are shipped."""
    folders = {"lensnet": bundle.locate("lensnet")}
    for name, scale in (("fine", 0.05), ("coarse", 0.08)):
        changes = {"input": InputConfig(transform="signal-to-noise", crop=96), "image_shape": (120, 120)}
        cells = CardMap(n_cells=12, cell_arcsec=8 * scale)
        folders[name] = tmp_path / name
        folders[name].mkdir()
        card = bundle.read_card(folders["lensnet"]).model_copy(update={**changes, "map": cells})
        bundle.save_card(folders[name], card)
    monkeypatch.setattr(bundle, "shipped", lambda: folders)


def query(folder: Path, scale: float | None, *, sky: float = 0, noise: bool = False, **header: str) -> Query:
    """The question about one FITS image of that many arcsec a pixel, with a sky of that level and a noise of 1."""
    pixels = np.random.default_rng(1).poisson(30, (60, 60)) - 30.0 + sky
    axes = (
        {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -scale / 3600, "CDELT2": scale / 3600} if scale else {}
    )
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(pixels, fits.Header({**axes, **header}), "SCI")]
    hdus += [fits.ImageHDU(np.ones((60, 60)), name="ERR")] if noise else []
    fits.HDUList(hdus).writeto(folder / "image.fits")
    return Query("lensnet", [folder / "image.fits"])


@pytest.mark.parametrize(
    ("scale", "name"), [(0.04, "fine"), (0.062, "fine"), (0.065, "coarse"), (0.1, "coarse"), (0.03, None), (0.13, None)]
)
def test_the_nearest_scale_within_a_third_is_chosen(
    scale: float, name: str | None, networks: None, tmp_path: Path
) -> None:
    chosen, own = choice.choose(query(tmp_path, scale, noise=True, sky=100)) or (None, scale)
    assert chosen == name
    assert own == pytest.approx(scale)


@pytest.mark.parametrize(
    ("parts", "is_chosen"),
    [
        ({"noise": True, "sky": 100}, True),
        ({"BUNIT": "ELECTRONS/S", "sky": 100}, True),
        ({}, True),
        ({"sky": 100}, False),
    ],
)
def test_an_image_of_a_telescope_has_noise_a_unit_or_sky_below_0(
    parts: dict[str, float], is_chosen: bool, networks: None, tmp_path: Path
) -> None:
    assert (choice.choose(query(tmp_path, 0.05, **parts)) is not None) == is_chosen  # type: ignore[arg-type]


def test_an_image_without_a_scale_chooses_no_network(networks: None, tmp_path: Path) -> None:
    assert choice.choose(query(tmp_path, None, noise=True)) is None


def test_the_first_image_that_can_be_read_decides(networks: None, tmp_path: Path) -> None:
    (tmp_path / "damaged.fits").write_bytes(b"nothing")
    asked = query(tmp_path, 0.05, noise=True)
    name, _ = choice.choose(Query("lensnet", [tmp_path / "damaged.fits", *asked.inputs])) or ("none", 0)
    assert name == "fine"
    assert choice.choose(Query("lensnet", [tmp_path / "damaged.fits"])) is None


def test_no_image_is_read_where_no_network_of_signal_to_noise_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "shipped", lambda: {"lensnet": Path(__file__).parents[2] / "bundles" / "lensnet"})
    monkeypatch.delattr("sublens.images.reader.Reader")
    assert choice.choose(query(tmp_path, 0.05, noise=True)) is None
