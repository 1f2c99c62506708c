"""The trained networks in bundles/: whole, small, as good as their cards say, and right on real images."""

from pathlib import Path

import numpy as np
import pytest

from sublens import config, metrics
from sublens.images.formats import read_archive
from sublens.inference.predictor import BATCH, Predictor
from sublens.models import bundle, networks
from sublens.sim.population import CLASSES
from sublens.sim.render import simulate
from sublens.surveys.presets import preset

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.parent.name for path in (ROOT / "bundles").glob(f"*/{bundle.CARD}"))
MOST_BYTES = 90e6


def test_the_default_network_is_shipped() -> None:
    assert "lensnet" in NAMES


def test_all_together_are_small_enough_to_clone() -> None:
    sizes = [path.stat().st_size for path in (ROOT / "bundles").rglob("*") if path.is_file()]
    assert sum(sizes) < MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_its_card_holds_published_scores_on_images_it_was_not_chosen_by(name: str) -> None:
    card = bundle.read_card(bundle.locate(name))
    assert card.network == name
    assert card.rounding is not None
    assert card.rounding < 0.002
    assert all(score.n == 7_500 and score.auc_low < score.auc < score.auc_high for score in card.scores)
    assert len({score.tested_on for score in card.scores}) == 1
    rivals = [score.selection_loss for score in card.scores if score.trained_on == card.data.hash]
    assert card.scores[0].selection_loss == min(rivals) == card.training.selection_loss


@pytest.mark.parametrize("name", NAMES)
def test_its_settings_are_those_of_its_recipe(name: str) -> None:
    settings = bundle.read_card(bundle.locate(name)).settings
    recipe = config.load(ROOT / "scripts" / "recipes" / f"{name}-simulator.toml", [f"train.seed={settings.train.seed}"])
    assert networks.resolved(recipe, (150, 150)) == settings


@pytest.mark.parametrize("name", NAMES)
def test_it_does_on_fresh_images_what_its_card_says(name: str) -> None:
    truth, counts = simulate(preset("common-test-1"), 6, "test", range(1_000))
    probs, labels = probs_of(Predictor.load(name), counts), truth.scenes["label"].astype(np.int64)
    score = bundle.read_card(bundle.locate(name)).scores[0]
    scores = metrics.score(probs, labels, CLASSES)
    assert scores["auc_macro"]["low"] <= score.auc <= scores["auc_macro"]["high"]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_right_on_the_real_images(name: str, real_data: Path) -> None:
    paths = sorted((real_data / "common_test_1").glob("*/*.npy"))
    predictions = Predictor.load(name).files(paths)
    assert len(paths) == 15
    assert sum(prediction.label == path.parent.name for prediction, path in zip(predictions, paths, strict=True)) >= 14


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_real_smooth_lenses_are_recognised_like_simulated_ones(name: str, real_data: Path) -> None:
    real = read_archive(real_data / "common_test_1_no_1000.npz")
    _, simulated = simulate(preset("common-test-1"), 5, "test", range(0, 3 * len(real), 3))
    ours, theirs = ((probs_of(Predictor.load(name), counts).argmax(1) == 0).mean() for counts in (simulated, real))
    assert abs(ours - theirs) < 0.02 * ours


def probs_of(predictor: Predictor, counts: np.ndarray) -> metrics.Floats:
    starts = range(0, len(counts), BATCH)
    return np.concatenate([predictor.probs(counts[start : start + BATCH]) for start in starts])
