"""Files in, judgements out, over HTTP."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits, votable
from astropy.table import Table
from fastapi.testclient import TestClient
from pyarrow import parquet

from sublens.inference.predictor import Predictor
from sublens.sim import scene
from sublens.web import predict_api

IMAGE = scene.observed(scene.drawn("common-test-1", "sphere", 4))[0]


def packed(write: Any, *values: Any) -> bytes:
    held = io.BytesIO()
    write(held, *values)
    return held.getvalue()


def asked(client: TestClient, data: bytes, name: str, **params: Any) -> Any:
    return client.post("/v1/predict", params={"name": name, **params}, content=data)


def test_a_file_is_judged_as_the_predictor_does(client: TestClient) -> None:
    told = asked(client, packed(np.save, IMAGE), "a.npy").json()
    (image,) = told["images"]
    assert (image["id"], image["error"], told["is_cut"], image["is_scale_known"]) == ("a.npy", None, False, False)
    for one in image["predictions"]:
        (expected,) = Predictor.load(one["network"])([IMAGE])
        assert one["probs"] == pytest.approx(expected.probs, abs=1e-6)
        assert tuple(one["prediction_set"]) == expected.prediction_set
        assert one["ood_score"] == pytest.approx(expected.ood, abs=1e-3)


def test_a_stack_is_judged_image_by_image_up_to_a_limit(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_api, "MAX_IMAGES", 3)
    stack = np.stack([IMAGE] * 2 + [np.zeros_like(IMAGE)] + [IMAGE] * 2)
    told = asked(client, packed(np.savez, stack), "a.npz", network="lensnet").json()
    assert [one["id"] for one in told["images"]] == ["a.npz#0", "a.npz#1", "a.npz#2"]
    assert [bool(one["error"]) for one in told["images"]] == [False, False, True]
    assert told["is_cut"]


def test_extensions_are_listed_and_chosen(client: TestClient) -> None:
    hdus = fits.HDUList(
        [fits.PrimaryHDU(), fits.ImageHDU(IMAGE, name="SCI"), fits.ImageHDU(IMAGE[::-1] + 1, name="ERR")]
    )
    data = packed(lambda held: hdus.writeto(held))
    first, second = (asked(client, data, "a.fits", network="lensnet", hdu=hdu).json() for hdu in ("1", "2"))
    assert [(one["number"], one["name"]) for one in first["extensions"]] == [(1, "SCI"), (2, "ERR")]
    assert first["images"][0]["counts"] != second["images"][0]["counts"]


def test_a_saliency_is_made_when_asked_for(client: TestClient) -> None:
    told = asked(client, packed(np.save, IMAGE), "a.npy", network="lensnet", saliency=True).json()
    assert told["images"][0]["predictions"][0]["saliency"]["shape"] == [150, 150]


def test_an_image_that_is_too_small_is_shown_but_not_judged(client: TestClient) -> None:
    told = asked(client, packed(np.save, IMAGE[:40, :40]), "a.npy", network="lensnet").json()
    (image,) = told["images"]
    assert image["counts"]["shape"] == [40, 40]
    assert "needs 96 x 96" in image["predictions"][0]["error"]


@pytest.mark.parametrize(
    ("data", "name", "status"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "a.fits", 415),
        (b"\x80\x04pickled", "a.npy", 415),
        (packed(lambda held: np.save(held, np.array([{}], object), allow_pickle=True)), "a.npy", 415),
        (b"whatever", "a.h5", 415),
        (b"whatever", "a.zarr", 415),
        (b"whatever", "a.pkl", 415),
        (b"whatever", "..", 415),
        (b"", "a.npy", 422),
        (b"whatever", "a.fits", 422),
        (packed(np.save, np.zeros((150, 150))), "a.npy", 422),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(data: bytes, name: str, status: int, client: TestClient) -> None:
    answer = asked(client, data, name)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert all(answer.json()[part] for part in ("detail", "need", "next"))


def test_no_path_of_the_server_is_told(client: TestClient) -> None:
    answer = asked(client, b"whatever", "../../etc/a.fits")
    assert answer.json()["detail"].startswith("a.fits: ")


def test_an_unknown_network_is_refused(client: TestClient) -> None:
    answer = asked(client, packed(np.save, IMAGE), "a.npy", network="lensnett")
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


def test_lines_of_json_hold_all_that_was_said(client: TestClient) -> None:
    first, second = map(json.loads, table(client, "jsonl").splitlines())
    assert (first["prediction_set"], first["comment"], first["notes"]) == (
        "sphere,no",
        ROWS[0]["comment"],
        "cut; resampled",
    )
    assert (second["p_no"], second["correction"]) == (None, "")
