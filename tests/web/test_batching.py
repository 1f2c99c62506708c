"""Requests that wait for one network."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from threading import Event
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sublens.inference.predictor import Predictor
from sublens.web import batching
from sublens.web.batching import Batcher
from sublens.web.problem import Problem

PREDICTOR = Predictor.load("lensnet")
COUNTS = np.random.default_rng(0).poisson(30, (70, 150, 150)).astype(np.uint16)


def given(rows: slice) -> Callable[[], NDArray[np.uint16]]:
    return lambda: COUNTS[rows]


@pytest.fixture
def batches() -> list[int]:
    return []


@pytest.fixture
def batcher(batches: list[int]) -> Iterator[Batcher]:
    made = Batcher(PREDICTOR, batches.append)
    yield made
    made.close()


def held_up(batcher: Batcher, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `work` while the network is busy with something that ends only after it."""
    go = Event()

    async def both() -> None:
        first = batcher.submit(1, lambda: (go.wait(10), COUNTS[:1])[1], time.monotonic() + 20)
        await asyncio.sleep(0.1)
        try:
            waiting = asyncio.ensure_future(work())
            await asyncio.sleep(0.1)
        finally:
            go.set()
        await asyncio.gather(first, waiting)

    asyncio.run(both())


def test_waiting_images_are_shown_together_and_each_gets_its_own_answer(batcher: Batcher, batches: list[int]) -> None:
    async def ask() -> None:
        jobs = [batcher.submit(n, given(slice(n, 2 * n)), time.monotonic() + 20) for n in (1, 2, 3)]
        for n, judged in zip((1, 2, 3), await asyncio.gather(*jobs), strict=True):
            np.testing.assert_allclose(judged.output.probs, PREDICTOR.probs(COUNTS[n : 2 * n]), atol=1e-5)
            assert judged.output.ood is not None
            assert len(judged.output.ood) == n

    held_up(batcher, ask)
    assert batches == [1, 6]


def test_a_batch_holds_no_more_than_fit(batcher: Batcher, batches: list[int]) -> None:
    async def ask() -> None:
        await asyncio.gather(*(batcher.submit(40, given(slice(40)), time.monotonic() + 20) for _ in range(3)))

    held_up(batcher, ask)
    assert batches == [1, 40, 40, 40]


def test_too_many_are_turned_away_at_once(batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "QUEUE_IMAGES", 10)

    async def ask() -> None:
        kept = batcher.submit(10, given(slice(10)), time.monotonic() + 20)
        with pytest.raises(Problem, match="503: 10 images wait") as told:
            batcher.submit(1, given(slice(1)), time.monotonic() + 20)
        assert told.value.headers == {"Retry-After": "1"}
        await kept

    held_up(batcher, ask)


def test_what_is_past_its_deadline_is_not_shown(batcher: Batcher, batches: list[int]) -> None:
    async def ask() -> None:
        with pytest.raises(Problem, match="after the request's deadline"):
            await batcher.submit(5, given(slice(5)), time.monotonic() + 0.01)

    held_up(batcher, ask)
    assert batches == [1]


def test_what_is_cancelled_is_not_shown(batcher: Batcher, batches: list[int]) -> None:
    async def ask() -> None:
        batcher.submit(5, given(slice(5)), time.monotonic() + 20).cancel()
        await batcher.submit(2, given(slice(2)), time.monotonic() + 20)

    held_up(batcher, ask)
    assert batches == [1, 2]


def test_what_is_cancelled_takes_no_place(batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "QUEUE_IMAGES", 10)

    async def ask() -> None:
        batcher.submit(10, given(slice(10)), time.monotonic() + 20).cancel()
        await batcher.submit(10, given(slice(10)), time.monotonic() + 20)

    held_up(batcher, ask)


def test_one_bad_image_fails_alone(batcher: Batcher) -> None:
    def bad() -> NDArray[np.uint16]:
        raise ValueError("no image")

    async def ask() -> None:
        good, wrong = (batcher.submit(1, make, time.monotonic() + 20) for make in (given(slice(1)), bad))
        assert len((await good).output.probs) == 1
        with pytest.raises(ValueError, match="no image"):
            await wrong

    held_up(batcher, ask)
    assert batcher.waiting == 0
