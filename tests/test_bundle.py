import json
from pathlib import Path

import pytest
import torch

from sublens import bundle
from sublens.config import InputConfig, RunConfig
from sublens.errors import BundleError
from sublens.models import build

SELECTED = {"selection_loss": 0.5, "selection_accuracy": 0.8, "selection_auc": 0.9}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A bundle of an untrained lensnet."""
    torch.manual_seed(3)
    bundle.save_weights(tmp_path / "run", build("lensnet", 3))
    write_card(tmp_path / "run")
    return tmp_path / "run"


def write_card(folder: Path, classes: tuple[str, ...] = ("no", "sphere", "vort"), network: str = "lensnet") -> None:
    bundle.write_card(
        folder,
        network=network,
        classes=classes,
        image_shape=(48, 48),
        input=InputConfig(binning=2),
        settings=RunConfig(),
        data={"name": "toy", "hash": "0", "train": 8, "selection": 1, "test": 1},
        training={"steps": 1, "images": 8, "seconds": 1.0, "best_epoch": 0, "interrupted": False} | SELECTED,
        versions={},
        machine={"processor": "a processor", "threads": 1, "device": "cpu"},
    )


def test_a_bundle_gives_the_same_logits_back(saved: Path) -> None:
    torch.manual_seed(3)
    original, images = build("lensnet", 3).eval(), torch.randn(2, 1, 24, 24)
    model, _, card = bundle.load(saved)
    assert torch.allclose(model(images), original(images), atol=1e-5)
    assert (card.network, card.classes, card.input.binning) == ("lensnet", ("no", "sphere", "vort"), 2)


def test_a_loaded_model_is_in_evaluation_mode(saved: Path) -> None:
    assert not bundle.load(saved)[0].training


def test_a_single_changed_byte_of_the_weights_is_noticed(saved: Path) -> None:
    data = bytearray((saved / bundle.WEIGHTS).read_bytes())
    data[-1] ^= 1
    (saved / bundle.WEIGHTS).write_bytes(data)
    with pytest.raises(BundleError, match="is not what its card was written for"):
        bundle.load(saved)


def test_new_weights_void_the_old_card(saved: Path) -> None:
    bundle.save_weights(saved, build("lensnet", 3))
    assert not (saved / bundle.CARD).exists()


def test_missing_weights_are_named(saved: Path) -> None:
    (saved / bundle.WEIGHTS).unlink()
    with pytest.raises(BundleError, match=r"has no weights\.safetensors"):
        bundle.load(saved)


def test_a_folder_without_a_card_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a trained model"):
        bundle.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"pickle": true}'])
def test_a_damaged_card_is_refused(saved: Path, text: str) -> None:
    (saved / bundle.CARD).write_text(text)
    with pytest.raises(BundleError, match="damaged, or of another version"):
        bundle.load(saved)


def test_a_card_of_another_format_is_refused(saved: Path) -> None:
    card = json.loads((saved / bundle.CARD).read_text())
    (saved / bundle.CARD).write_text(json.dumps({**card, "format": 99}))
    with pytest.raises(BundleError, match="damaged, or of another version"):
        bundle.load(saved)


def test_weights_of_another_network_are_refused(saved: Path) -> None:
    write_card(saved, classes=("a", "b"))
    with pytest.raises(BundleError, match="does not fit the network lensnet"):
        bundle.load(saved)


def test_weights_that_are_no_safetensors_are_refused(saved: Path) -> None:
    (saved / bundle.WEIGHTS).write_bytes(b"\x80\x04pickled")
    write_card(saved)
    with pytest.raises(BundleError, match="does not fit"):
        bundle.load(saved)


@pytest.fixture
def shelf(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shelf of trained networks that holds one, called run."""
    monkeypatch.setattr(bundle, "SHELVES", (saved.parent / "nothing here", saved.parent))
    return saved.parent


def test_a_trained_network_that_comes_with_sublens_is_found_by_name(shelf: Path) -> None:
    assert bundle.references() == {"run": shelf / "run"}
    assert bundle.located("run") == shelf / "run"
    assert bundle.is_bundle("run")
    assert not bundle.is_bundle("walk")


def test_a_folder_comes_before_a_name(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert bundle.located("run") == Path("run")


def test_an_unknown_name_is_answered_with_the_nearest(shelf: Path) -> None:
    with pytest.raises(BundleError, match="ran: no such folder, and no trained network.*Did you mean run?"):
        bundle.located("ran")


def test_sixteen_bit_weights_are_half_as_large_and_almost_the_same(saved: Path, tmp_path: Path) -> None:
    model = bundle.load(saved)[0]
    bundle.save_weights(tmp_path / "small", model, dtype=torch.float16)
    write_card(tmp_path / "small")
    rounded, images = bundle.load(tmp_path / "small")[0], torch.randn(2, 1, 24, 24)
    assert (tmp_path / "small" / bundle.WEIGHTS).stat().st_size < 0.55 * (saved / bundle.WEIGHTS).stat().st_size
    assert rounded.classifier.weight.dtype == torch.float32  # type: ignore[union-attr]
    assert torch.allclose(rounded(images), model(images), atol=1e-2)


def test_a_truth_head_that_is_missing_from_the_weights_is_noticed(saved: Path) -> None:
    card = bundle.read_card(saved)
    told = {name: getattr(card, name) for name in bundle.Card.model_fields if name != "weights_sha256"}
    bundle.write_card(saved, **{**told, "map": bundle.CardMap(n_cells=6, cell_arcsec=0.4)})
    with pytest.raises(BundleError, match="does not fit the network"):
        bundle.load(saved)
