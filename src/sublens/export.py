"""A trained network -> an ONNX graph, refused where it does not see what torch sees.

The graph of a bundle takes its weights from `weights.safetensors`, so it weighs next to nothing; an
exported one holds them itself, so any ONNX software can run it alone.
"""

import json
import struct
import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sublens import evaluate, files, models, weights
from sublens.bundle import GRAPH, WEIGHTS, Card, CardGraph
from sublens.config import InputConfig, zoom
from sublens.data import Part
from sublens.engine import COUNTS, LOGITS, MAP, MOMENTS, OnnxRuntime
from sublens.errors import BundleError
from sublens.models import Moments, TruthHead, Whole
from sublens.predict import BATCH, Predictor, open_engine
from sublens.progress import Bar, Count, silent

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

OPSET = 20
COMPARED = 2_000
"""Images on which a graph is compared with torch."""
BATCHES = (1, 2, 7, BATCH)
"""In batches of these sizes."""
MAX_DEVIATION = 1e-5
"""The most that any probability of a float32 graph may differ from torch's."""
MAX_AUC_LOSS = 5e-4
"""The most that an int8 graph may lose in macro AUC."""
CALIBRATING = 512
"""Images that tell the ranges of an int8 graph."""
Counts = NDArray[np.uint16]


@lru_cache(maxsize=4)
def _graph(network: str, n_classes: int, seen: InputConfig, shape: tuple[int, int], has_map: bool) -> "ModelProto":
    """The graph of a network whose weights are yet to come: images [b, h, w] of this shape, b of any size.

    Raises `BundleError` where torch cannot export it.
    """
    model = models.build(network, n_classes, seen.channels)
    head = TruthHead(model, zoom(seen, shape)) if has_map else None
    whole = Whole(model, seen, head, Moments(model)).eval()
    images = torch.full((3, *shape), 10.0)  # a batch of 1 would be taken for a constant
    images[:, 0, 0] = 0
    with torch.no_grad():
        _, logs, moments = whole(images)
    names = [LOGITS, *([MAP] if logs is not None else []), *(f"{MOMENTS}{number}" for number in range(len(moments)))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about torch
            program = torch.onnx.export(
                _Listed(whole),
                (images,),
                dynamo=True,
                optimize=False,
                opset_version=OPSET,
                input_names=[COUNTS],
                output_names=names,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=2**16)},),
                verbose=False,
            )
    except Exception as err:  # its own errors, and whatever a network does that cannot be traced
        raise BundleError(
            f"This network cannot be made into an ONNX graph ({type(err).__name__}). Predict with --engine torch."
        ) from err
    assert program is not None
    _tidy(program.model)
    return _bare(program.model_proto)


class _Listed(torch.nn.Module):
    """A network whose outputs are one flat tuple."""

    def __init__(self, whole: Whole) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, counts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, logs, moments = self.whole(counts)
        return (logits, *([] if logs is None else [logs]), *moments)


def _tidy(model: Any) -> None:
    """Fold constants, but leave every weight as it is: engines fold batch normalisation themselves."""
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants_ir

    common.InlinePass()(model)
    fold_constants_ir(model)
    for tidying in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.NameFixPass(),
    ):
        tidying(model)


def _bare(model: "ModelProto") -> "ModelProto":
    """Without what the exporter notes of the code it went through, paths included."""
    graph = model.graph
    for noted in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del noted.metadata_props[:]
        noted.doc_string = ""
    del graph.value_info[:]
    return model


def _with_weights(graph: "ModelProto", path: Path) -> "ModelProto":
    """A copy of the graph that takes its weights from a safetensors file beside it, where they may have 16 bits."""
    from onnx import ModelProto, TensorProto, helper

    model = ModelProto()
    model.CopyFrom(graph)
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        stored = json.loads(file.read(length))
    kinds = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16}
    widening = []
    for tensor in model.graph.initializer:
        name = tensor.name.removeprefix("whole.")
        found = stored.get(_stored_name(name))
        if not name.startswith(("model.", "head.")) or found is None or found["dtype"] not in kinds:
            continue
        begin, end = found["data_offsets"]
        is_narrow = found["dtype"] == "F16"
        if is_narrow:
            widening.append(helper.make_node("Cast", [f"{tensor.name}.narrow"], [tensor.name], to=TensorProto.FLOAT))
        outside = _outside(path.name, 8 + length + begin, end - begin)
        outside.name, outside.data_type = f"{tensor.name}.narrow" if is_narrow else tensor.name, kinds[found["dtype"]]
        outside.dims.extend(found["shape"])
        tensor.CopyFrom(outside)
    nodes = [*widening, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _stored_name(name: str) -> str:
    return name.removeprefix("model.") if name.startswith("model.") else weights.HEAD + name.removeprefix("head.")


def _outside(location: str, offset: int, length: int) -> "TensorProto":
    from onnx import TensorProto

    tensor = TensorProto(data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def add_graph(folder: Path, card: Card, part: Part, bar: Bar = silent) -> CardGraph:
    """Give the bundle in `folder` a graph that takes its weights from the bundle's; returns what the card has to say.

    part: images on which it is compared with torch. Raises `BundleError`, and leaves none, where there
    is no such graph or it differs by more than `MAX_DEVIATION`.
    """
    bare = _graph(card.network, len(card.classes), card.input, card.image_shape, card.map is not None)
    files.write_bytes(folder / GRAPH, _with_weights(bare, folder / WEIGHTS).SerializeToString())
    try:
        n, deviation = _compared(folder, card, OnnxRuntime(folder / GRAPH), part, bar)
    except BaseException:
        files.remove(folder / GRAPH)
        raise
    return CardGraph(sha256=files.sha256(folder / GRAPH), precision="float32", is_alone=False, n=n, deviation=deviation)


def _compared(folder: Path, card: Card, engine: OnnxRuntime, part: Part, bar: Bar) -> tuple[int, float]:
    """Number of images, and the most that any probability differs from torch's; `BundleError` where it is too much."""
    few = _few(part, COMPARED)
    judged, probs = Predictor(engine, card.classes, card.image_shape, card.input), []
    with bar("comparing with torch", (1 + len(BATCHES)) * len(few)) as advance:
        count = Count(advance)
        reference = evaluate.predict_all(
            replace(judged, engine=open_engine(folder, card, "torch")), few, count.add
        ).probs
        for size in BATCHES:
            probs.append(evaluate.predict_all(judged, few, count.add, size).probs)
    deviation = float(np.abs(np.stack(probs) - reference).max())
    if not deviation <= MAX_DEVIATION:
        raise BundleError(
            f"The ONNX graph of this {card.network} gives other probabilities than torch, by up to {deviation:.1e}; "
            f"{MAX_DEVIATION:.0e} is allowed. Nothing was written. Predict with --engine torch."
        )
    return len(few), deviation


def _few(part: Part, n: int) -> Part:
    return part.take(np.linspace(0, len(part) - 1, min(n, len(part))).round().astype(np.int64))
