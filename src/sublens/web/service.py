"""The networks of a service, and how work is done for a request that may give up.

There are three places to compute in. The event loop answers everybody, so nothing that takes a
millisecond may run in it. A network's own thread, of `batching`, runs that network. The `Pool` does all
else: simulating, resampling, writing tables.
"""

import asyncio
import base64
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request

from sublens.config import field_of_view
from sublens.errors import ConfigError, ImageError, nearest
from sublens.images.pixels import Image
from sublens.inference.predictor import BATCH, Prediction, Predictor
from sublens.models import bundle
from sublens.models.bundle import Card
from sublens.web.batching import Batcher, BatchResult
from sublens.web.problem import Problem, overloaded
from sublens.web.prometheus import Metrics

DEADLINE_SECONDS = 10.0
"""In which a request is answered, time in queues included, unless it asks for less."""
WORKERS = 2
"""Threads that simulate, and that resample images."""

T = TypeVar("T")
Json = dict[str, Any]
Counts = NDArray[np.uint16]


@dataclass(frozen=True)
class ServedNetwork:
    """One network that is served."""

    name: str
    folder: Path
    card: Card
    predictor: Predictor
    batcher: Batcher

    def described(self) -> Json:
        """What the page tells of it."""
        card, told = self.card, self.predictor.calibration
        return {
            "name": self.name,
            "bundle": card.judge,
            "classes": card.classes,
            "image_shape": card.image_shape,
            "pixel_scale": self.predictor.pixel_scale,
            "side": field_of_view(card.input, card.image_shape),
            "map": card.map and card.map.model_dump(),
            "ood_threshold": told.ood_threshold if told and told.layers else None,
            "coverage": told and told.coverage,
            "temperature": told and told.temperature,
            "scores": [score.model_dump() for score in card.scores],
            "training": card.training.model_dump(),
            "data": card.data.model_dump(),
            "versions": card.versions,
            "machine": card.machine.model_dump(),
            "card": card.model_dump(mode="json"),
        }

    def answer(self, prediction: Prediction, seconds: float, notes: Sequence[str] = ()) -> Json:
        """Its prediction for one image, as JSON has it. seconds: how long its batch took."""
        held, masses = prediction.prediction_set, prediction.masses
        return {
            "network": self.name,
            "error": None,
            "label": prediction.label,
            "probs": prediction.probs,
            "prediction_set": None if held is None else list(held),
            "ood_score": prediction.ood,
            "ood": prediction.is_ood,
            "notes": list(notes),
            "latency_ms": round(1e3 * seconds, 3),
            "map": None if masses is None else array(masses.astype(np.float32)),
            "saliency": None,
        }

    def failed(self, problem: str) -> Json:
        """That it could not judge an image, and why."""
        nothing = dict.fromkeys(("label", "prediction_set", "ood_score", "latency_ms", "map", "saliency"))
        return {"network": self.name, "error": problem, "probs": {}, "ood": None, "notes": [], **nothing}

    async def judge(
        self, images: Sequence[Image], deadline: float, pool: "Pool", pixel_scale: float | None = None
    ) -> list[tuple[Json, Counts | None]]:
        """A judgement of each image, and its counts in the network's frame; a failure where it has none."""
        framed = await pool.run(lambda: [self._framed(image, pixel_scale) for image in images])
        shown = [place for place, one in enumerate(framed) if not isinstance(one, str)]
        said: list[tuple[Json, Counts | None]] = [(self.failed(one), None) for one in framed if isinstance(one, str)]
        stacks = (
            np.stack([framed[place][0] for place in shown[at : at + BATCH]]) for at in range(0, len(shown), BATCH)
        )
        judged = await together(
            self.batcher.submit(len(counts), lambda counts=counts: counts, deadline)  # type: ignore[misc]
            for counts in stacks
        )
        failures, answers = iter(said), iter(self._spread(judged, [framed[place] for place in shown]))
        return [next(failures) if isinstance(one, str) else next(answers) for one in framed]

    def _spread(self, judged: Sequence[BatchResult], framed: Sequence[Any]) -> list[tuple[Json, Counts | None]]:
        predictions = [(prediction, batch.seconds) for batch in judged for prediction in batch.output]
        return [
            (self.answer(prediction, seconds, notes), counts)
            for (prediction, seconds), (counts, notes) in zip(predictions, framed, strict=True)
        ]

    def _framed(self, image: Image, pixel_scale: float | None) -> tuple[Counts, Sequence[str]] | str:
        """Counts and notes, or what is wrong."""
        try:
            frame = self.predictor.framed(image, pixel_scale)
            return frame.counts(), frame.notes
        except ImageError as err:
            return f"The image {err}"


class Pool:
    """Threads for work that would keep all requests waiting."""

    def __init__(self, n: int = WORKERS) -> None:
        self._threads = ThreadPoolExecutor(n)

    async def run(self, work: Callable[[], T]) -> T:
        """Have it done."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """End them."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass
class Service:
    """All that answers are made with."""

    networks: Mapping[str, ServedNetwork]
    metrics: Metrics
    deadline_seconds: float = DEADLINE_SECONDS
    report: Path | None = None
    """The page of a comparison."""
    pool: Pool = field(default_factory=Pool)
    is_ready: bool = True
    """False once it has been asked to end."""
    _explainers: dict[str, Predictor] = field(default_factory=dict)
    _explaining: threading.Lock = field(default_factory=threading.Lock)

    def network(self, name: str) -> ServedNetwork:
        """The one of that name, or a `Problem` 404."""
        if name not in self.networks:
            known = ", ".join(self.networks)
            raise Problem(404, f"There is no network called {name!r}.", f"one of {known}", nearest(name, self.networks))
        return self.networks[name]

    def chosen(self, names: Sequence[str]) -> list[ServedNetwork]:
        """Those of these names, or all if none is named."""
        return [self.network(name) for name in dict.fromkeys(names)] or list(self.networks.values())

    def deadline(self) -> float:
        """For a request that has just come, of `time.monotonic`."""
        return time.monotonic() + self.deadline_seconds

    def saliency(self, network: ServedNetwork, counts: Counts, label: str) -> Json:
        """What in one image [h, w] speaks for a class; slow the first time, when torch is loaded."""
        from sublens.evaluation import saliency

        with self._explaining:
            if network.name not in self._explainers:
                self._explainers[network.name] = Predictor.load(network.folder, "torch")
            predictor = self._explainers[network.name]
            labels = np.array([predictor.classes.index(label)])
            return array(saliency.saliency(predictor, counts[None], labels)[0].astype(np.float32))

    def close(self) -> None:
        """End all threads."""
        self.pool.close()
        for network in self.networks.values():
            network.batcher.close()


def load_networks(names: Sequence[str], metrics: Metrics) -> dict[str, ServedNetwork]:
    """The networks of these names or folders, or those that come with sublens, the best first, by name.

    Raises `BundleError` where one cannot be used, `ConfigError` where two have one name.
    """
    networks: dict[str, ServedNetwork] = {}
    for given in names or _is_shipped():
        folder = bundle.locate(given)
        name = Path(given).name or folder.resolve().name
        if name in networks:
            raise ConfigError(f"{given}: there is a network called {name} already. Rename the folder.")
        predictor = Predictor.load(folder)
        batcher = Batcher(predictor, lambda n, name=name: metrics.batch(name, n))  # type: ignore[misc]
        networks[name] = ServedNetwork(name, folder, bundle.read_card(folder), predictor, batcher)
        metrics.watch(name, batcher)
    return networks


def _is_shipped() -> list[str]:
    auc = {name: bundle.read_card(folder).scores[0].auc for name, folder in bundle.shipped().items()}
    return sorted(auc, key=lambda name: -auc[name])


async def unless_gone(request: Request, work: Awaitable[T], deadline: float) -> T:
    """What the work gives; it is cancelled when the caller leaves, or the deadline passes."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientDisconnect
        raise overloaded("There was no answer by the request's deadline.")
    finally:
        gone.cancel()
        task.cancel()


async def together(works: Iterable[Awaitable[T]]) -> list[T]:
    """What each gives; where one fails, the others are cancelled."""
    begun: list[asyncio.Future[T]] = []
    try:
        for work in works:
            begun.append(asyncio.ensure_future(work))
        return await asyncio.gather(*begun)
    finally:
        for one in begun:
            one.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def array(values: NDArray[np.generic]) -> Json:
    """An array as JSON has it: little-endian bytes in base64, rows first."""
    plain = np.ascontiguousarray(values)
    data = plain.astype(plain.dtype.newbyteorder("<"), copy=False).tobytes()
    return {"dtype": plain.dtype.name, "shape": plain.shape, "data": base64.b64encode(data).decode()}
