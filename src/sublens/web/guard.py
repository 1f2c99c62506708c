"""What stands before the service: limits, keys, headers, logs and counts, for every request alike."""

import asyncio
import json
import re
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sublens.web import keys, problem
from sublens.web.problem import Problem, overloaded
from sublens.web.prometheus import Metrics

MAX_BODY_BYTES = 2**26
"""Of one request."""
BODY_SECONDS = 20.0
"""In which a body must have come."""
MAX_HELD_BYTES = 2**30
"""Of the bodies of all requests that are under way."""
SEND_SECONDS = 20.0
"""In which a piece of an answer must be taken."""
GONE = 499
"""What is counted where the caller has left."""
HEALTH = "/v2/health/"
"""Always answered: who is only busy must not be taken for dead."""
MAX_REQUESTS = 512
"""At the same time."""
HOLD_SECONDS = 0.5
"""That one more waits to hear so: or those who ask again at once would leave no time to answer anybody."""
OPEN_PATHS = re.compile(r"/|/static/[\w.-]+|/v2/health/(live|ready)")
"""That need no key: the page without its answers, and whether the service is alive."""
REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

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
    """Of keys, one of which every request for an answer needs; none where only this machine can ask."""
    log: Callable[[dict[str, Any]], None] = field(default=lambda entry: print(json.dumps(entry), file=sys.stderr))
    _n_open: int = 0
    _n_held: int = 0

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
    """One request on its way."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self._guard, self._scope, self._receive, self._send = guard, scope, receive, send
        self._headers = Headers(scope=scope)
        given = self._headers.get("x-request-id", "")
        self._id = scope["request_id"] = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self._status, self._n_bytes, self._body_deadline = 0, 0, 0.0
        self._is_whole = False

    async def serve(self) -> None:
        start = time.perf_counter()
        guard = self._guard
        is_turned_away = guard._n_open >= MAX_REQUESTS and not self._scope["path"].startswith(HEALTH)
        guard._n_open += not is_turned_away
        try:
            if is_turned_away:
                await asyncio.sleep(HOLD_SECONDS)
                raise overloaded(f"{MAX_REQUESTS} requests are being answered already.")
            self._check()
            await guard.app(self._scope, self._taken, self._sent)
        except Problem as err:  # from before the application, or raised out of it with nothing sent
            await self._answer(err)
        except TimeoutError:  # nobody reads the answer: leave it unfinished, and the line is closed
            self._status = GONE
        finally:
            guard._n_open -= not is_turned_away
            guard._n_held -= self._n_bytes
            self._tell(time.perf_counter() - start)

    def _check(self) -> None:
        """Raise a `Problem` for what need not be looked at."""
        guard, headers = self._guard, self._headers
        if guard.key_hashes:
            self._check_key()
        else:  # or a page elsewhere could have a browser on this machine ask, under a name of its own
            host = headers.get("host", "localhost")
            if host.rpartition(":")[0] not in LOCAL_NAMES and host not in LOCAL_NAMES:
                raise Problem(421, f"Asked for the host {host!r}.", "localhost or 127.0.0.1", "Use that address.")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host", ""):  # a proxy may speak TLS
            raise Problem(403, f"The page {origin!r} asks.", "a request of our own page or of a program", "Ask there.")
        if headers.get("content-encoding", "identity") != "identity":
            raise Problem(415, "The body is compressed.", "a plain one", "Send it without Content-Encoding.")
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
                "There was no key, or a wrong one.",
                "a key of this service",
                "Send it as Authorization: Bearer KEY.",
                {"WWW-Authenticate": "Bearer"},
            )

    async def _taken(self) -> Message:
        """A piece of the body; a body may be neither too large nor too slow."""
        if self._is_whole:  # what comes now is that the caller has gone
            return await self._receive()
        self._body_deadline = self._body_deadline or time.monotonic() + BODY_SECONDS
        try:
            async with asyncio.timeout(self._body_deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise Problem(
                408, "The body came too slowly.", f"all of it within {BODY_SECONDS:g} s", "Send it again."
            ) from None
        n_new = len(message.get("body", b""))
        self._n_bytes += n_new
        self._guard._n_held += n_new
        if self._n_bytes > MAX_BODY_BYTES:
            raise _too_large()
        if self._guard._n_held > MAX_HELD_BYTES:
            raise overloaded("The requests under way hold as much as they may.")
        self._is_whole = not message.get("more_body", False)
        return message

    async def _sent(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            own = {name for name, _ in message["headers"]}
            extra = [(name, value) for name, value in SECURITY_HEADERS if name not in own]
            message["headers"] = [*message["headers"], *extra, (b"x-request-id", self._id.encode())]
        async with asyncio.timeout(SEND_SECONDS):
            await self._send(message)

    async def _answer(self, err: Problem) -> None:
        if not self._status:
            await problem.response(err, self._id)(self._scope, self._receive, self._sent)

    def _tell(self, seconds: float) -> None:
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
        f"The body has more than {MAX_BODY_BYTES:,} bytes.",
        f"at most {MAX_BODY_BYTES:,}",
        "Cut the images out, or send fewer at a time.",
    )
