"""Counters of a service, in the text format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sublens.web.batching import Batcher

MEDIA_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("sublens_requests", "Requests answered", ["route", "status"], registry=self._registry)
        self._seconds = Histogram(
            "sublens_request_seconds",
            "From the first byte to the last of a request",
            ["route"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "sublens_batch_images", "Images in a batch", ["network"], buckets=SIZES, registry=self._registry
        )
        self._waiting = Gauge("sublens_waiting_images", "Images that wait", ["network"], registry=self._registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request; status is 499 where the client left."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, network: str, n: int) -> None:
        """Count a batch of n images."""
        self._batches.labels(network).observe(n)

    def watch(self, network: str, batcher: Batcher) -> None:
        """Report how many images wait for a network whenever the counters are read."""
        self._waiting.labels(network).set_function(lambda: batcher.waiting)

    def text(self) -> bytes:
        """All counters, as Prometheus reads them."""
        return generate_latest(self._registry)
