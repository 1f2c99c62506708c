"""Running the application until it is asked to stop."""

import asyncio
import contextlib
import gc
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sublens.errors import ConfigError
from sublens.storage import scratch
from sublens.web import keys
from sublens.web.app import create_app
from sublens.web.guard import Guard
from sublens.web.prometheus import Metrics
from sublens.web.service import Service, load_networks

HEADER_SECONDS = 10.0
"""Time for the first line and the headers of a request to arrive."""
MAX_HEADER_BYTES = 2**16
"""Largest first line and headers of a request."""
GRACE_SECONDS = 1.0
"""Time for which a stopping service still listens, for requests on their way."""
DRAIN_SECONDS = 12
"""Time for requests under way to end once the service stops."""

GC_OBJECTS = 20_000
"""New objects after which garbage is collected: thousands of waiting requests hold many that are none."""


class GracefulProtocol(HttpToolsProtocol):
    """A connection that closes when headers take too long; uvicorn alone would wait for ever."""

    _clock: asyncio.TimerHandle | None = None
    _n_bytes = 0
    _is_head = True

    def connection_made(self, transport: Any) -> None:
        """Start the clock."""
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes; close the connection where they make too long a header."""
        super().data_received(data)
        self._n_bytes += len(data)
        if self._clock and self._is_head and self._n_bytes > MAX_HEADER_BYTES:
            self.transport.close()
        if not self._clock and (self.cycle is None or self.cycle.response_complete):
            self._start_clock(is_head=False)  # blank lines, or the rest of a body that was refused

    def on_message_begin(self) -> None:
        """Restart the clock for a new request."""
        super().on_message_begin()
        self._stop_clock()
        self._start_clock()

    def on_headers_complete(self) -> None:
        """Stop the clock; the guard limits the body."""
        self._stop_clock()
        super().on_headers_complete()

    def _start_clock(self, *, is_head: bool = True) -> None:
        self._n_bytes, self._is_head = 0, is_head
        self._clock = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_clock(self) -> None:
        if self._clock:
            self._clock.cancel()
            self._clock = None


class Server(uvicorn.Server):
    """A server that prints its address once it listens, and is not ready once it has been asked to stop."""

    def __init__(self, config: uvicorn.Config, service: Service, address: str) -> None:
        super().__init__(config)
        self._service, self._address = service, address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and print the address."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what is there now stays, so no collection need look at it again
        gc.set_threshold(GC_OBJECTS)
        print(self._address, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the requests under way."""
        self._service.is_ready = False
        await asyncio.sleep(GRACE_SECONDS)
        await super().shutdown(sockets)


def serve(
    names: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key_file: Path | None = None,
    report: Path | None = None,
) -> None:
    """Serve networks until SIGINT or SIGTERM, then finish the requests under way.

    Raises `ConfigError` where the address cannot be used, `BundleError` where a network cannot, and
    `ScratchError` where there is no folder for uploads.
    """
    scratch.check()
    hashes = keys.read(key_file) if key_file else ()
    metrics = Metrics()
    listener = _listen(host, port)
    service = Service(load_networks(names, metrics), metrics, report=report)
    guard = Guard(create_app(service), metrics, hashes)
    config = uvicorn.Config(
        guard,
        http=GracefulProtocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    name = f"[{host}]" if ":" in host else host
    server = Server(config, service, f"http://{name}:{listener.getsockname()[1]}")
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again once all is done
        server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as err:
        reason = os.strerror(err.errno) if err.errno and err.errno > 0 else err.strerror  # asyncio's has the address
        raise ConfigError(
            f"{host}:{port} cannot be used ({reason})",
            need="an address of this machine with a free port",
            next="Choose another port with --port, or 0 for any.",
        ) from err
