"""Import timm beside any build of torch.

timm imports torchvision, and PyPI's torchvision cannot load its compiled part beside a CPU
build of torch: it ends with "operator torchvision::nms does not exist". sublens uses none of
those operators, so declaring their schemas is enough. With a matching build nothing is done.
"""

import sys
from functools import cache
from types import ModuleType

import torch

_MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache
def import_timm() -> ModuleType:
    """The timm module."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as err:
        if "torchvision::nms" not in str(err):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declare_operators()
    import timm

    return timm


@cache
def _declare_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # the schemas live as long as this object
    for schema in _MISSING_OPERATORS:
        library.define(schema)  # type: ignore[no-untyped-call]
    return library
