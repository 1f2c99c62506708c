"""Simulated `no` images beside real ones."""

import importlib.util
from pathlib import Path

import numpy as np
from scipy.stats import ks_2samp

from sublens.sim.presets import COMMON_TEST_1
from sublens.sim.render import simulate

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "fidelity.py"


def test_smooth_lenses_are_distributed_like_the_real_ones(real_data: Path) -> None:
    spec = importlib.util.spec_from_file_location("fidelity", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    fidelity = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fidelity)
    truth, counts = simulate(COMMON_TEST_1, 1, "train", range(0, 9000, 3))
    assert not truth.scenes["label"].any()
    with np.load(real_data / "common_test_1_no_1000.npz") as archive:
        real = fidelity.statistics(archive["counts"])
    ours = fidelity.statistics(counts)
    chances = {name: ks_2samp(values, ours[name]).pvalue for name, values in real.items()}
    assert len(chances) == 12
    assert min(chances.values()) > 0.01, chances
