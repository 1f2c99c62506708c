"""What runs a network: counts in, and all that it sees in them out. Knows no torch.

A graph is an ONNX file that holds everything from the counts on: how the network looks at them, the
network, its truth head, and the moments of its feature maps.
"""

import os
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sublens.errors import BundleError, ConfigError

Floats = NDArray[np.float64]
EngineName = Literal["onnxruntime", "openvino", "torch"]

MASS_UNIT_MSUN = 1e9
"""The truth head predicts log(1 + M / this)."""
COUNTS, LOGITS, MAP, MOMENTS = "counts", "logits", "map", "moments"
"""Names in a graph: its input [b, h, w] float32, and its outputs; those of moments end in a number."""


class Outputs(NamedTuple):
    """What a network gives for b images."""

    logits: Floats
    """[b, c]"""
    logs: Floats | None
    """log(1 + M / `MASS_UNIT_MSUN`) in each cell, [b, g, g]; None where there is no truth head."""
    moments: list[Floats]
    """Of each feature map, [b, d]; empty where nobody listens."""


class Engine(Protocol):
    """Shows images to a network."""

    def __call__(self, counts: NDArray[np.uint16]) -> Outputs:
        """Counts above their minimum [b, h, w] -> what the network gives."""


class OnnxRuntime:
    """Runs a graph with ONNX Runtime, on the processor."""

    def __init__(self, path: Path) -> None:
        """Raises `BundleError` where the graph cannot be run."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads()
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others read images meanwhile
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as err:  # it raises ten kinds, which share no other base
            raise _cannot_run(path, "ONNX Runtime", err) from err
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, counts: NDArray[np.uint16]) -> Outputs:
        """Show it images [b, h, w]."""
        given = self._session.run(self._names, {COUNTS: counts.astype(np.float32)})
        return _outputs(dict(zip(self._names, given, strict=True)))


class OpenVino:
    """Runs a graph with OpenVINO, on the processor; in bfloat16 where that has it."""

    def __init__(self, path: Path) -> None:
        """Raises `BundleError` where the graph cannot be run, `ConfigError` where OpenVINO is not installed."""
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would call home at import
        try:
            import openvino
        except ImportError as err:
            raise ConfigError(
                "The engine openvino is not installed. Run `pip install openvino`, or leave out --engine."
            ) from err
        settings = {"INFERENCE_NUM_THREADS": n_threads(), "PERFORMANCE_HINT": "LATENCY"}
        try:
            self._model = openvino.Core().compile_model(path, "CPU", settings)
        except Exception as err:
            raise _cannot_run(path, "OpenVINO", err) from err

    def __call__(self, counts: NDArray[np.uint16]) -> Outputs:
        """Show it images [b, h, w]."""
        given = self._model({COUNTS: counts.astype(np.float32)})
        return _outputs({output.any_name: values for output, values in given.items()})


def _outputs(given: dict[str, Any]) -> Outputs:
    values = {name: np.asarray(value, dtype=np.float64) for name, value in given.items()}
    moments = sorted(name for name in values if name.startswith(MOMENTS))
    return Outputs(values[LOGITS], values.get(MAP), [values[name] for name in moments])


def _cannot_run(path: Path, engine: str, err: Exception) -> BundleError:
    return BundleError(
        f"{path}: {engine} cannot run it ({str(err).splitlines()[0][:160]}). Copy the whole folder again, export it "
        "again, or use --engine torch."
    )


def n_threads() -> int:
    """Threads to compute with: OMP_NUM_THREADS where it is set, else one for each processor at hand."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
