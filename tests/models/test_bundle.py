import json
import random
from pathlib import Path

import numpy as np
import pytest

from sublens.errors import BundleError
from sublens.inference.predictor import Predictor
from sublens.models import bundle
from sublens.models.bundle import CALIBRATION, CARD, GRAPH, WEIGHTS, Card, CardGraph
from sublens.models.calibration import Calibration, Layer
from sublens.models.detection import Detection
from sublens.storage.files import sha256
from sublens.storage.seal import write_sealed


@pytest.fixture
def shelf(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shelf of trained networks that holds one, called run."""
    monkeypatch.setattr(bundle, "BUNDLE_FOLDERS", (saved.parent / "nothing here", saved.parent))
    return saved.parent


def rewrite(folder: Path, **changes: object) -> Card:
    """The card in `folder`, with other values of some fields."""
    card = bundle.read_card(folder).model_copy(update=changes)
    bundle.save_card(folder, card)
    return bundle.read_card(folder)


@pytest.fixture
def calibrated(saved: Path) -> Path:
    """The untrained lensnet, with a calibration of two layers."""
    rng = np.random.default_rng(0)
    layers = tuple(Layer(rng.normal(size=n), np.eye(n), (0.5, 2.0 + n)) for n in (3, 5))
    calibration = Calibration(1.5, (0.2, 0.3, 0.4), 0.9, layers, 4.0, 0.01, ood_offsets=(-0.5, 0.25, 0.25))
    rewrite(saved, calibration=bundle.save_calibration(saved, calibration, 30))
    return saved


@pytest.fixture(params=[True, False], ids=["alone", "beside its weights"])
def graphed(saved: Path, request: pytest.FixtureRequest) -> Path:
    """The untrained lensnet, with a file that stands for its graph."""
    (saved / GRAPH).write_bytes(b"a graph")
    digest = sha256(saved / GRAPH)
    rewrite(saved, graph=CardGraph(sha256=digest, precision="float32", is_alone=request.param, n=9, deviation=0))
    return saved


def damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(flipped(data, 4 * len(data)))


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def test_a_trained_network_that_comes_with_sublens_is_located_by_name(shelf: Path) -> None:
    assert bundle.shipped() == {"run": shelf / "run"}
    assert bundle.locate("run") == shelf / "run"
    assert bundle.is_bundle("run")
    assert not bundle.is_bundle("walk")


def test_networks_are_shipped_for_the_survey_that_they_learned_from(shelf: Path) -> None:
    assert bundle.shipped_for(bundle.read_card(shelf / "run").data.name) == {"run": shelf / "run"}
    assert bundle.shipped_for("another") == {}


def test_a_folder_comes_before_a_name(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert bundle.locate("run") == Path("run")


def test_an_unknown_name_is_answered_with_the_nearest(shelf: Path) -> None:
    with pytest.raises(BundleError, match="ran: no such folder, and no trained network.*Did you mean run?"):
        bundle.locate("ran")


def test_a_folder_is_located_even_where_it_is_no_bundle(tmp_path: Path) -> None:
    assert bundle.locate(tmp_path) == tmp_path
    with pytest.raises(BundleError, match=f"{tmp_path}: not a trained model") as caught:
        bundle.read_card(tmp_path)
    assert caught.value.need == "a folder that `sublens train` wrote"


@pytest.mark.parametrize("name", bundle.shipped())
def test_every_shipped_bundle_has_a_card_a_calibration_and_a_graph(name: str) -> None:
    folder = bundle.locate(name)
    card = bundle.read_card(folder)
    calibration = bundle.load_calibration(folder, card)
    assert calibration is not None
    assert len(calibration.layers) > 0
    assert bundle.graph(folder, card) == folder / GRAPH


@pytest.mark.parametrize(
    "change", [{"format": 3}, {"classes": 3}, {"colour": "red"}, {"settings": {"train": {"lr": -1}}}]
)
def test_a_card_with_a_wrong_field_is_named(saved: Path, change: dict[str, object]) -> None:
    card = json.loads((saved / CARD).read_text())
    write_sealed(saved / CARD, card | change)
    with pytest.raises(BundleError, match=rf"{CARD}: is damaged, or of another version of sublens; needs .* format 2"):
        bundle.read_card(saved)


def test_any_flipped_bit_of_a_card_is_noticed(calibrated: Path) -> None:
    data, rng = (calibrated / CARD).read_bytes(), random.Random(0)
    for _ in range(500):
        (calibrated / CARD).write_bytes(flipped(data, rng.randrange(8 * len(data))))
        with pytest.raises(BundleError):
            bundle.read_card(calibrated)


def test_a_changed_number_in_a_card_is_noticed_by_all_that_read_it(calibrated: Path) -> None:
    text = (calibrated / CARD).read_text()
    (calibrated / CARD).write_text(text.replace('"temperature": 1.5', '"temperature": 2.5'))
    with pytest.raises(BundleError, match="is damaged.*needs the card as it was written.*Copy the whole folder again"):
        Predictor.load(calibrated)


def test_a_card_of_format_1_is_read_without_a_seal_and_sealed_when_written(saved: Path) -> None:
    card = {**json.loads((saved / CARD).read_text()), "format": 1}
    del card["sha256"]
    (saved / CARD).write_text(json.dumps(card))
    assert rewrite(saved, rounding=0.5) == bundle.Card.model_validate({**card, "format": 2, "rounding": 0.5})


def test_a_card_of_format_2_without_a_seal_is_refused(saved: Path) -> None:
    card = json.loads((saved / CARD).read_text())
    del card["sha256"]
    (saved / CARD).write_text(json.dumps(card))
    with pytest.raises(BundleError, match="is damaged"):
        bundle.read_card(saved)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_card_that_is_no_json_is_named(saved: Path, data: bytes) -> None:
    (saved / CARD).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{CARD}: is damaged"):
        bundle.read_card(saved)


def test_a_calibration_survives_a_round_trip(calibrated: Path) -> None:
    loaded = bundle.load_calibration(calibrated, bundle.read_card(calibrated))
    assert loaded is not None
    assert (loaded.temperature, loaded.cutoffs, loaded.ood_threshold) == (1.5, (0.2, 0.3, 0.4), 4.0)
    assert loaded.ood_offsets == (-0.5, 0.25, 0.25)
    assert loaded.is_by_class
    assert [layer.log_distance for layer in loaded.layers] == [(0.5, 5.0), (0.5, 7.0)]
    assert [layer.precision.shape for layer in loaded.layers] == [(3, 3), (5, 5)]


def test_a_card_of_one_cutoff_for_all_classes_is_read(calibrated: Path) -> None:
    card = {**json.loads((calibrated / CARD).read_text()), "format": 1}
    del card["sha256"], card["calibration"]["cutoffs"], card["calibration"]["ood_offsets"]
    card["calibration"]["cutoff"] = 0.2
    (calibrated / CARD).write_text(json.dumps(card))
    loaded = bundle.load_calibration(calibrated, bundle.read_card(calibrated))
    assert loaded is not None
    assert not loaded.is_by_class
    assert loaded.sets(np.array([[0.7, 0.2, 0.1]])).tolist() == [[True, True, False]]


def test_the_card_keeps_the_key_of_earlier_versions(calibrated: Path) -> None:
    assert json.loads((calibrated / CARD).read_text())["calibration"]["usual"] == [[0.5, 5.0], [0.5, 7.0]]


def test_a_bundle_in_training_has_no_calibration(saved: Path) -> None:
    assert bundle.load_calibration(saved, bundle.read_card(saved)) is None


def test_a_changed_calibration_is_refused(calibrated: Path) -> None:
    damage(calibrated / CALIBRATION)
    with pytest.raises(BundleError, match=f"{CALIBRATION}: is not what its card was written for"):
        bundle.load_calibration(calibrated, bundle.read_card(calibrated))


def test_a_missing_calibration_is_named(calibrated: Path) -> None:
    (calibrated / CALIBRATION).unlink()
    with pytest.raises(BundleError, match=f"{calibrated}: has no {CALIBRATION}; needs all files"):
        bundle.load_calibration(calibrated, bundle.read_card(calibrated))


def test_a_bundle_without_a_graph_says_what_to_do(saved: Path) -> None:
    with pytest.raises(BundleError, match=f"has no {GRAPH}.*`sublens export`, or use --engine torch"):
        bundle.graph(saved, bundle.read_card(saved))


def test_a_changed_graph_is_refused(graphed: Path) -> None:
    assert bundle.graph(graphed, bundle.read_card(graphed)) == graphed / GRAPH
    damage(graphed / GRAPH)
    with pytest.raises(BundleError, match=f"{GRAPH}: is not what its card was written for"):
        bundle.graph(graphed, bundle.read_card(graphed))


def test_a_missing_graph_is_named(graphed: Path) -> None:
    (graphed / GRAPH).unlink()
    with pytest.raises(BundleError, match=f"has no {GRAPH}.*Copy the whole folder again"):
        bundle.graph(graphed, bundle.read_card(graphed))


def test_weights_that_a_graph_needs_are_checked_with_it(graphed: Path) -> None:
    card = bundle.read_card(graphed)
    (graphed / WEIGHTS).unlink()
    if card.graph and card.graph.is_alone:
        assert bundle.graph(graphed, card) == graphed / GRAPH
    else:
        with pytest.raises(BundleError, match=f"has no {WEIGHTS}"):
            bundle.graph(graphed, card)


def test_a_detection_limit_comes_back_as_it_was_and_changes_the_digest(saved: Path) -> None:
    before = bundle.read_card(saved)
    fit = Detection(p_no=0.3, log_most=11, means=(), spreads=(), levels=(1,), slopes=(2,), n=9)
    after = rewrite(saved, detection=fit)
    assert after.detection == fit
    assert after.digest != before.digest


def test_a_card_without_a_detection_limit_does_not_mention_one(saved: Path) -> None:
    rewrite(saved)
    assert "detection" not in json.loads((saved / CARD).read_bytes())
