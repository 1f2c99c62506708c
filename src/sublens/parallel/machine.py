"""The machine and the code that run here: processor, memory, commit. Imports no torch."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from sublens.parallel.threads import CGROUPS, read_text

INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "asimd": "NEON",
    "sve": "SVE",
    "i8mm": "I8MM",
    "bf16": "BF16",
}
"""Instructions that make networks fast, by the flags under which Linux lists them."""
CPU_INFO, MEMORY_INFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
MEMORY_LIMITS = (CGROUPS / "memory.max", CGROUPS / "memory" / "memory.limit_in_bytes")
"""Limits of memory of a container, in bytes, of versions 2 and 1 of control groups."""


def commit() -> str | None:
    """The commit of the source tree of this code, + for local changes; None where it is installed."""
    here = Path(__file__).parent
    if not (here.parents[2] / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Versions of sublens, torch, timm and Python, and the commit of a source tree."""
    installed = {name: version(name) for name in ("sublens", "torch", "timm")}
    of_tree = commit()
    return {**installed, "python": platform.python_version(), **({"commit": of_tree} if of_tree else {})}


def processor() -> str:
    """Name of the processor, or its architecture where the system tells no name."""
    return _fields(CPU_INFO).get("model name") or platform.processor() or platform.machine()


def instructions() -> list[str]:
    """Names of the processor's instructions that networks can use; none where the system does not list them."""
    fields = _fields(CPU_INFO)
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return [name for flag, name in INSTRUCTIONS.items() if flag in flags]


def memory() -> tuple[int, int] | None:
    """Bytes of memory in all and free, within the limit of a container; None where the system does not tell."""
    fields = _fields(MEMORY_INFO)
    if not {"MemTotal", "MemAvailable"} <= fields.keys():
        return None
    total, free = (1024 * int(fields[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    limits = [int(text) for path in MEMORY_LIMITS if (text := read_text(path).strip()).isdecimal()]
    total = min([total, *limits])
    return total, min(total, free)


def n_cores() -> int:
    """Number of cores of the whole machine."""
    return os.cpu_count() or 1


def _fields(path: Path) -> dict[str, str]:
    """The first value under each name in a file of `name : value` lines."""
    pairs = (line.partition(":") for line in reversed(read_text(path).splitlines()))
    return {name.strip(): value.strip() for name, _, value in pairs}
