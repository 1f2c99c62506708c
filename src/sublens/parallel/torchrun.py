"""Processes that train one network together, started by torchrun; each learns from its share of every batch.

Gradients are means over all processes, so all hold the same weights. Batch normalisation takes its statistics from
the whole batch on GPUs, and from the process's own share on processors, where exchanging them costs more than it gains.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed, nn

from sublens.errors import ConfigError, DataError


@dataclass(frozen=True)
class Ranks:
    """One of the processes, and how many there are; a process alone unless `joined` says otherwise."""

    number: int = 0
    n: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that evaluates, saves and prints."""
        return self.number == 0

    @property
    def share(self) -> slice:
        """The part of a batch that this process learns from."""
        return slice(self.number, None, self.n)

    def check(self, size: int) -> None:
        """Raise `ConfigError` where batches of that size have no equal shares, whose means would be another loss."""
        if size % self.n:
            raise ConfigError(
                f"{self.n} processes cannot share batches of {size} images evenly",
                need=f"train.batch_size to be a multiple of {self.n}",
                next=f"Set train.batch_size={self.n * max(1, size // self.n)}, or start another number of processes.",
            )

    def together(self, module: nn.Module) -> nn.Module:
        """The module, with gradients that are means over all processes, and the first one's buffers at each step."""
        if self.n == 1:
            return module
        if torch.cuda.is_available():
            module = synchronise_batch_norm(module)
        return nn.parallel.DistributedDataParallel(module, static_graph=True)

    def begin_step(self, seed: int, step: int) -> None:
        """Seed torch from these numbers alone in every process but the first, so that there is no state to keep."""
        if not self.is_first:
            torch.manual_seed(int(np.random.SeedSequence((seed, step, self.number)).generate_state(1)[0]))

    def mean(self, value: float) -> float:
        """The mean over all processes."""
        if self.n == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device="cuda" if torch.cuda.is_available() else "cpu")
        distributed.all_reduce(total)
        return total.item() / self.n

    def any(self, is_so: bool) -> bool:
        """Whether it is so in at least one process."""
        return self.mean(float(is_so)) > 0

    def first(self, value: float) -> float:
        """The value in the first process."""
        return self.mean(value * self.n * self.is_first)

    def wait(self) -> None:
        """Return once all processes have called it."""
        self.any(False)


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes that torchrun started, if it did: with NCCL where there are GPUs, else with gloo.

    Raises `ConfigError` where there are more processes than GPUs, `DataError` where another process has ended.
    """
    n = int(os.environ.get("WORLD_SIZE", "1"))
    if n == 1:
        yield ALONE
        return
    n_gpus = torch.cuda.device_count()
    if n_gpus:
        _choose_gpu(int(os.environ["LOCAL_RANK"]), n_gpus)
    distributed.init_process_group("nccl" if n_gpus else "gloo")
    try:
        yield Ranks(distributed.get_rank(), n)
    except RuntimeError as err:
        if isinstance(err, distributed.DistError) or "gloo" in str(err):
            raise DataError(
                "another process of this training has ended",
                need="all processes until the end",
                next="Read the error of that process above, then train again with --resume.",
            ) from err
        raise
    finally:
        gc.collect()  # what still holds the group keeps threads of it, which abort the process when that ends
        distributed.destroy_process_group()


def _choose_gpu(local_rank: int, n_gpus: int) -> None:
    if local_rank >= n_gpus:
        raise ConfigError(
            f"{n_gpus} GPUs here, and more processes",
            need="a GPU for each process",
            next=f"Lower --nproc-per-node to {n_gpus}.",
        )
    torch.cuda.set_device(local_rank)


def synchronise_batch_norm(module: nn.Module) -> nn.Module:
    """The module, its batch normalisation replaced by one that takes the statistics of all GPUs."""
    from timm import layers  # torch's own conversion drops the activation in timm's layers

    hooks = {name: layer._forward_hooks for name, layer in module.named_modules() if layer._forward_hooks}
    converted: nn.Module = layers.convert_sync_batchnorm(module)  # type: ignore[attr-defined, no-untyped-call]
    for name, kept in hooks.items():  # of the heads that read a feature map, which new layers do not have
        converted.get_submodule(name)._forward_hooks = kept
    return converted
