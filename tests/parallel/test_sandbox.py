"""Memory that a child shares with its parent, and what the parent believes of it."""

import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublens.parallel import sandbox
from sublens.parallel.sandbox import EndedError, Region

SIZE = sandbox.REGION_BYTES - sandbox.TAKEN_BYTES


def pair() -> tuple[Region, Region]:
    """The region as the child and as the parent have it."""
    fd = sandbox._region_fd()
    if fd is None:
        pytest.skip("no memory without a name here")
    return Region(os.dup(fd)), Region(fd)


@given(st.lists(st.integers(0, SIZE // 5), min_size=1, max_size=12), st.integers(0, 10**6))
def test_blocks_come_out_as_they_went_in(sizes: list[int], seed: int) -> None:
    child, parent = pair()
    blocks = [random.Random(seed + size).randbytes(size) for size in sizes]
    for first, second in zip(blocks, [*blocks[1:], b""], strict=True):
        place = child.put([memoryview(first), memoryview(second)])
        assert place is not None
        assert parent.take(place["start"], place["bytes"]) == first + second


def test_a_block_is_not_overwritten_before_it_is_taken() -> None:
    child, parent = pair()
    block = memoryview(bytes(SIZE // 256 * 64))
    places = [child.put([block]) for _ in range(5)]
    assert [place is None for place in places] == [False] * 4 + [True]
    assert places[0] is not None
    parent.take(places[0]["start"], places[0]["bytes"])
    assert child.put([block]) is not None
    assert child.put([block]) is None


def test_a_block_larger_than_the_region_is_not_put() -> None:
    child, _ = pair()
    assert child.put([memoryview(bytes(SIZE + 1))]) is None
    assert child.put([memoryview(bytes(SIZE))]) is not None


@pytest.mark.parametrize(
    ("start", "n_bytes"),
    [(SIZE - 8, 9), (0, SIZE + 1), (0, -1), (-8, 8), (2**63, 8), ("0", 8), (0, None), (0.0, 8.0)],
)
def test_a_place_outside_of_the_region_is_not_believed(start: object, n_bytes: object) -> None:
    _, parent = pair()
    with pytest.raises(EndedError):
        parent.take(start, n_bytes)


@pytest.mark.parametrize("n_bytes", [0, 2 * sandbox.REGION_BYTES])
def test_a_child_cannot_resize_the_memory_of_its_parent(n_bytes: int) -> None:
    fd = sandbox._region_fd()
    if fd is None:
        pytest.skip("no memory without a name here")
    with pytest.raises(PermissionError):
        os.ftruncate(fd, n_bytes)
    os.close(fd)
