import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.backends import cudnn

from sublens.config import InputConfig
from sublens.errors import BundleError, ConfigError
from sublens.images import signal_to_noise
from sublens.inference import engines
from sublens.inference.engines import OnnxRuntime, Outputs
from sublens.inference.predictor import Predictor
from sublens.inference.torch_engine import FullNetwork, TorchEngine
from sublens.models import bundle
from sublens.models.networks import build


@pytest.fixture(scope="module")
def counts() -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    return np.random.default_rng(0).poisson(20, (9, 150, 150)).astype(np.uint16)


@pytest.mark.parametrize("name", bundle.shipped())
def test_a_shipped_network_gives_the_same_with_every_engine(name: str) -> None:
    counts = noise_for(bundle.read_card(bundle.locate(name)))
    eager, graph = Predictor.load(name, "torch").forward(counts), Predictor.load(name).forward(counts)
    assert np.allclose(eager.probs, graph.probs, atol=1e-5)
    assert eager.masses is not None
    assert graph.masses is not None
    assert np.allclose(eager.masses, graph.masses, rtol=1e-3, atol=1e5)  # Msun
    for reference, moments in zip(eager.moments, graph.moments, strict=True):
        assert np.allclose(reference, moments, rtol=1e-3, atol=1e-4)


def noise_for(card: bundle.Card) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """Nine images of noise, in counts or as planes of signal to noise, as the network of that card takes them."""
    rng, shape = np.random.default_rng(0), (9, *card.image_shape)
    if card.input.takes_noise:
        return signal_to_noise.encode(rng.standard_normal(shape), np.ones(shape))
    return rng.poisson(20, shape).astype(np.uint16)


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_each_of_four_threads_gets_the_outputs_for_its_own_image(
    name: engines.EngineName, counts: np.ndarray[tuple[int, ...], np.dtype[np.uint16]]
) -> None:
    if name == "openvino":
        pytest.importorskip("openvino")
    engine = Predictor.load("lensnet", name).engine
    images = [counts[n : n + 1] for n in range(8)] * 6
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(engine, images))
    for alone, outputs in zip(list(map(engine, images[:8])) * 6, together, strict=True):
        assert all(map(np.array_equal, arrays(alone), arrays(outputs)))


def arrays(outputs: Outputs) -> list[Any]:
    return [outputs.logits, outputs.logs, *outputs.moments]


@pytest.mark.parametrize("n", [1, 16, 17, 40])
def test_images_of_a_large_batch_have_the_outputs_that_they_have_alone(
    n: int, counts: np.ndarray[tuple[int, ...], np.dtype[np.uint16]]
) -> None:
    engine = Predictor.load("lensnet").engine
    images = np.concatenate([counts] * 5)[:n]
    alone = zip(*(arrays(engine(image[None])) for image in images), strict=True)
    for whole, rows in zip(arrays(engine(images)), alone, strict=True):
        assert np.allclose(whole, np.concatenate(rows), rtol=1e-4, atol=1e-5)


def test_a_shipped_network_runs_as_a_graph_by_default() -> None:
    assert isinstance(Predictor.load("lensnet").engine, OnnxRuntime)


def test_openvino_agrees_as_far_as_its_precision_goes(
    counts: np.ndarray[tuple[int, ...], np.dtype[np.uint16]],
) -> None:
    pytest.importorskip("openvino")
    graph, other = Predictor.load("lensnet").forward(counts), Predictor.load("lensnet", "openvino").forward(counts)
    assert np.abs(graph.probs - other.probs).max() < 0.05


def test_a_damaged_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"graph\.onnx: ONNX Runtime cannot run it .* needs the graph as it was"):
        OnnxRuntime(tmp_path / "graph.onnx")


def test_a_missing_engine_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match="pip install openvino"):
        engines.OpenVino(tmp_path / "graph.onnx")


def test_predicting_imports_no_torch(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).poisson(20, (150, 150)).astype(float))
    code = (
        "import sys; from sublens.cli import app\n"
        f"try: app(['predict', 'lensnet', r'{tmp_path / 'a.npy'}', '--out', r'{tmp_path / 'a.csv'}'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'numba', 'astropy', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_engine_on_a_gpu_computes_in_full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    network = FullNetwork(build("lensnet", 3), InputConfig())
    for device, is_narrow in (("cpu", True), ("cuda", False)):
        TorchEngine(network, device)
        assert cudnn.allow_tf32 == is_narrow
