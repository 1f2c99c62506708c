import random
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import peak_memory

N_STACKED, REPEATS, KILLS = 2_000, 100, 5


def start(stack: Path, repeats: int, out: Path) -> subprocess.Popen[bytes]:
    """`sublens predict` of a stack, repeated, as a user starts it."""
    command = [sys.executable, "-m", "sublens.cli", "predict", "lensnet", *[str(stack)] * repeats, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> int:
    """Wait for it to succeed; returns the most memory it had, bytes, as it told every tenth of a second."""
    most = 0
    while process.poll() is None:
        most = max(most, peak_memory(process.pid))
        time.sleep(0.1)
    assert process.returncode == 0
    return most


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
def test_two_hundred_thousand_images_need_no_more_memory_and_survive_kills(tmp_path: Path) -> None:
    stack, rng = tmp_path / "stack.h5", random.Random(1)
    with h5py.File(stack, "w") as file:
        counts = np.random.default_rng(0).poisson(20, (N_STACKED, 150, 150)).astype(np.uint16)
        file.create_dataset("images", data=counts, chunks=(1, 150, 150))
    few = finish(start(stack, 1, tmp_path / "few.csv"))
    begun = time.monotonic()
    many = finish(start(stack, REPEATS, tmp_path / "whole.csv"))
    seconds = time.monotonic() - begun
    assert many < few + 30e6
    for _ in range(KILLS):
        process = start(stack, REPEATS, tmp_path / "killed.csv")
        time.sleep(rng.uniform(0.03, 0.25) * seconds)
        process.kill()
        process.wait()
        assert not (tmp_path / "killed.csv").exists()
    finish(start(stack, REPEATS, tmp_path / "killed.csv"))
    whole = (tmp_path / "whole.csv").read_bytes()
    assert whole.count(b"\n") == 1 + N_STACKED * REPEATS
    assert (tmp_path / "killed.csv").read_bytes() == whole
    print(f"{N_STACKED * REPEATS:,} images in {seconds:.0f} s; {few / 1e6:.0f} MB for few, {many / 1e6:.0f} MB for all")
