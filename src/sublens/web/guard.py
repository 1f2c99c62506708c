"""Limits, keys, security headers, log and counters, for every request before it reaches the application."""

import asyncio
import json
import re
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sublens.web import keys, problem
from sublens.web.problem import Problem, overloaded
from sublens.web.prometheus import Metrics

MAX_BODY_BYTES = 2**26
"""Largest request body, bytes."""
BODY_SECONDS = 20.0
"""Time for a request body to arrive."""
MAX_HELD_BYTES = 2**30
"""Bytes that the bodies of all requests under way may hold together."""
SEND_SECONDS = 20.0
"""Time for a client to take a piece of an answer."""
GONE = 499
"""Status in log and counters of a request whose client left."""
HEALTH = "/v2/health/"
"""Paths that an overloaded service still answers, so that nobody restarts it."""
MAX_REQUESTS = 512
"""Requests answered at the same time."""
HOLD_SECONDS, MAX_HOLD_SECONDS = 0.5, 10.0
"""Least and greatest delay of a 503, so that instant retries do not starve the event loop."""
REFUSALS_PER_SECOND = 100
"""Rate of refusals that the delay aims at: the more wait for theirs, the longer each waits."""
OPEN_PATHS = re.compile(r"/|/static/[\w.-]+|/v2/health/(live|ready)")
"""Paths that need no key: the page without its answers, and the health of the service."""
REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
"""Ids of requests that a log can hold; others are replaced."""
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Hosts under which only this machine can reach the service."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "frame-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
SECURITY = {
    "content-security-policy": PAGE_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
SECURITY_HEADERS = [(name.encode(), value.encode()) for name, value in SECURITY.items()]


@dataclass
class Guard:
    """An ASGI application around another."""

    app: ASGIApp
    metrics: Metrics
    key_hashes: Sequence[str] = ()
    """Hashes of the keys that open the service; empty for one that only this machine can reach."""
    log: Callable[[dict[str, Any]], None] = field(default=lambda entry: print(json.dumps(entry), file=sys.stderr))
    _n_open: int = 0
    _n_held: int = 0
    _n_refused: int = 0
    """Requests whose 503 is delayed."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        await _Request(self, scope, receive, send).serve()


class _Request:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self._guard, self._scope, self._receive, self._send = guard, scope, receive, send
        self._headers = Headers(scope=scope)
        name = self._headers.get("x-request-id", "")
        self._id = scope["request_id"] = name if REQUEST_ID.fullmatch(name) else uuid.uuid4().hex
        self._status, self._n_bytes, self._body_deadline = 0, 0, 0.0
        self._is_whole = self._is_under_way = False
        self._is_health = scope["path"].startswith(HEALTH)

    async def serve(self) -> None:
        start = time.perf_counter()
        guard = self._guard
        try:
            self._admit()
            self._check()
            await guard.app(self._scope, self._receive_body, self._send_answer)
        except Problem as err:  # raised before the application, or by it with nothing sent
            await self._answer(err)
        except TimeoutError:  # the client does not read: leave the answer unfinished, and the connection closes
            self._status = GONE
        finally:
            self._leave()
            guard._n_held -= self._n_bytes
            self._record(time.perf_counter() - start)

    def _admit(self) -> None:
        """Count this request among those under way. Raises `Problem` 503 where they are too many."""
        if self._guard._n_open >= MAX_REQUESTS and not self._is_health:
            raise overloaded(f"{MAX_REQUESTS} requests are under way already")
        self._guard._n_open += 1
        self._is_under_way = True

    def _leave(self) -> None:
        """Make room for another request."""
        self._guard._n_open -= self._is_under_way
        self._is_under_way = False

    async def _hold(self) -> None:
        """Wait before a 503, in nobody's way."""
        self._leave()
        guard = self._guard
        guard._n_refused += 1
        try:
            seconds = guard._n_refused / REFUSALS_PER_SECOND
            await asyncio.sleep(min(max(seconds, HOLD_SECONDS), MAX_HOLD_SECONDS))
        finally:
            guard._n_refused -= 1

    def _check(self) -> None:
        """Raise `Problem` where the headers alone refuse the request."""
        guard, headers = self._guard, self._headers
        if guard.key_hashes:
            self._check_key()
        else:  # or a foreign page could reach us through a browser here, under a host name of its own
            host = headers.get("host", "localhost")
            if host.rpartition(":")[0] not in LOCAL_NAMES and host not in LOCAL_NAMES:
                raise Problem(
                    421, f"The host is {host!r}", need="localhost or 127.0.0.1", next="Use one of these in the address."
                )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host", ""):  # a proxy may speak TLS
            raise Problem(
                403,
                f"The request comes from the page {origin!r}",
                need="one of the service's own page or of a program",
                next="Send it from there.",
            )
        if headers.get("content-encoding", "identity") != "identity":
            raise Problem(415, "The body is compressed", need="a plain one", next="Send it without Content-Encoding.")
        length = headers.get("content-length", "0")
        if len(length) > 18 or not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            raise _too_large()

    def _check_key(self) -> None:
        if OPEN_PATHS.fullmatch(self._scope["path"]):
            return
        kind, _, key = self._headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not keys.fits(key.strip(), self._guard.key_hashes):
            raise Problem(
                401,
                "The request has no key, or a wrong one",
                need="a key of this service",
                next="Send it as Authorization: Bearer KEY.",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _receive_body(self) -> Message:
        """A piece of the body. Raises `Problem` where the body is too large or too slow."""
        if self._is_whole:  # the next message is that the client left
            return await self._receive()
        self._body_deadline = self._body_deadline or time.monotonic() + BODY_SECONDS
        try:
            async with asyncio.timeout(self._body_deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise Problem(
                408, "The body came too slowly", need=f"all of it within {BODY_SECONDS:g} s", next="Send it again."
            ) from None
        n_new = len(message.get("body", b""))
        self._n_bytes += n_new
        self._guard._n_held += n_new
        if self._n_bytes > MAX_BODY_BYTES:
            raise _too_large()
        if self._guard._n_held > MAX_HELD_BYTES:
            raise overloaded(f"The requests under way hold {MAX_HELD_BYTES:,} bytes already")
        self._is_whole = not message.get("more_body", False)
        return message

    async def _send_answer(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            set_already = {name for name, _ in message["headers"]}
            extra = [(name, value) for name, value in SECURITY_HEADERS if name not in set_already]
            message["headers"] = [*message["headers"], *extra, (b"x-request-id", self._id.encode())]
            if self._status == HTTPStatus.SERVICE_UNAVAILABLE and not self._is_health:
                await self._hold()
        async with asyncio.timeout(SEND_SECONDS):
            await self._send(message)

    async def _answer(self, err: Problem) -> None:
        if not self._status:
            await problem.response(err, self._id)(self._scope, self._receive, self._send_answer)

    def _record(self, seconds: float) -> None:
        route = self._scope.get("route")
        path = getattr(route, "path", "") or "other"
        self._guard.metrics.request(path, self._status, seconds)
        self._guard.log(
            {
                "time": time.time(),
                "request_id": self._id,
                "method": self._scope["method"],
                "route": path,
                "status": self._status,
                "ms": round(1e3 * seconds, 3),
                "bytes": self._n_bytes,
            }
        )


def _too_large() -> Problem:
    return Problem(
        413,
        f"The body has more than {MAX_BODY_BYTES:,} bytes",
        need=f"at most {MAX_BODY_BYTES / 2**20:g} MiB",
        next="Cut the images out, or send fewer at a time.",
    )
