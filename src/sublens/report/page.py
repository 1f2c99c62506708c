"""Measured runs -> one HTML page that opens offline, and its short form in Markdown.

The same runs give the same bytes: no date, no random ids, no settings of the user's matplotlib.
"""

import base64
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sublens import metrics
from sublens.config import ModelConfig, RunConfig, TrainConfig
from sublens.evaluation import calibration_scores
from sublens.evaluation.evaluate import EXAMPLES, MISTAKES
from sublens.inference.engines import EngineName
from sublens.models import networks
from sublens.report.figures import (
    COSTS,
    auc_curves,
    cost_description,
    cost_figure,
    cut,
    digits,
    loss_curves,
    roc_description,
    roc_figure,
    svg,
)
from sublens.report.runs import Run, read_comparable
from sublens.storage import files

HTML, MARKDOWN = "report.html", "report.md"
"""Names of the page and of its short form."""
ENGINES: dict[EngineName, str] = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "torch"}
"""Names of the engines in the report."""
FULL_RUN = 600_000
"""Training images of the published networks: 20 passes over 30,000."""
REFERENCE_CLASSES = ("no", "sphere", "vort")
"""Classes of Common Test I, which the published networks were measured on."""


@dataclass(frozen=True)
class Reference:
    """A published network of ML4SCI DeepLense Common Test I."""

    name: str
    """Name of the architecture."""
    loss: float
    """Cross-entropy, nats."""
    accuracy: float
    """Share of images whose most probable class is the true one."""
    auc: float
    """Macro one-vs-rest area under the ROC curve."""


REFERENCES = (
    Reference("EfficientNet-B5", 0.1710, 0.9588, 0.9931),
    Reference("ResNet18", 0.2997, 0.9363, 0.9871),
    Reference("MobileNetV3-small", 0.3270, 0.8867, 0.9741),
)
"""The published networks, with their scores."""


def write(runs: Sequence[Path], out: Path, *, force: bool = False) -> Path:
    """Write report.html and report.md on these runs into the folder `out`; returns the path of the page.

    Raises `DataError` where a run cannot be read, where the runs cannot be compared, or where
    `out` exists and `force` is false.
    """
    files.refuse_overlap(out, *runs)
    files.refuse_existing(out, kind=files.Kind.REPORT, force=force)
    content = _content(read_comparable(runs))
    pages = {name: _template(name).render(content) for name in (HTML, MARKDOWN)}
    with files.whole_folder(out, kind=files.Kind.REPORT, force=force) as folder:
        for name, text in pages.items():
            files.write_bytes(folder / name, text.encode())
    return out / HTML


@dataclass(frozen=True)
class Budget:
    """The time and images of a run that was trained by the clock, and the time of a full run."""

    name: str
    """Name of the run."""
    seconds: float
    """Time that it was given."""
    images: int
    """Training images used, repeats included."""
    full_seconds: float | None
    """Time that `FULL_RUN` images would take at the same rate; None where no image was used."""


@dataclass(frozen=True)
class Photo:
    """A test image ready for the page."""

    uri: str
    """The picture as a data URI."""
    id: str
    """Identifier of the image."""
    label: str
    """The true class."""
    predicted: str = ""
    """The most probable class, where it is another one."""
    prob: float = 0.0
    """Probability of that class."""


def _content(runs: Sequence[Run]) -> dict[str, Any]:
    """Variables of the templates; the runs come best first."""
    best, data = runs[0], runs[0].scores.data
    classes = best.card.classes
    return {
        "title": f"{data.name}: {len(runs)} networks compared" if len(runs) > 1 else f"{data.name}: {best.name}",
        "outcome": _outcome(runs),
        "runs": runs,
        "classes": classes,
        "references": REFERENCES if classes == REFERENCE_CLASSES else (),
        "rivalry": _rivalry(runs),
        "at_chance": [run.name for run in runs if run.is_at_chance],
        "budgets": [_budget(run) for run in runs if run.card.settings.train.minutes],
        "full_run": FULL_RUN,
        "roc": [
            svg(f"roc-{label}", roc_description(runs, label), partial(roc_figure, runs, label))
            for label in range(len(classes))
        ],
        "learning": [
            svg("loss", "Training loss against training images.", partial(loss_curves, runs)),
            svg("images", "AUC on the selection images against training images.", partial(auc_curves, runs, False)),
            svg("clock", "AUC on the selection images against minutes.", partial(auc_curves, runs, True)),
        ],
        "costs": [svg(cost.key, cost_description(runs, cost), partial(cost_figure, runs, cost)) for cost in COSTS],
        "calibrations": [
            (run.name, lines) for run in runs if (lines := list(calibration_scores.sentences(run.scores.calibration)))
        ],
        "examples": _examples(best),
        "mistakes": _mistakes(best),
        "facts": _facts(runs),
        "settings": [(run.name, _settings(run)) for run in runs],
    }


def _outcome(runs: Sequence[Run]) -> str:
    """The result in one sentence."""
    best = runs[0]
    auc = best.scores.auc_macro
    who = f"Of {len(runs)} networks, {best.name} does best: its" if len(runs) > 1 else f"{best.name}: the"
    return (
        f"{who} macro one-vs-rest ROC AUC is {auc.value:.4f} (95 % interval {auc.low:.4f} to {auc.high:.4f}) "
        f"on {best.scores.n:,} test images of {best.scores.data.name}."
    )


def _rivalry(runs: Sequence[Run]) -> str:
    """A caution where the best may not be the best; empty where it is clear."""
    best, *others = runs
    rivals = [run.name for run in others if not _is_better(best, run)]
    names = " or ".join(rivals) if len(rivals) < 3 else f"{len(rivals)} of the others"
    return f"On the same images the AUC of {best.name} is not clearly greater than that of {names}." if rivals else ""


def _is_better(best: Run, other: Run) -> bool:
    """Whether the AUC on the same images is greater by more than the 95 % interval of the difference."""
    before, after = other.predictions.probs, best.predictions.probs
    return metrics.auc_change(before, after, best.predictions.labels)["low"] > 0


def _budget(run: Run) -> Budget:
    minutes = run.card.settings.train.minutes
    assert minutes is not None
    full = FULL_RUN / run.images * run.seconds if run.images and run.seconds else None
    return Budget(run.name, 60 * minutes, run.images, full)


def _facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Facts on all runs: one value where they agree, else each."""
    cards, scores, measured = [run.card for run in runs], [run.scores for run in runs], runs[0].scores.data
    versions = {name: _each(card.versions.get(name, "unknown") for card in cards) for name in cards[0].versions}
    machines = _each(f"{m.processor}, {m.threads} threads, {m.device}" for m in (card.machine for card in cards))
    return [
        ("Trained on the data", _each(f"{card.data.name}, sha256 {card.data.hash}" for card in cards)),
        ("Measured on the data", f"{measured.name}, sha256 {measured.hash}"),
        ("Classes", ", ".join(cards[0].classes)),
        ("Training images", _each(f"{card.data.train:,}" for card in cards)),
        ("Selection images", _each(f"{card.data.selection:,}" for card in cards) + "; they chose the best epoch"),
        ("Test images", f"{runs[0].scores.n:,}; used for these scores only"),
        ("Training seed", _each(card.settings.train.seed for card in cards)),
        ("Split seed", _each(card.settings.split.seed for card in cards)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Trained on", machines),
        ("Latency on", _each(f"{s.processor}, {s.threads} threads, {s.device}" for s in scores)),
        ("Latency with", _each(ENGINES[s.engine] for s in scores)),
    ]


def _each(values: Iterable[object]) -> str:
    """The distinct values, in order, in words."""
    return " / ".join(dict.fromkeys(map(str, values)))


def _settings(run: Run) -> str:
    """The settings that are not the network's defaults, in words, and whether training was cut short."""
    card = run.card
    own = RunConfig(model=ModelConfig(name=card.network), train=TrainConfig(teacher=None))
    defaults = networks.resolved(own, card.image_shape, networks.pixels_of(card.input)).model_dump()
    changed = [
        f"{section}.{key} = {value}"
        for section, values in card.settings.model_dump().items()
        for key, value in (values or {}).items()
        if value != defaults[section].get(key) and key != "seed"
    ]
    stopped = ["stopped by hand before its end"] if card.training.interrupted else []
    return ", ".join([*changed, *stopped]) or "all defaults"


def _duration(seconds: float) -> str:
    """A duration in the largest unit of which it is 1.5 or more: 52 s, 3.85 min, 2.50 h."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{digits(seconds / length)} {unit}"
    return f"{seconds:.0f} s"


def _short(n: float) -> str:
    """A count in a few characters: 8,500, 115 k, 11.2 M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if n >= max(size, 1e4):
            return f"{digits(n / size)} {unit}"
    return f"{n:,.0f}"


def _percent(share: float) -> str:
    """A share in per cent, two decimals."""
    return f"{100 * share:.2f} %"


def _shares(row: Sequence[int]) -> list[float]:
    """Counts over their sum."""
    return [count / max(1, sum(row)) for count in row]


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, also inside a table."""
    return re.sub(r"([\\|<`*\[\]])", r"\\\1", " ".join(text.split()))


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads well on a terminal; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))


def _score_table(runs: Sequence[Run]) -> str:
    rows = [
        (
            _escaped(run.name),
            f"{run.scores.loss.value:.4f}",
            _percent(run.scores.accuracy.value),
            f"{run.scores.auc_macro.value:.4f}",
            f"{run.scores.auc_macro.low:.4f}–{run.scores.auc_macro.high:.4f}",
        )
        for run in runs
    ]
    return _table([("Network", "Loss", "Accuracy", "AUC", "95 % interval"), *rows])


def _cost_table(runs: Sequence[Run]) -> str:
    rows = [
        (
            _escaped(run.name),
            _short(run.scores.parameters),
            ENGINES[run.scores.engine],
            digits(run.scores.latency_ms.batch_1),
            digits(run.scores.latency_ms.batch_32),
            _short(run.images),
            _duration(run.seconds),
        )
        for run in runs
    ]
    return _table([("Network", "Weights", "Engine", "1 image", "32 images", "Images", "Trained"), *rows])


def _reference_table(references: Sequence[Reference]) -> str:
    rows = [(item.name, f"{item.loss:.4f}", _percent(item.accuracy), f"{item.auc:.4f}") for item in references]
    return _table([("Network", "Loss", "Accuracy", "AUC"), *rows])


def _confusion_table(run: Run) -> str:
    names = [_escaped(name) for name in run.card.classes]
    rows = [(name, *map(str, row)) for name, row in zip(names, run.scores.confusion, strict=True)]
    return _table([("true", *names), *rows])


def _template(name: str) -> jinja2.Template:
    shared: dict[str, Any] = {
        "loader": jinja2.PackageLoader("sublens.report"),
        "undefined": jinja2.StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
        "keep_trailing_newline": True,
    }
    jinja = jinja2.Environment(autoescape=name == HTML, **shared)
    jinja.filters.update(
        duration=_duration,
        engine=ENGINES.__getitem__,
        digits=digits,
        short=_short,
        percent=_percent,
        shares=_shares,
        escaped=_escaped,
        cut=cut,
        score_table=_score_table,
        cost_table=_cost_table,
        reference_table=_reference_table,
        confusion_table=_confusion_table,
    )
    return jinja.get_template(f"{name}.j2")


def _examples(run: Run) -> list[tuple[str, list[Photo]]]:
    """The first test images of each class."""
    labels = run.gallery.labels
    rows_by_class = [np.flatnonzero(labels == label)[:EXAMPLES] for label in range(len(run.card.classes))]
    return [
        (name, [Photo(_uri(run.gallery.counts[i]), str(run.gallery.ids[i]), name) for i in rows])
        for name, rows in zip(run.card.classes, rows_by_class, strict=True)
    ]


def _mistakes(run: Run) -> list[Photo]:
    """The run's most confident mistakes, the surest first."""
    table, classes = run.predictions, run.card.classes
    rows = {name: row for row, name in enumerate(table.ids)}
    images = [
        (rows[name], image) for name, image in zip(run.gallery.ids, run.gallery.counts, strict=True) if name in rows
    ]
    wrong = [(row, image) for row, image in images if table.probs[row].argmax() != table.labels[row]]
    surest = sorted(wrong, key=lambda pair: -table.probs[pair[0]].max())[:MISTAKES]
    return [
        Photo(
            _uri(image),
            str(table.ids[row]),
            classes[table.labels[row]],
            classes[table.probs[row].argmax()],
            float(table.probs[row].max()),
        )
        for row, image in surest
    ]


def _uri(counts: NDArray[np.uint16]) -> str:
    """The image as a PNG, on a square-root scale that shows faint light."""
    grey = np.sqrt(counts / max(1, counts.max()))
    image = Image.fromarray(np.round(255 * grey).astype(np.uint8))
    colours = matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3]
    image.putpalette(colours.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
