"""Processes that train one network together, as torchrun starts them; each learns from its share of every batch.

What they end up with is what a single process makes of the whole batches, but for the last digits: gradients, losses
and the statistics of batch normalisation are means over all of them.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.overrides import TorchFunctionMode

from sublens.errors import ConfigError, DataError


@dataclass(frozen=True)
class Ranks:
    """One of the processes, and how many there are; just this one unless `joined` says otherwise."""

    number: int = 0
    n: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that judges, saves and tells."""
        return self.number == 0

    @property
    def share(self) -> slice:
        """What this one takes of a batch."""
        return slice(self.number, None, self.n)

    def check(self, size: int) -> None:
        """Raise `ConfigError` where batches of that size have no equal shares, whose means would be another loss."""
        if size % self.n:
            raise ConfigError(
                f"{self.n} processes cannot share batches of {size} images evenly. "
                f"Set train.batch_size to a multiple of {self.n}."
            )

    def together(self, module: nn.Module) -> nn.Module:
        """The module, with gradients that are means over all."""
        return nn.parallel.DistributedDataParallel(module, static_graph=True) if self.n > 1 else module

    def normalising(self) -> AbstractContextManager[object]:
        """Within it, batches are normalised by the statistics of all."""
        return _Normalising(self) if self.n > 1 else nullcontext()

    def begin_step(self, seed: int, step: int) -> None:
        """Give each but the first random numbers that depend on these alone, so that there is no state to keep."""
        if not self.is_first:
            torch.manual_seed(int(np.random.SeedSequence((seed, step, self.number)).generate_state(1)[0]))

    def mean(self, value: float) -> float:
        """The mean over all."""
        if self.n == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device="cuda" if torch.cuda.is_available() else "cpu")
        distributed.all_reduce(total)
        return total.item() / self.n

    def any(self, is_so: bool) -> bool:
        """Whether it is so for one of them."""
        return self.mean(float(is_so)) > 0

    def first(self, value: float) -> float:
        """What the first one has."""
        return self.mean(value * self.n * self.is_first)

    def wait(self) -> None:
        """Until all are here."""
        self.any(False)


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes that torchrun started, if it did: with NCCL where there are GPUs, else with gloo."""
    n = int(os.environ.get("WORLD_SIZE", "1"))
    if n == 1:
        yield ALONE
        return
    has_gpu, place = torch.cuda.is_available(), int(os.environ["LOCAL_RANK"])
    if has_gpu and place >= torch.cuda.device_count():
        raise ConfigError(
            f"There are {torch.cuda.device_count()} GPUs here, and more processes. Lower --nproc-per-node to that."
        )
    if has_gpu:
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if has_gpu else "gloo")
    try:
        yield Ranks(distributed.get_rank(), n)
    except RuntimeError as err:
        if isinstance(err, distributed.DistError) or "gloo" in str(err):
            raise DataError("Another process of this training has ended; see what it said.") from err
        raise
    finally:
        gc.collect()  # what still holds the group keeps threads of it, which abort the process when that ends
        distributed.destroy_process_group()


class _Normalising(TorchFunctionMode):
    """Has `batch_norm`, of whichever layer, see the batches of all; torch's own such layer is for GPUs only."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is F.batch_norm:
            return _batch_norm(self._ranks, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _batch_norm(
    ranks: Ranks,
    seen: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As torch's, of equal shares of a batch."""
    if not training:
        return F.batch_norm(seen, running_mean, running_var, weight, bias, training, momentum, eps)
    weight = torch.ones(seen.shape[1], device=seen.device) if weight is None else weight
    bias = torch.zeros_like(weight) if bias is None else bias
    normalised: Tensor
    normalised, mean, variance = _Normalised.apply(seen, weight, bias, ranks, eps)  # type: ignore[no-untyped-call]
    if running_mean is not None and running_var is not None:
        n_values = ranks.n * seen.numel() // len(mean)
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (n_values / (n_values - 1)), momentum)
    return normalised


class _Normalised(torch.autograd.Function):
    """A share of a batch [b, c, ...], normalised by the mean and variance [c] of all shares, which come with it."""

    @staticmethod
    def forward(
        ctx: Any, seen: Tensor, weight: Tensor, bias: Tensor, ranks: Ranks, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        _, mean, scale = torch.native_batch_norm(seen, weight, bias, None, None, True, 0.0, eps)
        own = torch.stack([mean, scale**-2 - eps])
        shares = [torch.empty_like(own) for _ in range(ranks.n)]
        distributed.all_gather(shares, own)
        means, variances = torch.stack(shares).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        ctx.save_for_backward(seen, weight, mean, torch.rsqrt(variance + eps))
        ctx.mark_non_differentiable(mean, variance)
        ctx.ranks, ctx.eps = ranks, eps
        return F.batch_norm(seen, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        seen, weight, mean, scale = ctx.saved_tensors
        by_seen, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], seen, weight, None, None, mean, scale, True, ctx.eps, [True, True, True]
        )
        own = torch.stack([by_bias, by_weight])
        total = own.clone()
        distributed.all_reduce(total)
        # so far `by_seen` has its share's sums over the batch; what they lack is the same for all values of a channel
        offset, slope = (own - total / ctx.ranks.n) * weight * scale * (len(mean) / seen.numel())
        slope = slope * scale
        shape = (1, -1, *(1,) * (seen.ndim - 2))
        lacking = torch.addcmul((offset - slope * mean).view(shape), seen.float(), slope.view(shape))
        return by_seen.add_(lacking), by_weight, by_bias, None, None
