"""The Open Inference Protocol, version 2, over REST, with Triton's binary tensors.

https://github.com/kserve/open-inference-protocol: `image` [b, h, w] in, in any linear scale, and out
come `probs` [b, c], `prediction_set` [b, c] and `ood_score` and `ood`, both [b], and `masses` [b, g, g],
Msun in each cell, where the network has them.
"""

import json
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from sublens.inference.predictor import BATCH, BatchPrediction
from sublens.web.batching import BatchResult
from sublens.web.problem import ERROR_RESPONSES, Problem
from sublens.web.service import ServedNetwork, Service, unless_gone

DTYPES = {
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
}
"""The protocol's names of the types that an image may have."""
NAMES = {"float64": "FP64", "float32": "FP32", "bool": "BOOL"}
HEADER = "inference-header-content-length"
INPUT = "image"
MODEL_VERSION = "1"
MAX_JSON_BYTES = 2**23
"""While JSON is parsed nobody else is answered."""
Name = Annotated[str, Path(max_length=200)]


class Parameters(BaseModel):
    """Those that we understand; others are ignored, as the protocol wants."""

    binary_data_size: Annotated[int, Field(ge=0, le=2**32)] | None = None
    binary_data: bool | None = None
    binary_data_output: bool = False
    timeout: Annotated[int, Field(gt=0, le=2**53)] | None = None
    """Microseconds."""


class InputTensor(BaseModel):
    """An input."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=3, max_length=4)]
    datatype: str
    data: list[Any] | None = None
    """Flat or nested; not where the bytes follow the JSON."""
    parameters: Parameters = Parameters()


class OutputWish(BaseModel):
    """An output that is asked for."""

    name: str
    parameters: Parameters = Parameters()


class InferRequest(BaseModel):
    """What to judge."""

    id: Annotated[str, Field(max_length=200)] | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[OutputWish], Field(max_length=10)] | None = None
    parameters: Parameters = Parameters()


class OutputTensor(BaseModel):
    """An output."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float] | list[bool] | None = None
    parameters: dict[str, int] | None = None


class InferResponse(BaseModel):
    """What a network says."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}


def routes(service: Service) -> APIRouter:
    """The protocol's six endpoints."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=ERROR_RESPONSES)

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        """Whether the server runs."""
        return {"live": True}

    @router.get("/health/ready")
    async def ready() -> dict[str, bool]:
        """Whether it takes requests; 503 once it has been asked to end."""
        if not service.is_ready:
            raise Problem(503, "The service is ending.", then="Ask another one.", headers={"Retry-After": "5"})
        return {"ready": True}

    @router.get("")
    async def server() -> dict[str, Any]:
        """What the server is."""
        return {"name": "sublens", "version": version("sublens"), "extensions": ["binary_tensor_data"]}

    @router.get("/models/{name}/versions/{number}/ready", include_in_schema=False)
    @router.get("/models/{name}/ready")
    async def model_ready(name: Name, number: str = MODEL_VERSION) -> dict[str, Any]:
        """Whether a network takes requests."""
        _check_version(number)
        return {"name": service.network(name).name, "ready": service.is_ready}

    @router.get("/models/{name}/versions/{number}", include_in_schema=False)
    @router.get("/models/{name}")
    async def model(name: Name, number: str = MODEL_VERSION) -> dict[str, Any]:
        """What a network takes and gives."""
        _check_version(number)
        return _metadata(service.network(name))

    @router.post("/models/{name}/versions/{number}/infer", include_in_schema=False)
    @router.post("/models/{name}/infer", response_model=InferResponse, openapi_extra={"requestBody": BODY})
    async def infer(request: Request, name: Name, number: str = MODEL_VERSION) -> Response:
        """Judge images [b, h, w], 64 at most; the bytes of tensors may follow the JSON."""
        _check_version(number)
        network = service.network(name)
        asked, image = _read(await request.body(), request.headers.get(HEADER))
        network.predictor.check_size(image.shape[1:], "image")  # before it waits for others
        deadline = service.deadline()
        if asked.parameters.timeout:
            deadline = min(deadline, time.monotonic() + asked.parameters.timeout / 1e6)

        def counts() -> NDArray[np.uint16]:
            return np.stack([network.predictor.counts(one, f"image {place}") for place, one in enumerate(image)])

        future = network.batcher.submit(len(image), counts, deadline)
        return _answer(network, asked, await unless_gone(request, future, deadline))

    return router


def _check_version(number: str) -> None:
    if number != MODEL_VERSION:
        raise Problem(404, f"There is no version {number!r}.", f"version {MODEL_VERSION}", "Leave the version out.")


def _metadata(network: ServedNetwork) -> dict[str, Any]:
    height, width = network.card.image_shape
    n = len(network.card.classes)
    outputs = [("probs", "FP64", [-1, n])]
    told = network.predictor.calibration
    if told:
        outputs += [("prediction_set", "BOOL", [-1, n])]
    if told and told.layers:
        outputs += [("ood_score", "FP64", [-1]), ("ood", "BOOL", [-1])]
    if network.card.map:
        outputs += [("masses", "FP32", [-1, network.card.map.n_cells, network.card.map.n_cells])]
    return {
        "name": network.name,
        "versions": [MODEL_VERSION],
        "platform": "onnxruntime_onnx" if network.card.graph else "pytorch_libtorch",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, height, width]}],
        "outputs": [{"name": name, "datatype": kind, "shape": shape} for name, kind, shape in outputs],
        "parameters": {"classes": ",".join(network.card.classes), "bundle": network.card.judge},
    }


def _read(body: bytes, header: str | None) -> tuple[InferRequest, NDArray[np.generic]]:
    """The request, and its images [b, h, w]. Raises `Problem` 400 where it is no such request."""
    if header is not None and not (
        header.isascii() and header.isdecimal() and len(header) <= 18 and int(header) <= len(body)
    ):
        raise _bad(f"Inference-Header-Content-Length is {header[:20]!r}, of a body of {len(body)} bytes.")
    n_json = len(body) if header is None else int(header)
    if n_json > MAX_JSON_BYTES:
        raise Problem(
            413,
            f"The JSON has {n_json:,} bytes.",
            f"at most {MAX_JSON_BYTES:,}",
            "Send the tensor's bytes behind the JSON, as the binary extension has it.",
        )
    try:
        asked = InferRequest.model_validate(from_json(body[:n_json], allow_inf_nan=False))
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        raise _bad(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.") from err
    except ValueError as err:
        raise _bad(f"The body is no JSON ({err}).") from err
    return asked, _images(asked.inputs[0], body[n_json:])


def _images(tensor: InputTensor, rest: bytes) -> NDArray[np.generic]:
    kind = DTYPES.get(tensor.datatype)
    if tensor.name != INPUT or kind is None:
        raise _bad(f"The input {tensor.name!r} is {tensor.datatype}; it is {INPUT!r}, of {', '.join(DTYPES)}.")
    shape = [one for place, one in enumerate(tensor.shape) if not (place == 1 and len(tensor.shape) == 4 and one == 1)]
    if len(shape) != 3 or shape[0] > BATCH:
        raise _bad(f"The shape is {tensor.shape}; it is [b, height, width] with b from 1 to {BATCH}.")
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise _bad("The input has neither data nor binary_data_size, or both.")
    try:
        if size is None:
            given = np.asarray(tensor.data).reshape(shape)
            values = given.astype(kind)
            if given.dtype.kind not in "iuf" or (values.dtype.kind in "iu" and (values != given).any()):
                raise ValueError
            return values
        if size != len(rest):
            raise _bad(f"binary_data_size is {size}, and {len(rest)} bytes follow.")
        return np.frombuffer(rest, kind).reshape(shape)
    except (ValueError, TypeError, OverflowError) as err:
        raise _bad(f"The data are no {tensor.datatype} of the shape {tensor.shape}.") from err


def _bad(what: str) -> Problem:
    return Problem(400, what, "an inference request of the Open Inference Protocol", "Correct it; GET /openapi.json.")


def _outputs(output: BatchPrediction) -> Mapping[str, NDArray[np.generic]]:
    arrays: dict[str, NDArray[np.generic] | None] = {
        "probs": output.probs,
        "prediction_set": output.sets,
        "ood_score": output.ood,
        "ood": output.is_ood,
        "masses": None if output.masses is None else output.masses.astype(np.float32),
    }
    return {name: array for name, array in arrays.items() if array is not None}


def _answer(network: ServedNetwork, asked: InferRequest, judged: BatchResult) -> Response:
    found = _outputs(judged.output)
    wishes = asked.outputs or [OutputWish(name=name) for name in found]
    tensors, tail = [], []
    for wish in wishes:
        if wish.name not in found:
            raise _bad(f"There is no output {wish.name!r}; there are {', '.join(found)}.")
        values, binary = found[wish.name], wish.parameters.binary_data
        tensor: dict[str, Any] = {"name": wish.name, "shape": values.shape, "datatype": NAMES[values.dtype.name]}
        if asked.parameters.binary_data_output if binary is None else binary:
            tail.append(np.ascontiguousarray(values).tobytes())
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            tensor["data"] = values.ravel().tolist()
        tensors.append(tensor)
    told: dict[str, Any] = {"model_name": network.name, "model_version": MODEL_VERSION, "outputs": tensors}
    if asked.id is not None:
        told["id"] = asked.id
    head = json.dumps(told).encode()
    if not tail:
        return Response(head, media_type="application/json")
    return Response(b"".join([head, *tail]), media_type="application/octet-stream", headers={HEADER: str(len(head))})
