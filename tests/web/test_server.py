"""The service in a process of its own: a foreign client, malformed requests, signals."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from tritonclient import http as triton

from sublens.inference.predictor import Predictor
from sublens.sim import scene

IMAGES = scene.observed(scene.drawn("common-test-1", "vort", 4), 3)


class Running:
    """A server process and its address."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "sublens.cli", "serve", "lensnet", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout
        self.url = self.process.stdout.readline().strip()
        self.port = int(self.url.rpartition(":")[2])

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        assert self.process.stdout
        self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    running = Running()
    yield running
    assert running.end() == 0


def connected(server: Running) -> socket.socket:
    line = socket.create_connection(("127.0.0.1", server.port), 30)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line


def status(server: Running, request: bytes, *, is_all: bool = False) -> int:
    """The status of the first answer; 0 where the connection closes without one. is_all: close our side after it."""
    with connected(server) as line:
        with contextlib.suppress(OSError):
            line.sendall(request)
            if is_all:
                line.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            answer = line.recv(4096)
            return int(answer[9:12]) if answer else 0
    return 0


def is_well(server: Running) -> bool:
    return status(server, b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n") == 200


def test_a_foreign_client_gets_the_predictions_of_the_library(server: Running) -> None:
    client = triton.InferenceServerClient(f"localhost:{server.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("lensnet")
    assert client.get_server_metadata()["name"] == "sublens"
    metadata = client.get_model_metadata("lensnet")
    (described,) = metadata["inputs"]
    tensor = triton.InferInput(described["name"], list(IMAGES.shape), described["datatype"])
    tensor.set_data_from_numpy(IMAGES.astype(np.float32))
    answer = client.infer("lensnet", [tensor])
    expected = Predictor.load("lensnet")(IMAGES)
    np.testing.assert_allclose(
        answer.as_numpy("probs"), [list(prediction.probs.values()) for prediction in expected], atol=1e-9
    )
    assert answer.as_numpy("ood").tolist() == [prediction.is_ood for prediction in expected]
    assert {output["name"] for output in metadata["outputs"]} == {
        output["name"] for output in answer.get_response()["outputs"]
    }
    client.close()


def send_invalid(server: Running, n: int) -> int:
    """Send n requests at most to the operations of our own OpenAPI document, valid and invalid; returns how many."""
    n_sent = 0
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @seed(1)
            @settings(
                max_examples=max(1, n // len(operations) // 2),
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                database=None,
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def send(case: schemathesis.Case[Any]) -> None:
                nonlocal n_sent
                n_sent += 1
                answer = case.call(base_url=server.url, timeout=60)
                assert answer.status_code < 500 or answer.status_code == 503, (case, answer.text)

            with contextlib.suppress(Unsatisfiable):  # some operations take no invalid request
                send()
    return n_sent


def send_mangled(server: Running, n: int) -> None:
    """Send requests with bytes changed, cut out, doubled, or cut short."""
    rng = np.random.default_rng(1)
    body = json.dumps({"inputs": [{"name": "image", "shape": [1, 2, 2], "datatype": "UINT8", "data": [1, 2, 3, 4]}]})
    whole = [
        f"POST /v2/models/lensnet/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}",
        "GET /v1/scene?label=no&seed=3 HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: a\r\n\r\n",
        "POST /v1/predict?name=a.fits HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        "4\r\nSIMP\r\n0\r\n\r\n",
    ]
    for number in range(n):
        request = bytearray(whole[number % len(whole)].encode())
        for _ in range(rng.integers(1, 6)):
            place, width = int(rng.integers(len(request))), int(rng.integers(1, 9))
            match rng.integers(4):
                case 0:
                    request[place : place + width] = rng.bytes(width)
                case 1:
                    del request[place : place + width]
                case 2:
                    request[place:place] = request[place : place + width] * int(rng.integers(1, 50))
                case 3:
                    del request[max(place, 1) :]
            request = request or bytearray(b"\r\n")
        code = status(server, bytes(request), is_all=True)
        assert code < 500 or code == 503, bytes(request)


def test_unexpected_requests_are_never_our_fault(server: Running) -> None:
    send_invalid(server, 400)
    send_mangled(server, 400)
    assert is_well(server)


@pytest.mark.slow
def test_ten_thousand_malformed_requests_are_never_our_fault(server: Running) -> None:
    n_sent = send_invalid(server, 8000)
    assert n_sent > 3000
    send_mangled(server, 10_000 - n_sent)
    assert is_well(server)


def test_a_body_without_end_is_refused_and_costs_no_memory(server: Running) -> None:
    def memory() -> int:
        return int(Path(f"/proc/{server.process.pid}/status").read_text().split("VmRSS:")[1].split()[0])

    before, block = memory(), b"100000\r\n" + bytes(2**20) + b"\r\n"
    with connected(server) as line:
        line.sendall(b"POST /v1/predict?name=a.fits HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(100):
            line.sendall(block)
        assert line.recv(100).startswith(b"HTTP/1.1 413")
    assert memory() - before < 20_000


def test_headers_without_end_close_the_connection(server: Running) -> None:
    with connected(server) as line:
        with contextlib.suppress(OSError):
            for _ in range(100):
                line.sendall(b"GET / HTTP/1.1\r\nX: " + bytes(b"a" * 10_000))
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(100) == b""
    assert is_well(server)


@pytest.mark.slow
def test_a_silent_connection_is_closed(server: Running) -> None:
    with connected(server) as line:
        start = time.monotonic()
        line.sendall(b"GET / HT")
        assert line.recv(100) == b""
        assert time.monotonic() - start < 15


def test_a_killed_reader_fails_no_other_request(server: Running) -> None:
    children = subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True, check=True)
    for child in children.stdout.split():
        os.kill(int(child), signal.SIGKILL)
    head = b"POST /v1/predict?name=a.npy HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n"
    assert status(server, head + b"what") == 422  # by a new child
    assert is_well(server)


def test_requests_under_way_are_finished_when_the_service_stops() -> None:
    server = Running()
    tensor = {"name": "image", "shape": [3, 150, 150], "datatype": "UINT16", "data": IMAGES.ravel().tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = f"POST /v2/models/lensnet/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    lines = [connected(server) for _ in range(30)]
    for line in lines:
        line.sendall(head + body)
    server.process.send_signal(signal.SIGTERM)
    assert [line.recv(12) for line in lines] == [b"HTTP/1.1 200"] * 30
    for line in lines:
        line.close()
    assert server.end() == 0


def refused(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sublens.cli", "serve", "lensnet", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_other_machines_are_served_only_with_a_key(tmp_path: Path) -> None:
    ended = refused("--host", "0.0.0.0")
    assert ended.returncode == 2
    assert "--new-key" in ended.stderr
    (tmp_path / "keys").write_text("")
    assert refused("--host", "0.0.0.0", "--keys", str(tmp_path / "keys")).returncode == 1


def test_a_new_key_opens_what_is_closed(tmp_path: Path) -> None:
    key = refused("--new-key", str(tmp_path / "keys")).stdout.strip()
    server = Running("--host", "0.0.0.0", "--keys", str(tmp_path / "keys"))
    plain = b"GET /v2 HTTP/1.1\r\nHost: anything\r\n"
    assert status(server, plain + b"\r\n") == 401
    assert status(server, plain + f"Authorization: Bearer {key}\r\n\r\n".encode()) == 200
    assert server.end() == 0


def test_a_port_in_use_is_refused_in_words(server: Running) -> None:
    ended = refused("--port", str(server.port))
    assert ended.returncode == 1
    assert "(Address already in use); needs an address" in ended.stderr
    assert "Choose another port with --port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_unknown_network_is_refused_in_words() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "sublens.cli", "serve", "lensnett"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "Did you mean lensnet?" in ended.stderr
