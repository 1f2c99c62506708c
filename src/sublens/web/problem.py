"""Error responses, RFC 9457 problem+json: what we got, what we need, what to do next."""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sublens.errors import SublensError
from sublens.storage.scratch import ScratchError

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 1
"""Delay after which an overloaded service may be asked again, seconds."""
STATUSES = (400, 401, 403, 404, 405, 408, 413, 415, 421, 422, 500, 503)
"""Statuses of the error responses."""


class Problem(HTTPException):
    """An error response, raised."""

    def __init__(
        self,
        status: int,
        what: str,
        *,
        need: str,
        next: str,  # noqa: A002
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """what: what we got, without a full stop. need: what we need instead. next: what to do, in sentences."""
        super().__init__(status, what, dict(headers or {}))
        self.need, self.next = need, next


def overloaded(what: str) -> Problem:
    """503, for a service that has too much to do at the moment."""
    return Problem(
        503,
        what,
        need="fewer requests at a time",
        next=f"Try again in {RETRY_SECONDS} s.",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )


def from_error(err: SublensError) -> Problem:
    """422, for a request that one of our errors refuses; 503 where the machine lacks space for it."""
    what = f"{err.path}: {err.what}" if err.path else err.what
    return Problem(503 if isinstance(err, ScratchError) else 422, what, need=err.need, next=err.next)


class ProblemDetails(BaseModel):
    """The body of an error response."""

    type: str = "about:blank"
    title: str
    """The status in words."""
    status: int
    detail: str
    """What we got, one sentence."""
    need: str
    """What we need instead."""
    next: str
    """What to do, in sentences."""
    error: str
    """All three, for clients of the Open Inference Protocol."""
    request_id: str = ""


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
    }
    for status in STATUSES
}
"""The error responses of every operation, as OpenAPI describes them."""


def details(problem: Problem, request_id: str = "") -> ProblemDetails:
    """The body that describes a problem."""
    detail = problem.detail if problem.detail.endswith((".", "!", "?")) else f"{problem.detail}."
    return ProblemDetails(
        title=HTTPStatus(problem.status_code).phrase,
        status=problem.status_code,
        detail=clean(detail),
        need=clean(problem.need),
        next=clean(problem.next),
        error=clean(f"{detail} Needed: {problem.need}. {problem.next}"),
        request_id=request_id,
    )


def response(problem: Problem, request_id: str) -> Response:
    """The error response to a request."""
    content = details(problem, request_id).model_dump_json()
    return Response(content, problem.status_code, problem.headers, MEDIA_TYPE)


def clean(text: str) -> str:
    """The text without control characters and lone surrogates, which terminals obey and JSON cannot hold."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]+", " ", text)


def request_id(request: Request) -> str:
    """The id that the guard gave this request."""
    return str(request.scope.get("request_id", ""))
