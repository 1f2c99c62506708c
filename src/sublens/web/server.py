"""Runs the application until it is asked to end."""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sublens.errors import ConfigError
from sublens.web import keys
from sublens.web.app import create_app
from sublens.web.guard import Guard
from sublens.web.prometheus import Metrics
from sublens.web.service import Service, load_networks

HEADER_SECONDS = 10.0
"""In which the first line and the headers of a request must have come."""
MAX_HEADER_BYTES = 2**16
GRACE_SECONDS = 1.0
"""That a service which is no longer ready still listens: for requests that are on their way."""
DRAIN_SECONDS = 12
"""That requests may go on after the service has been asked to end."""


class GracefulProtocol(HttpToolsProtocol):
    """A connection that is closed where headers are too long in coming; uvicorn alone would wait for ever."""

    _slow: asyncio.TimerHandle | None = None
    _n_bytes = 0
    _is_head = True

    def connection_made(self, transport: Any) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        super().data_received(data)
        self._n_bytes += len(data)
        if self._slow and self._is_head and self._n_bytes > MAX_HEADER_BYTES:
            self.transport.close()
        if not self._slow and (self.cycle is None or self.cycle.response_complete):
            self._wait(is_head=False)  # blank lines, or the rest of a body that was refused

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._wait_no_more()
        self._wait()

    def on_headers_complete(self) -> None:
        """Headers are whole; the guard watches over what follows."""
        self._wait_no_more()
        super().on_headers_complete()

    def _wait(self, *, is_head: bool = True) -> None:
        self._n_bytes, self._is_head = 0, is_head
        self._slow = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._slow:
            self._slow.cancel()
            self._slow = None


class Server(uvicorn.Server):
    """Says where it is once it can be asked, and is not ready once it has been asked to end."""

    def __init__(self, config: uvicorn.Config, service: Service, address: str) -> None:
        super().__init__(config)
        self._service, self._address = service, address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        print(self._address, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what has begun."""
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
    """Serve networks until SIGINT or SIGTERM, then finish what has begun.

    Raises `ConfigError` where the address cannot be used, `BundleError` where a network cannot.
    """
    hashes = keys.read(key_file) if key_file else ()
    metrics = Metrics()
    listening = _bound(host, port)
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
    server = Server(config, service, f"http://{name}:{listening.getsockname()[1]}")
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again once all is done
        server.run(sockets=[listening])


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as err:
        raise ConfigError(
            f"{host}:{port} cannot be used ({err.strerror or err}); needs a free port of this machine. Choose another "
            "with --port, or 0 for any."
        ) from err
