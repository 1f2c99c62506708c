"""What `sublens serve` holds out: rate, overload, slow and rude callers, killed readers, its end, and a soak.

    python benchmarks/serve.py                 # all but the soak, about four minutes
    python benchmarks/serve.py soak --seconds 600

Every part starts a server of its own with one network and plays its callers from this process, all on
this machine. Images are uint16 tensors of the Open Inference Protocol, one a request.

rate      requests a second, sustained, and as a share of the engine's own rate at batch 1 in the same run
overload  ten times as many callers as the rate needs, without waiting: what became of every request
slow      200 connections that send a byte a second: how long others wait
upload    1 GiB without a length: the answer, and the memory it cost
kill      20 times the reading child is killed under load: how many requests failed
drain     SIGTERM with 200 requests under way: how many were dropped, and how long it took
soak      70 % of the sustained rate: growth of memory and of open files
"""

import argparse
import json
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from sublens.inference.predictor import Predictor

SIDE = 150
MIB = 2**20
N_RUDE = 4000
"""Callers that ask again at once, whatever they hear."""
LENGTH = b"content-length: "
SECONDS = {"overload": 60, "soak": 600}
"""Of a measurement, where it is not ten."""


class Server:
    """A server in a process of its own."""

    def __init__(self, network: str) -> None:
        self.network = network
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sublens.cli", "serve", network, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout
        self.port = int(self._process.stdout.readline().rpartition(":")[2])

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def memory(self) -> float:
        """MiB that it holds, its children not counted."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    @property
    def n_files(self) -> int:
        """Open files."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    @property
    def children(self) -> list[int]:
        """Processes that it started."""
        found = subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, text=True, check=False)
        return [int(line) for line in found.stdout.split()]

    def end(self) -> int:
        """Ask it to end, and wait; returns its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def wait(self) -> int:
        """For its end."""
        return self._process.wait(60)


@contextmanager
def served(network: str) -> Iterator[Server]:
    """A server, as long as it is needed."""
    server = Server(network)
    try:
        yield server
    finally:
        if Path(f"/proc/{server.pid}").exists():
            server.end()


def request(network: str, seed: int = 0) -> bytes:
    """An inference request, as it goes over the line."""
    image = np.random.default_rng(seed).poisson(30, (1, SIDE, SIDE)).astype("<u2").tobytes()
    tensor = {"name": "image", "shape": [1, SIDE, SIDE], "datatype": "UINT16"}
    head = json.dumps(
        {"inputs": [{**tensor, "parameters": {"binary_data_size": len(image)}}], "outputs": [{"name": "probs"}]}
    ).encode()
    lines = [
        f"POST /v2/models/{network}/infer HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/octet-stream",
        f"Inference-Header-Content-Length: {len(head)}",
        f"Content-Length: {len(head) + len(image)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + head + image


def upload(data: bytes, name: str) -> bytes:
    """A request to predict a file."""
    lines = [f"POST /v1/predict?name={name} HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


class Callers:
    """Connections that each send a request, wait for its answer, and send the next."""

    def __init__(self, port: int, n: int, data: bytes) -> None:
        self._data, self._port = data, port
        self._selector = selectors.DefaultSelector()
        self.statuses: Counter[int] = Counter()
        self.latencies: list[float] = []
        """Of answers with the status 200, s."""
        self.n_dropped = 0
        """Requests that got no answer."""
        for _ in range(n):
            self._connect()

    def _connect(self) -> None:
        line = socket.create_connection(("127.0.0.1", self._port))
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(line, selectors.EVENT_READ, {"buffer": b"", "sent": None})

    def send_all(self) -> None:
        """Have every free connection send its request."""
        for key in list(self._selector.get_map().values()):
            if key.data["sent"] is None:
                self._send(key)

    def _send(self, key: selectors.SelectorKey) -> None:
        line = key.fileobj
        assert isinstance(line, socket.socket)
        key.data["sent"] = time.perf_counter()
        line.sendall(self._data)

    def run(self, seconds: float, rate: float | None = None) -> float:
        """Call for so long, at most `rate` times a second; returns the answers a second with the status 200."""
        start, n_before, n_sent = time.perf_counter(), self.statuses[200], 0
        free = list(self._selector.get_map().values())
        while (now := time.perf_counter() - start) < seconds:
            while free and (rate is None or n_sent < now * rate):
                self._send(free.pop())
                n_sent += 1
            free += self.take(0.001 if rate else 0.1)
        n_done = self.statuses[200] - n_before
        self.finish()
        return n_done / seconds

    def finish(self, seconds: float = 30.0) -> None:
        """Wait for the answers that are still to come; what has not come by then was dropped."""
        deadline = time.perf_counter() + seconds
        while self._waiting() and time.perf_counter() < deadline:
            self.take(0.1)
        self.n_dropped += self._waiting()

    def _waiting(self) -> int:
        return sum(key.data["sent"] is not None for key in self._selector.get_map().values())

    def take(self, seconds: float) -> list[selectors.SelectorKey]:
        """The connections whose answer has come."""
        done = []
        for key, _ in self._selector.select(seconds):
            line = key.fileobj
            assert isinstance(line, socket.socket)
            try:
                block = line.recv(MIB)
            except OSError:
                block = b""
            if not block:
                self._selector.unregister(line)
                line.close()
                self.n_dropped += key.data["sent"] is not None
                continue
            key.data["buffer"] += block
            if self._is_whole(key.data["buffer"]):
                self._note(key)
                done.append(key)
        return done

    @staticmethod
    def _is_whole(answer: bytes) -> bool:
        head, found, body = answer.partition(b"\r\n\r\n")
        place = head.lower().find(LENGTH)
        return bool(found) and place >= 0 and len(body) >= int(head[place + len(LENGTH) :].split(b"\r\n")[0])

    def _note(self, key: selectors.SelectorKey) -> None:
        status = int(key.data["buffer"][9:12])
        self.statuses[status] += 1
        if status == 200:
            self.latencies.append(time.perf_counter() - key.data["sent"])
        key.data.update(buffer=b"", sent=None)

    def close(self) -> None:
        """Hang up."""
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def quantile(self, share: float) -> float:
        """Of the latencies, ms."""
        return 1e3 * float(np.quantile(self.latencies, share)) if self.latencies else float("nan")


def engine_rate(network: str, seconds: float) -> float:
    """Images a second of the engine alone, one by one."""
    engine = Predictor.load(network).engine
    counts = np.random.default_rng(0).poisson(30, (1, SIDE, SIDE)).astype(np.uint16)
    engine(counts)
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        engine(counts)
        n += 1
    return n / (time.perf_counter() - start)


def sustained(server: Server, seconds: float, n: int = 16) -> tuple[float, Callers]:
    """Answers a second of so many callers, after a warm-up."""
    callers = Callers(server.port, n, request(server.network))
    callers.run(1.0)
    callers.latencies.clear()
    rate = callers.run(seconds)
    callers.close()
    return rate, callers


def measure_rate(network: str, seconds: float) -> None:
    alone = engine_rate(network, seconds)
    with served(network) as server:
        rate, callers = sustained(server, seconds)
    again = engine_rate(network, seconds)
    own = (alone + again) / 2
    print(
        f"rate: {rate:,.0f} requests/s, {rate / own:.0%} of the engine's {alone:,.0f} and {again:,.0f}; "
        f"median {callers.quantile(0.5):.1f} ms, p99 {callers.quantile(0.99):.1f} ms; {dict(callers.statuses)}"
    )


def measure_overload(network: str, seconds: float) -> None:
    with served(network) as server:
        calm_rate, calm = sustained(server, 3.0, 16)
        before = server.memory
        callers = Callers(server.port, N_RUDE, request(network))
        peak, is_done = [before], threading.Event()

        def watch() -> None:
            while not is_done.wait(0.2):
                peak.append(server.memory)

        watcher = threading.Thread(target=watch)
        watcher.start()
        callers.run(seconds)
        is_done.set()
        watcher.join()
        callers.close()
        start = time.perf_counter()
        _, after = sustained(server, 3.0, 16)
        recovered = time.perf_counter() - start - 3.0
        offered = sum(callers.statuses.values())
        print(
            f"overload: {offered / seconds:,.0f} requests/s of {N_RUDE:,} callers for {seconds:g} s, "
            f"{offered / seconds / calm_rate:.1f} times what is sustained; {dict(callers.statuses)}, "
            f"{callers.n_dropped} without an answer, longest {callers.quantile(1) / 1e3:.1f} s; memory "
            f"{before:.0f} -> {max(peak):.0f} MiB; p99 of 16 callers {calm.quantile(0.99):.1f} ms before, "
            f"{after.quantile(0.99):.1f} ms within {recovered + 4:.1f} s after"
        )


def measure_slow(network: str, seconds: float) -> None:
    with served(network) as server:
        _, calm = sustained(server, seconds, 4)
        data = request(network)
        lines = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
        is_done = threading.Event()

        def drip() -> None:
            place = 0
            while not is_done.wait(1.0):
                for number, line in enumerate(lines):
                    of_body = data[:1] if place else data[:300]
                    with suppress(OSError):  # half of them never finish their headers, the others their body
                        line.send(data[place : place + 1] if number % 2 else of_body)
                place += 1

        dripping = threading.Thread(target=drip)
        dripping.start()
        _, busy = sustained(server, seconds, 4)
        is_done.set()
        dripping.join()
        for line in lines:
            line.close()
        before, after = calm.quantile(0.99), busy.quantile(0.99)
        print(f"slow: p99 {before:.1f} ms alone, {after:.1f} ms beside 200 slow sockets ({after / before:.2f} times)")


def measure_upload(network: str, seconds: float) -> None:
    with served(network) as server:
        before, peak = server.memory, 0.0
        line = socket.create_connection(("127.0.0.1", server.port))
        line.sendall(b"POST /v1/predict?name=a.fits HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        block = b"100000\r\n" + bytes(MIB) + b"\r\n"
        n_sent, answer = 0, b""
        try:
            for _ in range(1024):
                line.sendall(block)
                n_sent += 1
                peak = max(peak, server.memory)
        except OSError:
            pass
        line.settimeout(5)
        try:
            answer = line.recv(65536)
        except OSError as err:
            answer = str(err).encode()
        print(f"upload: {answer[:12].decode()!r} after {n_sent} MiB; memory grew by {peak - before:.1f} MiB")


def measure_kill(network: str, seconds: float) -> None:
    image = np.random.default_rng(0).poisson(30, (SIDE, SIDE)).astype(np.float32)
    path = Path(os.environ.get("TMPDIR", "/tmp"), f"sublens-bench-{os.getpid()}.npy")
    np.save(path, image)
    data = upload(path.read_bytes(), "a.npy")
    path.unlink()
    with served(network) as server:
        callers = Callers(server.port, 8, data)
        n_killed = 0

        def kill() -> None:
            nonlocal n_killed
            rng = np.random.default_rng(0)
            while n_killed < 20:
                time.sleep(0.3)
                for child in rng.permutation(server.children)[:1]:
                    os.kill(int(child), signal.SIGKILL)
                    n_killed += 1

        killer = threading.Thread(target=kill)
        killer.start()
        while killer.is_alive():
            callers.run(1.0)
        callers.run(1.0)
        callers.close()
        print(f"kill: {n_killed} kills under load; {dict(callers.statuses)}, {callers.n_dropped} without an answer")


def measure_drain(network: str, seconds: float) -> None:
    server = Server(network)
    sustained(server, 1.0)
    callers = Callers(server.port, 200, request(network))
    callers.send_all()
    time.sleep(0.02)
    n_early = sum(callers.statuses.values())
    start = time.perf_counter()
    os.kill(server.pid, signal.SIGTERM)
    callers.finish()
    code = server.wait()
    print(
        f"drain: SIGTERM with {200 - n_early} of 200 under way; {dict(callers.statuses)}, {callers.n_dropped} dropped, "
        f"exit {code} after {time.perf_counter() - start:.1f} s"
    )


def measure_soak(network: str, seconds: float) -> None:
    with served(network) as server:
        most, _ = sustained(server, 10.0)
        memory, files = [server.memory], [server.n_files]
        callers = Callers(server.port, 16, request(network))
        for _ in range(max(1, round(seconds / 10))):
            callers.run(10.0, 0.7 * most)
            memory.append(server.memory)
            files.append(server.n_files)
        print(
            f"soak: {seconds:g} s at 70 % of {most:,.0f} requests/s, {dict(callers.statuses)}, {callers.n_dropped} "
            f"dropped; memory {memory[0]:.0f} -> {memory[-1]:.0f} MiB (peak {max(memory):.0f}), open files "
            f"{files[1]} -> {files[-1]} (peak {max(files)})"
        )


def main() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, max(8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
    parts: dict[str, Callable[[str, float], None]] = {
        "rate": measure_rate,
        "overload": measure_overload,
        "slow": measure_slow,
        "upload": measure_upload,
        "kill": measure_kill,
        "drain": measure_drain,
        "soak": measure_soak,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--network", default="mobilenetv3-small")
    parser.add_argument("--seconds", type=float, help="of each measurement")
    asked = parser.parse_args()
    for part in asked.parts or [part for part in parts if part != "soak"]:
        parts[part](asked.network, asked.seconds or SECONDS.get(part, 10))


if __name__ == "__main__":
    main()
