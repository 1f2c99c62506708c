#!/usr/bin/env bash
# torch's conversion to SyncBatchNorm silently removes the activations of timm's networks.
#
# timm 1.0.31 builds many networks (EfficientNet, MobileNetV3, ...) with BatchNormAct2d: a subclass of BatchNorm2d that
# holds the activation too. torch.nn.SyncBatchNorm.convert_sync_batchnorm, the documented step before training on
# several GPUs, replaces every BatchNorm2d *and its subclasses* by a plain SyncBatchNorm. Behaviour seen with torch
# 2.13.0: no error, no warning, the same parameters, the weights load, the activations are still listed as children, and
# no forward pass calls those behind a normalisation: another function. One would expect the outputs of an untrained
# network in evaluation mode to stay the same. timm.layers.convert_sync_batchnorm does it right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
pip() { "$folder/env/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0
pip torchvision==0.28.0 timm==1.0.31
"$folder/env/bin/python" - <<'PYTHON'
import copy
import sys
import warnings

import torch

try:
    import torchvision  # noqa: F401 - timm imports it
except RuntimeError:  # built for another device than this torch: declare what its import looks for
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import timm
from timm.layers import convert_sync_batchnorm

torch.manual_seed(0)
model = timm.create_model("efficientnet_b0", pretrained=False).eval()
images = torch.randn(2, 3, 64, 64)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    by_torch = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
    by_timm = convert_sync_batchnorm(copy.deepcopy(model)).eval()
with torch.no_grad():
    before, after_torch, after_timm = model(images), by_torch(images), by_timm(images)
print("layer:", type(model.bn1).__name__, "by torch:", type(by_torch.bn1).__name__, "by timm:", type(by_timm.bn1).__name__)
print("largest output before:", float(before.abs().max()))
print("largest change by torch:", float((before - after_torch).abs().max()))
print("largest change by timm:", float((before - after_timm).abs().max()))
print("keys that do not fit:", by_torch.load_state_dict(model.state_dict()))  # nothing tells that it is another network
assert type(by_torch.bn1) is torch.nn.SyncBatchNorm
assert hasattr(by_torch.bn1, "act")  # still listed as a child, which nothing calls
assert not torch.allclose(before, after_torch, atol=1e-2)
assert torch.allclose(before, after_timm)
PYTHON
