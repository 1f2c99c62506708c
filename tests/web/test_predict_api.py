"""Files in, predictions out, over HTTP."""

import csv
import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits, votable
from astropy.table import Table
from fastapi.testclient import TestClient
from pyarrow import parquet

from sublens.inference.predictor import Predictor
from sublens.models import macro
from sublens.sim import scene
from sublens.web import predict_api
from sublens.web.answers import Measured
from sublens.web.app import create_app
from sublens.web.prometheus import Metrics
from sublens.web.service import Service, load_networks


@pytest.fixture
def client_of_two_scales() -> Iterator[TestClient]:
    """The service with lensnet at 0.05 arcsec a pixel, and again as `coarse` at 0.08."""
    metrics = Metrics()
    fine = load_networks(["lensnet"], metrics)["lensnet"]
    assert fine.predictor.map
    cells = fine.predictor.map.model_copy(update={"cell_arcsec": fine.predictor.map.cell_arcsec * 1.6})
    coarse = replace(fine, name="coarse", predictor=replace(fine.predictor, map=cells))
    with TestClient(create_app(Service({"lensnet": fine, "coarse": coarse}, metrics))) as opened:
        yield opened


IMAGE = scene.observed(scene.drawn("common-test-1", "sphere", 4))[0]


def written(write: Any, *values: Any) -> bytes:
    file = io.BytesIO()
    write(file, *values)
    return file.getvalue()


def post(client: TestClient, data: bytes, name: str, **params: Any) -> Any:
    return client.post("/v1/predict", params={"name": name, **params}, content=data)


def test_a_service_without_a_temporary_folder_is_not_ready(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    for answer in (client.get("/v2/health/ready"), post(client, written(np.save, IMAGE), "a.npy")):
        assert (answer.status_code, "TMPDIR" in answer.json()["next"]) == (503, True)
    monkeypatch.undo()
    assert client.get("/v2/health/ready").status_code == 200


def test_a_file_gets_the_predictions_of_the_library(client: TestClient) -> None:
    answer = post(client, written(np.save, IMAGE), "a.npy").json()
    (image,) = answer["images"]
    assert (image["id"], image["error"], answer["is_cut"], image["is_scale_known"]) == ("a.npy", None, False, False)
    for prediction in image["predictions"]:
        (expected,) = Predictor.load(prediction["network"])([IMAGE])
        assert prediction["probs"] == pytest.approx(expected.probs, abs=1e-6)
        assert tuple(prediction["prediction_set"]) == expected.prediction_set
        assert prediction["ood_score"] == pytest.approx(expected.ood, abs=1e-3)


def test_missing_pixels_are_filled_or_flagged_as_in_the_library(client: TestClient) -> None:
    images = np.stack([IMAGE.astype(float)] * 2)
    images[0, 60:62, 60:62], images[1, 70:76, 70:76] = np.nan, -999
    answer = post(client, written(np.savez, images), "a.npz", network="lensnet").json()
    few, many = (image["predictions"][0] for image in answer["images"])
    images[1, 70:76, 70:76] = np.nan
    expected = Predictor.load("lensnet")(images)
    assert [few["ood"], many["ood"]] == [prediction.is_ood for prediction in expected] == [False, True]
    assert few["probs"] == pytest.approx(expected[0].probs, abs=1e-6)
    assert many["prediction_set"] is None
    assert "4 missing pixels" in few["notes"][-1]
    assert "36 missing pixels" in many["notes"][-1]


def of_telescope() -> bytes:
    """A FITS file with a noise map and a masked pixel, 60 pixels of 0.15 arcsec."""
    sky = np.random.default_rng(3).standard_normal((60, 60))
    sky[25:30, 20:40] += 20
    noise = np.ones_like(sky)
    noise[30, 30] = 1e8
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -0.15 / 3600, "CDELT2": 0.15 / 3600})
    hdus = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(sky, header, "SCI"), fits.ImageHDU(noise, header, "ERR")])
    return written(lambda file: hdus.writeto(file))


def test_a_network_of_signal_to_noise_gives_what_it_measures(weighing_client: TestClient) -> None:
    (image,) = post(weighing_client, of_telescope(), "a.fits", network="weigher").json()["images"]
    (prediction,) = image["predictions"]
    assert set(macro.COLUMNS) <= set(prediction)
    assert (prediction["noise"], prediction["n_masked"], prediction["theta_e"] > 0) == ("map", 1, True)
    assert (image["pixels"], image["counts"]["dtype"]) == ("signal-to-noise", "float32")


def test_a_network_of_photons_answers_as_before(weighing_client: TestClient) -> None:
    (image,) = post(weighing_client, of_telescope(), "a.fits", network="lensnet", pixel_scale=0.15).json()["images"]
    assert "pixels" not in image
    assert not set(Measured.model_fields) & set(image["predictions"][0])


def test_the_catalogue_has_what_the_network_measures(weighing_client: TestClient) -> None:
    probs = {"no": 0.6, "sphere": 0.2, "vort": 0.2}
    row = {"id": "a", "label": "no", "probs": probs, "theta_e": 1.1, "noise": "map", "n_masked": 3}
    answer = weighing_client.post("/v1/catalogue", json={"network": "weigher", "rows": [row]})
    (record,) = csv.DictReader(io.StringIO(answer.text))
    assert [record[name] for name in ("theta_e", "noise", "n_masked", "axis_ratio")] == ["1.1", "map", "3", ""]


def test_a_stack_is_predicted_image_by_image_up_to_a_limit(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_api, "MAX_IMAGES", 3)
    stack = np.stack([IMAGE] * 2 + [np.zeros_like(IMAGE)] + [IMAGE] * 2)
    answer = post(client, written(np.savez, stack), "a.npz", network="lensnet").json()
    assert [image["id"] for image in answer["images"]] == ["a.npz#0", "a.npz#1", "a.npz#2"]
    assert [bool(image["error"]) for image in answer["images"]] == [False, False, True]
    assert answer["is_cut"]


def test_extensions_are_listed_and_chosen(client: TestClient) -> None:
    hdus = fits.HDUList(
        [fits.PrimaryHDU(), fits.ImageHDU(IMAGE, name="SCI"), fits.ImageHDU(IMAGE[::-1] + 1, name="ERR")]
    )
    data = written(lambda file: hdus.writeto(file))
    first, second = (post(client, data, "a.fits", network="lensnet", hdu=hdu).json() for hdu in ("1", "2"))
    assert [(extension["number"], extension["name"]) for extension in first["extensions"]] == [(1, "SCI"), (2, "ERR")]
    assert first["images"][0]["counts"] != second["images"][0]["counts"]


def test_a_saliency_map_is_made_on_request(client: TestClient) -> None:
    answer = post(client, written(np.save, IMAGE), "a.npy", network="lensnet", saliency=True).json()
    assert answer["images"][0]["predictions"][0]["saliency"]["shape"] == [150, 150]


def test_an_image_that_is_too_small_is_sent_back_without_a_prediction(client: TestClient) -> None:
    answer = post(client, written(np.save, IMAGE[:40, :40]), "a.npy", network="lensnet").json()
    (image,) = answer["images"]
    assert image["counts"]["shape"] == [40, 40]
    assert "needs 96 x 96" in image["predictions"][0]["error"]


@pytest.mark.parametrize(
    ("data", "name", "status"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "a.fits", 415),
        (b"\x80\x04pickled", "a.npy", 415),
        (written(lambda file: np.save(file, np.array([{}], object), allow_pickle=True)), "a.npy", 415),
        (b"whatever", "a.h5", 415),
        (b"whatever", "a.zarr", 415),
        (b"whatever", "a.pkl", 415),
        (b"whatever", "..", 415),
        (b"", "a.npy", 422),
        (b"whatever", "a.fits", 422),
        (written(np.save, np.zeros((150, 150))), "a.npy", 422),
    ],
)
def test_an_unusable_file_is_refused_in_words(data: bytes, name: str, status: int, client: TestClient) -> None:
    answer = post(client, data, name)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert all(answer.json()[part] for part in ("detail", "need", "next"))


@pytest.mark.parametrize("params", [{}, {"name": "a.npy"}])
def test_a_form_is_refused_with_how_to_send_a_file(params: dict[str, str], client: TestClient) -> None:
    answer = client.post("/v1/predict", params=params, files={"file": ("a.npy", written(np.save, IMAGE))})
    assert (answer.status_code, answer.headers["content-type"]) == (415, "application/problem+json")
    assert "curl --data-binary @lens.fits" in answer.json()["next"]


def test_an_error_names_the_upload_and_no_path_of_the_server(client: TestClient) -> None:
    answer = post(client, b"whatever", "../../etc/a.fits")
    assert answer.json()["detail"].startswith("a.fits: ")
    assert "upload" not in answer.text


def test_a_table_of_another_networks_classes_is_refused(client: TestClient) -> None:
    row = {"id": "a", "label": "spiral", "probs": {"spiral": 0.9, "elliptical": 0.1}}
    answer = client.post("/v1/catalogue", json={"network": "lensnet", "rows": [row]})
    assert (answer.status_code, answer.json()["need"]) == (422, "one for each class of the network: no, sphere, vort")


def test_an_unknown_network_is_refused(client: TestClient) -> None:
    answer = post(client, written(np.save, IMAGE), "a.npy", network="lensnett")
    assert (answer.status_code, answer.json()["next"]) == (404, "Did you mean lensnet?")


ROWS: list[dict[str, Any]] = [
    {
        "id": "a",
        "path": "a.npy",
        "label": "sphere",
        "probs": {"no": 0.25, "sphere": 0.5, "vort": 0.25},
        "prediction_set": ["sphere", "no"],
        "ood_score": 0.5,
        "ood": False,
        "notes": ["cut", "resampled"],
        "correction": "vort",
        "comment": 'said "no"\n, then <yes>',
        "ra": 150.5,
        "dec": -2.5,
    },
    {"id": "b", "error": "cannot be read"},
]


def table(client: TestClient, form: str) -> bytes:
    answer = client.post(f"/v1/catalogue?format={form}", json={"network": "lensnet", "rows": ROWS})
    assert answer.status_code == 200
    assert f"sublens.{form}" in answer.headers["content-disposition"]
    return answer.content


@pytest.mark.parametrize("form", ["csv", "fits", "vot", "ecsv", "parquet"])
def test_corrections_are_kept_in_every_format(form: str, client: TestClient, tmp_path: Path) -> None:
    path = tmp_path / f"a.{form}"
    path.write_bytes(table(client, form))
    readers: dict[str, Any] = {
        "parquet": lambda: parquet.read_table(path).to_pydict(),
        "vot": lambda: votable.parse_single_table(path).to_table(),
    }
    kind = {"csv": "ascii.csv", "ecsv": "ascii.ecsv"}.get(form, form)
    read = readers.get(form, lambda: Table.read(path, format=kind))()
    assert str(read["correction"][0]) == "vort"
    assert float(read["p_sphere"][0]) == 0.5
    assert str(read["error"][1]) == "cannot be read"


def test_lines_of_json_hold_every_cell(client: TestClient) -> None:
    first, second = map(json.loads, table(client, "jsonl").splitlines())
    assert (first["prediction_set"], first["comment"], first["notes"]) == (
        "sphere,no",
        ROWS[0]["comment"],
        "cut; resampled",
    )
    assert (second["p_no"], second["correction"]) == (None, "")


def test_an_unknown_query_parameter_is_refused_with_the_nearest_one(client: TestClient) -> None:
    answer = post(client, written(np.save, IMAGE), "a.npy", **{"pixel-scale": 0.1})
    assert (answer.status_code, answer.json()["next"]) == (422, "Did you mean pixel_scale?")
    assert client.get("/v1/networks", params={"all": 1}).json()["need"] == "none for this path"


def test_an_image_without_a_scale_has_one_scale_for_all_networks(client_of_two_scales: TestClient) -> None:
    data = written(np.save, IMAGE)
    (image,) = post(client_of_two_scales, data, "a.npy").json()["images"]
    fine, coarse = image["predictions"]
    assert (fine["error"], coarse["label"]) == (None, None)
    assert "another network took it as 0.05 arcsec; needs the pixel scale" in coarse["error"]
    (image,) = post(client_of_two_scales, data, "a.npy", pixel_scale=0.1).json()["images"]
    assert all(prediction["label"] for prediction in image["predictions"])
    (image,) = post(client_of_two_scales, data, "a.npy", network="coarse").json()["images"]
    assert image["predictions"][0]["notes"][-1] == "pixel scale not in the file; taken as 0.08 arcsec"
