"""The original's recipe beside ours: what each has learned after as many images, and what an image costs.

The original (ML4SCI DeepLense Common Test I) took min-max pixels, resized to 224 and copied three
times, Adam at 1e-3, batches of 64, no augmentation, a rate cut to a tenth whenever the loss had not
fallen for two epochs, 20 epochs of 30,000 images. Here it starts from scratch, on the same data.

    python benchmarks/baseline.py data/ct1 mobilenetv3-small --images 20000 --runs runs/mobilenetv3-small

Prints a row each time the selection part is looked at, then the compute that a run of ours took to
reach the original's AUC, against what 600,000 images of the original's recipe take on this machine.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau

from sublens import metrics
from sublens.config import InputConfig, SplitConfig, TrainConfig
from sublens.data.dataset import Dataset, open_dataset
from sublens.inference import predict_dataset
from sublens.models import bundle, networks
from sublens.training.loop import BatchSource

INPUT = InputConfig(resize=224, channels=3, transform="minmax")
TRAIN = TrainConfig(batch_size=64, flips=False, truth_weight=0)
EPOCHS, EPOCH_IMAGES = 20, 30_000
AUCS = {"efficientnet-b5": 0.9931, "resnet18": 0.9871, "mobilenetv3-small": 0.9741}
"""The original's macro AUC; its first two started from ImageNet weights."""
LOOKS = 4
"""How often the selection part is looked at."""


def original(name: str, dataset: Dataset, n_images: int) -> Iterator[tuple[int, float, float]]:
    """Train by the original's recipe; yields images seen, selection AUC and seconds of training so far."""
    torch.manual_seed(TRAIN.seed)
    model = networks.to_device(networks.build(name, len(dataset.classes), INPUT.n_channels), "cpu")
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    schedule = ReduceLROnPlateau(optimizer, factor=0.1, patience=1)
    feed = BatchSource(dataset.train, INPUT, TRAIN, "cpu")
    seen, seconds, next_look, next_epoch = 0, 0.0, n_images / LOOKS, EPOCH_IMAGES
    for batch in (batch for epoch in feed.epochs() for batch in epoch):
        start = perf_counter()
        loss = F.cross_entropy(model.train()(batch.images), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seen, seconds = seen + len(batch.labels), seconds + perf_counter() - start
        if seen >= min(next_look, next_epoch):
            predictor = predict_dataset.eager(model.eval(), dataset.classes, dataset.train.shape, INPUT)
            probs, labels = predict_dataset.predict_all(predictor, dataset.selection).probs, dataset.selection.labels
            if seen >= next_epoch:
                schedule.step(float(metrics.losses(probs, labels).mean()))
                next_epoch += EPOCH_IMAGES
            if seen >= next_look:
                next_look += n_images / LOOKS
                yield seen, metrics.macro_auc(probs, labels), seconds
        if seen >= n_images:
            return


def reached(run: Path, auc: float) -> tuple[int, float] | None:
    """Images seen and seconds when a run of ours first had this AUC on its selection part."""
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        if row["kind"] == "epoch" and row["selection_auc"] >= auc:
            return row["images"], row["seconds"]
    return None


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("network", choices=AUCS)
    parser.add_argument("--images", type=int, default=20_000, help="images that the original's recipe sees")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="runs of ours, trained on this machine")
    options = parser.parse_args()
    dataset = open_dataset(options.dataset, SplitConfig())
    print(f"{options.network}, the original's recipe, {torch.get_num_threads()} threads")
    rate = 0.0
    for seen, auc, seconds in original(options.network, dataset, options.images):
        rate = seen / seconds
        print(f"  {seen:9,} images  selection AUC {auc:.4f}  {rate:8.1f} images/s", flush=True)
    goal, whole = AUCS[options.network], EPOCHS * EPOCH_IMAGES / rate
    print(f"  {EPOCHS * EPOCH_IMAGES:9,} images, after which it had {goal}, take {whole / 3600:.1f} h at this rate")
    for run in options.runs:
        card, found = bundle.read_card(run), reached(run, goal)
        if found:
            core_seconds, ours = whole * torch.get_num_threads(), found[1] * card.machine.threads
            print(f"  {run}: {found[0]:,} images, {found[1] / 60:.1f} min; 1/{core_seconds / ours:.0f} of the compute")
        else:
            print(f"  {run}: has not reached {goal}")


if __name__ == "__main__":
    main()
