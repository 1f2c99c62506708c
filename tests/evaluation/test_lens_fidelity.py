"""Real lenses beside simulated ones, both made here."""

import json
from pathlib import Path

import numpy as np
import pytest

from sublens.errors import DataError
from sublens.evaluation import lens_fidelity
from sublens.evaluation.lens_fidelity import LensFidelity, Separation, compare, copies, separate
from sublens.images.signal_to_noise import encode


def planes(seed: int, n: int, correlation: float = 0.0) -> np.ndarray:
    """Round galaxies with noise that neighbours in a row share, as planes of signal to noise."""
    noise = np.random.default_rng(seed).normal(size=(n, 40, 41))
    y, x = np.indices((40, 40)) - 19.5
    galaxy = 30 * np.exp(-np.hypot(x, y) / 4)
    return encode(galaxy + noise[:, :, 1:] + correlation * noise[:, :, :-1], np.ones((40, 40)))


def names(n: int) -> list[str]:
    return [f"lens {number}" for number in range(n)]


def test_networks_tell_lenses_whose_noise_is_correlated() -> None:
    result = separate(planes(0, 15, correlation=1.0), planes(1, 100), names(15), epochs=3)
    assert 0.6 < result.low < 0.95 < result.value <= result.high
    assert list(result.ranks) == names(15)
    assert np.median(list(result.ranks.values())) > 0.8


def test_networks_do_not_tell_like_from_like() -> None:
    result = separate(planes(0, 10), planes(1, 60), names(10), epochs=2)
    assert result.low < 0.5 < result.high


def test_copies_are_the_same_pixels_turned_and_shifted() -> None:
    image = np.arange(40 * 40, dtype=np.uint16).reshape(1, 40, 40)
    many = copies(np.repeat(image, 200, axis=0), np.random.default_rng(0))
    assert many.shape == (200, 32, 32)
    assert all(
        {abs(int(copy[0, 1]) - int(copy[0, 0])), abs(int(copy[1, 0]) - int(copy[0, 0]))} == {1, 40} for copy in many
    )
    assert len({copy[0, 0] for copy in many}) > 100


def test_the_statistic_that_differs_most_comes_first() -> None:
    rng = np.random.default_rng(0)
    real = {name: rng.normal(size=100) for name in ("alike", "wider", "shifted")}
    simulated = {"alike": rng.normal(size=100), "wider": 2 * rng.normal(size=100), "shifted": 3 + rng.normal(size=100)}
    rows = compare(real, simulated)
    assert [row.name for row in rows] == ["shifted", "wider", "alike"]
    assert rows[0].shift == pytest.approx(3, abs=0.4)
    assert rows[0].p < 1e-10 < 0.05 < rows[2].p


def test_a_comparison_is_saved_as_it_is(tmp_path: Path) -> None:
    values = {"peaks": np.arange(9.0)}
    LensFidelity(compare(values, values), 1.0, Separation(0.7, 0.5, 0.8, {"J1": 0.9})).write(
        tmp_path / "x.json", "mine"
    )
    tree = json.loads((tmp_path / "x.json").read_text())
    assert tree["separation"] == {"value": 0.7, "low": 0.5, "high": 0.8, "ranks": {"J1": 0.9}}
    assert tree["statistics"][0]["name"] == "peaks"
    assert lens_fidelity.MARK in (tmp_path / "x.json").read_bytes()


def test_too_few_lenses_are_refused(small_survey: object) -> None:
    with pytest.raises(DataError, match="2 lenses that can be compared; needs at least 5"):
        lens_fidelity.lens_fidelity(small_survey, {"a": planes(0, 1)[0], "b": planes(1, 1)[0]}, "no")  # type: ignore[arg-type]
