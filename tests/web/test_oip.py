"""The Open Inference Protocol, over HTTP."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from sublens.inference.predictor import Predictor
from sublens.sim import scene
from sublens.web import guard, oip
from sublens.web.batching import Batcher
from sublens.web.problem import overloaded

IMAGES = scene.observed(scene.drawn("common-test-1", "vort", 4), 3)
URL = "/v2/models/lensnet/infer"


def tensor(**changes: Any) -> dict[str, Any]:
    plain = {"name": "image", "shape": list(IMAGES.shape), "datatype": "UINT16", "data": IMAGES.ravel().tolist()}
    return {key: value for key, value in {**plain, **changes}.items() if value is not None}


def outputs(answer: Any) -> dict[str, Any]:
    return {tensor["name"]: np.reshape(tensor["data"], tensor["shape"]) for tensor in answer["outputs"]}


def test_plain_json_gives_the_predictions_of_the_library(client: TestClient) -> None:
    answer = client.post(URL, json={"id": "7", "inputs": [tensor()]}).json()
    expected = Predictor.load("lensnet")(IMAGES)
    assert answer["id"] == "7"
    arrays = outputs(answer)
    np.testing.assert_allclose(arrays["probs"], [list(prediction.probs.values()) for prediction in expected], atol=1e-9)
    np.testing.assert_allclose(
        arrays["ood_score"], np.array([prediction.ood for prediction in expected], float), atol=1e-6
    )
    np.testing.assert_allclose(
        arrays["masses"], np.array([prediction.masses for prediction in expected], float), rtol=1e-5
    )
    assert arrays["ood"].tolist() == [prediction.is_ood for prediction in expected]


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT32", "UINT16"])
def test_the_bytes_of_a_tensor_may_follow(datatype: str, client: TestClient) -> None:
    kinds = {"FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "UINT16": "<u2"}
    data = IMAGES.astype(kinds[datatype]).tobytes()
    image = tensor(datatype=datatype, data=None, parameters={"binary_data_size": len(data)})
    head = json.dumps({"inputs": [image], "outputs": [{"name": "probs", "parameters": {"binary_data": True}}]}).encode()
    answer = client.post(URL, content=head + data, headers={"Inference-Header-Content-Length": str(len(head))})
    n_head = int(answer.headers["inference-header-content-length"])
    probs = np.frombuffer(answer.content[n_head:], "<f8").reshape(3, 3)
    np.testing.assert_allclose(
        probs, Predictor.load("lensnet").probs(IMAGES - IMAGES.min((1, 2), keepdims=True)), atol=1e-9
    )
    assert [output["name"] for output in json.loads(answer.content[:n_head])["outputs"]] == ["probs"]


def test_any_linear_scale_gives_the_same(client: TestClient) -> None:
    first, second = (
        outputs(client.post(URL, json={"inputs": [tensor(datatype="FP64", data=values.ravel().tolist())]}).json())
        for values in (IMAGES.astype(float), IMAGES / 7 - 3)
    )
    np.testing.assert_array_equal(first["probs"], second["probs"])


def test_metadata_describe_the_input_and_the_outputs(client: TestClient) -> None:
    metadata = client.get("/v2/models/lensnet").json()
    arrays = outputs(client.post(URL, json={"inputs": [tensor()]}).json())
    assert {output["name"]: output["shape"][1:] for output in metadata["outputs"]} == {
        name: list(values.shape[1:]) for name, values in arrays.items()
    }
    assert metadata["inputs"][0]["shape"] == [-1, 150, 150]


def test_a_version_may_be_named(client: TestClient) -> None:
    assert client.post("/v2/models/lensnet/versions/1/infer", json={"inputs": [tensor()]}).status_code == 200
    assert client.get("/v2/models/lensnet/versions/2").status_code == 404
    assert client.get("/v2/models/nobody/ready").status_code == 404


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no JSON"),
        (b"[]", "valid dictionary"),
        (b'{"inputs": []}', "at least 1 item"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (json.dumps({"inputs": [tensor(name="picture")]}), "'picture'"),
        (json.dumps({"inputs": [tensor(datatype="BYTES")]}), "BYTES"),
        (json.dumps({"inputs": [tensor(shape=[65, 150, 150])]}), "b from 1 to 64"),
        (json.dumps({"inputs": [tensor(shape=[1, 150, 150])]}), "no UINT16 of the shape"),
        (json.dumps({"inputs": [tensor(data=[-1] * IMAGES.size)]}), "no UINT16"),
        (json.dumps({"inputs": [tensor(data=["a"] * IMAGES.size)]}), "no UINT16"),
        (json.dumps({"inputs": [tensor(data=[None] * IMAGES.size)]}), "no UINT16"),
        (json.dumps({"inputs": [tensor(data=[True] * IMAGES.size)]}), "no UINT16"),
        (json.dumps({"inputs": [tensor(data=[1.5] * IMAGES.size)]}), "no UINT16"),
        (json.dumps({"inputs": [tensor(data=["1"] * IMAGES.size, datatype="FP32")]}), "no FP32"),
        (json.dumps({"inputs": [tensor(data=None)]}), "neither data nor"),
        (json.dumps({"inputs": [tensor(data=None, parameters={"binary_data_size": 4})]}), "0 bytes follow"),
        (json.dumps({"inputs": [tensor()], "outputs": [{"name": "secrets"}]}), "no output 'secrets'"),
    ],
)
def test_an_invalid_request_is_refused_in_words(body: Any, words: str, client: TestClient) -> None:
    answer = client.post(URL, content=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


@pytest.mark.parametrize("header", ["x", "-1", "99999999999999999999", "9" * 5000, "²"])
def test_a_header_that_is_no_length_is_refused(header: str, client: TestClient) -> None:
    answer = client.post(URL, content=b"{}", headers=[(b"inference-header-content-length", header.encode())])
    assert answer.status_code == 400


def post_with_hole(client: TestClient) -> Any:
    """The answer for three images, of which the second has a hole."""
    images = IMAGES.astype("<f4")
    images[1, 70:74, 70:74] = np.nan
    image = tensor(datatype="FP32", data=None, parameters={"binary_data_size": images.nbytes})
    head = json.dumps({"inputs": [image]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return client.post(URL, content=head + images.tobytes(), headers=headers)


def test_an_image_with_a_hole_is_out_of_distribution(client: TestClient) -> None:
    arrays = outputs(post_with_hole(client).json())
    assert arrays["ood"].tolist() == [False, True, False]
    assert arrays["prediction_set"].any(axis=1).tolist() == [True, False, True]


def test_a_network_without_an_ood_score_refuses_a_hole(monkeypatch: pytest.MonkeyPatch, client: TestClient) -> None:
    forward = Predictor.forward
    monkeypatch.setattr(Predictor, "forward", lambda self, counts: replace(forward(self, counts), is_ood=None))
    answer = post_with_hole(client)
    assert (answer.status_code, answer.json()["detail"].split(":")[0]) == (422, "image 1")


def test_an_unusable_image_is_refused_by_its_index(client: TestClient) -> None:
    flat = IMAGES.copy()
    flat[1] = 7
    answer = client.post(URL, json={"inputs": [tensor(data=flat.ravel().tolist())]})
    assert (answer.status_code, answer.json()["detail"].split(":")[0]) == (422, "image 1")


def test_an_image_of_another_size_is_refused_before_it_waits(client: TestClient) -> None:
    answer = client.post(URL, json={"inputs": [tensor(shape=[1, 100, 675])]})
    assert (answer.status_code, answer.json()["detail"][:24]) == (422, "image: is 100 x 675 pixe")


def test_much_json_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oip, "MAX_JSON_BYTES", 100)
    answer = client.post(URL, json={"inputs": [tensor()]})
    assert answer.status_code == 413
    assert "behind the JSON" in answer.json()["next"]


def test_a_client_of_the_protocol_finds_the_error_where_it_looks(client: TestClient) -> None:
    answer = client.post("/v2/models/lensnett/infer", json={}).json()
    assert answer["error"] == (
        "There is no network called 'lensnett'. Needed: one of lensnet, mobilenetv3-small. Did you mean lensnet?"
    )


@pytest.mark.parametrize("path", ["/v2/models/lensnet/infer", "/v1/predict?name=a.fits"])
def test_a_body_for_a_full_queue_is_not_read(path: str, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(batcher: Batcher, n: int = 1) -> None:
        raise overloaded("512 images wait for this network already")

    monkeypatch.setattr(Batcher, "check_room", refuse)
    monkeypatch.setattr(guard, "HOLD_SECONDS", 0.0)
    assert client.post(path, content=b"no image").status_code == 503


def test_a_deadline_of_the_request_holds(client: TestClient) -> None:
    answer = client.post(URL, json={"inputs": [tensor()], "parameters": {"timeout": 1}})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
