"""How many cores this process may use, and how the libraries compute on them.

Every library counts the cores of the affinity mask. A container's quota and a batch system's promise are
not in it, so `configure` puts them into OMP_NUM_THREADS, which all of them read as they are loaded. Threads
of OpenMP wait for each other asleep: two commands beside each other would else burn the time that they wait for.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

NUMBER, POLICY = "OMP_NUM_THREADS", "OMP_WAIT_POLICY"
"""Variables of OpenMP, which torch, BLAS and scikit-learn read once, as they are loaded."""
CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows the limits of containers and batch jobs."""
OWN_CGROUPS = Path("/proc/self/cgroup")
"""The groups of this process: a line of number, controllers and path for each hierarchy."""


class Cores(NamedTuple):
    """Cores to compute on, and what decided their number."""

    n: int
    reason: str


def configure() -> None:
    """Set the environment of libraries that are loaded later; what the user has set stays."""
    os.environ.setdefault(POLICY, "PASSIVE")
    limit = cores()
    if limit.n < affinity():
        os.environ.setdefault(NUMBER, str(limit.n))


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Have torch compute on n threads for the length of a `with` block."""
    import torch  # loaded after `configure`

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def n_threads() -> int:
    """Number of threads to compute with."""
    return cores().n


def cores() -> Cores:
    """The first number of OMP_NUM_THREADS where it is set, else the least of affinity, quota and SLURM's promise."""
    if n := _positive(os.environ.get(NUMBER, "").partition(",")[0]):  # "4,2": four threads, each with two of its own
        return Cores(n, NUMBER)
    limits = [Cores(affinity(), "affinity mask"), *_quotas()]
    if n := _positive(os.environ.get("SLURM_CPUS_PER_TASK", "")):
        limits.append(Cores(n, "SLURM_CPUS_PER_TASK"))
    return min(limits, key=lambda limit: limit.n)


def affinity() -> int:
    """Number of cores that the operating system lets this process run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _positive(text: str) -> int:
    """The whole number in the text; 0 where there is none above 0."""
    return int(text) if text.strip().isdecimal() else 0


def _quotas() -> Iterator[Cores]:
    """Quotas of time of the control groups that this process is in, as whole cores, at least one."""
    for folder in _groups():
        for seconds, period in (_quota_v2(folder), _quota_v1(folder)):
            if seconds > 0 and period > 0:
                yield Cores(max(1, seconds // period), "quota of the control group")


def _groups() -> Iterator[Path]:
    """Folders of the control groups of this process and of those above them."""
    for line in read_text(OWN_CGROUPS).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        own = Path(path.lstrip("/"))
        yield from (CGROUPS / controllers / part for part in (own, *own.parents))


def _quota_v2(folder: Path) -> tuple[int, int]:
    """Quota and period of `cpu.max`, microseconds; 0 where there is no limit."""
    quota, period = [*read_text(folder / "cpu.max").split(), "", ""][:2]
    return _positive(quota), _positive(period)


def _quota_v1(folder: Path) -> tuple[int, int]:
    """Quota and period of version 1, microseconds; 0 where there is no limit."""
    quota, period = (read_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return _positive(quota), _positive(period)


def read_text(path: Path) -> str:
    """The text of a file of the system; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def waiting() -> str:
    """How the threads of OpenMP wait for each other, in a word."""
    return os.environ.get(POLICY, "").lower() or "undefined"


AT_START = cores()
"""Cores as the environment had them before `configure`."""
