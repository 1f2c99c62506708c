"""The live simulator, over HTTP."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from sublens.inference.predictor import Predictor
from sublens.sim import scene
from sublens.sim.scene import Scene


def decoded(told: dict[str, Any]) -> NDArray[Any]:
    values = np.frombuffer(base64.b64decode(told["data"]), np.dtype(told["dtype"]).newbyteorder("<"))
    return values.reshape(told["shape"])


def test_a_drawn_scene_comes_back_as_the_library_renders_it(client: TestClient) -> None:
    drawn = client.get("/v1/scene", params={"label": "sphere", "seed": 4}).json()
    told = client.post("/v1/simulate", json=drawn).json()
    one = Scene.model_validate(drawn)
    np.testing.assert_array_equal(decoded(told["counts"]), scene.observed(one)[0])
    residual = scene.noiseless(one) - scene.noiseless(scene.smooth(one))
    np.testing.assert_array_equal(decoded(told["residual"]), residual)


def test_every_network_judges_it_as_the_predictor_does(client: TestClient) -> None:
    drawn = client.get("/v1/scene", params={"label": "vort", "seed": 5}).json()
    told = client.post("/v1/simulate", json=drawn).json()
    for one in told["predictions"]:
        (expected,) = Predictor.load(one["network"])([decoded(told["counts"])])
        assert one["label"] == expected.label
        assert one["probs"] == pytest.approx(expected.probs, abs=1e-6)
    assert [one["network"] for one in told["predictions"]] == ["lensnet", "mobilenetv3-small"]


def test_nobody_need_judge(client: TestClient) -> None:
    told = client.post("/v1/simulate?network=none", json={}).json()
    assert told["predictions"] == []


def test_the_image_of_another_camera_is_resampled_and_says_so(client: TestClient) -> None:
    told = client.post("/v1/simulate", json={"survey": "rubin"}).json()
    assert decoded(told["counts"]).shape == (44, 44)
    assert "resampled from 0.2 to 0.05 arcsec a pixel" in told["predictions"][0]["notes"]


def test_the_smallest_mass_comes_step_by_step(client: TestClient) -> None:
    drawn = client.get("/v1/scene", params={"label": "no", "seed": 7}).json()
    with client.stream("POST", "/v1/smallest-mass?network=lensnet&x=1.08&y=0.1", json=drawn) as answer:
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert [line["step"] for line in lines[:-1]] == list(range(1, lines[0]["of"] + 1))
    assert lines[-1]["smallest_msun"] == min(line["mass_msun"] for line in lines[:-1] if line["visible"])


def test_a_search_that_cannot_be_made_says_so_in_its_last_line(client: TestClient) -> None:
    drawn = client.get("/v1/scene", params={"label": "no", "seed": 7, "survey": "model-1"}).json()
    answer = client.post("/v1/smallest-mass?network=lensnet&x=1&y=0", json=drawn)
    assert "in the smooth lens already" in json.loads(answer.text.splitlines()[-1])["error"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"theta_e": 100}, "less than or equal to 5"),
        ({"colour": "red"}, "Extra inputs"),
        ({"survey": "/etc/passwd"}, "There is no preset"),
        ({"theta_e": 0.1, "subhaloes": [{"x": 0, "y": 0, "mass_msun": 1e11}]}, "Take some out"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_words(change: dict[str, Any], words: str, client: TestClient) -> None:
    answer = client.post("/v1/simulate", json=change)
    assert answer.status_code == 422
    assert words in " ".join(map(str, answer.json().values()))


def test_the_surveys_are_listed_with_what_a_slider_may_reach(client: TestClient) -> None:
    told = {one["name"]: one for one in client.get("/v1/surveys").json()["surveys"]}
    assert told["common-test-1"]["sliders"]["theta_e"] == [0.1, 5.0]
    assert told["rubin"]["pixel_scale"] == 0.2


def test_a_benchmark_measures_both_ways(client: TestClient) -> None:
    told = client.post("/v1/benchmark?network=lensnet").json()
    assert told["one_ms"] * told["one_per_s"] == pytest.approx(1000)
    assert told["batch_per_s"] > 0
