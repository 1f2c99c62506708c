"""The networks of a service, the threads that it computes in, and the deadlines of its requests.

The event loop answers every request, so nothing that takes a millisecond may run in it. The thread of a
network, of `batching`, runs that network. One thread computes saliency maps, by torch. A pool does the
rest: simulating, resampling, writing tables.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request

from sublens.config import Pixels, field_of_view
from sublens.errors import ConfigError, ImageError, nearest
from sublens.images.pixels import Image
from sublens.images.resample import SAME_SCALE
from sublens.inference.frames import KnownNoise
from sublens.inference.predictor import BATCH, Predictor
from sublens.models import bundle
from sublens.models.bundle import Card
from sublens.web import answers
from sublens.web.answers import Array, NetworkPrediction, NetworkSummary
from sublens.web.batching import Batcher, BatchResult
from sublens.web.problem import Problem, overloaded
from sublens.web.prometheus import Metrics

DEADLINE_SECONDS = 10.0
"""Time to answer a request, queues included, unless it asks for less."""
WORKERS = 2
"""Threads that simulate and resample images."""
FIRST_SURVEY = "common-test-1"
"""The survey whose networks are served before those of others, and give its pixel scale to images without one."""

T = TypeVar("T")
Counts = NDArray[np.uint16]


class NamedImage(NamedTuple):
    """An image and its name in messages."""

    name: str
    image: Image


class FramedImage(NamedTuple):
    """An image in the frame of a network."""

    counts: Counts
    notes: Sequence[str]
    has_hole: bool
    """Whether more pixels are missing than can be filled."""
    known: KnownNoise


class ImageOutcome(NamedTuple):
    """The prediction of a network for one image, and the counts that it is for; None where it has none."""

    prediction: NetworkPrediction
    counts: Counts | None


class Pool:
    """Threads for work that would block the event loop."""

    def __init__(self, n: int = WORKERS) -> None:
        self._threads = ThreadPoolExecutor(n)

    async def run(self, work: Callable[[], T]) -> T:
        """The result of the work, once a thread is free for it."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """End the threads; work that has not begun is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class ServedNetwork:
    """One network of the service."""

    name: str
    folder: Path
    card: Card
    predictor: Predictor
    """For framing images; only the batcher may run the network."""
    batcher: Batcher

    @property
    def pixels(self) -> Pixels:
        """Unit of the images in its frame."""
        return "signal-to-noise" if self.predictor.input.takes_noise else "counts"

    def summary(self) -> NetworkSummary:
        """The network as `/v1/networks` lists it."""
        card, calibration = self.card, self.predictor.calibration
        return NetworkSummary(
            name=self.name,
            bundle=card.identity,
            classes=card.classes,
            image_shape=card.image_shape,
            pixel_scale=self.predictor.pixel_scale,
            side=field_of_view(card.input, card.image_shape),
            map=card.map,
            ood_threshold=calibration.ood_threshold if calibration and calibration.layers else None,
            coverage=calibration.coverage if calibration else None,
            temperature=calibration.temperature if calibration else None,
            scores=card.scores,
            training=card.training,
            data=card.data,
            versions=card.versions,
            machine=card.machine,
            card=card,
        )

    def submit(self, counts: Counts, deadline: float, *, is_alone: bool = False) -> "asyncio.Future[BatchResult]":
        """Queue images [b, h, w] from the event loop. is_alone: share the batch with no other request."""
        n = BATCH if is_alone else len(counts)
        return asyncio.wrap_future(self.batcher.submit(n, lambda: counts, deadline))

    async def predict(
        self,
        images: Sequence[NamedImage],
        deadline: float,
        pool: Pool,
        *,
        pixel_scale: float | None = None,
        assumed_scale: float | None = None,
    ) -> list[ImageOutcome]:
        """The outcome for each image.

        pixel_scale: arcsec a pixel, where the request has it. assumed_scale: that of images without one, see
        `assumed_scale`.
        """
        framed = await pool.run(lambda: [self._frame(image, pixel_scale, assumed_scale) for image in images])
        usable = [image for image in framed if isinstance(image, FramedImage)]
        batches = (usable[first : first + BATCH] for first in range(0, len(usable), BATCH))
        results = await together(self._predict(batch, deadline) for batch in batches)
        predictions = iter([(prediction, result.seconds) for result in results for prediction in result.output])
        outcomes = []
        for image in framed:
            if isinstance(image, ImageError):
                outcomes.append(ImageOutcome(answers.failed_prediction(self.name, image), None))
                continue
            prediction, seconds = next(predictions)
            answer = answers.network_prediction(
                self.name, prediction, seconds=seconds, notes=image.notes, known=image.known
            )
            outcomes.append(ImageOutcome(answer, image.counts))
        return outcomes

    async def _predict(self, images: Sequence[FramedImage], deadline: float) -> BatchResult:
        result = await self.submit(np.stack([image.counts for image in images]), deadline)
        return result._replace(output=result.output.with_holes(np.array([image.has_hole for image in images])))

    def _frame(
        self, named: NamedImage, pixel_scale: float | None, assumed_scale: float | None
    ) -> FramedImage | ImageError:
        try:
            if not pixel_scale and not named.image.pixel_scale:
                self._check_assumed(assumed_scale)
            image = self.predictor.framed(named.image, pixel_scale)
            known = self.predictor.frame.known_noise(image)
            return FramedImage(image.counts(), image.notes, image.has_hole, known)
        except ImageError as err:
            return err.about(named.name)

    def _check_assumed(self, scale: float | None) -> None:
        """Raise `ImageError` where the scale taken for an image without one is not that of the network."""
        own = self.predictor.pixel_scale
        if scale and own and abs(scale / own - 1) > SAME_SCALE:
            raise ImageError(
                f"its file has no pixel scale, and another network took it as {scale:g} arcsec",
                need=f"the pixel scale, for a network of {own:g} arcsec a pixel",
                next="Send the image again with pixel_scale.",
            )


def assumed_scale(networks: Iterable[ServedNetwork]) -> float | None:
    """Arcsec a pixel of an image without a scale: that of the first network, so that one image has one scale."""
    return next((scale for network in networks if (scale := network.predictor.pixel_scale)), None)


@dataclass
class Service:
    """The networks and threads that answer requests."""

    networks: Mapping[str, ServedNetwork]
    metrics: Metrics
    deadline_seconds: float = DEADLINE_SECONDS
    report: Path | None = None
    """HTML page of a comparison."""
    pool: Pool = field(default_factory=Pool)
    is_ready: bool = True
    """False once the service has been asked to stop."""
    _saliency_thread: Pool = field(default_factory=lambda: Pool(1))
    _torch_predictors: dict[str, Predictor] = field(default_factory=dict)

    def network(self, name: str) -> ServedNetwork:
        """The network of that name. Raises `Problem` 404 where there is none."""
        if name not in self.networks:
            names = list(self.networks)
            raise Problem(
                404,
                f"There is no network called {name!r}",
                need=f"one of {', '.join(names)}",
                next=nearest(name, names),
            )
        return self.networks[name]

    def select(self, names: Sequence[str]) -> list[ServedNetwork]:
        """The networks of these names, or all where there are no names."""
        return [self.network(name) for name in dict.fromkeys(names)] or list(self.networks.values())

    def deadline(self) -> float:
        """The deadline of a request that comes now, of `time.monotonic`."""
        return time.monotonic() + self.deadline_seconds

    async def saliency(self, network: ServedNetwork, counts: Counts, label: str) -> Array:
        """The evidence for a class in each pixel of one image [h, w]; slow the first time, when torch is loaded."""
        return await self._saliency_thread.run(lambda: self._saliency(network, counts, label))

    def _saliency(self, network: ServedNetwork, counts: Counts, label: str) -> Array:
        from sublens.evaluation import saliency

        if network.name not in self._torch_predictors:
            self._torch_predictors[network.name] = Predictor.load(network.folder, "torch")
        predictor = self._torch_predictors[network.name]
        labels = np.array([predictor.classes.index(label)])
        return answers.array(saliency.saliency(predictor, counts[None], labels)[0])

    def close(self) -> None:
        """End all threads."""
        for network in self.networks.values():
            network.batcher.close()
        self.pool.close()
        self._saliency_thread.close()


def load_networks(names: Sequence[str], metrics: Metrics) -> dict[str, ServedNetwork]:
    """The networks of these names or folders by name, or those that come with sublens.

    Raises `BundleError` where one cannot be used, `ConfigError` where two have one name.
    """
    networks: dict[str, ServedNetwork] = {}
    for locator in names or _shipped_in_order():
        folder = bundle.locate(locator)
        name = Path(locator).name or folder.resolve().name
        if name in networks:
            raise ConfigError(
                f"is the second network called {name}",
                need="a name of its own for each network",
                next="Rename the folder.",
                path=locator,
            )
        predictor = Predictor.load(folder)
        batcher = Batcher(predictor, lambda n, name=name: metrics.batch(name, n))  # type: ignore[misc]
        networks[name] = ServedNetwork(name, folder, bundle.read_card(folder), predictor, batcher)
        metrics.watch(name, batcher)
    return networks


def _shipped_in_order() -> list[str]:
    """Names of the networks that come with sublens: for `FIRST_SURVEY`, then for others; for each the best first."""
    cards = {name: bundle.read_card(folder) for name, folder in bundle.shipped().items()}
    return sorted(cards, key=lambda name: _rank(cards[name]))


def _rank(card: Card) -> tuple[bool, str, float]:
    """The place of a network: AUC on images of different surveys says nothing about which network is better."""
    return card.data.name != FIRST_SURVEY, card.data.name, -card.scores[0].auc


async def unless_gone(request: Request, work: Awaitable[T], deadline: float) -> T:
    """The result of the work, which is cancelled when the client leaves or the deadline passes."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientDisconnect
        raise overloaded("There was no answer by the request's deadline")
    finally:
        gone.cancel()
        task.cancel()


async def together(works: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all works; where one fails, the others are cancelled."""
    futures: list[asyncio.Future[T]] = []
    try:
        for work in works:
            futures.append(asyncio.ensure_future(work))
        return await asyncio.gather(*futures)
    finally:
        for future in futures:
            future.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
