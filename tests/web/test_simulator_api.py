"""The live simulator, over HTTP."""

import base64
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from sublens.evaluation import saliency
from sublens.images import signal_to_noise
from sublens.images.pixels import Companions, Image
from sublens.inference.predictor import Predictor
from sublens.models import bundle
from sublens.observation import camera
from sublens.sim import scene
from sublens.sim.scene import Scene
from sublens.web import simulator_api
from sublens.web.app import create_app
from sublens.web.batching import Batcher
from sublens.web.prometheus import Metrics
from sublens.web.service import ServedNetwork, Service


def decoded(array: dict[str, Any]) -> NDArray[Any]:
    values = np.frombuffer(base64.b64decode(array["data"]), np.dtype(array["dtype"]).newbyteorder("<"))
    return values.reshape(array["shape"])


def test_a_drawn_scene_comes_back_as_the_library_renders_it(client: TestClient) -> None:
    drawn = client.get("/v1/scene", params={"label": "sphere", "seed": 4}).json()
    answer = client.post("/v1/simulate", json=drawn).json()
    lens = Scene.model_validate(drawn)
    np.testing.assert_array_equal(decoded(answer["counts"]), scene.observed(lens)[0])
    residual = scene.noiseless(lens) - scene.noiseless(scene.smooth(lens))
    np.testing.assert_array_equal(decoded(answer["residual"]), residual)


def test_every_network_gives_the_prediction_of_the_library(client: TestClient) -> None:
    drawn = client.get("/v1/scene", params={"label": "vort", "seed": 5}).json()
    answer = client.post("/v1/simulate", json=drawn).json()
    for prediction in answer["predictions"]:
        (expected,) = Predictor.load(prediction["network"])([decoded(answer["counts"])])
        assert prediction["label"] == expected.label
        assert prediction["probs"] == pytest.approx(expected.probs, abs=1e-6)
    assert [prediction["network"] for prediction in answer["predictions"]] == ["lensnet", "mobilenetv3-small"]


def test_a_scene_may_be_simulated_without_predictions(client: TestClient) -> None:
    assert client.post("/v1/simulate?network=none", json={}).json()["predictions"] == []


def test_the_image_of_another_camera_is_resampled_with_a_note(client: TestClient) -> None:
    answer = client.post("/v1/simulate", json={"survey": "rubin"}).json()
    assert decoded(answer["counts"]).shape == (44, 44)
    assert "resampled from 0.2 to 0.05 arcsec a pixel" in answer["predictions"][0]["notes"]


def test_a_network_of_photons_gives_no_answer_for_signal_to_noise(weighing_client: TestClient) -> None:
    drawn = weighing_client.get("/v1/scene", params={"survey": "hst-acs", "seed": 4}).json()
    answer = weighing_client.post("/v1/simulate", json=drawn).json()
    photons, _ = answer["predictions"]
    assert (photons["label"], photons["probs"]) == (None, {})
    assert "knows common-test-1 only, while hst-acs has signal to noise" in photons["error"]
    refused = weighing_client.post("/v1/smallest-mass?network=lensnet&x=1&y=0", json=drawn)
    assert (refused.status_code, refused.json()["need"]) == (422, "a network for signal to noise")


def test_a_network_of_signal_to_noise_sees_the_codes_of_the_scene(weighing_client: TestClient, weigher: Path) -> None:
    drawn = weighing_client.get("/v1/scene", params={"survey": "euclid-vis", "seed": 4}).json()
    answer = weighing_client.post("/v1/simulate", json=drawn).json()
    codes, shown = scene.observed(Scene.model_validate(drawn))[0], decoded(answer["counts"])
    assert answer["pixels"] == "signal-to-noise"
    np.testing.assert_allclose(shown, signal_to_noise.decode(codes))
    image = Image(shown.astype(float), pixel_scale=0.1, companions=Companions(np.ones(shown.shape), "map"))
    predictor, prediction = Predictor.load(weigher), answer["predictions"][1]
    (expected,) = predictor.predict_images([predictor.framed(image, None)])
    assert prediction["probs"] == pytest.approx(expected.probs, abs=1e-6)
    assert prediction["theta_e"] == pytest.approx((expected.macromodel or {})["theta_e"], rel=1e-5)


@pytest.mark.parametrize(("survey", "is_known"), [("common-test-1", True), ("rubin", False)])
def test_an_answer_for_a_survey_that_a_network_does_not_know_is_flagged(
    survey: str, is_known: bool, client: TestClient
) -> None:
    drawn = client.get("/v1/scene", params={"survey": survey, "label": "no", "seed": 4}).json()
    (prediction,) = client.post("/v1/simulate?network=lensnet", json=drawn).json()["predictions"]
    note = "lensnet knows common-test-1 only: its answer is flagged out of distribution"
    assert (note in prediction["notes"], prediction["ood"]) == (not is_known, not is_known)
    assert (prediction["prediction_set"] is None) == (not is_known)


def test_the_smallest_mass_comes_step_by_step(client: TestClient) -> None:
    drawn = client.get("/v1/scene", params={"label": "no", "seed": 7}).json()
    with client.stream("POST", "/v1/smallest-mass?network=lensnet&x=1.08&y=0.1", json=drawn) as answer:
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert [line["step"] for line in lines[:-1]] == list(range(1, lines[0]["of"] + 1))
    assert lines[-1]["smallest_msun"] == min(line["mass_msun"] for line in lines[:-1] if line["visible"])


def test_a_search_that_cannot_be_made_ends_with_the_problem(client: TestClient) -> None:
    drawn = client.get("/v1/scene", params={"label": "no", "seed": 7, "survey": "model-1"}).json()
    answer = client.post("/v1/smallest-mass?network=lensnet&x=1&y=0", json=drawn)
    last = json.loads(answer.text.splitlines()[-1])
    assert "in the smooth lens already" in last["error"]
    assert last["need"]
    assert last["next"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"theta_e": 100}, "less than or equal to 5"),
        ({"colour": "red"}, "Extra inputs"),
        ({"survey": "/etc/passwd"}, "no preset called"),
        ({"theta_e": 0.1, "subhaloes": [{"x": 0, "y": 0, "mass_msun": 1e11}]}, "Take some out"),
    ],
)
def test_an_impossible_scene_is_refused_in_words(change: dict[str, Any], words: str, client: TestClient) -> None:
    answer = client.post("/v1/simulate", json=change)
    assert answer.status_code == 422
    assert words in " ".join(map(str, answer.json().values()))


def test_the_surveys_are_listed_with_the_ranges_of_their_sliders(client: TestClient) -> None:
    surveys = {survey["name"]: survey for survey in client.get("/v1/surveys").json()["surveys"]}
    assert surveys["common-test-1"]["sliders"]["theta_e"] == [0.1, 5.0]
    assert surveys["rubin"]["pixel_scale"] == 0.2


def test_point_spread_functions_of_many_users_take_bounded_memory() -> None:
    for fwhm in np.linspace(0.1, 0.5, 300):
        camera.psf_kernel(scene.survey_of(Scene(psf_fwhm=fwhm)).camera)
    assert camera.psf_kernel.cache_info().currsize <= 64


# --- one network, many threads ---


class SlowPredictor(Predictor):
    """A predictor that takes 2 ms an image and 10 ms a batch."""

    def forward(self, counts: NDArray[np.uint16]) -> Any:
        time.sleep(0.01 + 0.002 * len(counts))
        return super().forward(counts[:1])


@contextmanager
def served(predictor: Predictor, **options: Any) -> Iterator[TestClient]:
    """A client of a service with this predictor as lensnet."""
    folder, metrics = bundle.locate("lensnet"), Metrics()
    network = ServedNetwork("lensnet", folder, bundle.read_card(folder), predictor, Batcher(predictor))
    with TestClient(create_app(Service({"lensnet": network}, metrics, **options))) as made:
        yield made


@pytest.fixture
def torch_client() -> Iterator[TestClient]:
    with served(Predictor.load("lensnet", "torch")) as made:
        yield made


def test_a_search_past_its_deadline_ends_with_the_problem() -> None:
    with served(Predictor.load("lensnet"), deadline_seconds=-1.0) as client:
        answer = client.post("/v1/smallest-mass?network=lensnet&x=1&y=0", json={})
    (line,) = answer.text.splitlines()
    assert (json.loads(line)["status"], json.loads(line)["next"]) == (503, "Try again in 1 s.")


def test_a_benchmark_measures_single_images_and_full_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator_api, "BENCHMARK_SECONDS", 0.2)
    with served(SlowPredictor.load("lensnet")) as client:
        speed = client.post("/v1/benchmark?network=lensnet").json()
    assert 12 <= speed["one_ms"] < 60
    assert speed["one_per_s"] == pytest.approx(1000 / speed["one_ms"])
    assert 200 < speed["batch_per_s"] <= 64 / 0.138


def test_every_request_gets_the_map_and_score_of_its_own_image(torch_client: TestClient) -> None:
    """The torch engine keeps feature maps between calls, so two threads in it would swap them."""
    lenses = [scene.drawn("common-test-1", "sphere" if seed % 2 else "no", seed) for seed in range(12)]
    reference = Predictor.load("lensnet", "torch").forward(np.concatenate([scene.observed(lens) for lens in lenses]))

    def simulate(row: int) -> None:
        (got,) = torch_client.post("/v1/simulate", json=lenses[row % 12].model_dump()).json()["predictions"]
        expected = reference.prediction(row % 12)
        assert got["ood_score"] == pytest.approx(expected.ood, abs=1e-2)
        np.testing.assert_allclose(decoded(got["map"]), np.asarray(expected.masses), rtol=1e-2, atol=1e5)

    def search(row: int) -> None:
        answer = torch_client.post("/v1/smallest-mass?network=lensnet&x=1.08&y=0.1", json=lenses[row].model_dump())
        assert json.loads(answer.text.splitlines()[-1])["done"]

    def benchmark(row: int) -> None:
        assert torch_client.post("/v1/benchmark?network=lensnet").status_code == 200

    with ThreadPoolExecutor(8) as threads:
        others = [threads.submit(search, 0), threads.submit(search, 2), threads.submit(benchmark, 0)]
        list(threads.map(simulate, range(48)))
        for other in others:
            other.result()


def test_saliency_maps_do_not_hold_up_the_simulator(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    go, is_busy = Event(), Event()

    def slow(predictor: Predictor, counts: NDArray[np.uint16], labels: object) -> NDArray[np.float64]:
        is_busy.set()
        go.wait(10)
        return np.zeros(counts.shape)

    monkeypatch.setattr(saliency, "saliency", slow)
    file = io.BytesIO()
    np.save(file, scene.observed(Scene())[0])
    url = "/v1/predict?name=a.npy&network=lensnet&saliency=true"
    with ThreadPoolExecutor(3) as threads:
        maps = [threads.submit(client.post, url, content=file.getvalue()) for _ in range(3)]
        assert is_busy.wait(30)
        time.sleep(0.5)  # until all wait for the one thread
        start = time.monotonic()
        assert client.post("/v1/simulate?network=none", json={}).status_code == 200
        assert time.monotonic() - start < 5
        go.set()
        assert [answer.result().status_code for answer in maps] == [200] * 3
