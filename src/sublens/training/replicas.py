"""Replicas of a network in threads of one process: each computes the gradient of its share of a batch on one core.

Threads of one replica would wait for each other at every layer; replicas wait once a step, and their waiting costs
nothing to others. They hold the same weights in the same memory. Batch normalisation takes its statistics from a
replica's own share; running statistics are means over the replicas.
"""

import copy
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from sublens.parallel import mapper

A = TypeVar("A")


class Batch(Protocol):
    """Images with their targets, a dataclass of tensors [b, ...], lists of them and None."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def images(self) -> Tensor:
        """Network input [b, channels, s, s]."""


B = TypeVar("B", bound=Batch)
Backward = Callable[[nn.Module, B, float], list[Tensor | None]]
"""Adds gradients of a part of a batch, times its share of the whole, to those of a module; returns its losses."""

LEAST_SHARE = 16
"""Images of a replica's share at least, for the statistics of batch normalisation."""
BATCHES_AHEAD = 2
"""Batches that are made while a step is taken."""


def n_replicas(module: nn.Module, images: Tensor) -> int:
    """Number of replicas for batches like these: one for each of torch's threads, on a processor, with enough images.

    One for networks that draw random numbers, whose order threads would not keep.
    """
    n = min(torch.get_num_threads(), len(images) // LEAST_SHARE)
    return 1 if n < 2 or images.device.type != "cpu" or draws_random_numbers(module, images[:2]) else n


def draws_random_numbers(module: nn.Module, images: Tensor) -> bool:
    """Whether a step of this module on these images draws random numbers, as dropout does; draws none itself."""
    with torch.random.fork_rng([]), torch.no_grad():
        before = torch.get_rng_state()
        replica(module).train()(images)
        return not torch.equal(torch.get_rng_state(), before)


def replica(module: nn.Module) -> nn.Module:
    """A copy of a module with buffers of its own, whose weights are those of the module, in the same memory."""
    weights = {id(weight): nn.Parameter(weight.detach(), weight.requires_grad) for weight in module.parameters()}
    return copy.deepcopy(module, weights)


class Gradients(ExitStack, Generic[B]):
    """Gradients of a module on one batch after the other, in as many replicas as the first batch allows.

    To be used in a `with` block, which ends the threads.
    """

    def __init__(self, module: nn.Module, backward: Backward[B], *, is_alone: bool) -> None:
        """is_alone: whether no other process trains the module as well; those that share it have no replicas."""
        super().__init__()
        self._module, self._backward, self._is_alone = module, backward, is_alone
        self._replicas: _Replicas | None = None

    def add(self, batch: B) -> list[Tensor | None]:
        """Add the gradient of a batch to those of the weights; returns its losses."""
        if self._replicas is None:
            n = n_replicas(self._module, batch.images) if self._is_alone else 1
            self._replicas = self.enter_context(_open_replicas(self._module, n))
        return self._replicas.add(self._backward, parts(batch, self._replicas.n))


def parts(batch: B, n: int) -> list[tuple[B, float]]:
    """A batch in n parts of nearly equal size, each with its share of the whole."""
    if n == 1:
        return [(batch, 1.0)]
    columns = [_split(getattr(batch, column.name), n) for column in fields(batch)]
    batches = [type(batch)(*values) for values in zip(*columns, strict=True)]
    return [(part, len(part.images) / len(batch.images)) for part in batches]


def _split(values: Any, n: int) -> Sequence[Any]:
    """A tensor, a list of them or None in n parts."""
    if isinstance(values, list):
        return list(map(list, zip(*(_split(planes, n) for planes in values), strict=True)))
    return [None] * n if values is None else values.tensor_split(n)


class _Replicas:
    """A module and its replicas, with a thread for each where there are several."""

    def __init__(self, module: nn.Module, n: int, threads: ThreadPoolExecutor | None) -> None:
        self._threads, self._modules = threads, [module, *(replica(module).train() for _ in range(n - 1))]
        self._weights = list(zip(*(copied.parameters() for copied in self._modules), strict=True))
        self._statistics = [list(_running_statistics(copied)) for copied in self._modules]

    @property
    def n(self) -> int:
        return len(self._modules)

    def add(self, backward: Backward[B], shares: Sequence[tuple[B, float]]) -> list[Tensor | None]:
        apply = self._threads.map if self._threads else map
        tasks = zip(self._modules, *zip(*shares, strict=True), strict=True)
        losses = list(apply(lambda task: backward(*task), tasks))
        if self.n > 1:
            self._sum_gradients()
            self._average_statistics()
        return [None if terms[0] is None else sum(terms) for terms in zip(*losses, strict=True)]

    def _sum_gradients(self) -> None:
        for first, *others in self._weights:
            for weight in others:
                if first.grad is not None:
                    first.grad += weight.grad
                weight.grad = None

    @torch.no_grad()
    def _average_statistics(self) -> None:
        first, *others = self._statistics
        for planes in zip(first, *others, strict=True):
            mean = sum(planes) / self.n
            for plane in planes:
                plane.copy_(mean)


def _running_statistics(module: nn.Module) -> Iterator[Tensor]:
    """Running means and variances of batch normalisation."""
    for name, plane in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            yield plane


@contextmanager
def _open_replicas(module: nn.Module, n: int) -> Iterator[_Replicas]:
    """Replicas that share torch's threads, for the length of a `with` block; the module alone where n is 1."""
    if n == 1:
        yield _Replicas(module, 1, None)
        return
    n_threads = torch.get_num_threads()
    with ThreadPoolExecutor(n, "replica", torch.set_num_threads, (n_threads // n,)) as threads:
        try:
            yield _Replicas(module, n, threads)
        finally:
            torch.set_num_threads(n_threads)  # for threads that start later


def ahead(batches: Iterable[A]) -> Generator[A, None, None]:
    """The batches, made ahead by a thread where torch has several on a processor."""
    n_threads = torch.get_num_threads()
    if n_threads == 1 or torch.cuda.is_available():
        yield from batches
        return
    try:
        yield from mapper.ahead(batches, BATCHES_AHEAD, lambda: torch.set_num_threads(1))
    finally:
        torch.set_num_threads(n_threads)  # for threads that start later
