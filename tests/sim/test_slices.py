import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import children, wait_until_gone

from sublens.storage.files import sha256

SIZES = ("--train", "16000", "--test", "4000")


def simulation(out: Path) -> list[str]:
    arguments = ("simulate", "common-test-1", *SIZES, "--workers", "2", "--out", str(out))
    return [sys.executable, "-m", "sublens.cli", *arguments]


def n_shards(out: Path) -> int:
    return len(list(out.parent.glob(f".{out.name}.partial/*/images-*.npy")))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_store_stopped_at_ten_random_points_is_the_same(tmp_path: Path, how: signal.Signals) -> None:
    """20,000 images in 40 shards; each time the command is repeated until it is stopped again."""
    subprocess.run(simulation(tmp_path / "whole"), check=True, capture_output=True)
    out = tmp_path / "stopped"
    points = sorted(random.Random(5).sample(range(1, 40), 10))
    for point in points:
        with subprocess.Popen(simulation(out), stderr=subprocess.DEVNULL) as job:
            while n_shards(out) < point:
                assert job.poll() is None
                time.sleep(0.02)
            workers = children(job.pid)
            os.kill(job.pid, how)
        wait_until_gone(workers)
        assert not out.exists()
        assert n_shards(out) >= point
    subprocess.run(simulation(out), check=True, capture_output=True)
    assert sha256(out / "manifest.json") == sha256(tmp_path / "whole" / "manifest.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped", "whole"]


STREAM = """
from sublens.surveys.presets import preset
from sublens.sim.slices import slices
print(sum(counts.shape[0] for _, counts, _ in slices(preset("common-test-1"), 1, "train", 100_000, map)))
"""


@pytest.mark.slow
def test_a_hundred_thousand_images_stream_through_less_than_a_gigabyte() -> None:
    done = subprocess.run([sys.executable, "-c", STREAM], check=True, capture_output=True, text=True)
    assert int(done.stdout) == 100_000
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 1_000_000  # kB, of the largest child
