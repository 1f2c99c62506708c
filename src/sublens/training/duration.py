"""Duration of a training, from a few steps of it, and in words."""

from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from time import monotonic

import torch

from sublens.config import TrainConfig
from sublens.training import loop
from sublens.training.state import TrainState

WARM_UP, LEAST_STEPS, SECONDS = 1, 2, 3.0
"""Steps that are not timed, and steps and seconds that are, at least."""
FORWARD = 1 / 3
"""Time to predict an image over that to train on it: the gradient takes twice as long."""


@dataclass
class Stopwatch:
    """Times steps until there are enough."""

    times: list[float] = field(default_factory=list)
    """Beginning of each step, and the end of the last, seconds."""

    def share_done(self, step: int) -> float:
        """Note the time; 1 where enough steps are timed, which ends `fit`, and 0 before."""
        self.times.append(monotonic())
        timed = self.times[WARM_UP:]
        return float(len(timed) > LEAST_STEPS and timed[-1] - timed[0] >= SECONDS)

    @property
    def step(self) -> float:
        """Median time of a step, seconds."""
        timed = self.times[WARM_UP:]
        return median(after - before for before, after in pairwise(timed))


def measure_step(state: TrainState, config: TrainConfig) -> float:
    """Time of a step of this training, seconds; its first steps are taken, so that `state` is of no further use."""
    watch = Stopwatch()
    loop.fit(
        state.model,
        state.head,
        state.optimizer,
        state.batches.epochs(),
        config=config,
        share_done=watch.share_done,
        on_step=lambda step: None,
        on_epoch=lambda epoch: None,
        student=state.student,
        has_bf16=state.has_bf16,
    )
    return watch.step


def rounded(seconds: float) -> str:
    """A duration in words: "2 h 10 min"."""
    minutes = round(seconds / 60)
    hours, rest = divmod(round(minutes, -1), 60)
    long = f"{hours} h {rest} min" if minutes >= 60 else f"{minutes} min"
    return long if minutes >= 2 else f"{max(1, round(seconds))} s"


def in_words(seconds: float) -> str:
    """A duration and on what: "about 2 h 10 min on 2 cores"."""
    if torch.cuda.is_available():
        return f"about {rounded(seconds)} on a GPU"
    n = torch.get_num_threads()
    return f"about {rounded(seconds)} on {n} core{'s' if n > 1 else ''}"
