"""Measured runs -> a bundle to give away: 16-bit weights, and a card with the scores of all."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sublens.data.dataset import Dataset, Part
from sublens.errors import DataError
from sublens.inference import onnx_export, predict_dataset
from sublens.inference.predictor import Predictor
from sublens.models import bundle, weights
from sublens.models.bundle import Card, CardScores
from sublens.models.networks import device
from sublens.progress import Bar, Count, silent
from sublens.storage import files
from sublens.training.recorder import LOG, SCORES

THINNED = 100
"""Steps that share a row in the log of a published run."""


def publish(runs: Sequence[Path], dataset: Dataset, out: Path, *, force: bool = False, bar: Bar = silent) -> Path:
    """Leave in `out` a bundle to give away: the best of several measured runs, with 16-bit weights.

    The best has the least selection loss of those trained on the same data as the first; the
    scores of all go into its card. A bundle that was published before counts as a run, with all
    the scores of its card. dataset: on its selection part the rounded weights are calibrated. Returns
    `out`. Raises `DataError` where a run is not complete, not measured or of another kind.
    """
    cards = {run: bundle.read_card(run) for run in runs}
    first = cards[runs[0]]
    for run, card in cards.items():
        if (card.network, card.classes) != (first.network, first.classes):
            kinds = [f"{one.network} of {', '.join(one.classes)}" for one in (card, first)]
            raise DataError(f"{run}: is a {kinds[0]}, {runs[0]} a {kinds[1]}. Publish one kind at a time.")
        if card.training.interrupted:
            raise DataError(f"{run}: is not complete. Finish it with `sublens train DATASET --out {run} --resume`.")
    scores = {run: card.scores or (_published(run, card),) for run, card in cards.items()}
    rivals = [run for run, card in cards.items() if card.data.hash == first.data.hash]
    best = min(rivals, key=lambda run: cards[run].training.selection_loss)
    with files.whole_folder(out, force=force) as folder:
        card = bundle.read_card(best)
        model, head = weights.load(best, card)
        anew = "weights_sha256", "calibration", "graph"
        told = {name: getattr(card, name) for name in Card.model_fields if name not in anew}
        told["scores"] = sum((scores[run] for run in sorted(runs, key=lambda run: run != best)), ())
        log = (best / LOG).read_text(encoding="utf-8").splitlines()
        weights.save(folder, model, head, torch.float16)
        bundle.write_card(folder, **told)
        rounded, part = Predictor.load(folder, "torch", device()), dataset.selection
        told["graph"] = onnx_export.add_graph(folder, bundle.read_card(folder), part, bar)
        told["calibration"] = bundle.save_calibration(
            folder, predict_dataset.calibrate(rounded, dataset.train, part, bar), len(part)
        )
        if card.rounding is None:  # else it is rounded and thinned already
            log = list(_thinned(log))
            told["rounding"] = _rounding(best, rounded, part, bar)
        bundle.write_card(folder, **told)
        (folder / LOG).write_text("\n".join(log) + "\n", encoding="utf-8")
    return out


def _rounding(run: Path, rounded: Predictor, part: Part, bar: Bar) -> float:
    """The most that rounding its weights changes any probability of this part, uncalibrated."""
    with bar(f"comparing with 16 bits: {run.name}", 2 * len(part)) as advance:
        count = Count(advance)
        whole = replace(Predictor.load(run, "torch", device()), calibration=None)
        before, after = (
            predict_dataset.predict_all(predictor, part, count.add).probs for predictor in (whole, rounded)
        )
    return float(np.abs(before - after).max())


def _published(run: Path, card: Card) -> CardScores:
    try:
        scores = json.loads((run / SCORES).read_bytes())
        if scores["weights_sha256"] != card.weights_sha256:
            raise ValueError("other weights were measured")
        return CardScores(
            track=card.track,
            seed=card.settings.train.seed,
            trained_on=card.data.hash,
            tested_on=scores["data"]["hash"],
            images=card.training.images,
            selection_loss=card.training.selection_loss,
            n=scores["n"],
            auc=scores["auc_macro"]["value"],
            auc_low=scores["auc_macro"]["low"],
            auc_high=scores["auc_macro"]["high"],
            accuracy=scores["accuracy"]["value"],
            loss=scores["loss"]["value"],
        )
    except (OSError, ValueError, KeyError) as err:
        raise DataError(
            f"{run}: is not measured with the weights it has. Run `sublens evaluate {run} DATASET --force`."
        ) from err


def _thinned(lines: Sequence[str]) -> Iterator[str]:
    """A log with a row for each `THINNED` steps, which holds their mean losses, and every epoch."""
    steps: list[dict[str, Any]] = []
    for entry in map(json.loads, lines):
        if entry["kind"] == "step":
            steps.append(entry)
        if steps and (len(steps) == THINNED or entry["kind"] == "epoch"):
            yield _mean(steps)
            steps = []
        if entry["kind"] == "epoch":
            yield json.dumps(entry)
    if steps:
        yield _mean(steps)


def _mean(steps: Sequence[dict[str, Any]]) -> str:
    names = [name for name in ("loss", "truth_loss", "hint_loss") if steps[0].get(name) is not None]
    return json.dumps({**steps[-1], **{name: float(np.mean([step[name] for step in steps])) for name in names}})
