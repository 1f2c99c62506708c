"""The application: pages, the OpenAPI document, and what becomes of errors."""

import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from sublens.errors import DataError
from sublens.web.app import create_app
from sublens.web.prometheus import Metrics
from sublens.web.service import Service, load_networks


@contextmanager
def serving(change: Callable[[FastAPI], Any] = lambda app: None, **options: Any) -> Iterator[TestClient]:
    """A client of a service with lensnet, whose application is changed first."""
    metrics = Metrics()
    app = create_app(Service(load_networks(["lensnet"], metrics), metrics, **options))
    change(app)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def fail(err: Exception) -> Callable[[FastAPI], Any]:
    """A change that adds the path /fail, which raises the error."""

    def raising() -> None:
        raise err

    return lambda app: app.get("/fail")(raising)


def test_the_page_and_its_files_are_served(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    names = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text)
    assert len(names) >= 4
    assert [client.get(name).status_code for name in names] == [200] * len(names)


def test_no_file_outside_of_static_is_served(client: TestClient) -> None:
    paths = ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/")
    assert [client.get(path).status_code for path in paths] == [404] * 4


def test_a_report_is_served_under_a_policy_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<p>scores")
    with serving(report=tmp_path / "report.html") as client:
        answer = client.get("/report")
        assert client.get("/v1/networks").json()["report"] is True
    assert (answer.text, answer.headers["x-frame-options"]) == ("<p>scores", "SAMEORIGIN")
    assert "sandbox allow-scripts" in answer.headers["content-security-policy"]


def test_without_a_report_its_path_says_how_to_get_one(client: TestClient) -> None:
    answer = client.get("/report")
    assert (answer.status_code, "--report" in answer.json()["next"]) == (404, True)
    assert client.get("/v1/networks").json()["report"] is False


def test_counters_count_requests_by_route(client: TestClient) -> None:
    line = 'sublens_requests_total{route="/v1/surveys",status="200"}'

    def count() -> float:
        values = [row.split()[1] for row in client.get("/metrics").text.splitlines() if row.startswith(line)]
        return float(values[0]) if values else 0.0

    before = count()
    client.get("/v1/surveys")
    assert count() == before + 1


def test_the_networks_are_listed_with_their_whole_card(client: TestClient) -> None:
    listed = client.get("/v1/networks").json()
    first = listed["networks"][0]
    assert (first["name"], first["image_shape"], first["classes"]) == ("lensnet", [150, 150], ["no", "sphere", "vort"])
    assert first["card"]["weights_sha256"].startswith(first["bundle"].split()[1])
    assert first["scores"] == first["card"]["scores"]
    assert ".h5" not in listed["formats"]


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing", "/static/nothing.js"])
def test_an_unknown_path_is_a_problem(path: str, client: TestClient) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert path in answer.json()["detail"]


def test_a_wrong_method_is_answered_with_the_right_one(client: TestClient) -> None:
    answer = client.get("/v1/predict")
    assert (answer.status_code, answer.headers["allow"], answer.json()["need"]) == (405, "POST", "POST")


def test_an_invalid_request_names_the_fields_to_correct(client: TestClient) -> None:
    answer = client.post("/v1/simulate", json={"theta_e": 100, "colour": "red"})
    assert answer.status_code == 422
    assert answer.json()["next"] == "Correct theta_e, colour."
    assert "theta_e: Input should be less than or equal to 5" in answer.json()["detail"]


def test_an_error_of_ours_keeps_its_parts() -> None:
    with serving(fail(DataError("is torn", need="a whole one", next="Copy it again.", path="a.fits"))) as client:
        answer = client.get("/fail")
    assert answer.status_code == 422
    parts = ("detail", "need", "next")
    assert [answer.json()[part] for part in parts] == ["a.fits: is torn.", "a whole one", "Copy it again."]


def test_a_bug_is_a_problem_that_gives_nothing_away() -> None:
    with serving(fail(RuntimeError("the secret path /home/me"))) as client:
        answer = client.get("/fail")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in answer.text


def test_the_service_ends_with_the_application() -> None:
    metrics = Metrics()
    networks = load_networks(["lensnet"], metrics)
    with TestClient(create_app(Service(networks, metrics))):
        assert networks["lensnet"].batcher._thread.is_alive()
    assert not networks["lensnet"].batcher._thread.is_alive()


# --- openapi.json ---


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    content: dict[str, Any] = client.get("/openapi.json").json()
    return content


def test_every_reference_of_the_openapi_document_resolves(document: dict[str, Any]) -> None:
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert names - document["components"]["schemas"].keys() == set()
    assert {"ProblemDetails", "InferRequest", "FilePredictions", "SearchLine"} <= names


def schema(document: dict[str, Any], method: str, path: str) -> dict[str, Any]:
    """The schema of a successful answer."""
    (content,) = document["paths"][path][method]["responses"]["200"]["content"].values()
    described: dict[str, Any] = content["schema"]
    return described


def test_every_answer_of_json_has_a_schema(document: dict[str, Any]) -> None:
    untyped = [
        (path, method)
        for path, operations in document["paths"].items()
        for method in operations
        if path.startswith("/v1/") and path != "/v1/catalogue" and "$ref" not in schema(document, method, path)
    ]
    assert untyped == []


LENS = {"theta_e": 1.1, "subhaloes": [{"x": 1, "y": 0, "mass_msun": 1e9}]}


@pytest.mark.parametrize(
    ("method", "path", "query", "lens"),
    [
        ("get", "/v1/networks", "", None),
        ("get", "/v1/surveys", "", None),
        ("get", "/v1/scene", "?label=vort", None),
        ("post", "/v1/simulate", "", LENS),
        ("post", "/v1/benchmark", "?network=lensnet", None),
        ("post", "/v1/smallest-mass", "?network=lensnet&x=1&y=0", {"theta_e": 1.1}),
    ],
)
def test_an_answer_is_as_the_document_describes_it(
    method: str, path: str, query: str, lens: Any, client: TestClient, document: dict[str, Any]
) -> None:
    answer = client.request(method, path + query, json=lens)
    described = {**schema(document, method, path), "components": document["components"]}
    lines = answer.text.splitlines() if path == "/v1/smallest-mass" else [answer.text]
    for line in lines:
        jsonschema.validate(json.loads(line), described)
    assert answer.status_code == 200


def test_predictions_are_as_the_document_describes_them(client: TestClient, document: dict[str, Any]) -> None:
    file, stack = io.BytesIO(), np.random.default_rng(0).poisson(30, (2, 150, 150))
    np.savez(file, np.concatenate([stack, np.zeros((1, 150, 150))]))
    answer = client.post("/v1/predict?name=a.npz&saliency=true&network=lensnet", content=file.getvalue())
    described = {**schema(document, "post", "/v1/predict"), "components": document["components"]}
    jsonschema.validate(answer.json(), described)
    assert [bool(image["error"]) for image in answer.json()["images"]] == [False, False, True]
