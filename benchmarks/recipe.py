"""What each part of the recipe is worth: train a network with one thing changed at a time.

    python benchmarks/recipe.py POOL --out recipe.jsonl --images 200000

POOL is a simulated store of common-test-1, such as scripts/reference.sh makes. Every lever sees the
same number of images on one thread and is measured on the store's selection part; rows that are in the
output already are not run again, so it can be stopped, and two can run side by side. The table is
printed at the end. docs/recipe.md holds it with what follows from it.
"""

import argparse
import copy
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sublens import metrics
from sublens.config import InputConfig, ModelConfig, RunConfig, SplitConfig, TrainConfig, input_side
from sublens.data.dataset import Dataset, Part, open_dataset
from sublens.inference import predict_dataset
from sublens.inference.predictor import Predictor
from sublens.models import bundle, inputs, networks, weights
from sublens.models.networks import LensNet
from sublens.sim.render import simulate
from sublens.surveys.survey import Survey
from sublens.training import loop, run
from sublens.training.loop import Batch, BatchSource

SELECTION = 6_000
"""Images that levers are measured on."""
FEW = 27_000
"""Training images that whoever has the labelled data set has."""


class MaxPooled(LensNet):
    """Pools the maximum beside the mean."""

    def __init__(self) -> None:
        super().__init__(3, 1)
        self.classifier = nn.Linear(2 * self.classifier.in_features, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        logits: Tensor = self.classifier(torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1))
        return logits


class Forgetful(LensNet):
    """Drops a fifth of the features before it decides."""

    def __init__(self) -> None:
        super().__init__(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(F.dropout(self.features(x).mean((2, 3)), 0.2, self.training))
        return logits


def smoothed(batch: Batch) -> Batch:
    """Labels that give every class a share of a tenth."""
    return replace(batch, labels=0.9 * F.one_hot(batch.labels, 3).float() + 0.1 / 3)


def taught(batch: Batch) -> Batch:
    """Labels of which half is what the shipped lensnet says. For networks that see single pixels by Anscombe's root."""
    shift = 2 * (inputs.SKY + 0.375) ** 0.5
    counts = ((10 * batch.images + shift) / 2) ** 2 - 0.375
    binned = 2 * torch.sqrt(4 * F.avg_pool2d(counts, 2) + 0.375) - 2 * (4 * inputs.SKY + 0.375) ** 0.5
    with torch.inference_mode():
        probs = teacher()(binned / 20).softmax(1)
    return replace(batch, labels=(F.one_hot(batch.labels, 3) + probs.clone()) / 2)


@cache
def teacher() -> nn.Module:
    """The network that others learn from."""
    folder = bundle.locate("lensnet")
    return weights.load(folder, bundle.read_card(folder))[0]


@dataclass(frozen=True)
class Lever:
    """One thing changed."""

    network: str = "lensnet"
    input: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    model: Callable[[], nn.Module] | None = None
    """Makes a variant of the network."""
    tap: str | None = None
    """Stage that the truth head listens to, if not its own choice."""
    batch: Callable[[Batch], Batch] = lambda batch: batch
    n_train: int | None = None
    """Training images to choose from, if not all."""
    ema: float | None = None
    """Decay of averaged weights that are measured instead."""
    curriculum: dict[str, float] = field(default_factory=dict)
    """Factors on the substructure's mass and on the light, while training is young."""
    has_flipped_votes: bool = False
    """Measured by the mean over the four mirror images."""


Claim = tuple[str, int, int]
"""A lever, a seed and a number of images."""
LEVERS = {
    "as shipped": Lever(),
    "pixels in [0, 1]": Lever(input={"transform": "minmax"}),
    "all 150 pixels": Lever(input={"crop": None}),
    "central 112": Lever(input={"crop": 112}),
    "not binned": Lever(input={"binning": 1}),
    "resized to 224": Lever(input={"crop": None, "binning": 1, "resize": 224}),
    "high-pass of 2 pixels": Lever(input={"highpass": 2}),
    "high-pass of 3 pixels": Lever(input={"highpass": 3}),
    "high-pass of 4 pixels": Lever(input={"highpass": 4}),
    "AdamW": Lever(train={"optimizer": "adamw"}),
    "Muon at half the rate": Lever(train={"lr": 0.01}),
    "Muon at twice the rate": Lever(train={"lr": 0.04}),
    "batches of 32": Lever(train={"batch_size": 32}),
    "batches of 128": Lever(train={"batch_size": 128}),
    "no flips": Lever(train={"flips": False}),
    "no truth head": Lever(train={"truth_weight": 0}),
    "truth head x 0.3": Lever(train={"truth_weight": 3}),
    "truth head x 3": Lever(train={"truth_weight": 30}),
    "truth head on stage 1": Lever(tap="stage1"),
    "truth head on stage 3": Lever(tap="stage3"),
    "27,000 images": Lever(n_train=FEW),
    "27,000 images, no truth head": Lever(n_train=FEW, train={"truth_weight": 0}),
    "27,000 images, no truth head, high-pass of 3 pixels": Lever(
        n_train=FEW, train={"truth_weight": 0}, input={"highpass": 3}
    ),
    "labels smoothed by 0.1": Lever(batch=smoothed),
    "drop-out of 0.2": Lever(model=Forgetful),
    "maximum pooled too": Lever(model=MaxPooled),
    "averaged weights": Lever(ema=0.999),
    "mean over flips": Lever(has_flipped_votes=True),
    "substructure x 4 at first": Lever(curriculum={"mass": 4.0}),
    "light x 4 at first": Lever(curriculum={"light": 4.0}),
    "mobilenetv3-small": Lever("mobilenetv3-small"),
    "mobilenetv3-small, twice the rates": Lever("mobilenetv3-small", train={"lr": 0.02, "adamw_lr": 3e-3}),
    "mobilenetv3-small, 96 pixels": Lever("mobilenetv3-small", input={"resize": None}),
    "mobilenetv3-small, 192 pixels": Lever("mobilenetv3-small", input={"resize": 192}),
    "mobilenetv3-small, batches of 128": Lever("mobilenetv3-small", train={"batch_size": 128}),
    "mobilenetv3-small, AdamW": Lever("mobilenetv3-small", train={"optimizer": "adamw"}),
    "mobilenetv3-small, no truth head": Lever("mobilenetv3-small", train={"truth_weight": 0}),
    "mobilenetv3-small, truth head x 0.3": Lever("mobilenetv3-small", train={"truth_weight": 30}),
    "mobilenetv3-small, 96 pixels, taught by lensnet": Lever("mobilenetv3-small", input={"resize": None}, batch=taught),
    "resnet18": Lever("resnet18"),
    "resnet18, binned": Lever("resnet18", input={"binning": 2}),
    "resnet18, batches of 128": Lever("resnet18", train={"batch_size": 128}),
    "resnet18, AdamW": Lever("resnet18", train={"optimizer": "adamw"}),
    "resnet18, no truth head": Lever("resnet18", train={"truth_weight": 0}),
}


def eased(survey: Survey, mass: float = 1.0, light: float = 1.0) -> Survey:
    """The survey with heavier substructure, or with more light and so less noise."""
    tree = survey.model_dump(exclude_none=True)
    slope, low, high = survey.subhaloes.mass_msun.values
    tree["subhaloes"]["mass_msun"] = {"power_law": [slope, mass * low, mass * high]}
    tree["vortex"]["mass_fraction"] = {"uniform": [mass * value for value in survey.vortex.mass_fraction.values]}
    tree["source"]["intensity"] *= light
    return Survey.model_validate(tree)


EASY_IMAGES = 30_000


def easy_part(survey: Survey, factors: dict[str, float]) -> Part:
    """Images of the eased survey to begin with."""
    truth, counts = simulate(eased(survey, **factors), 4, "train", range(EASY_IMAGES))
    counts = np.minimum(counts, 65_000).astype(np.uint16)
    rows = np.arange(EASY_IMAGES)
    return Part((counts,), rows, truth.scenes["label"], rows.astype(str), truth)


def mixed(hard: Iterator[Batch], easy: Iterator[Batch], n_steps: int) -> Iterator[Batch]:
    """Easy batches at first, ever fewer over the first third of all steps, none after."""
    rng = np.random.default_rng(0)
    for step in count():
        yield next(easy if rng.random() > 3 * step / n_steps else hard)


def endless(feed: BatchSource) -> Iterator[Batch]:
    """The batches of all epochs."""
    return (batch for epoch in feed.epochs() for batch in epoch)


def pulled(lever: Lever, dataset: Dataset, n_images: int, seed: int) -> dict[str, Any]:
    """Train with that lever; returns scores on the selection part and the cost."""
    usual = run.resolve_settings(RunConfig(model=ModelConfig(name=lever.network)), dataset)
    assert usual.input is not None
    seen = InputConfig.model_validate({**usual.input.model_dump(), **lever.input})
    config = TrainConfig.model_validate({**usual.train.model_dump(), **lever.train, "seed": seed})
    torch.manual_seed(seed)
    model = lever.model() if lever.model else networks.build(lever.network, 3)
    if lever.tap:
        reduction, n_channels = {"stage1": (2, 32), "stage2": (4, 64), "stage3": (8, 128)}[lever.tap]
        model.feature_info = [{"module": lever.tap, "reduction": reduction, "num_chs": n_channels}]  # type: ignore[assignment]
    head, n_cells = loop.truth_head(model, seen, dataset, config)
    for module in (model, head) if head else (model,):
        networks.to_device(module, "cpu")
    part = dataset.train if lever.n_train is None else dataset.train.take(np.arange(lever.n_train))
    survey = dataset.survey if head else None
    n_steps = n_images // (config.batch_size or 1)
    batches = endless(BatchSource(part, seen, config, "cpu", survey, n_cells))
    if lever.curriculum:
        assert dataset.survey is not None
        easy = easy_part(dataset.survey, lever.curriculum)
        batches = mixed(batches, endless(BatchSource(easy, seen, config, "cpu", survey, n_cells)), n_steps)
    averaged = copy.deepcopy(model)

    def on_step(step: loop.Step) -> None:
        if lever.ema:
            pace = min(lever.ema, step.number / (step.number + 10))
            for mean, value in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
                mean.copy_(pace * mean + (1 - pace) * value if mean.is_floating_point() else value)

    start = process_time()
    loop.fit(
        model,
        head,
        loop.make_optimizer([model, head] if head else [model], config),
        [map(lever.batch, batches)],
        config=config,
        share_done=lambda step: step / n_steps,
        on_step=on_step,
        on_epoch=lambda epoch: None,
        has_bf16=networks.has_bf16_gain(lever.network, "cpu", input_side(seen, part.shape)),
    )
    seconds = process_time() - start
    predictor = predict_dataset.eager((averaged if lever.ema else model).eval(), dataset.classes, part.shape, seen)
    probs, labels = selection_probs(predictor, dataset.selection, lever), dataset.selection.labels
    return {
        "auc": metrics.macro_auc(probs, labels),
        "accuracy": float(metrics.hits(probs, labels).mean()),
        "loss": float(metrics.losses(probs, labels).mean()),
        "images_per_s": n_images / seconds,
    }


def selection_probs(predictor: Predictor, part: Part, lever: Lever) -> metrics.Floats:
    """Probabilities of the part's images, [n, c]."""
    if not lever.has_flipped_votes:
        return predict_dataset.predict_all(predictor, part).probs
    counts = part.counts(np.arange(len(part)))
    views = [counts, counts[:, ::-1], counts[:, :, ::-1], counts[:, ::-1, ::-1]]
    flipped = [replace(part, shards=(np.ascontiguousarray(view),), rows=np.arange(len(part))) for view in views]
    return np.asarray(np.mean([predict_dataset.predict_all(predictor, one).probs for one in flipped], axis=0))


def claimed(out: Path, wanted: list[Claim]) -> Iterator[Claim]:
    """Those that are not done and that no living process is at, one after the other."""
    for claim in wanted:
        with out.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            rows = [row for row in map(json.loads, file) if (row["lever"], row["seed"], row["images"]) == claim]
            if any("auc" in row or is_alive(row["process"]) for row in rows):
                continue
            file.write(json.dumps({**named(claim), "process": os.getpid()}) + "\n")
        yield claim


def named(claim: Claim) -> dict[str, Any]:
    """What makes a row that row."""
    return dict(zip(("lever", "seed", "images"), claim, strict=True))


def is_alive(process: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--levers", nargs="*", default=list(LEVERS), choices=list(LEVERS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    whole = open_dataset(options.dataset, SplitConfig(selection=0.1))
    dataset = replace(whole, selection=whole.selection.take(np.arange(SELECTION)))
    wanted = [(name, seed, options.images) for seed in range(options.seeds) for name in options.levers]
    for claim in claimed(options.out, wanted):
        name, seed, images = claim
        row = {**named(claim), **pulled(LEVERS[name], dataset, images, seed)}
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)
    print(table(options.out))


def table(path: Path) -> str:
    """The rows of a sweep in Markdown."""
    rows = [row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()) if "auc" in row]
    lines = [
        "| lever | images | seed | macro AUC | accuracy | loss | images/s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        scores = f"{row['auc']:.4f} | {row['accuracy']:.1%} | {row['loss']:.4f} | {row['images_per_s']:,.0f}"
        lines.append(f"| {row['lever']} | {row['images']:,} | {row['seed']} | {scores} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
