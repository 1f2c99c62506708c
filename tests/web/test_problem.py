"""Error responses: what we got, what we need, what to do next."""

import ast
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from sublens.errors import ConfigError, ImageError
from sublens.web import problem
from sublens.web.problem import Problem, from_error

WEB = Path(problem.__file__).parent
GENERIC = re.compile(r"something that can be used|^-?$|^Correct it\.?$|^Try again\.?$")


def test_a_problem_has_the_fields_of_the_error_and_names_its_file() -> None:
    refusal = from_error(
        ImageError("is a cube. A big one", need="an image; one", next="Save it. Or not.", path="a.fits")
    )
    assert (refusal.status_code, refusal.detail) == (422, "a.fits: is a cube. A big one")
    assert (refusal.need, refusal.next) == ("an image; one", "Save it. Or not.")


def test_an_error_about_no_file_begins_with_what_we_got() -> None:
    assert from_error(ConfigError("x is 3", need="4", next="Raise it.")).detail == "x is 3"


@pytest.mark.parametrize(("what", "sentence"), [("It is 3", "It is 3."), ("Why?", "Why?"), ("It is 3.", "It is 3.")])
def test_the_detail_is_one_sentence(what: str, sentence: str) -> None:
    assert problem.details(Problem(422, what, need="4", next="Raise it.")).detail == sentence


def test_a_client_of_the_inference_protocol_gets_all_three_parts() -> None:
    body = problem.details(Problem(422, "It is 3", need="4", next="Raise it."))
    assert body.error == "It is 3. Needed: 4. Raise it."


def test_a_response_cannot_drive_a_terminal() -> None:
    sent = problem.response(Problem(422, "a\x1b[2J\udcff", need="b\n", next="c\x00"), "id")
    body = json.loads(bytes(sent.body))
    assert (body["detail"], body["need"], body["next"]) == ("a [2J .", "b ", "c ")


def constructions(tree: ast.AST) -> list[ast.Call]:
    """Calls that make a problem or one of our errors."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {"Problem", "ConfigError", "DataError", "BundleError", "ImageError", "SublensError"}
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in names]


@pytest.mark.parametrize("path", sorted(WEB.glob("*.py")), ids=lambda path: path.stem)
def test_every_error_of_the_service_has_a_need_and_a_next(path: Path) -> None:
    for call in constructions(ast.parse(path.read_text())):
        parts = {keyword.arg: keyword.value for keyword in call.keywords}
        assert {"need", "next"} <= parts.keys(), call.lineno
        for part in ("need", "next"):
            text = parts[part]
            assert not (isinstance(text, ast.Constant) and GENERIC.search(str(text.value))), call.lineno


FLAT = np.zeros((150, 150))
SMALL = np.random.default_rng(0).random((40, 40))
HEAVY = {"theta_e": 0.1, "subhaloes": [{"x": 0, "y": 0, "mass_msun": 1e11}]}


def npy(pixels: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/predict?name=a.npy", npy(FLAT)),
        ("/v1/predict?name=a.npy", npy(np.full((150, 150), np.nan))),
        ("/v1/predict?name=a.npy", npy(np.zeros((2, 3, 2, 5, 5)))),
        ("/v1/predict?name=a.npy", npy(np.array(["text"]))),
        ("/v1/predict?name=a.npy", npy(np.zeros((150, 150)))[:200]),
        ("/v1/predict?name=a.fits", b"whatever"),
        ("/v1/predict?name=a.png", b"whatever"),
        ("/v1/predict?name=a.npz", b"whatever"),
        ("/v1/predict?name=a.npy&network=nobody", npy(FLAT)),
        ("/v1/predict?name=a.h5", b"whatever"),
        ("/v1/predict?name=a.npy", b""),
        ("/v1/predict?name=a.npy&pixel_scale=-1", npy(FLAT)),
        ("/v1/simulate", b'{"survey": "nowhere"}'),
        ("/v1/simulate", json.dumps(HEAVY).encode()),
        ("/v1/simulate", b'{"background": 1e7, "source": {"intensity": 1e7}}'),
        ("/v1/simulate", b'{"theta_e": 100}'),
        ("/v1/simulate", b"no JSON"),
        ("/v1/smallest-mass?network=lensnet&x=0&y=0", json.dumps(HEAVY).encode()),
        ("/v1/smallest-mass?network=nobody&x=0&y=0", b"{}"),
        ("/v1/benchmark", b""),
        ("/v1/nothing", b""),
        ("/v1/networks", b""),
        ("/v2/models/lensnet/infer", b"{}"),
        ("/v2/models/lensnet/versions/2/infer", b"{}"),
    ],
)
def test_every_refusal_has_a_specific_need_and_next(path: str, body: bytes, client: TestClient) -> None:
    kind = "application/json" if body.startswith((b"{", b"no JSON")) else "application/octet-stream"
    answer = client.post(path, content=body, headers={"content-type": kind})
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == problem.MEDIA_TYPE
    sent = answer.json()
    assert not GENERIC.search(sent["need"])
    assert not GENERIC.search(sent["next"])
    assert not re.search(r"upload\.|/tmp|sublens-", json.dumps(sent))


def test_an_image_among_others_names_itself_and_not_a_path(client: TestClient) -> None:
    file = io.BytesIO()
    np.savez(file, np.stack([SMALL, np.zeros((40, 40))]))
    url = "/v1/predict?name=dir/a.npz&network=lensnet"
    first, second = client.post(url, content=file.getvalue()).json()["images"]
    assert first["predictions"][0]["error"].startswith("a.npz#0: is 40 x 40 pixels")
    assert second["error"].startswith("a.npz#1: every pixel is 0")
    assert "upload" not in first["predictions"][0]["error"] + second["error"]
