"""Figures of a report as SVG: ROC curves, learning curves, accuracy against cost."""

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from sublens.report.runs import CHANCE, Log, Run, Scores


def digits(value: float) -> str:
    """A number with at least three significant digits, never an exponent: 0.0341, 1.20, 35.2, 1,234."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


WIDTH = 3.5
"""Width of a figure, inches; that of a phone, so that the letters keep their size there."""
LINE = 0.17
"""Height of a line of the key, inches."""
NAME_LINE = 0.19
"""Height of a name beside a point, inches."""
NAME = 30
"""Longest name that fits beside a figure, characters."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Okabe & Ito's for colour-blind readers, with grey for their yellow, which is too faint for a line."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1.2)), (0, (9, 2)))
"""Line styles, in the order of the runs."""
STYLE = {
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
"""Settings of matplotlib for all figures, whatever the user's are."""


def svg(name: str, description: str, draw: Callable[[], Figure]) -> Markup:
    """The figure as part of a page, with ids that begin with `name`, and a description for screen readers."""
    file = io.StringIO()
    with style.context([STYLE, {"svg.hashsalt": name}], after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's own fonts draw the text
        draw().savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", text)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1))


def _strokes() -> Iterator[dict[str, Any]]:
    """Colour and dashes of each run in turn; the two repeat together after 40."""
    return ({"color": colour, "linestyle": dashes} for colour, dashes in zip(cycle(COLOURS), cycle(DASHES)))


def cut(name: str, length: int = NAME) -> str:
    """The name, without its middle where it is longer than `length`."""
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def _key(figure: Figure, axes: Axes, title: str, labels: Sequence[str]) -> None:
    """Name the first lines of the axes below the figure."""
    key = figure.legend(axes.lines[: len(labels)], ["x"] * len(labels), loc="outside lower left", title=title)
    key.set_alignment("left")
    for text, label in zip(key.get_texts(), labels, strict=True):
        text.set_text(label)  # set late, as a legend leaves out what begins with _


def roc_description(runs: Sequence[Run], label: int) -> str:
    """What `roc_figure` shows, in words."""
    name = runs[0].card.classes[label]
    aucs = ", ".join(f"{run.name} {run.scores.auc[name].value:.4f}" for run in runs)
    return f"ROC curves of class {name} against all others. AUC: {aucs}."


def roc_figure(runs: Sequence[Run], label: int) -> Figure:
    """ROC curves of one class against the rest, a line a run, on a linear and a logarithmic scale."""
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
    whole.set(xlim=(0, 1), title=f"{cut(name, 22)} against the rest")
    corner.set(xlim=(1e-3, 1), title="the same, few false positives")
    _log_scale(corner)
    _key(figure, whole, "AUC", [f"{run.scores.auc[name].value:.4f}  {cut(run.name)}" for run in runs])
    return figure


Column = Callable[[Log], NDArray[np.float64]]
"""A column of a training log."""


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
    _key(figure, axes, "", [cut(run.name) for run in runs])
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


def loss_curves(runs: Sequence[Run]) -> Figure:
    """Training loss against training images, a line a run."""
    figure, axes = _curves(
        runs, "Training loss", lambda log: _smooth(log.step_images), lambda log: _smooth(log.step_losses)
    )
    _chance_line(axes, math.log(len(runs[0].card.classes)))
    axes.set(xlabel="training images", ylabel="cross-entropy, nats", ylim=(0, None))
    return figure


def _smooth(values: NDArray[np.float64], n: int = 100) -> NDArray[np.float64]:
    """Means over at most `n` stretches of equal length."""
    return np.array([part.mean() for part in np.array_split(values, max(1, min(n, len(values)))) if len(part)])


def auc_curves(runs: Sequence[Run], by_clock: bool) -> Figure:
    """Macro AUC on the selection part against minutes or training images, a line a run."""
    what, label = ("the clock", "minutes of training") if by_clock else ("images", "training images")
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
    """One kind of cost: latency or size."""

    key: str
    """Name of its figure in the page."""
    title: str
    """Title of its figure."""
    unit: str
    """Unit, as it stands at the axis."""
    of: Callable[[Scores], float]
    """The cost of a measured run."""


COSTS = (
    Cost("single", "One image at a time", "ms an image", lambda scores: scores.latency_ms.batch_1),
    Cost("batch", "32 images at a time", "ms an image", lambda scores: scores.latency_ms.batch_32 / 32),
    Cost("size", "Size of the network", "parameters", lambda scores: float(scores.parameters)),
)
"""Costs that accuracy is drawn against."""


def cost_description(runs: Sequence[Run], cost: Cost) -> str:
    """What `cost_figure` shows, in words."""
    points = ", ".join(f"{run.name} {digits(cost.of(run.scores))}" for run in runs)
    return f"Accuracy against {cost.unit}. {cost.title}: {points}."


def cost_figure(runs: Sequence[Run], cost: Cost) -> Figure:
    """Accuracy with its interval against a cost, a point a run."""
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
            cut(run.name, 18),
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
