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
from sublens.evaluation.evaluate import read_scores, refuse_partial_scores
from sublens.inference import detection_trials, onnx_export, predict_dataset
from sublens.inference.predictor import Predictor
from sublens.models import bundle, weights
from sublens.models.bundle import Card, CardLog, CardScores
from sublens.models.networks import device
from sublens.progress import Bar, Count, silent
from sublens.storage import files
from sublens.training.recorder import LOG, read_log

THINNED = 100
"""Steps that share a row in the log of a published run."""
LOSSES = ("loss", "truth_loss", "distill_loss", "hint_loss", "macro_loss", "contaminant_loss")
"""Losses of a step in a log; `hint_loss` is the former name of `distill_loss`."""


def publish(runs: Sequence[Path], dataset: Dataset, out: Path, *, force: bool = False, bar: Bar = silent) -> Path:
    """Leave in `out` a bundle to give away: the best of several measured runs, with 16-bit weights.

    The best has the least selection loss of those trained on the same data as the first; the
    scores of all go into its card. A bundle that was published before counts as a run, with all
    the scores of its card. dataset: on its selection part the rounded weights are calibrated. Returns
    `out`. Raises `DataError` where a run is not complete, not measured or of another kind.
    """
    files.refuse_overlap(out, *runs)
    cards = {run: bundle.read_card(run) for run in runs}
    first = cards[runs[0]]
    for run, card in cards.items():
        _check_alike(run, card, runs[0], first)
    scores = {run: card.scores or (_card_scores(run, card),) for run, card in cards.items()}
    rivals = [run for run, card in cards.items() if card.data.hash == first.data.hash]
    best = min(rivals, key=lambda run: cards[run].training.selection_loss)
    ordered = sorted(runs, key=lambda run: run != best)
    with files.whole_folder(out, kind=files.Kind.BUNDLE, force=force) as folder:
        _write_bundle(folder, best, sum((scores[run] for run in ordered), ()), dataset, bar)
    return out


def _check_alike(run: Path, card: Card, first: Path, first_card: Card) -> None:
    """Raise `DataError` where a run is of another kind than the first, or not complete."""
    if (card.network, card.classes) != (first_card.network, first_card.classes):
        kind, first_kind = (f"a {each.network} of {', '.join(each.classes)}" for each in (card, first_card))
        raise DataError(f"is {kind}", need=f"{first_kind}, as {first} is", next="Publish one kind at a time.", path=run)
    if card.training.interrupted:
        raise DataError(
            "is not complete",
            need="a training that has reached its end",
            next=f"Finish it with `sublens train DATASET --out {run} --resume`.",
            path=run,
        )


def _write_bundle(folder: Path, best: Path, scores: tuple[CardScores, ...], dataset: Dataset, bar: Bar) -> None:
    """Write the best run with 16-bit weights, a graph, a calibration of its own and a thinned log into `folder`."""
    card, part = bundle.read_card(best), dataset.selection
    fields: dict[str, Any] = dict(card) | {"calibration": None, "graph": None, "scores": scores}
    log = read_log(best, card)
    fields["weights_sha256"] = weights.save(folder, *weights.load(best, card), torch.float16)
    bundle.save_card(folder, Card(**fields))
    rounded = Predictor.load(folder, "torch", device())
    fields["graph"] = onnx_export.add_graph(folder, bundle.read_card(folder), part, bar)
    knows = card.knows_contaminants
    calibration = predict_dataset.calibrate(rounded, dataset.train, part, bar, knows_contaminants=knows)
    fields["calibration"] = bundle.save_calibration(folder, calibration, len(part))
    fields["detection"] = detection_trials.fit_where_known(replace(rounded, calibration=calibration), dataset, bar)
    if card.rounding is None:  # else it is rounded and thinned already
        log = "".join(f"{line}\n" for line in _thinned(log.splitlines())).encode()
        fields["rounding"] = _rounding(best, rounded, part, bar)
    (folder / LOG).write_bytes(log)
    bundle.save_card(folder, Card(**fields | {"log": CardLog.of(log)}))


def _rounding(run: Path, rounded: Predictor, part: Part, bar: Bar) -> float:
    """The most that rounding its weights changes any probability of this part, uncalibrated."""
    with bar(f"comparing with 16 bits: {run.name}", 2 * len(part)) as advance:
        count = Count(advance)
        whole = replace(Predictor.load(run, "torch", device()), calibration=None)
        before, after = (
            predict_dataset.predict_all(predictor, part, count.add).probs for predictor in (whole, rounded)
        )
    return float(np.abs(before - after).max())


def _card_scores(run: Path, card: Card) -> CardScores:
    """The scores of a measured run as a card holds them; `DataError` as `read_scores` raises it."""
    try:
        scores = read_scores(run)
        refuse_partial_scores(scores, run)
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
    except (ValueError, KeyError, TypeError) as err:
        raise DataError(
            "has scores of another version of sublens",
            need="those that this version writes",
            next=f"Run `sublens evaluate {run} DATASET --force`.",
            path=run,
        ) from err


def _thinned(lines: Sequence[bytes]) -> Iterator[str]:
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
    """The last of some steps, with the mean of each loss over all."""
    names = [name for name in LOSSES if steps[0].get(name) is not None]
    return json.dumps({**steps[-1], **{name: float(np.mean([step[name] for step in steps])) for name in names}})
