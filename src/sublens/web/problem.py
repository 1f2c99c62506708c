"""What a caller is told that did not get what it asked for: RFC 9457 problem+json, and nothing else."""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 1
"""What a caller is asked to wait where there is too much to do."""


class Problem(HTTPException):
    """An answer other than what was asked for."""

    def __init__(
        self, status: int, what: str, need: str = "", then: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """what: what we got. need: what we need. then: what to do next."""
        super().__init__(status, what, dict(headers or {}))
        self.need, self.then = need, then


def overloaded(what: str) -> Problem:
    """503: not now."""
    return Problem(
        503,
        what,
        "fewer requests at a time",
        f"Try again in {RETRY_SECONDS} s.",
        {"Retry-After": str(RETRY_SECONDS)},
    )


def from_error(err: Exception) -> Problem:
    """422: what one of our errors says, whose texts are "what we got; needs this. Do that."."""
    first, _, then = str(err).partition(". ")
    what, _, need = first.partition("; needs ")
    return Problem(422, what, need or "something that can be used", then or "Correct it.")


class ProblemDetails(BaseModel):
    """A problem, as it is sent."""

    type: str = "about:blank"
    title: str
    """The status in words."""
    status: int
    detail: str
    """What we got."""
    need: str = ""
    """What we need."""
    next: str = ""
    """What to do next."""
    error: str = ""
    """All three, for clients of the Open Inference Protocol."""
    request_id: str = ""


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemDetails, "description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {}}}
    for status in (400, 401, 403, 404, 405, 408, 413, 415, 421, 422, 503)
}
"""Of every operation: what may come in place of what was asked for."""


def response(problem: Problem, request_id: str) -> Response:
    """The problem as it is sent."""
    told = ProblemDetails(
        title=HTTPStatus(problem.status_code).phrase,
        status=problem.status_code,
        detail=clean(problem.detail),
        need=clean(problem.need),
        next=clean(problem.then),
        error=clean(f"{problem.detail} Needed: {problem.need or '-'}. {problem.then}"),
        request_id=request_id,
    )
    content = json.dumps(told.model_dump()).encode()
    return Response(content, problem.status_code, problem.headers, MEDIA_TYPE)


def clean(text: str) -> str:
    """Without what cannot be sent or would drive a terminal."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]+", " ", text)


def request_id(request: Request) -> str:
    """What the guard calls this request."""
    return str(request.scope.get("request_id", ""))
