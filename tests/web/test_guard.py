"""Limits, keys, headers and log, before the application."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.types import Receive, Scope, Send

from sublens.web import guard, keys
from sublens.web.guard import Guard
from sublens.web.prometheus import Metrics


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the length of the body."""
    n, more = 0, True
    while more:
        message = await receive()
        n, more = n + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(n).encode()})


def guarded(**options: Any) -> TestClient:
    return TestClient(Guard(echo, Metrics(), **options), base_url="http://localhost:8000")


def test_every_answer_has_the_security_headers_and_an_id() -> None:
    answer = guarded(log=lambda entry: None).get("/")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers
    assert len(answer.headers["x-request-id"]) == 32


def test_a_log_line_describes_the_request_but_not_its_content(capfd: pytest.CaptureFixture[str]) -> None:
    guarded().post("/secret?name=secret.fits", content=b"secret", headers={"X-Request-ID": "abc"})
    line = capfd.readouterr().err
    entry = json.loads(line)
    assert (entry["request_id"], entry["status"], entry["bytes"]) == ("abc", 200, 6)
    assert "secret" not in line


@pytest.mark.parametrize("wrong", ["a\nb", "x" * 65, "é"])
def test_an_id_that_would_spoil_the_log_is_replaced(wrong: str) -> None:
    answer = guarded(log=lambda entry: None).get("/", headers=[(b"x-request-id", wrong.encode())])
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize("sized", [True, False])
def test_a_body_that_is_too_large_is_refused(sized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_BODY_BYTES", 100)
    body: Any = bytes(101) if sized else iter([bytes(60), bytes(41)])
    answer = guarded(log=lambda entry: None).post("/", content=body)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"detail", "need", "next"} <= answer.json().keys()


def test_a_body_that_comes_too_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def never() -> Any:
        await asyncio.sleep(10)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(echo, Metrics(), log=lambda entry: None)(scope, never, send))
    assert messages[0]["status"] == 408


def test_a_foreign_page_is_refused() -> None:
    client = guarded(log=lambda entry: None)
    assert client.get("/", headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("/", headers={"Origin": "http://localhost:8000"}).status_code == 200


def test_the_page_behind_a_proxy_with_tls_is_served(tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys")
    client = guarded(key_hashes=keys.read(tmp_path / "keys"), log=lambda entry: None)
    known = {"Host": "lens.example", "Origin": "https://lens.example", "Authorization": f"Bearer {key}"}
    assert client.get("/", headers=known).status_code == 200


def test_a_foreign_name_for_this_machine_is_refused() -> None:
    client = guarded(log=lambda entry: None)
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 421
    assert client.get("/", headers={"Host": "127.0.0.1:8000"}).status_code == 200


def test_a_compressed_body_is_refused() -> None:
    answer = guarded(log=lambda entry: None).post("/", content=b"x", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415


def test_more_requests_than_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_REQUESTS", 0)
    monkeypatch.setattr(guard, "HOLD_SECONDS", 0.0)
    answer = guarded(log=lambda entry: None).get("/")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Delays of refusals, s, which take none of the test's time."""
    seconds: list[float] = []
    real = asyncio.sleep

    async def sleep(delay: float) -> None:
        seconds.append(delay)
        await real(0.01)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return seconds


async def call(app: Guard, n: int, path: str = "/") -> None:
    """Send n requests at once."""

    async def send(message: Any) -> None: ...

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"host", b"localhost")]}
    await asyncio.gather(*(app({**scope}, receive, send) for _ in range(n)))


def test_the_more_are_refused_the_longer_each_waits(monkeypatch: pytest.MonkeyPatch, delays: list[float]) -> None:
    monkeypatch.setattr(guard, "MAX_REQUESTS", 0)
    monkeypatch.setattr(guard, "REFUSALS_PER_SECOND", 2)
    monkeypatch.setattr(guard, "MAX_HOLD_SECONDS", 1.2)
    refusing = Guard(echo, Metrics(), log=lambda entry: None)
    asyncio.run(call(refusing, 3))
    asyncio.run(call(refusing, 1))
    assert delays == [0.5, 1.0, 1.2, 0.5]


def test_a_refusal_of_the_application_waits_in_nobody_s_way(
    monkeypatch: pytest.MonkeyPatch, delays: list[float]
) -> None:
    monkeypatch.setattr(guard, "MAX_REQUESTS", 1)
    statuses: list[int] = []

    async def full(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})

    busy = Guard(full, Metrics(), log=lambda entry: statuses.append(busy._n_open))
    asyncio.run(call(busy, 2))  # the second is let in although the first still waits for its 503
    assert (len(delays), busy._n_open) == (2, 0)
    asyncio.run(call(busy, 1, "/v2/health/ready"))
    assert len(delays) == 2


def test_an_overloaded_service_still_reports_its_health(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_REQUESTS", 0)
    assert guarded(log=lambda entry: None).get("/v2/health/live").status_code == 200


def test_bodies_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_HELD_BYTES", 100)
    client = guarded(log=lambda entry: None)
    assert [client.post("/", content=bytes(n)).status_code for n in (100, 101, 100)] == [200, 503, 200]


def test_an_answer_that_the_client_does_not_take_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SEND_SECONDS", 0.05)
    entries: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        await asyncio.sleep(10)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(echo, Metrics(), log=entries.append)(scope, receive, send))
    assert entries[0]["status"] == 499


def test_with_keys_nothing_but_the_page_is_open(tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys")
    client = guarded(key_hashes=keys.read(tmp_path / "keys"), log=lambda entry: None)
    assert client.get("/v1/networks").status_code == 401
    assert client.get("/v1/networks", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/v1/networks", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert [client.get(path).status_code for path in ("/", "/static/a.js", "/v2/health/live")] == [200] * 3
    assert client.get("/static/../v1/networks/x").status_code == 401
