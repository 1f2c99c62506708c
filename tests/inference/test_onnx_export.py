import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import sublens
from sublens.config import InputConfig, ModelConfig, RunConfig, TrainConfig
from sublens.data.dataset import Dataset
from sublens.errors import BundleError
from sublens.inference import onnx_export
from sublens.inference.predict_files import Listing, Query
from sublens.inference.predictor import Predictor
from sublens.models import bundle
from sublens.training import run


@pytest.fixture(scope="module")
def trained(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lensnet that was trained for a step or two, with a truth head."""
    folder = tmp_path_factory.mktemp("runs") / "lensnet"
    run.train_run(small_dataset, RunConfig(train=TrainConfig(epochs=1)), folder)
    return folder


def test_a_trained_network_has_a_graph_with_the_probabilities_of_torch(trained: Path, small_dataset: Dataset) -> None:
    entry = bundle.read_card(trained).graph
    assert entry is not None
    assert (entry.n, entry.precision) == (len(small_dataset.selection), "float32")
    assert entry.deviation < 1e-5


def test_a_graph_weighs_next_to_nothing(trained: Path) -> None:
    sizes = [(trained / name).stat().st_size for name in (bundle.GRAPH, bundle.WEIGHTS)]
    assert sizes[0] < 0.05 * sizes[1]


def test_a_graph_holds_no_path_of_the_machine_it_was_made_on(trained: Path) -> None:
    assert str(Path(sublens.__file__).parents[2]).encode() not in (trained / bundle.GRAPH).read_bytes()


def test_a_graph_passes_the_checks_of_onnx(trained: Path) -> None:
    onnx.checker.check_model(trained / bundle.GRAPH, full_check=True)


def test_a_changed_graph_or_changed_weights_are_refused(trained: Path, tmp_path: Path) -> None:
    for name in (bundle.GRAPH, bundle.WEIGHTS):
        copy = tmp_path / name
        shutil.copytree(trained, copy)
        data = bytearray((copy / name).read_bytes())
        data[-1] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(BundleError, match="is not what its card was written for"):
            Predictor.load(copy)


def test_a_damaged_calibration_is_not_exported(trained: Path, small_dataset: Dataset, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    content = bytearray((run / bundle.CALIBRATION).read_bytes())
    content[-1] ^= 1
    (run / bundle.CALIBRATION).write_bytes(content)
    with pytest.raises(BundleError, match=r"calibration\.safetensors: is not what its card was written for"):
        onnx_export.export(run, small_dataset, tmp_path / "alone")
    assert not (tmp_path / "alone").exists()


def test_a_graph_with_other_probabilities_is_not_left(
    trained: Path, small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = bundle.read_card(trained)
    monkeypatch.setattr(onnx_export, "MAX_DEVIATION", -1.0)
    before = (trained / bundle.GRAPH).read_bytes()
    try:
        with pytest.raises(BundleError, match="gives other probabilities than torch, by up to"):
            onnx_export.add_graph(trained, card, small_dataset.selection)
        assert not (trained / bundle.GRAPH).exists()
    finally:
        (trained / bundle.GRAPH).write_bytes(before)


def test_an_exported_network_needs_nothing_but_its_one_file(
    trained: Path, small_dataset: Dataset, tmp_path: Path
) -> None:
    entry = onnx_export.export(trained, small_dataset, tmp_path / "alone")
    counts = small_dataset.test.counts(np.arange(5))
    (logits,) = onnxruntime.InferenceSession(tmp_path / "alone" / bundle.GRAPH).run(
        ["logits"], {"counts": counts.astype(np.float32)}
    )
    assert entry.is_alone
    assert not (tmp_path / "alone" / bundle.WEIGHTS).exists()
    assert np.allclose(logits, Predictor.load(trained, "torch").forward(counts).logits, atol=1e-4)


def test_an_exported_network_predicts_as_before(trained: Path, small_dataset: Dataset, tmp_path: Path) -> None:
    onnx_export.export(trained, small_dataset, tmp_path / "alone")
    counts = small_dataset.test.counts(np.arange(5))
    before, after = (Predictor.load(folder).forward(counts) for folder in (trained, tmp_path / "alone"))
    assert np.allclose(before.probs, after.probs, atol=1e-6)
    with pytest.raises(BundleError, match=r"has no weights\.safetensors"):
        Predictor.load(tmp_path / "alone", "torch")


def test_eight_bits_are_smaller_and_calibrated_anew(
    trained: Path, small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "MAX_AUC_CHANGE", 1.0)  # of two dozen images the AUC is coarse
    entry = onnx_export.export(trained, small_dataset, tmp_path / "small", int8=True)
    card, whole = bundle.read_card(tmp_path / "small"), bundle.read_card(trained)
    assert (entry.precision, entry) == ("int8", card.graph)
    assert (tmp_path / "small" / bundle.GRAPH).stat().st_size < 0.4 * (trained / bundle.WEIGHTS).stat().st_size
    assert card.calibration != whole.calibration
    assert Predictor.load(tmp_path / "small").forward(small_dataset.test.counts(np.arange(3))).probs.shape == (3, 3)


@pytest.mark.parametrize("how", [{}, {"int8": True}, {"mirrors": True}])
def test_a_graph_holds_the_temperature_of_its_calibration(
    trained: Path, small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, bool]
) -> None:
    monkeypatch.setattr(onnx_export, "MAX_AUC_CHANGE", 1.0)
    onnx_export.export(trained, small_dataset, tmp_path / "alone", **how)  # type: ignore[arg-type]
    notes = {prop.key: prop.value for prop in onnx.load(tmp_path / "alone" / bundle.GRAPH).metadata_props}
    calibration = bundle.read_card(tmp_path / "alone").calibration
    assert calibration is not None
    assert float(notes["temperature"]) == calibration.temperature


def test_eight_bits_that_do_harm_are_refused(
    trained: Path, small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "MAX_AUC_CHANGE", -1.0)
    with pytest.raises(BundleError, match="In 8 bits this lensnet has a macro AUC that differs by"):
        onnx_export.export(trained, small_dataset, tmp_path / "small", int8=True)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    "config",
    [InputConfig(transform="minmax", channels=3), InputConfig(resize=40), InputConfig(highpass=3), InputConfig()],
)
def test_any_input_transform_can_be_exported(small_dataset: Dataset, tmp_path: Path, config: InputConfig) -> None:
    settings = RunConfig(model=ModelConfig(name="lensnet"), input=config, train=TrainConfig(epochs=1))
    run.train_run(small_dataset, settings, tmp_path / "run")
    assert bundle.read_card(tmp_path / "run").graph is not None


def test_mirror_images_are_averaged(trained: Path, small_dataset: Dataset, tmp_path: Path) -> None:
    entry = onnx_export.export(trained, small_dataset, tmp_path / "mean", mirrors=True)
    assert entry.mirror_gain is not None
    assert entry.mirror_gain[1] <= entry.mirror_gain[0] <= entry.mirror_gain[2]
    counts = small_dataset.test.counts(np.arange(5))
    plain = Predictor.load(trained, "torch")
    views = [counts, counts[:, ::-1], counts[:, :, ::-1], counts[:, ::-1, ::-1]]
    outputs = [replace(plain, calibration=None).forward(np.ascontiguousarray(view)) for view in views]
    mean = replace(Predictor.load(tmp_path / "mean"), calibration=None).forward(counts)
    np.testing.assert_allclose(mean.probs, np.mean([view.probs for view in outputs], axis=0), atol=1e-5)
    assert mean.moments[0].shape == outputs[0].moments[0].shape
    np.testing.assert_allclose(mean.moments[0], outputs[0].moments[0], atol=1e-4)


def test_the_map_of_a_mean_is_that_of_the_image(trained: Path, small_dataset: Dataset, tmp_path: Path) -> None:
    onnx_export.export(trained, small_dataset, tmp_path / "mean", mirrors=True)
    mean, counts = Predictor.load(tmp_path / "mean"), small_dataset.test.counts(np.arange(5))
    turned = mean.forward(np.ascontiguousarray(counts[:, :, ::-1])).masses
    np.testing.assert_allclose(turned[:, :, ::-1], mean.forward(counts).masses, rtol=1e-3)  # type: ignore[index,arg-type]


def test_mirror_images_that_do_harm_are_refused(
    trained: Path, small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "MAX_AUC_CHANGE", -1.0)
    with pytest.raises(BundleError, match="mean over mirror images lowers the macro AUC of this lensnet"):
        onnx_export.export(trained, small_dataset, tmp_path / "mean", mirrors=True)
    assert not (tmp_path / "mean").exists()


def test_a_table_names_the_network_and_how_it_computes(trained: Path, small_dataset: Dataset, tmp_path: Path) -> None:
    plain = bundle.read_card(trained)
    assert plain.identity == f"lensnet {plain.weights_sha256[:12]}"
    onnx_export.export(trained, small_dataset, tmp_path / "mean", mirrors=True)
    mean = bundle.read_card(tmp_path / "mean")
    assert mean.identity == f"{plain.identity} mean of mirror images"
    query, images = Query("any", []), Listing.of([])
    assert query.plan(mean, images) != query.plan(plain, images)  # so neither goes on with the other's table
