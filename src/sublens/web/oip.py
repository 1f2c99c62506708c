"""The Open Inference Protocol, version 2, over REST, with Triton's binary tensors.

https://github.com/kserve/open-inference-protocol: `image` [b, h, w] in any linear scale is the input. The
outputs are `probs` [b, c], `prediction_set` [b, c], `ood_score` [b] and `ood` [b] where the network is
calibrated, and `masses` [b, g, g], Msun in each cell, where it has a truth head.
"""

import asyncio
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
from sublens.storage import scratch
from sublens.web.problem import ERROR_RESPONSES, Problem
from sublens.web.service import ServedNetwork, Service, unless_gone

DTYPES = {
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
}
"""Numpy type of each of the protocol's datatypes that an image may have."""
NAMES = {"float64": "FP64", "float32": "FP32", "bool": "BOOL"}
"""The protocol's name of each numpy type of an output."""
HEADER = "inference-header-content-length"
"""HTTP header with the number of bytes of JSON, where the bytes of tensors follow."""
INPUT = "image"
MODEL_VERSION = "1"
MAX_JSON_BYTES = 2**23
"""Largest JSON of a request, bytes; while it is parsed the event loop stands still."""
Name = Annotated[str, Path(max_length=200)]


class Parameters(BaseModel):
    """Parameters that we understand; the protocol has us ignore others."""

    binary_data_size: Annotated[int, Field(ge=0, le=2**32)] | None = None
    binary_data: bool | None = None
    binary_data_output: bool = False
    timeout: Annotated[int, Field(gt=0, le=2**53)] | None = None
    """Time to answer, microseconds."""


class InputTensor(BaseModel):
    """An input tensor."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=3, max_length=4)]
    datatype: str
    data: list[Any] | None = None
    """Numbers, flat or nested; null where their bytes follow the JSON."""
    parameters: Parameters = Parameters()


class RequestedOutput(BaseModel):
    """An output that the answer shall hold."""

    name: str
    parameters: Parameters = Parameters()


class InferRequest(BaseModel):
    """Images to predict."""

    id: Annotated[str, Field(max_length=200)] | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=10)] | None = None
    parameters: Parameters = Parameters()


class OutputTensor(BaseModel):
    """An output tensor."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float] | list[bool] | None = None
    parameters: dict[str, int] | None = None


class InferResponse(BaseModel):
    """The outputs of a network."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}


def routes(service: Service) -> APIRouter:
    """The protocol's six endpoints."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=ERROR_RESPONSES)

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        """Confirm that the server runs."""
        return {"live": True}

    @router.get("/health/ready")
    async def ready() -> dict[str, bool]:
        """Confirm that the server takes requests; 503 once it has been asked to stop, or lacks space for uploads."""
        if not service.is_ready:
            raise Problem(
                503,
                "The service is stopping",
                need="a service that runs",
                next="Send requests to another one, or wait for its restart.",
                headers={"Retry-After": "5"},
            )
        scratch.check()
        return {"ready": True}

    @router.get("")
    async def server() -> dict[str, Any]:
        """Describe the server."""
        return {"name": "sublens", "version": version("sublens"), "extensions": ["binary_tensor_data"]}

    @router.get("/models/{name}/versions/{number}/ready", include_in_schema=False)
    @router.get("/models/{name}/ready")
    async def model_ready(name: Name, number: str = MODEL_VERSION) -> dict[str, Any]:
        """Check whether a network takes requests."""
        _check_version(number)
        return {"name": service.network(name).name, "ready": service.is_ready}

    @router.get("/models/{name}/versions/{number}", include_in_schema=False)
    @router.get("/models/{name}")
    async def model(name: Name, number: str = MODEL_VERSION) -> dict[str, Any]:
        """Describe the input and the outputs of a network."""
        _check_version(number)
        return _metadata(service.network(name))

    @router.post("/models/{name}/versions/{number}/infer", include_in_schema=False)
    @router.post("/models/{name}/infer", response_model=InferResponse, openapi_extra={"requestBody": BODY})
    async def infer(request: Request, name: Name, number: str = MODEL_VERSION) -> Response:
        """Predict images [b, h, w], 64 at most; the bytes of tensors may follow the JSON."""
        _check_version(number)
        network = service.network(name)
        network.batcher.check_room()
        body, images = _read(await request.body(), request.headers.get(HEADER))
        network.predictor.frame.check_size(images.shape[1:], "image")  # before it waits in the queue
        deadline = service.deadline()
        if body.parameters.timeout:
            deadline = min(deadline, time.monotonic() + body.parameters.timeout / 1e6)

        has_hole = np.zeros(len(images), bool)

        def counts() -> NDArray[np.uint16]:
            framed = [network.predictor.image(image, f"image {row}") for row, image in enumerate(images)]
            has_hole[:] = [image.has_hole for image in framed]
            return np.stack([image.counts() for image in framed])

        future = asyncio.wrap_future(network.batcher.submit(len(images), counts, deadline))
        result = await unless_gone(request, future, deadline)
        if result.output.is_ood is None and has_hole.any():
            raise _hole(int(has_hole.argmax()))
        return _answer(network, body, result.output.with_holes(has_hole))

    return router


def _check_version(number: str) -> None:
    if number != MODEL_VERSION:
        raise Problem(
            404,
            f"There is no version {number!r} of this network",
            need=f"version {MODEL_VERSION}",
            next="Leave the version out.",
        )


def _metadata(network: ServedNetwork) -> dict[str, Any]:
    height, width = network.card.image_shape
    n = len(network.card.classes)
    outputs = [("probs", "FP64", [-1, n])]
    calibration = network.predictor.calibration
    if calibration:
        outputs += [("prediction_set", "BOOL", [-1, n])]
    if calibration and calibration.layers:
        outputs += [("ood_score", "FP64", [-1]), ("ood", "BOOL", [-1])]
    if network.card.map:
        outputs += [("masses", "FP32", [-1, network.card.map.n_cells, network.card.map.n_cells])]
    return {
        "name": network.name,
        "versions": [MODEL_VERSION],
        "platform": "onnxruntime_onnx" if network.card.graph else "pytorch_libtorch",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, height, width]}],
        "outputs": [{"name": name, "datatype": kind, "shape": shape} for name, kind, shape in outputs],
        "parameters": {"classes": ",".join(network.card.classes), "bundle": network.card.identity},
    }


def _read(body: bytes, header: str | None) -> tuple[InferRequest, NDArray[np.generic]]:
    """The request and its images [b, h, w]. Raises `Problem` 400 or 413 where the body is none."""
    n_json = _json_bytes(body, header)
    if n_json > MAX_JSON_BYTES:
        raise Problem(
            413,
            f"The JSON has {n_json:,} bytes",
            need=f"at most {MAX_JSON_BYTES:,}",
            next="Send the tensor's bytes behind the JSON, as the binary extension has it.",
        )
    try:
        request = InferRequest.model_validate(from_json(body[:n_json], allow_inf_nan=False))
    except ValidationError as err:
        fault = err.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, fault["loc"])) or "the JSON"
        raise _bad(
            f"{field}: {fault['msg']}",
            need="an inference request of the Open Inference Protocol",
            next=f"Correct {field}; GET /openapi.json describes it.",
        ) from err
    except ValueError as err:
        raise _bad(f"The body is no JSON ({err})", need="JSON first", next="Check the body and its headers.") from err
    return request, _images(request.inputs[0], body[n_json:])


def _json_bytes(body: bytes, header: str | None) -> int:
    """The number of bytes at the beginning of the body that are JSON."""
    if header is None:
        return len(body)
    if not (header.isascii() and header.isdecimal() and len(header) <= 18 and int(header) <= len(body)):
        raise _bad(
            f"Inference-Header-Content-Length is {header[:20]!r}",
            need=f"a number up to the {len(body)} bytes of the body",
            next="Set it to the number of bytes of JSON.",
        )
    return int(header)


def _images(tensor: InputTensor, rest: bytes) -> NDArray[np.generic]:
    """The images of a tensor [b, h, w] or [b, 1, h, w], whose bytes may be the rest of the body."""
    dtype, shape = DTYPES.get(tensor.datatype), _image_shape(tensor)
    if tensor.name != INPUT or dtype is None:
        raise _bad(
            f"The input {tensor.name!r} is {tensor.datatype}",
            need=f"the input {INPUT!r}, of {', '.join(DTYPES)}",
            next="Correct name and datatype.",
        )
    _check_source(tensor, len(rest))
    try:
        if tensor.data is None:
            return np.frombuffer(rest, dtype).reshape(shape)
        return _exact(np.asarray(tensor.data).reshape(shape), dtype)
    except (ValueError, TypeError, OverflowError) as err:
        raise _bad(
            f"The data are no {tensor.datatype} of the shape {tensor.shape}",
            need="as many numbers as the shape has, of that datatype",
            next="Correct data, datatype or shape.",
        ) from err


def _image_shape(tensor: InputTensor) -> list[int]:
    """The shape [b, h, w]; channels, of which there is one, are left out."""
    shape = tensor.shape
    if len(shape) == 4 and shape[1] == 1:
        shape = [shape[0], *shape[2:]]
    if len(shape) == 3 and shape[0] <= BATCH:
        return shape
    raise _bad(
        f"The shape is {tensor.shape}",
        need=f"[b, height, width] with b from 1 to {BATCH}",
        next="Split the images into several requests, or correct the shape.",
    )


def _check_source(tensor: InputTensor, n_bytes: int) -> None:
    """Raise `Problem` 400 unless either data or as many bytes as announced hold the numbers."""
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise _bad(
            f"The input has {'neither data nor' if size is None else 'both data and'} binary_data_size",
            need="one of them",
            next="Send data as numbers, or binary_data_size with the bytes behind the JSON.",
        )
    if size is not None and size != n_bytes:
        raise _bad(
            f"binary_data_size is {size}, and {n_bytes} bytes follow the JSON",
            need="equal numbers",
            next="Correct binary_data_size, or Inference-Header-Content-Length.",
        )


def _exact(numbers: NDArray[np.generic], dtype: str) -> NDArray[np.generic]:
    """The numbers in that type. Raises `ValueError` where they are none, or an integer type cannot hold them."""
    values = numbers.astype(dtype)
    if numbers.dtype.kind not in "iuf" or (values.dtype.kind in "iu" and (values != numbers).any()):
        raise ValueError
    return values


def _bad(what: str, *, need: str, next: str) -> Problem:  # noqa: A002
    return Problem(400, what, need=need, next=next)


def _hole(row: int) -> Problem:
    """The error of an image with a hole, for a network that has no output to say so."""
    return Problem(
        422,
        f"image {row}: pixels of the field of view are missing that their neighbours cannot fill",
        need="an image without such a hole",
        next="Leave it out, or ask a network that has an OOD score.",
    )


def _outputs(output: BatchPrediction) -> Mapping[str, NDArray[np.generic]]:
    arrays: dict[str, NDArray[np.generic] | None] = {
        "probs": output.probs,
        "prediction_set": output.sets,
        "ood_score": output.ood,
        "ood": output.is_ood,
        "masses": None if output.masses is None else output.masses.astype(np.float32),
    }
    return {name: array for name, array in arrays.items() if array is not None}


def _answer(network: ServedNetwork, request: InferRequest, output: BatchPrediction) -> Response:
    arrays = _outputs(output)
    tensors, tail = [], []
    for requested in request.outputs or [RequestedOutput(name=name) for name in arrays]:
        if requested.name not in arrays:
            raise _bad(
                f"There is no output {requested.name!r}",
                need=f"one of {', '.join(arrays)}",
                next="Correct outputs, or leave them out to get all.",
            )
        values, binary = arrays[requested.name], requested.parameters.binary_data
        tensor: dict[str, Any] = {"name": requested.name, "shape": values.shape, "datatype": NAMES[values.dtype.name]}
        if request.parameters.binary_data_output if binary is None else binary:
            tail.append(np.ascontiguousarray(values).tobytes())
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            tensor["data"] = values.ravel().tolist()
        tensors.append(tensor)
    answer: dict[str, Any] = {"model_name": network.name, "model_version": MODEL_VERSION, "outputs": tensors}
    if request.id is not None:
        answer["id"] = request.id
    head = json.dumps(answer).encode()
    if not tail:
        return Response(head, media_type="application/json")
    return Response(b"".join([head, *tail]), media_type="application/octet-stream", headers={HEADER: str(len(head))})
