"""Rows whose lenses are fitted, from files to tables."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from conftest import drawn_lens

from sublens import cli
from sublens.errors import ConfigError, ImageError
from sublens.images import signal_to_noise
from sublens.images.pixels import Companions, Image
from sublens.images.reader import ReadResult
from sublens.inference import lens_fits, predict_files, tables
from sublens.inference.predict_files import Query
from sublens.inference.predictor import Prediction, Row
from sublens.modelling.lens_image import LensImage
from sublens.models import bundle

pytestmark = pytest.mark.usefixtures("quick_fits")

MACROMODEL = {
    **{"theta_e": 1.3, "theta_e_sigma": 0.1, "axis_ratio": 0.85, "axis_ratio_sigma": 0.1},
    **{"position_angle": 160.0, "position_angle_sigma": 15.0},
}
PREDICTED = Row(Path("a.fits"), prediction=Prediction("no", {"no": 1.0}, macromodel=MACROMODEL))


@pytest.fixture(scope="session")
def lens() -> Image:
    drawn = drawn_lens()
    own = Companions(noise=drawn.noise, noise_source="map", psf=drawn.psf)
    return Image(drawn.pixels, pixel_scale=0.05, companions=own)


@pytest.fixture(scope="session")
def lens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with noise and point-spread function, and one that has lost the latter, in a folder."""
    drawn, folder = drawn_lens(), tmp_path_factory.mktemp("lenses")
    science = fits.ImageHDU(drawn.pixels, fits.Header({"PIXSCALE": 0.05}), name="SCI")
    parts = [fits.PrimaryHDU(), science, fits.ImageHDU(drawn.noise, name="ERR"), fits.ImageHDU(drawn.psf, name="PSF")]
    fits.HDUList(parts).writeto(folder / "whole.fits")
    fits.HDUList(parts[:3]).writeto(folder / "without.fits")
    return folder / "whole.fits"


def test_a_row_has_the_fitted_lens(lens: Image) -> None:
    row = lens_fits.fitted(PREDICTED, lens_fits.cut(lens, None))
    assert row.prediction
    assert row.prediction.macromodel
    assert row.fit
    assert row.prediction.macromodel["theta_e"] == pytest.approx(1.25, rel=0.01)
    sigma = row.prediction.macromodel["theta_e_sigma"]
    assert sigma == pytest.approx(1.25 * lens_fits.SHARE * 0.1 / 1.3, rel=0.1)  # all starts end alike here
    kept = row.prediction.macromodel | {"theta_e": 1.3, "theta_e_sigma": 0.1}
    assert kept == MACROMODEL
    assert 0.68 < row.fit.chi2 < 1.1
    assert row.prediction.probs == {"no": 1.0}


def test_a_row_says_why_no_lens_was_fitted(lens: Image) -> None:
    blind = replace(lens, companions=lens.companions._replace(psf=None))
    assert lens_fits.fitted(PREDICTED, lens_fits.cut(blind, None)).notes == (
        "no lens fitted: it has no point-spread function",
    )
    lost = lens_fits.fitted(PREDICTED, lens_fits.cut(replace(lens, pixel_scale=None), None))
    assert lost.notes == ("no lens fitted: it has no pixel scale",)
    assert lost.prediction == PREDICTED.prediction
    assert lens_fits.fitted(PREDICTED, lens_fits.cut(replace(lens, pixel_scale=None), 0.05)).fit


def test_rows_without_a_prediction_stay_as_they_are(lens: Image) -> None:
    failed = Row(Path("a.fits"), error="damaged")
    assert lens_fits.fitted(failed, lens_fits.cut(lens, None)) == failed
    assert isinstance(lens_fits.cut(ImageError("damaged"), None), ImageError)


def test_a_poor_fit_is_called_one(lens: Image) -> None:
    noise = lens.companions._replace(noise=0.5 * drawn_lens().noise)
    row = lens_fits.fitted(PREDICTED, lens_fits.cut(replace(lens, companions=noise), None))
    assert row.fit
    assert row.notes == (f"the lens model fits poorly: chi2 {row.fit.chi2:.2f}",)


def test_rows_keep_their_order_and_their_own_images(lens: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(results: Iterable[ReadResult]) -> Iterator[Row]:
        yield from [replace(PREDICTED, path=result.path) for result in list(results)]  # all are read ahead

    def fitted(row: Row, image: LensImage | ImageError) -> Row:
        assert isinstance(image, LensImage)
        return replace(row, id=f"{image.pixels[0, 0]:g}")

    monkeypatch.setattr(lens_fits, "fitted", fitted)
    images = [replace(lens, pixels=np.full(lens.pixels.shape, float(n))) for n in range(20)]
    monkeypatch.setattr(signal_to_noise, "weigh", lambda image: replace(image, mask=image.pixels < 0))
    results = [ReadResult(Path(f"{n}.fits"), image) for n, image in enumerate(images)]
    assert [(row.path.stem, row.id) for row in lens_fits.rows(predict, results, None)] == [
        (str(n), str(n)) for n in range(20)
    ]


def test_a_table_has_the_fit(lens_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "lenses.csv"
    predict_files.predict_to_table(Query("lensnet-hst", [lens_file.parent], has_fit=True), out)
    whole, without = csv.DictReader(out.read_text().splitlines())
    at = list(whole).index(tables.MACROMODEL[-1].name) + 1
    assert list(whole)[at : at + 3] == ["fit_chi2", "string_gain", "subhalo_gain"]
    assert float(whole["theta_e"]) == pytest.approx(1.25, rel=0.01)
    assert float(whole["fit_chi2"]) < 1.1
    assert without["fit_chi2"] == ""
    assert "no lens fitted: it has no point-spread function" in without["notes"]


def test_a_table_of_fits_is_another_than_one_without(lens_file: Path) -> None:
    card = bundle.read_card(bundle.locate("lensnet-hst"))
    plain, fitted = (Query("lensnet-hst", [lens_file], has_fit=has_fit) for has_fit in (False, True))
    images = predict_files.Listing.of([lens_file])
    assert plain.plan(card, images) != fitted.plan(card, images)


def test_a_network_that_measures_no_lens_is_refused(lens_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="measures no lens"):
        Query("lensnet", [lens_file], has_fit=True).refuse_fit(bundle.read_card(bundle.locate("lensnet")))
    with pytest.raises(SystemExit) as exit_:
        cli.main(["predict", "lensnet", str(lens_file), "--fit"])
    assert exit_.value.code == 1
    assert "needs a network for images of telescopes" in capsys.readouterr().err


def test_the_command_prints_the_fit(lens_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["predict", "lensnet-hst", str(lens_file), "--fit"])
    assert exit_.value.code == 0
    head, row = capsys.readouterr().out.splitlines()
    cells = dict(zip(head.split("\t"), row.split("\t"), strict=True))
    assert float(cells["theta_e"]) == pytest.approx(1.25, rel=0.01)
    assert 0.68 < float(cells["fit_chi2"]) < 1.1
