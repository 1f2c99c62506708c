"""Requests that wait for one network share a batch."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event

import numpy as np
import pytest
from numpy.typing import NDArray

from sublens.inference.predictor import BATCH, Predictor
from sublens.web import batching
from sublens.web.batching import Batcher
from sublens.web.problem import Problem

PREDICTOR = Predictor.load("lensnet")
COUNTS = np.random.default_rng(0).poisson(30, (70, 150, 150)).astype(np.uint16)


def images(rows: slice) -> Callable[[], NDArray[np.uint16]]:
    return lambda: COUNTS[rows]


def held_back(is_busy: Event, go: Event, seconds: float = 10) -> Callable[[], NDArray[np.uint16]]:
    """An image that comes only once it may."""

    def prepare() -> NDArray[np.uint16]:
        is_busy.set()
        go.wait(seconds)
        return COUNTS[:1]

    return prepare


def soon() -> float:
    return time.monotonic() + 20


@pytest.fixture
def sizes() -> list[int]:
    return []


@pytest.fixture
def batcher(sizes: list[int]) -> Iterator[Batcher]:
    made = Batcher(PREDICTOR, sizes.append)
    yield made
    made.close()


@contextmanager
def busy(batcher: Batcher) -> Iterator[None]:
    """Keep the network busy with a batch that ends only after the block."""
    is_busy, go = Event(), Event()
    first = batcher.submit(1, held_back(is_busy, go), soon())
    is_busy.wait(10)
    try:
        yield
    finally:
        go.set()
    first.result()


def test_waiting_images_share_a_batch_and_each_request_gets_its_own_output(batcher: Batcher, sizes: list[int]) -> None:
    with busy(batcher):
        futures = [batcher.submit(n, images(slice(n, 2 * n)), soon()) for n in (1, 2, 3)]
    for n, future in zip((1, 2, 3), futures, strict=True):
        output = future.result().output
        np.testing.assert_allclose(output.probs, PREDICTOR.probs(COUNTS[n : 2 * n]), atol=1e-5)
        assert output.ood is not None
        assert len(output.ood) == n
    assert sizes == [1, 6]


def test_a_batch_holds_no_more_than_fit(batcher: Batcher, sizes: list[int]) -> None:
    with busy(batcher):
        futures = [batcher.submit(40, images(slice(40)), soon()) for _ in range(3)]
    assert [len(future.result().output) for future in futures] == [40] * 3
    assert sizes == [1, 40, 40, 40]


def test_a_request_that_takes_a_whole_batch_shares_it_with_no_other(batcher: Batcher, sizes: list[int]) -> None:
    with busy(batcher):
        futures = [batcher.submit(n, images(slice(2)), soon()) for n in (2, BATCH, 2)]
    assert [len(future.result().output) for future in futures] == [2, 2, 2]
    assert sizes == [1, 2, 2, 2]


def test_more_than_may_wait_are_refused_at_once(batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "QUEUE_IMAGES", 10)
    with busy(batcher):
        kept = batcher.submit(10, images(slice(10)), soon())
        with pytest.raises(Problem, match="503: 10 images wait") as refusal:
            batcher.submit(1, images(slice(1)), soon())
    assert refusal.value.headers == {"Retry-After": "1"}
    assert len(kept.result().output) == 10


def test_images_past_their_deadline_are_not_predicted(batcher: Batcher, sizes: list[int]) -> None:
    with busy(batcher):
        late = batcher.submit(5, images(slice(5)), time.monotonic() - 1)
    with pytest.raises(Problem, match="deadline passed"):
        late.result()
    assert sizes == [1]


def test_cancelled_images_are_not_predicted(batcher: Batcher, sizes: list[int]) -> None:
    with busy(batcher):
        batcher.submit(5, images(slice(5)), soon()).cancel()
        kept = batcher.submit(2, images(slice(2)), soon())
    assert len(kept.result().output) == 2
    assert sizes == [1, 2]


def test_cancelled_images_leave_their_place_in_the_queue(batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "QUEUE_IMAGES", 10)
    with busy(batcher):
        batcher.submit(10, images(slice(10)), soon()).cancel()
        kept = batcher.submit(10, images(slice(10)), soon())
    assert len(kept.result().output) == 10


def test_one_bad_image_fails_alone(batcher: Batcher) -> None:
    def bad() -> NDArray[np.uint16]:
        raise ValueError("no image")

    with busy(batcher):
        good, wrong = (batcher.submit(1, prepare, soon()) for prepare in (images(slice(1)), bad))
    assert len(good.result().output) == 1
    with pytest.raises(ValueError, match="no image"):
        wrong.result()
    assert batcher.waiting == 0


def test_a_network_that_fails_fails_the_batch_and_goes_on(batcher: Batcher) -> None:
    with pytest.raises(Exception, match="shape|dim|rank"):
        batcher.submit(1, lambda: np.zeros((1, 3, 3, 3), np.uint16), soon()).result(20)
    assert len(batcher.submit(1, images(slice(1)), soon()).result(20).output) == 1


def test_a_closed_batcher_leaves_nobody_waiting() -> None:
    closing, is_busy = Batcher(PREDICTOR), Event()
    closing.submit(1, held_back(is_busy, Event(), 0.5), soon())
    is_busy.wait(10)
    waiting = closing.submit(1, images(slice(1)), soon())
    closing.close()
    with pytest.raises(Problem, match="stopping"):
        waiting.result(1)
    with pytest.raises(Problem, match="stopping"):
        closing.submit(1, images(slice(1)), soon())
