"""Engines that run a network: counts in, raw outputs out. Imports no torch.

A graph is an ONNX file that holds everything from the counts on: the input transform, the network, its
truth head, and the moments of its feature maps.
"""

import sys
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sublens.errors import BundleError, ConfigError
from sublens.parallel.threads import n_threads

Floats = NDArray[np.float64]
EngineName = Literal["onnxruntime", "openvino", "torch"]

MASS_UNIT_MSUN = 1e9
"""Unit of mass in the truth head, which predicts log(1 + M / unit)."""
CACHED_BATCH = 16
"""Images that ONNX Runtime computes at once: of more, the feature maps leave the cache."""
COUNTS, LOGITS, MAP, MACRO, MOMENTS = "counts", "logits", "map", "macro", "moments"
"""Names of a graph's input [b, h, w] float32, and of its outputs; those of moments end in a number."""


class Outputs(NamedTuple):
    """Raw outputs of a network for b images."""

    logits: Floats
    """Logits before calibration, [b, c]."""
    logs: Floats | None
    """log(1 + M / `MASS_UNIT_MSUN`) in each cell, [b, g, g]; None where there is no truth head."""
    moments: list[Floats]
    """Moments of each feature map, [b, d]; empty where the network has none."""
    macro: Floats | None = None
    """Outputs of the macro head, [b, 7]; None where there is none."""


class Engine(Protocol):
    """Runs a network.

    Any number of threads may call an engine at the same time: each gets the outputs for its own images.
    ONNX Runtime computes such calls side by side; the others let them take turns.
    """

    def __call__(self, counts: NDArray[np.uint16]) -> Outputs:
        """Network outputs for images [b, h, w], in counts above their minimum or codes of signal to noise."""


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
        except Exception as err:  # it raises ten types, which share no other base
            raise _cannot_run(path, "ONNX Runtime", err) from err
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, counts: NDArray[np.uint16]) -> Outputs:
        """Network outputs for images [b, h, w]."""
        starts = range(0, max(len(counts), 1), CACHED_BATCH)
        parts = [self._run(counts[start : start + CACHED_BATCH]) for start in starts]
        arrays = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        return _outputs(dict(zip(self._names, arrays, strict=True)))

    def _run(self, counts: NDArray[np.uint16]) -> list[Any]:
        arrays: list[Any] = self._session.run(self._names, {COUNTS: counts.astype(np.float32)})
        return arrays


class OpenVino:
    """Runs a graph with OpenVINO, on the processor; in bfloat16 where that has it."""

    def __init__(self, path: Path) -> None:
        """Raises `BundleError` where the graph cannot be run, `ConfigError` where OpenVINO is not installed."""
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would call home at import
        try:
            import openvino
        except ImportError as err:
            raise ConfigError(
                "The engine openvino is not installed",
                need="the package openvino",
                next="Run `pip install openvino`, or leave out --engine.",
            ) from err
        settings = {"INFERENCE_NUM_THREADS": n_threads(), "PERFORMANCE_HINT": "LATENCY"}
        try:
            self._model = openvino.Core().compile_model(path, "CPU", settings)
        except Exception as err:
            raise _cannot_run(path, "OpenVINO", err) from err
        self._lock = Lock()

    def __call__(self, counts: NDArray[np.uint16]) -> Outputs:
        """Network outputs for images [b, h, w]."""
        with self._lock:  # a compiled model refuses a call during another
            arrays = self._model({COUNTS: counts.astype(np.float32)})
            return _outputs({output.any_name: values for output, values in arrays.items()})


def _outputs(arrays: dict[str, Any]) -> Outputs:
    values = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}
    moments = sorted(name for name in values if name.startswith(MOMENTS))
    return Outputs(values[LOGITS], values.get(MAP), [values[name] for name in moments], values.get(MACRO))


def _cannot_run(path: Path, engine: str, err: Exception) -> BundleError:
    return BundleError(
        f"{engine} cannot run it ({str(err).splitlines()[0][:160].rstrip('. ')})",
        need="the graph as it was exported",
        next="Copy the whole folder again, export it again, or use --engine torch.",
        path=path,
    )
