"""How many cores there are for this process, and the environment of the libraries that compute on them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sublens.parallel import threads
from sublens.parallel.threads import Cores


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the control groups of a machine of eight cores, which limit nothing yet."""
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "affinity", lambda: 8)
    monkeypatch.setattr(threads, "CGROUPS", tmp_path)
    monkeypatch.setattr(threads, "OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("5:cpu,cpuacct:/batch/job\n4:memory:/batch\n0::/pods/pod\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_limits_the_affinity_mask_counts(machine: Path) -> None:
    assert threads.cores() == Cores(8, "affinity mask")


@pytest.mark.parametrize(("limit", "n"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("", 8)])
def test_a_container_s_quota_counts_in_whole_cores(machine: Path, limit: str, n: int) -> None:
    write(machine / "pods" / "cpu.max", limit)  # of the group above ours
    assert threads.cores().n == n


@pytest.mark.parametrize(("quota", "n"), [("-1", 8), ("300000", 3)])
def test_a_quota_of_version_1_counts(machine: Path, quota: str, n: int) -> None:
    write(machine / "cpu,cpuacct" / "batch" / "job" / "cpu.cfs_quota_us", quota)
    write(machine / "cpu,cpuacct" / "batch" / "job" / "cpu.cfs_period_us", "100000")
    assert threads.cores().n == n


@pytest.mark.parametrize(("promise", "n"), [("4", 4), ("64", 8), ("", 8), ("many", 8), ("0", 8)])
def test_slurm_s_promise_counts_up_to_the_affinity_mask(
    machine: Path, monkeypatch: pytest.MonkeyPatch, promise: str, n: int
) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", promise)
    assert threads.cores().n == n


@pytest.mark.parametrize(("setting", "n"), [("3", 3), ("12", 12), ("4,2", 4), ("", 8), ("many", 8), ("-1", 8)])
def test_the_user_s_own_number_of_threads_comes_first(
    machine: Path, monkeypatch: pytest.MonkeyPatch, setting: str, n: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12" if n == 8 else "1")
    assert threads.n_threads() == n


def environment_after_import(**variables: str) -> list[str]:
    code = "import os, sublens; print(os.environ.get('OMP_NUM_THREADS'), os.environ['OMP_WAIT_POLICY'])"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "SLURM_"))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**kept, **variables}, capture_output=True, text=True, check=True).stdout.split()


def test_libraries_are_limited_only_where_they_would_count_too_many_cores() -> None:
    assert environment_after_import() == ["None", "PASSIVE"]
    expected = "1" if threads.affinity() > 1 else "None"
    assert environment_after_import(SLURM_CPUS_PER_TASK="1")[0] == expected


def test_what_the_user_has_set_stays() -> None:
    assert environment_after_import(OMP_NUM_THREADS="7", OMP_WAIT_POLICY="ACTIVE") == ["7", "ACTIVE"]
