import json
from pathlib import Path

import pytest
import torch
from conftest import write_card

from sublens.errors import BundleError
from sublens.models import bundle, weights
from sublens.models.heads import MacroHead, TruthHead
from sublens.models.networks import build


def loaded(folder: Path) -> tuple[torch.nn.Module, TruthHead | None, MacroHead | None]:
    return weights.load(folder, bundle.read_card(folder))


def test_a_bundle_gives_the_same_logits_back(saved: Path) -> None:
    torch.manual_seed(3)
    original, images = build("lensnet", 3).eval(), torch.randn(2, 1, 24, 24)
    model, card = loaded(saved)[0], bundle.read_card(saved)
    assert torch.allclose(model(images), original(images), atol=1e-5)
    assert (card.network, card.classes, card.input.binning) == ("lensnet", ("no", "sphere", "vort"), 2)


def test_a_loaded_model_is_in_evaluation_mode(saved: Path) -> None:
    assert not loaded(saved)[0].training


def test_a_single_changed_byte_of_the_weights_is_noticed(saved: Path) -> None:
    data = bytearray((saved / bundle.WEIGHTS).read_bytes())
    data[-1] ^= 1
    (saved / bundle.WEIGHTS).write_bytes(data)
    with pytest.raises(BundleError, match="is not what its card was written for"):
        loaded(saved)


def test_new_weights_void_the_old_card(saved: Path) -> None:
    weights.save(saved, build("lensnet", 3))
    assert not (saved / bundle.CARD).exists()


def test_missing_weights_are_named(saved: Path) -> None:
    (saved / bundle.WEIGHTS).unlink()
    with pytest.raises(BundleError, match=r"has no weights\.safetensors"):
        loaded(saved)


def test_a_folder_without_a_card_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a trained model"):
        loaded(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"pickle": true}'])
def test_a_damaged_card_is_refused(saved: Path, text: str) -> None:
    (saved / bundle.CARD).write_text(text)
    with pytest.raises(BundleError, match="damaged, or of another version"):
        loaded(saved)


def test_a_card_of_another_format_is_refused(saved: Path) -> None:
    card = json.loads((saved / bundle.CARD).read_text())
    (saved / bundle.CARD).write_text(json.dumps({**card, "format": 99}))
    with pytest.raises(BundleError, match="damaged, or of another version"):
        loaded(saved)


def test_weights_of_another_network_are_refused(saved: Path) -> None:
    write_card(saved, classes=("a", "b"))
    with pytest.raises(BundleError, match="does not fit the network lensnet"):
        loaded(saved)


def test_weights_that_are_no_safetensors_are_refused(saved: Path) -> None:
    (saved / bundle.WEIGHTS).write_bytes(b"\x80\x04pickled")
    write_card(saved)
    with pytest.raises(BundleError, match="does not fit"):
        loaded(saved)


def test_sixteen_bit_weights_are_half_as_large_and_almost_the_same(saved: Path, tmp_path: Path) -> None:
    model = loaded(saved)[0]
    weights.save(tmp_path / "small", model, dtype=torch.float16)
    write_card(tmp_path / "small")
    rounded, images = loaded(tmp_path / "small")[0], torch.randn(2, 1, 24, 24)
    assert (tmp_path / "small" / bundle.WEIGHTS).stat().st_size < 0.55 * (saved / bundle.WEIGHTS).stat().st_size
    assert rounded.classifier.weight.dtype == torch.float32  # type: ignore[union-attr]
    assert torch.allclose(rounded(images), model(images), atol=1e-2)


def test_a_truth_head_that_is_missing_from_the_weights_is_noticed(saved: Path) -> None:
    card = bundle.read_card(saved)
    bundle.save_card(saved, card.model_copy(update={"map": bundle.CardMap(n_cells=6, cell_arcsec=0.4)}))
    with pytest.raises(BundleError, match="does not fit the network"):
        loaded(saved)
