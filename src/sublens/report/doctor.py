"""The installation and the machine, as plain text for a bug report; no name of a user or of the machine is in it.

Every engine is loaded in a process of its own: one that is broken, or that ends the process, is a line.
"""

import getpass
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sublens.errors import SublensError
from sublens.models import bundle
from sublens.parallel import machine, threads
from sublens.storage import object_store, scratch

Process = subprocess.Popen[str]

PACKAGES = ("numpy", "torch", "timm", "onnxruntime", "openvino", "astropy", "numba")
"""Packages whose versions are listed."""
VARIABLES = ("SLURM_CPUS_PER_TASK", "CUDA_VISIBLE_DEVICES", "TMPDIR", "XDG_CACHE_HOME")
"""Variables of the environment that are listed where they are set."""
GIB = 2**30
LOAD_SECONDS = 20.0
"""Time for all engines to be loaded."""
PRELUDE = "import json, sys, sublens\nsys.modules['openvino_telemetry'] = None\n"
"""The beginning of that code: no engine may report its use."""
ENGINES = {
    "onnxruntime": "import onnxruntime\nprint('{}')",
    "openvino": "import openvino\nprint('{}')",
    "torch": """import torch
gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
facts = {"threads": torch.get_num_threads(), "cuda": torch.version.cuda}
print(json.dumps({**facts, "gpus": [(gpu.name, gpu.total_memory) for gpu in gpus]}))""",
}
"""Code that loads each engine and prints a line of JSON, the facts about it."""


def lines() -> Iterator[str]:
    """The report, line by line."""
    engines = {name: _start(code) for name, code in ENGINES.items() if _version(name)}
    for title, text in (*_code(), *_hardware(), *_engines(engines), *_places(), *_variables()):
        yield f"{title:12} {private(text)}"


def private(text: str) -> str:
    """The text with ~ for the home and USER for the user's name, where it is a part of a path."""
    home = str(Path.home())
    if home != "/":
        text = text.replace(home, "~")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without an entry, as in a container
        return text
    return re.sub(rf"(?<=[/=\\-]){re.escape(user)}(?![\w.])", "USER", text)


Row = tuple[str, str]
"""Title and text of a line."""


def _code() -> Iterator[Row]:
    """Versions of everything that computes or reads."""
    commit = machine.commit()
    yield "sublens", f"{_version('sublens') or 'not installed'}{f', commit {commit}' if commit else ''}"
    yield "python", f"{platform.python_version()}, {platform.platform()}"
    for name in PACKAGES:
        yield name, _version(name) or "not installed"


def _version(name: str) -> str | None:
    """Version of a package; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _hardware() -> Iterator[Row]:
    """Processor, cores and memory."""
    yield "processor", f"{machine.processor()}; {', '.join(machine.instructions()) or 'its instructions are not known'}"
    cores = threads.AT_START
    yield "cores", f"{cores.n} of {machine.n_cores()} ({cores.reason}); OpenMP waits: {threads.waiting()}"
    total, free = machine.memory() or (0, 0)
    yield "memory", f"{total / GIB:.1f} GiB, {free / GIB:.1f} free" if total else "not known"


def _start(code: str) -> Process:
    command = [sys.executable, "-P", "-c", PRELUDE + code]  # -P: import nothing from the working folder
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")


def _engines(processes: dict[str, Process]) -> Iterator[Row]:
    """Engines that can be loaded, and the GPUs that torch finds."""
    deadline, gpus = time.monotonic() + LOAD_SECONDS, "not known without torch"
    for name in ENGINES:
        state, facts = _finish(processes[name], deadline) if name in processes else ("not installed", {})
        if name == "torch" and facts:
            state += f" (threads: {facts['threads']}; CUDA: {facts['cuda'] or 'none'})"
            gpus = ", ".join(f"{gpu}, {n_bytes / GIB:.1f} GiB" for gpu, n_bytes in facts["gpus"]) or "none"
        yield "engine", f"{name} {state}"
    yield "gpu", gpus


def _finish(process: Process, deadline: float) -> tuple[str, dict[str, Any]]:
    """Whether the engine of a process can be loaded, in words, and the facts that it printed."""
    try:
        out, errors = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"is not loaded within {LOAD_SECONDS:g} s", {}
    if process.returncode:
        reason = (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        return f"cannot be loaded: {reason}", {}
    return "works", json.loads(out.splitlines()[-1])


def _places() -> Iterator[Row]:
    """Temporary folder, cache and bundles."""
    folder = tempfile.gettempdir()
    try:
        scratch.check()
        yield "temporary", f"{folder}, {shutil.disk_usage(folder).free / GIB:.1f} GiB free"
    except SublensError as err:
        yield "temporary", f"{folder}: {err}"
    yield "cache", f"{object_store.cache()} (copies on their way to an object store)"
    for bundle_path in bundle.shipped().values():
        yield "bundle", f"{_state(bundle_path)} in {bundle_path}"


def _state(folder: Path) -> str:
    """Identity of a bundle, or why it cannot be read."""
    try:
        return bundle.read_card(folder).identity
    except SublensError as err:
        return str(err)


def _variables() -> Iterator[Row]:
    """Variables of the environment that decide what is computed where."""
    for name in VARIABLES:
        if name in os.environ:
            yield "variable", f"{name}={os.environ[name]}"
