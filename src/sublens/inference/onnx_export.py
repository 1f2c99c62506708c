"""A trained network -> an ONNX graph, refused where its probabilities are not those of torch.

The graph of a bundle takes its weights from `weights.safetensors`, so it weighs next to nothing; an
exported one holds them itself, so any ONNX software can run it alone.
"""

import json
import shutil
import struct
import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sublens import metrics
from sublens.config import InputConfig, zoom
from sublens.data.dataset import Dataset, Part
from sublens.errors import BundleError
from sublens.inference import detection_trials, predict_dataset
from sublens.inference.engines import COUNTS, LOGITS, MACRO, MAP, MOMENTS, OnnxRuntime
from sublens.inference.predictor import BATCH, Predictor
from sublens.inference.torch_engine import FullNetwork, MirroredNetwork, TorchEngine
from sublens.models import bundle, networks, weights
from sublens.models.bundle import GRAPH, WEIGHTS, Card, CardCalibration, CardGraph
from sublens.models.heads import MacroHead, Moments, TruthHead
from sublens.progress import Bar, Count, silent
from sublens.storage import files, scratch

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

OPSET = 20
COMPARED = 2_000
"""Largest number of images on which a graph is compared with torch."""
BATCHES = (1, 2, 7, BATCH)
"""Batch sizes in which a graph is compared with torch."""
MAX_DEVIATION = 1e-5
"""Largest difference between a probability of a float32 graph and that of torch in double precision."""
MAX_AUC_CHANGE = 5e-4
"""Largest change of the macro AUC by 8 bits, and largest drop by mirror images."""
CALIBRATING = 512
"""Largest number of images from which the ranges of an int8 graph are taken."""


@lru_cache(maxsize=4)
def _graph(
    network: str,
    n_classes: int,
    config: InputConfig,
    shape: tuple[int, int],
    has_map: bool,
    has_macro: bool,
    mirrors: bool,
) -> "ModelProto":
    """The graph of a network whose weights are yet to come: images [b, h, w] of this shape, b of any size.

    Raises `BundleError` where torch cannot export it.
    """
    model = networks.build(network, n_classes, config.n_channels)
    finer = zoom(config, shape)
    head, macro = TruthHead(model, finer) if has_map else None, MacroHead(model, finer) if has_macro else None
    whole = (MirroredNetwork if mirrors else FullNetwork)(model, config, head, Moments(model), macro).eval()
    images = torch.full((3, *shape), 10.0)  # a batch of 1 would be taken for a constant
    images[:, 0, 0] = 0
    with torch.no_grad():
        moments = whole(images).moments
    heads = [*([MAP] if head else []), *([MACRO] if macro else [])]
    names = [LOGITS, *heads, *(f"{MOMENTS}{number}" for number in range(len(moments)))]
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
            f"{network} cannot be made into an ONNX graph ({type(err).__name__})",
            need="a network that torch can export",
            next="Predict with --engine torch.",
        ) from err
    assert program is not None
    _tidy(program.model)
    return _bare(program.model_proto)


class _Listed(torch.nn.Module):
    """A full network with a flat tuple of outputs."""

    def __init__(self, whole: FullNetwork) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, counts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, logs, moments, macro = self.whole(counts)
        return (logits, *(plane for plane in (logs, macro) if plane is not None), *moments)


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
    """The graph without the exporter's notes on code and paths."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
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
        entry = stored.get(_stored_name(name))
        if not name.startswith(("model.", "head.", "macro.")) or entry is None or entry["dtype"] not in kinds:
            continue
        begin, end = entry["data_offsets"]
        is_narrow = entry["dtype"] == "F16"
        if is_narrow:
            widening.append(helper.make_node("Cast", [f"{tensor.name}.narrow"], [tensor.name], to=TensorProto.FLOAT))
        outside = _outside(path.name, 8 + length + begin, end - begin)
        outside.name, outside.data_type = f"{tensor.name}.narrow" if is_narrow else tensor.name, kinds[entry["dtype"]]
        outside.dims.extend(entry["shape"])
        tensor.CopyFrom(outside)
    nodes = [*widening, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _stored_name(name: str) -> str:
    part, _, rest = name.partition(".")
    return {"model": "", "head": weights.HEAD, "macro": weights.MACRO}.get(part, "") + rest


def _outside(location: str, offset: int, length: int) -> "TensorProto":
    from onnx import TensorProto

    tensor = TensorProto(data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def add_graph(folder: Path, card: Card, part: Part, bar: Bar = silent, *, mirrors: bool = False) -> CardGraph:
    """Give the bundle in `folder` a graph that takes its weights from the bundle's; returns its entry in the card.

    part: images on which it is compared with torch. mirrors: the graph takes the mean over four mirror images.
    Raises `BundleError`, and leaves none, where there is no such graph or it differs by more than `MAX_DEVIATION`.
    """
    heads = card.map is not None, card.has_macro
    bare = _graph(card.network, len(card.classes), card.input, card.image_shape, *heads, mirrors)
    files.write_bytes(folder / GRAPH, _with_weights(bare, folder / WEIGHTS).SerializeToString())
    try:
        n, deviation = _compared(folder, card, part, bar, mirrors=mirrors)
    except BaseException:
        files.remove(folder / GRAPH)
        raise
    return CardGraph(sha256=files.sha256(folder / GRAPH), precision="float32", is_alone=False, n=n, deviation=deviation)


def _compared(folder: Path, card: Card, part: Part, bar: Bar, *, mirrors: bool) -> tuple[int, float]:
    """Number of images, and the largest difference of a probability from torch's; `BundleError` where it is too large.

    Torch computes in double precision here, so that the difference is the graph's rounding and not torch's own,
    which is as large.
    """
    few, predictor, probs = part.few(COMPARED), _uncalibrated(folder / GRAPH, card), []
    model = weights.load(folder, card)[0].double()
    exact = replace(predictor, engine=TorchEngine((MirroredNetwork if mirrors else FullNetwork)(model, card.input)))
    with bar("comparing with torch", (1 + len(BATCHES)) * len(few)) as advance:
        count = Count(advance)
        reference = predict_dataset.predict_all(exact, few, count.add).probs
        for size in BATCHES:
            probs.append(predict_dataset.predict_all(predictor, few, count.add, size).probs)
    deviation = float(np.abs(np.stack(probs) - reference).max())
    if not deviation <= MAX_DEVIATION:
        raise BundleError(
            f"The ONNX graph of this {card.network} gives other probabilities than torch, by up to {deviation:.1e}",
            need=f"differences of at most {MAX_DEVIATION:.0e}",
            next="Nothing was written. Predict with --engine torch.",
        )
    return len(few), deviation


def _uncalibrated(graph: Path, card: Card) -> Predictor:
    """A predictor that runs that graph, without calibration."""
    return Predictor(OnnxRuntime(graph), card.classes, card.image_shape, card.input, card.map)


def export(
    name: str | Path,
    dataset: Dataset,
    out: Path,
    *,
    int8: bool = False,
    mirrors: bool = False,
    force: bool = False,
    bar: Bar = silent,
) -> CardGraph:
    """Leave in `out` a bundle whose graph holds its weights itself; `sublens predict` and any ONNX software run it.

    name: a trained network, by name or folder. dataset: on its selection part the graph is compared with
    torch. mirrors: predictions are the mean over four mirror images. int8: convolutions in whole numbers, with
    ranges from that part. Either is calibrated anew, and refused where the macro AUC differs by more than
    `MAX_AUC_CHANGE`; but mirrors may raise it. Raises `BundleError` for a graph that is refused.
    """
    source = bundle.locate(name)
    files.refuse_overlap(out, source)
    card, part = bundle.read_card(source), dataset.selection
    with files.whole_folder(out, kind=files.Kind.BUNDLE, force=force) as folder, scratch.folder() as place:
        (place / WEIGHTS).write_bytes(bundle.read_verified(source / WEIGHTS, card.weights_sha256))
        entry = add_graph(place, card, part, bar)
        if mirrors:
            (place / GRAPH).rename(place / PLAIN)
            entry = add_graph(place, card, part, bar, mirrors=True)
            entry = entry.model_copy(update={"mirror_gain": _mirror_gain(card, place, part, bar)})
        _save_alone(place / GRAPH, folder / GRAPH)
        calibration, detection = card.calibration, card.detection
        if int8:
            _quantise(folder / GRAPH, part, place, bar)
            entry = entry.model_copy(update={"precision": "int8", **_rounding(card, place, folder, part, bar)})
        if int8 or mirrors:
            plain = _uncalibrated(folder / GRAPH, card)
            knows = card.knows_contaminants
            fitted = predict_dataset.calibrate(plain, dataset.train, part, bar, knows_contaminants=knows)
            calibration = bundle.save_calibration(folder, fitted, len(part))
            detection = detection_trials.fit_where_known(replace(plain, calibration=fitted), dataset, bar)
        elif calibration:
            data = bundle.read_verified(source / bundle.CALIBRATION, calibration.sha256)
            (folder / bundle.CALIBRATION).write_bytes(data)
        _save_alone(folder / GRAPH, folder / GRAPH, _notes(card, calibration))
        entry = entry.model_copy(update={"is_alone": True, "sha256": files.sha256(folder / GRAPH)})
        changes = {"graph": entry, "calibration": calibration, "detection": detection}
        bundle.save_card(folder, card.model_copy(update=changes))
    return entry


def export_file(
    name: str | Path,
    dataset: Dataset,
    out: Path,
    *,
    int8: bool = False,
    mirrors: bool = False,
    force: bool = False,
    bar: Bar = silent,
) -> CardGraph:
    """Leave the graph of `export` by itself in the file `out`, with its calibration in the notes."""
    files.refuse_overlap(out, bundle.locate(name))
    files.refuse_existing_file(out, mark=MARK, force=force)
    with scratch.folder() as place:
        folder = place / "bundle"
        entry = export(name, dataset, folder, int8=int8, mirrors=mirrors, bar=bar)
        with files.whole_file(out) as partial:
            shutil.copyfile(folder / GRAPH, partial)
    return entry


MARK = b"probabilities are softmax(logits / temperature)"
"""Note that every exported graph holds, near its end."""
PLAIN = "plain.onnx"
"""File name of the graph without mirror images, beside the one with them."""


def _save_alone(source: Path, out: Path, notes: dict[str, str] | None = None) -> None:
    """Write a graph with its weights inside, and notes in it."""
    import onnx

    model = onnx.load(source)
    if notes:
        onnx.helper.set_model_props(model, notes)
    onnx.save(model, out)


def _notes(card: Card, calibration: CardCalibration | None) -> dict[str, str]:
    """Notes for users who run a graph without sublens."""
    signal_to_noise = {
        COUNTS: "signal to noise, float32 [batch, height, width]: 0 masked, else (S/N + 20) / 0.02 from 1 to 65535",
        MACRO: "ln theta_e (arcsec), e1, e2, the logarithms of their standard deviations, the logit of no lens",
    }
    return {
        "classes": ",".join(card.classes),
        "temperature": str(calibration.temperature if calibration else 1.0),
        "network": card.network,
        COUNTS: "photon counts above the image's minimum, float32 [batch, height, width]",
        LOGITS: MARK.decode(),
        MAP: "log(1 + M / 1e9 Msun), M the substructure mass in each cell",
        **(signal_to_noise if card.input.transform == "signal-to-noise" else {}),
    }


def _quantise(path: Path, part: Part, place: Path, bar: Bar) -> None:
    """Replace a graph by one whose convolutions compute in 8 bits, with ranges from images of this part."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    few = part.few(CALIBRATING)
    batches = [few.counts(np.arange(start, min(start + BATCH, len(few)))) for start in range(0, len(few), BATCH)]
    with bar("quantising", len(few)) as advance:
        count = Count(advance)

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def get_next(self) -> dict[str, NDArray[np.float32]] | None:
                if not batches:
                    return None
                counts = batches.pop(0)
                count.add(len(counts))
                return {COUNTS: counts.astype(np.float32)}

        quant_pre_process(path, place / "folded.onnx", skip_symbolic_shape=True)
        quantize_static(
            place / "folded.onnx",
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["Conv"],
        )


def _rounding(card: Card, before: Path, after: Path, part: Part, bar: Bar) -> dict[str, Any]:
    """Fields of the card on 8 bits; `BundleError` where the macro AUC changes by more than `MAX_AUC_CHANGE`."""
    whole, rounded = _probs(card, (before / GRAPH, after / GRAPH), part, "comparing with 32 bits", bar)
    change = metrics.auc_change(whole, rounded, part.labels)
    if abs(change["value"]) > MAX_AUC_CHANGE:
        raise BundleError(
            f"In 8 bits this {card.network} has a macro AUC that differs by {change['value']:+.4f} "
            f"[{change['low']:+.4f}, {change['high']:+.4f}]",
            need=f"a change of at most {MAX_AUC_CHANGE}",
            next="Nothing was written. Export it without --int8.",
        )
    return {
        "n": len(part),
        "deviation": float(np.abs(whole - rounded).max()),
        "auc_change": (change["value"], change["low"], change["high"]),
    }


def _mirror_gain(card: Card, place: Path, part: Part, bar: Bar) -> tuple[float, float, float]:
    """Change of the macro AUC by mirror images, and its 95 % interval; `BundleError` where they lower it."""
    plain, mean = _probs(card, (place / PLAIN, place / GRAPH), part, "comparing with one image", bar)
    change = metrics.auc_change(plain, mean, part.labels)
    if change["value"] < -MAX_AUC_CHANGE:
        raise BundleError(
            f"The mean over mirror images lowers the macro AUC of this {card.network} by {-change['value']:.4f} "
            f"[{-change['high']:.4f}, {-change['low']:.4f}]",
            need=f"a drop of at most {MAX_AUC_CHANGE}",
            next="Nothing was written. Export it without --mirrors.",
        )
    return change["value"], change["low"], change["high"]


def _probs(
    card: Card, graphs: tuple[Path, Path], part: Part, title: str, bar: Bar
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    with bar(title, 2 * len(part)) as advance:
        count = Count(advance)
        before, after = (
            predict_dataset.predict_all(_uncalibrated(graph, card), part, count.add).probs for graph in graphs
        )
    return before, after
