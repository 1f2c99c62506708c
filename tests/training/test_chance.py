import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sublens.config import RunConfig, SplitConfig, TrainConfig
from sublens.data.dataset import Dataset, open_dataset
from sublens.training import chance, run
from sublens.training.chance import ChanceWatch, guess_loss

THREE = np.arange(300) % 3


def watch_with(loss: float, n_steps: int = 100) -> ChanceWatch:
    watch = ChanceWatch(THREE)
    for _ in range(n_steps):
        watch.add(loss, 32)
    return watch


@pytest.fixture
def shuffled(easy_folder: Path) -> Dataset:
    """Images whose labels say nothing about them."""
    data, rng = open_dataset(easy_folder, SplitConfig(selection=0.25)), np.random.default_rng(0)
    train, selection = (replace(part, labels=rng.permutation(part.labels)) for part in (data.train, data.selection))
    return replace(data, train=train, selection=selection)


def test_a_guess_among_equal_classes_has_the_loss_of_their_number() -> None:
    assert guess_loss(THREE) == pytest.approx(math.log(3))


def test_a_guess_knows_the_shares_of_the_classes() -> None:
    assert guess_loss(np.array([0, 0, 0, 1])) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


@pytest.mark.parametrize(("loss", "is_at_chance"), [(1.095, True), (1.04, False)])
def test_the_training_loss_tells_chance_before_the_first_epoch_ends(loss: float, is_at_chance: bool) -> None:
    assert bool(watch_with(loss).evidence(30_000)) == is_at_chance


def test_few_images_prove_nothing() -> None:
    assert watch_with(1.1, n_steps=10).evidence(320) == ""


def test_only_the_last_images_count() -> None:
    watch = watch_with(1.1)
    for _ in range(chance.LEAST_IMAGES // 32 + 1):
        watch.add(0.9, 32)
    assert watch.evidence(30_000) == ""


def test_images_learned_by_heart_are_still_chance() -> None:
    watch, rng = watch_with(0.2), np.random.default_rng(0)
    watch.evaluate(5_000, rng.dirichlet([0.3, 0.3, 0.3], 300), THREE)
    assert "selection loss" in watch.evidence(5_000)


def test_an_overconfident_network_has_left_chance() -> None:
    watch, probs = watch_with(0.2), np.full((300, 3), 1e-9)
    probs[np.arange(300), np.where(np.arange(300) % 5, THREE, (THREE + 1) % 3)] = 1
    watch.evaluate(5_000, probs / probs.sum(1, keepdims=True), THREE)
    assert watch.evidence(5_000) == ""


def test_checks_come_at_half_and_whenever_the_images_double() -> None:
    watch = ChanceWatch(THREE)
    checks = [images for images in range(0, 200_001, 10_000) if watch.is_check(images, images / 200_000)]
    assert checks == [20_000, 40_000, 80_000, 100_000, 160_000]


def test_a_training_that_learns_nothing_warns_and_offers_a_remedy(
    shuffled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chance, "LEAST_IMAGES", 16)
    config = RunConfig(train=TrainConfig(epochs=2, batch_size=16, optimizer="adamw", lr=1e-9, teacher=None))
    with pytest.warns(UserWarning, match="at chance") as warned:
        run.train_run(shuffled, config, tmp_path / "run")
    messages = [str(warning.message) for warning in warned]
    assert "still at chance" in messages[0]
    assert "ended at chance after" in messages[-1]
    assert "try --set input.crop=16" in messages[-1]
