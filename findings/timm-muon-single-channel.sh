#!/usr/bin/env bash
# timm's Muon trains the first convolution of a network with one input channel by AdamW, at Muon's learning rate.
#
# timm 1.0.31, timm.optim.Muon: a weight that "is not suitable" falls back to AdamW. A convolution of shape
# (32, 1, 5, 5), as every network for single-band images begins with, is a matrix of 32 x 25 in the mode "flatten" that
# Muon orthogonalises, but it is taken for a depthwise one. Behaviour seen with torch 2.13.0: no warning, and no way to
# ask for it by parameter groups; its first step has the size of the group's learning rate in every element (AdamW's),
# where the same 800 numbers as a linear layer of 32 x 25 get an orthogonal step. With Muon's usual
# rate of 0.02 that is some ten times what one would choose for AdamW. `fallback_lr_scale` scales it, once one knows.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
pip() { "$folder/env/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0
pip torchvision==0.28.0 timm==1.0.31
"$folder/env/bin/python" - <<'PYTHON'
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
from timm.optim.muon import Muon

RATE = 0.02


def step(*shape: int) -> torch.Tensor:
    """The first step for a weight of this shape, over the rate, as a matrix of 32 rows."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(32, 25).reshape(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Muon([{"params": [weight]}], lr=RATE, weight_decay=0.0, adjust_lr_fn="original").step()
    return (weight.detach() / RATE).reshape(32, -1)


convolution, linear = step(32, 1, 5, 5), step(32, 25)
for name, update in (("convolution (32, 1, 5, 5)", convolution), ("linear (32, 25)", linear)):
    values = torch.linalg.svdvals(update)
    print(f"{name}: elements {update.abs().min():.3f} to {update.abs().max():.3f}, singular values {values.min():.2f} to {values.max():.2f}")
assert torch.allclose(convolution.abs(), torch.ones_like(convolution), atol=1e-3)  # AdamW: the sign of the gradient
assert torch.linalg.svdvals(linear).max() < 1.5  # Muon: all singular values near one
assert torch.linalg.svdvals(convolution).max() > 5
PYTHON
