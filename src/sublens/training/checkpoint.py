"""Checkpoints of a training on disk: one file each, its hash in its name, the last two kept.

RUN/checkpoints/000001200-<sha256>.safetensors   weights, optimiser and random state after step 1,200
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from sublens.storage.files import remove, write_bytes

FOLDER, SUFFIX = "checkpoints", ".safetensors"
KEPT = 2
"""Number of checkpoints kept."""
RANDOM, OPTIMIZER, FACTS = "random", "optimizer", "facts"


@dataclass(frozen=True)
class Checkpoint:
    """Complete state of a training, from which it resumes as if it had never stopped."""

    step: int
    """Number of steps taken."""
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    """Settings, counters and other values that JSON holds."""


def captured(
    step: int, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, facts: Mapping[str, Any]
) -> Checkpoint:
    """A checkpoint of these modules, their optimiser and torch's random state."""
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    plain: dict[str, dict[str, Any]] = {}
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}/{number}/{key}"] = value
            else:
                plain.setdefault(str(number), {})[key] = value
    tensors[RANDOM] = torch.get_rng_state()
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return Checkpoint(step, whole, {**facts, OPTIMIZER: plain})


def restore(checkpoint: Checkpoint, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Put modules, optimiser and torch's random state back to those of `captured`."""
    for name, module in modules.items():
        prefix = f"{name}/"
        module.load_state_dict(
            {k.removeprefix(prefix): v for k, v in checkpoint.tensors.items() if k.startswith(prefix)}
        )
    current = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {int(n): dict(plain) for n, plain in checkpoint.facts[OPTIMIZER].items()}
    for name, value in checkpoint.tensors.items():
        if name.startswith(f"{OPTIMIZER}/"):
            _, number, key = name.split("/")
            state.setdefault(int(number), {})[key] = _laid_out_like(parameters[int(number)], value)
    optimizer.load_state_dict({**current, "state": state})
    torch.set_rng_state(checkpoint.tensors[RANDOM])


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The value with the strides of its parameter: sums in another order would differ in their last bits."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


def save(run: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all, then remove all but the last `KEPT`."""
    facts = torch.frombuffer(bytearray(json.dumps(checkpoint.facts).encode()), dtype=torch.uint8)
    data = to_bytes({**checkpoint.tensors, FACTS: facts})
    name = f"{checkpoint.step:09d}-{hashlib.sha256(data).hexdigest()}{SUFFIX}"
    write_bytes(run / FOLDER / name, data)
    kept = _files(run)[-KEPT:]
    for old in (run / FOLDER).iterdir():  # among them files that a kill left half-written
        if old not in kept:
            remove(old)


def latest(
    run: Path, is_usable: Callable[[Checkpoint], bool] = lambda checkpoint: True
) -> tuple[Checkpoint | None, list[Path]]:
    """The last whole and usable checkpoint of a run, None where there is none, and the later ones, which are not."""
    damaged: list[Path] = []
    for path in reversed(_files(run)):
        with suppress(OSError, ValueError, KeyError, SafetensorError):
            if is_usable(checkpoint := _read(path)):
                return checkpoint, damaged
        damaged.append(path)
    return None, damaged


def _read(path: Path) -> Checkpoint:
    step, digest = path.stem.split("-")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError("sha256 differs from the name")
    tensors = from_bytes(data)
    return Checkpoint(int(step), tensors, json.loads(tensors.pop(FACTS).numpy().tobytes()))


def last_step(run: Path) -> int:
    """The steps taken at the last checkpoint of a run, by its name; 0 if there is none."""
    return max((int(path.name.split("-")[0]) for path in _files(run)), default=0)


def discard(run: Path) -> None:
    """Remove all checkpoints of a complete run."""
    remove(run / FOLDER)


def _files(run: Path) -> list[Path]:
    return sorted((run / FOLDER).glob(f"[0-9]*-*{SUFFIX}"))
