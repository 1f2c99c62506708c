"""Tell dark-matter substructure apart in images of strong gravitational lenses.

The names below are the library; each is imported when first used, so `import sublens` is quick.
Nothing leaves the machine: libraries that would report their use elsewhere are told not to, before they are imported,
and none computes on more cores than this process may use.
"""

import os
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublens.parallel import threads as _threads

if TYPE_CHECKING:
    from sublens.config import RunConfig as RunConfig
    from sublens.data.dataset import open_dataset as open_dataset
    from sublens.data.generate import simulate as simulate
    from sublens.errors import SublensError as SublensError
    from sublens.evaluation.evaluate import measure_run as measure_run
    from sublens.inference.predictor import Prediction as Prediction
    from sublens.inference.predictor import Predictor as Predictor
    from sublens.models.networks import build as build
    from sublens.sim.population import draw as draw
    from sublens.sim.render import render as render
    from sublens.surveys.presets import preset as preset
    from sublens.training.run import train_run as train_run
    from sublens.workflows import run_all as run_all

_HOMES = {
    "Prediction": "inference.predictor",
    "Predictor": "inference.predictor",
    "RunConfig": "config",
    "SublensError": "errors",
    "build": "models.networks",
    "draw": "sim.population",
    "measure_run": "evaluation.evaluate",
    "open_dataset": "data.dataset",
    "preset": "surveys.presets",
    "render": "sim.render",
    "run_all": "workflows",
    "simulate": "data.generate",
    "train_run": "training.run",
}

__all__ = sorted(_HOMES)

os.environ.update(ORT_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1")
_threads.configure()

try:
    _is_home = not (_home := Path.home()).is_dir() or os.access(_home, os.X_OK)
except (OSError, RuntimeError):
    _is_home = False
if not _is_home:  # but another user's, as in a container: libraries fail where they look for their settings in it
    os.environ["HOME"] = "/nonexistent"
try:
    tempfile.gettempdir()
except FileNotFoundError:
    tempfile.tempdir = "/tmp"

_backend = os.environ.get("MPLBACKEND", "")
if _backend.startswith("module://") and not find_spec(_backend.removeprefix("module://").partition(".")[0]):
    os.environ["MPLBACKEND"] = "agg"  # Jupyter's, inherited but not installed: importing matplotlib would fail


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # slow to import

        return version("sublens")
    if name not in _HOMES:
        raise AttributeError(f"module 'sublens' has no attribute {name!r}")
    return getattr(import_module(f"sublens.{_HOMES[name]}"), name)
