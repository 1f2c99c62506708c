"""Measured runs -> one HTML page that opens offline, and its short form in Markdown.

The same runs give the same bytes: no date, no random ids, no settings of the user's matplotlib.
"""

import base64
import html
import io
import json
import math
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from sublens.config import Frozen, ModelConfig, RunConfig
from sublens.errors import BundleError, DataError
from sublens.evaluation import evaluate
from sublens.evaluation.evaluate import EXAMPLES, MISTAKES
from sublens.inference.predictor import Predictions
from sublens.metrics import RESAMPLES
from sublens.models import bundle, networks
from sublens.models.bundle import Card
from sublens.storage import files
from sublens.training.recorder import GALLERY, LOG, PREDICTIONS, SCORES

HTML, MARKDOWN = "report.html", "report.md"
FULL_RUN = 600_000
"""Training images that the published networks saw: 20 passes over 30,000."""
CHANCE = 0.5
"""ROC AUC of a guess."""
REFERENCE_CLASSES = ("no", "sphere", "vort")
"""Of Common Test I, which the published networks were measured on."""


@dataclass(frozen=True)
class Reference:
    """A published network of ML4SCI DeepLense Common Test I."""

    name: str
    loss: float
    accuracy: float
    auc: float


REFERENCES = (
    Reference("EfficientNet-B5", 0.1710, 0.9588, 0.9931),
    Reference("ResNet18", 0.2997, 0.9363, 0.9871),
    Reference("MobileNetV3-small", 0.3270, 0.8867, 0.9741),
)


def write(runs: Sequence[Path], out: Path, *, force: bool = False) -> Path:
    """Write report.html and report.md on these runs into the folder `out`; returns the path of the page.

    Raises `DataError` where a run cannot be read, where the runs cannot be compared, or where
    `out` exists and `force` is false.
    """
    for run in runs:
        files.refuse_overlap(out, run)
    files.refuse_existing(out, force=force)
    told = _content(_comparable(runs))
    pages = {name: _template(name).render(told) for name in (HTML, MARKDOWN)}
    with files.whole_folder(out, force=force) as folder:
        for name, text in pages.items():
            files.write_bytes(folder / name, text.encode())
    return out / HTML


class Interval(Frozen):
    """A score and its 95 % interval."""

    value: float
    low: float
    high: float


class Latency(Frozen):
    """Milliseconds a batch of so many images."""

    batch_1: float
    batch_32: float


class Measured(Frozen):
    """The data set whose test part was used."""

    name: str
    hash: str


class Scores(Frozen, extra="ignore"):
    """What `scores.json` says of a run."""

    n: int
    loss: Interval
    accuracy: Interval
    auc_macro: Interval
    auc: dict[str, Interval]
    confusion: tuple[tuple[int, ...], ...]
    latency_ms: Latency
    parameters: int
    threads: int
    device: str
    processor: str
    data: Measured


@dataclass(frozen=True)
class Log:
    """How a training went; images are those seen so far."""

    step_images: NDArray[np.float64]
    step_losses: NDArray[np.float64]
    epoch_images: NDArray[np.float64]
    epoch_minutes: NDArray[np.float64]
    epoch_aucs: NDArray[np.float64]
    """Macro AUC on the selection part."""


@dataclass(frozen=True)
class Gallery:
    """Some test images, as counts above their minimum [n, h, w]."""

    counts: NDArray[np.uint16]
    ids: NDArray[np.str_]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """A measured run, read back."""

    name: str
    """Shown to the reader; no two in a report are the same."""
    folder: Path
    card: Card
    scores: Scores
    predictions: Predictions
    log: Log
    gallery: Gallery

    @property
    def images(self) -> int:
        """Training images seen."""
        return self.card.training.images

    @property
    def seconds(self) -> float:
        """Time of training."""
        return self.card.training.seconds

    @property
    def is_at_chance(self) -> bool:
        """Whether the network may be no better than a guess."""
        return self.scores.auc_macro.low <= CHANCE


def _read(folder: Path) -> Run:
    try:
        card = bundle.read_card(folder)
    except BundleError as err:
        raise DataError(str(err)) from err
    if not (folder / SCORES).is_file():
        raise DataError(
            f"{folder}: is trained but not measured (no {SCORES}). Measure it with `sublens evaluate {folder} DATASET`."
        )
    scores = _read_scores(folder / SCORES)
    predictions = evaluate.read_predictions(folder / PREDICTIONS)
    n, c = scores.n, len(card.classes)
    has_classes = tuple(scores.auc) == predictions.classes == card.classes
    has_shapes = predictions.probs.shape == (n, c) and np.shape(scores.confusion) == (c, c)
    if not has_classes or not has_shapes or not np.isfinite(predictions.probs).all():
        raise DataError(f"{folder}: {SCORES} and {PREDICTIONS} do not fit its network. {_measure_again(folder)}")
    log, gallery = _read_log(folder / LOG), _read_gallery(folder / GALLERY)
    return Run(card.network, folder, card, scores, predictions, log, gallery)


def _measure_again(folder: Path) -> str:
    return f"Measure the run again with `sublens evaluate {folder} DATASET`."


def _read_scores(path: Path) -> Scores:
    try:
        return Scores.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as err:
        raise DataError(f"{path}: is damaged, or of another version. {_measure_again(path.parent)}") from err


def _read_log(path: Path) -> Log:
    """The log at `path`; a last line that was cut while being written is left out."""
    try:
        lines = path.read_bytes().splitlines()
        rows = list(_rows(lines))
        steps = [(row["images"], row["loss"]) for row in rows if row["kind"] == "step"]
        epochs = [(row["images"], row["seconds"] / 60, row["selection_auc"]) for row in rows if row["kind"] == "epoch"]
        return Log(*_columns(steps, 2), *_columns(epochs, 3))
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DataError(f"{path}: is missing or damaged. Copy the whole run again, or train again.") from err


def _columns(rows: Sequence[Sequence[float]], n: int) -> NDArray[np.float64]:
    return np.array(rows, dtype=np.float64).reshape(-1, n).T


def _rows(lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except ValueError:
            if number < len(lines):
                raise


def _read_gallery(path: Path) -> Gallery:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            gallery = Gallery(archive["counts"], archive["ids"], archive["labels"])
        if not gallery.counts.ndim == 3 or not len(gallery.counts) == len(gallery.ids) == len(gallery.labels):
            raise ValueError("not a stack of images with an id and a label each")
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as err:
        raise DataError(f"{path}: is missing or damaged. {_measure_again(path.parent)}") from err
    return gallery


def _comparable(folders: Sequence[Path]) -> list[Run]:
    """The runs, the best first; `DataError` where they were not measured alike."""
    if not folders:
        raise DataError("There is no run to report on. Name one or more folders that `sublens evaluate` has measured.")
    runs = [_read(folder) for folder in folders]
    first = runs[0]
    for run in runs[1:]:
        if run.card.classes != first.card.classes:
            raise DataError(
                f"{run.folder}: tells apart {', '.join(run.card.classes)}, "
                f"but {first.folder} {', '.join(first.card.classes)}. Runs need the same classes; compare these apart."
            )
        if not _has_same_test(run, first):
            raise DataError(
                f"{run.folder}: was not measured on the same test images of the same data set as {first.folder}. "
                "Train and measure both on one data set with one split.seed, or compare them apart."
            )
    return sorted(_named(runs), key=lambda run: (-np.nan_to_num(run.scores.auc_macro.value), run.name))


def _has_same_test(run: Run, other: Run) -> bool:
    return (
        run.scores.data == other.scores.data
        and np.array_equal(run.predictions.ids, other.predictions.ids)
        and np.array_equal(run.predictions.labels, other.predictions.labels)
    )


def _named(runs: Sequence[Run]) -> list[Run]:
    """The runs under their network's name, or their folder's where networks repeat."""
    networks = Counter(run.card.network for run in runs)
    named = [run if networks[run.name] == 1 else replace(run, name=run.folder.resolve().name) for run in runs]
    name, times = Counter(run.name for run in named).most_common(1)[0]
    if times > 1:
        raise DataError(
            f"{times} runs would be called {name}, and a report needs to tell them apart. "
            "Name each run once, or rename a folder."
        )
    return named


@dataclass(frozen=True)
class Budget:
    """What a run that was trained by the clock had, and what a full run would take."""

    name: str
    seconds: float
    images: int
    full_seconds: float | None
    """None where nothing was seen."""


@dataclass(frozen=True)
class Photo:
    """A test image ready for the page."""

    uri: str
    id: str
    label: str
    predicted: str = ""
    prob: float = 0.0


def _content(runs: Sequence[Run]) -> dict[str, Any]:
    """All that the templates tell; the runs come best first."""
    best, data = runs[0], runs[0].scores.data
    classes = best.card.classes
    return {
        "title": f"{data.name}: {len(runs)} networks compared" if len(runs) > 1 else f"{data.name}: {best.name}",
        "outcome": _outcome(runs),
        "runs": runs,
        "classes": classes,
        "resamples": RESAMPLES,
        "references": REFERENCES if classes == REFERENCE_CLASSES else (),
        "rivalry": _rivalry(runs),
        "at_chance": [run.name for run in runs if run.is_at_chance],
        "budgets": [_budget(run) for run in runs if run.card.settings.train.minutes],
        "full_run": FULL_RUN,
        "roc": [
            _svg(f"roc-{label}", _roc_words(runs, label), partial(_roc, runs, label)) for label in range(len(classes))
        ],
        "learning": [
            _svg("loss", "Training loss against images seen.", partial(_loss_curves, runs)),
            _svg("seen", "AUC on the selection images against images seen.", partial(_auc_curves, runs, False)),
            _svg("clock", "AUC on the selection images against minutes.", partial(_auc_curves, runs, True)),
        ],
        "costs": [_svg(cost.key, _cost_words(runs, cost), partial(_cost, runs, cost)) for cost in COSTS],
        "examples": _examples(best),
        "mistakes": _mistakes(best),
        "facts": _facts(runs),
        "settings": [(run.name, _settings(run)) for run in runs],
    }


def _outcome(runs: Sequence[Run]) -> str:
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
    rivals = [run.name for run in others if run.scores.auc_macro.high >= best.scores.auc_macro.low]
    names = " or ".join(rivals) if len(rivals) < 3 else f"{len(rivals)} of the others"
    return f"The intervals overlap: these images may not tell {best.name} from {names}." if rivals else ""


def _budget(run: Run) -> Budget:
    minutes = run.card.settings.train.minutes
    assert minutes is not None
    full = FULL_RUN / run.images * run.seconds if run.images and run.seconds else None
    return Budget(run.name, 60 * minutes, run.images, full)


def _facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What was the same for all runs, or every value where it was not."""
    cards, measured = [run.card for run in runs], runs[0].scores.data
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
        ("Latency on", _each(f"{s.processor}, {s.threads} threads, {s.device}" for s in (run.scores for run in runs))),
    ]


def _each(values: Iterable[object]) -> str:
    """The different values in words; one where all agree."""
    return " / ".join(dict.fromkeys(map(str, values)))


def _settings(run: Run) -> str:
    """The settings that are not the network's defaults, in words, and whether training was cut short."""
    card = run.card
    usual = networks.resolved(RunConfig(model=ModelConfig(name=card.network)), card.image_shape).model_dump()
    changed = [
        f"{section}.{key} = {value}"
        for section, values in card.settings.model_dump().items()
        for key, value in (values or {}).items()
        if value != usual[section][key] and key != "seed"
    ]
    stopped = ["stopped by hand before its end"] if card.training.interrupted else []
    return ", ".join([*changed, *stopped]) or "all defaults"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{_digits(seconds / length)} {unit}"
    return f"{seconds:.0f} s"


def _digits(value: float) -> str:
    """At least three digits that matter, never an exponent: 0.0341, 1.20, 35.2, 1,234."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def _short(n: float) -> str:
    """A count in a few characters: 8,500, 115 k, 11.2 M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if n >= max(size, 1e4):
            return f"{_digits(n / size)} {unit}"
    return f"{n:,.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _shares(row: Sequence[int]) -> list[float]:
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
            _digits(run.scores.latency_ms.batch_1),
            _digits(run.scores.latency_ms.batch_32),
            _short(run.images),
            _duration(run.seconds),
        )
        for run in runs
    ]
    return _table([("Network", "Weights", "ms, 1 image", "32 images", "Trained on", "for"), *rows])


def _reference_table(references: Sequence[Reference]) -> str:
    rows = [(one.name, f"{one.loss:.4f}", _percent(one.accuracy), f"{one.auc:.4f}") for one in references]
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
        digits=_digits,
        short=_short,
        percent=_percent,
        shares=_shares,
        escaped=_escaped,
        cut=_cut,
        score_table=_score_table,
        cost_table=_cost_table,
        reference_table=_reference_table,
        confusion_table=_confusion_table,
    )
    return jinja.get_template(f"{name}.j2")


def _examples(run: Run) -> list[tuple[str, list[Photo]]]:
    """The first test images of each class."""
    labels = run.gallery.labels
    shown = [np.flatnonzero(labels == label)[:EXAMPLES] for label in range(len(run.card.classes))]
    return [
        (name, [Photo(_uri(run.gallery.counts[i]), str(run.gallery.ids[i]), name) for i in rows])
        for name, rows in zip(run.card.classes, shown, strict=True)
    ]


def _mistakes(run: Run) -> list[Photo]:
    """What the run was most sure of and got wrong, the surest first."""
    table, classes = run.predictions, run.card.classes
    rows = {name: row for row, name in enumerate(table.ids)}
    shown = [
        (rows[name], image) for name, image in zip(run.gallery.ids, run.gallery.counts, strict=True) if name in rows
    ]
    wrong = [(row, image) for row, image in shown if table.probs[row].argmax() != table.labels[row]]
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


WIDTH = 3.5
"""Inches; as wide as a phone, so that the letters keep their size there."""
LINE = 0.17
"""Height of a line of the key, inches."""
NAME_LINE = 0.19
"""Height of a name beside a point, inches."""
NAME = 30
"""Characters of a name that fit beside a figure."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Okabe & Ito's for colour-blind readers, with grey for their yellow, which is too faint for a line."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1.2)), (0, (9, 2)))
LOOK = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.labelspacing": 0.3,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def _svg(name: str, words: str, draw: Callable[[], Figure]) -> Markup:
    """The figure as part of a page; words: what it shows, for those who do not see it."""
    file = io.StringIO()
    with style.context([LOOK, {"svg.hashsalt": name}], after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's own fonts draw the text
        draw().savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", text)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{html.escape(words)}"', 1))


def _strokes() -> Iterator[dict[str, Any]]:
    """Colour and dashes of the first run, the second, ...; the two repeat together after 40."""
    return ({"color": colour, "linestyle": dashes} for colour, dashes in zip(cycle(COLOURS), cycle(DASHES)))


def _cut(name: str, length: int = NAME) -> str:
    """The name without its middle where it is too long."""
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def _key(figure: Figure, axes: Axes, title: str, labels: Sequence[str]) -> None:
    """Name the first lines of the axes below the figure."""
    key = figure.legend(axes.lines[: len(labels)], ["x"] * len(labels), loc="outside lower left", title=title)
    key.set_alignment("left")
    for text, label in zip(key.get_texts(), labels, strict=True):
        text.set_text(label)  # set late, as a legend leaves out what begins with _


def _roc_words(runs: Sequence[Run], label: int) -> str:
    name = runs[0].card.classes[label]
    aucs = ", ".join(f"{run.name} {run.scores.auc[name].value:.4f}" for run in runs)
    return f"ROC curves of class {name} against all others. AUC: {aucs}."


def _roc(runs: Sequence[Run], label: int) -> Figure:
    from sklearn.metrics import roc_curve

    name = runs[0].card.classes[label]
    figure = Figure(figsize=(WIDTH, 6.3 + LINE * len(runs)), layout="constrained")
    whole, corner = figure.subplots(2, 1)
    for run, stroke in zip(runs, _strokes(), strict=False):
        table = run.predictions
        false, true, _ = roc_curve(table.labels == label, table.probs[:, label], drop_intermediate=False)
        whole.plot(false, true, **stroke)
        corner.plot(np.maximum(false, 1e-3), true, **stroke)
    for axes in (whole, corner):
        chance = np.geomspace(1e-3, 1, 100)
        axes.plot(chance, chance, color="#999999", linewidth=0.8)
        axes.set(ylim=(0, 1.01), xlabel="false-positive rate", ylabel="true-positive rate")
    whole.set(xlim=(0, 1), title=f"{_cut(name, 22)} against the rest")
    corner.set(xlim=(1e-3, 1), title="the same, few false positives")
    _log_scale(corner)
    _key(figure, whole, "AUC", [f"{run.scores.auc[name].value:.4f}  {_cut(run.name)}" for run in runs])
    return figure


Column = Callable[[Log], NDArray[np.float64]]


def _curves(runs: Sequence[Run], title: str, x: Column, y: Column, marker: str = "") -> tuple[Figure, Axes]:
    """Figure of y against x, a line a run; the x axis is a log scale where runs are of very different lengths."""
    figure = Figure(figsize=(WIDTH, 2.9 + LINE * len(runs)), layout="constrained")
    axes = figure.subplots()
    for run, stroke in zip(runs, _strokes(), strict=False):
        axes.plot(x(run.log), y(run.log), marker=marker, markersize=3, **stroke)
    ends = [x(run.log)[-1] for run in runs if len(x(run.log))]
    if ends and max(ends) > 4 * min(ends) > 0:
        _log_scale(axes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.set_title(title)
    _key(figure, axes, "", [_cut(run.name) for run in runs])
    return figure, axes


def _log_scale(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    subs = (1, 2, 5) if high < 12 * low else (1, 3) if high < 200 * low else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def _tick(value: float) -> str:
    """A round number in a few characters: 0.1, 30, 30 k, 3 M."""
    for unit, size in ((" M", 1e6), (" k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _loss_curves(runs: Sequence[Run]) -> Figure:
    figure, axes = _curves(
        runs, "Training loss", lambda log: _smooth(log.step_images), lambda log: _smooth(log.step_losses)
    )
    _chance_line(axes, math.log(len(runs[0].card.classes)))
    axes.set(xlabel="training images seen", ylabel="cross-entropy, nats", ylim=(0, None))
    return figure


def _smooth(values: NDArray[np.float64], n: int = 100) -> NDArray[np.float64]:
    """Means of at most `n` stretches of equal length."""
    return np.array([part.mean() for part in np.array_split(values, max(1, min(n, len(values)))) if len(part)])


def _auc_curves(runs: Sequence[Run], by_clock: bool) -> Figure:
    what, label = ("the clock", "minutes of training") if by_clock else ("images seen", "training images seen")
    figure, axes = _curves(
        runs,
        f"Selection AUC by {what}",
        lambda log: log.epoch_minutes if by_clock else log.epoch_images,
        lambda log: log.epoch_aucs,
        marker="o",
    )
    _chance_line(axes, CHANCE)
    axes.set(xlabel=label, ylabel="macro AUC", ylim=(None, 1.01))
    return figure


def _chance_line(axes: Axes, height: float) -> None:
    axes.axhline(height, color="#777777", linewidth=0.9, zorder=1)
    axes.text(0.99, height, "chance", transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=8)


@dataclass(frozen=True)
class Cost:
    """Something that accuracy is bought with."""

    key: str
    title: str
    unit: str
    of: Callable[[Scores], float]


COSTS = (
    Cost("one", "One image at a time", "ms an image", lambda scores: scores.latency_ms.batch_1),
    Cost("many", "32 images at a time", "ms an image", lambda scores: scores.latency_ms.batch_32 / 32),
    Cost("size", "Size of the network", "parameters", lambda scores: float(scores.parameters)),
)


def _cost_words(runs: Sequence[Run], cost: Cost) -> str:
    points = ", ".join(f"{run.name} {_digits(cost.of(run.scores))}" for run in runs)
    return f"Accuracy against {cost.unit}. {cost.title}: {points}."


def _cost(runs: Sequence[Run], cost: Cost) -> Figure:
    height = max(2.9, 0.9 + NAME_LINE * len(runs))
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    costs = [cost.of(run.scores) for run in runs]
    for run, x, stroke in zip(runs, costs, _strokes(), strict=False):
        accuracy = run.scores.accuracy
        axes.vlines(x, 100 * accuracy.low, 100 * accuracy.high, color=stroke["color"], linewidth=1.2)
        axes.plot(x, 100 * accuracy.value, "o", color=stroke["color"], markersize=5)
    axes.set(xlim=(min(costs) / 2, max(costs) * 2), xlabel=cost.unit, ylabel="accuracy, %", title=cost.title)
    _log_scale(axes)
    _name_points(axes, runs, costs, NAME_LINE / (height - 0.8))
    return figure


def _name_points(axes: Axes, runs: Sequence[Run], costs: Sequence[float], gap: float) -> None:
    """Name each point to the right of the axes; gap: height of a name over that of the axes."""
    low, high = axes.get_ylim()
    heights = _apart([(100 * run.scores.accuracy.value - low) / (high - low) for run in runs], gap)
    for run, x, height, stroke in zip(runs, costs, heights, _strokes(), strict=False):
        axes.annotate(
            _cut(run.name, 18),
            (x, 100 * run.scores.accuracy.value),
            (1.06, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": stroke["color"], "linewidth": 0.8, "relpos": (0, 0.5)},
        )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """The heights, moved as little as needed to lie `gap` apart within 0 to 1."""
    moved = list(heights)
    order = sorted(range(len(moved)), key=moved.__getitem__)
    for below, above in pairwise(order):
        moved[above] = max(moved[above], moved[below] + gap)
    limit = 1.0
    for index in reversed(order):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved
