"""Image files -> pictures of the evidence for a class in each."""

import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray
from scipy import ndimage

from sublens.config import field_of_view
from sublens.errors import ConfigError, ImageError, nearest
from sublens.evaluation.saliency import METHOD, Method, peaks, saliency
from sublens.images import listing, reader
from sublens.images.formats import ImageSelector
from sublens.images.pixels import Image
from sublens.images.reader import ReadResult
from sublens.inference.engines import MASS_UNIT_MSUN
from sublens.inference.predictor import Predictor, Row
from sublens.metrics import Floats
from sublens.models import bundle
from sublens.models.heads import CELL
from sublens.models.networks import device
from sublens.progress import Bar, Count, silent
from sublens.storage import files


@dataclass(frozen=True)
class Explanation:
    """The evidence for a class in one image."""

    row: Row
    """The image and its prediction."""
    label: str
    """The class; not always the most probable one."""
    counts: NDArray[np.uint16]
    """The image in the network's frame, [h, w]."""
    saliency: Floats
    """Evidence for the class, 1 at its peak, [h, w]."""
    side: int
    """Side of the network's field of view, the central square, pixels."""
    pixel_scale: float | None
    """Pixel scale of the frame, arcsec, where it is known."""

    @property
    def unit(self) -> str:
        """Unit of lengths."""
        return "arcsec" if self.pixel_scale else "pixels"

    @property
    def peak(self) -> tuple[float, float]:
        """Position of the greatest evidence, from the centre, x then y."""
        x, y = peaks(self.saliency[None], self.pixel_scale or 1.0)[0]
        return float(x), float(y)

    @property
    def probability(self) -> float:
        """Probability of the class."""
        assert self.row.prediction is not None
        return self.row.prediction.probs[self.label]


def explain_each(
    predictor: Predictor,
    images: Iterable[ReadResult],
    *,
    method: Method = METHOD,
    label: str | None = None,
    pixel_scale: float | None = None,
) -> Iterator[Explanation | Row]:
    """Explain images, in order; one that cannot be used is a row with its error.

    label: the class; of each image the most probable one if none. pixel_scale: as in `Predictor.rows`.
    """
    side = field_of_view(predictor.input, predictor.image_shape)
    for result in images:
        row = next(predictor.rows([result], pixel_scale))
        if row.prediction is None or not isinstance(result.image, Image):
            yield row
            continue
        frame = predictor.framed(result.image, pixel_scale)
        counts, name = frame.counts(), label or row.prediction.label
        evidence = saliency(predictor, counts[None], np.array([predictor.classes.index(name)]), method)[0]
        scale = predictor.pixel_scale or pixel_scale or result.image.pixel_scale
        yield Explanation(row, name, counts, evidence, side, scale)


CONTOURS = 0.1, 0.3, 0.6
"""Heights of the contours of the light, in units of its smoothed maximum."""
MASSES = ("0", "1e9", "3e9", "1e10", "3e10")
"""Ticks of the scale of masses, Msun; the last has full colour."""


def figure(explanation: Explanation, method: Method) -> Figure:
    """The image, beside it the evidence for the class, and where the network has a truth head, the predicted mass."""
    assert explanation.row.prediction is not None
    masses, half = explanation.row.prediction.masses, _scale(explanation) * explanation.side / 2
    n_panels = 2 if masses is None else 3
    drawn = Figure(figsize=(0.4 + 3.3 * n_panels, 4.5), facecolor="white", layout="constrained")
    panels = drawn.subplots(1, n_panels)
    light = explanation.counts.astype(np.float64)
    light = (light - np.median(light)).clip(0)
    frame = _scale(explanation) * np.array([-1, 1, -1, 1]) * np.repeat(light.shape[::-1], 2) / 2
    _panel(panels[0], np.sqrt(light), frame, "image", "brightness above sky, square root", cmap="inferno")
    title = f"evidence for {explanation.label}"
    _panel(panels[1], explanation.saliency, frame, title, f"{method}, peak is 1", vmin=0, vmax=1)
    if masses is not None:
        _mass_panel(panels[2], masses, half)
    for axes in panels[1:]:
        _contours(axes, light, frame)
    for axes in panels:
        axes.set(xlim=(-half, half), ylim=(-half, half), xlabel=f"x, {explanation.unit}")
        _mark_peak(axes, explanation)
    panels[0].set_ylabel(f"y, {explanation.unit}")
    drawn.suptitle(_title(explanation), fontsize=10, parse_math=False)
    return drawn


def _scale(explanation: Explanation) -> float:
    """Size of a pixel in the unit of lengths."""
    return explanation.pixel_scale or 1.0


def _panel(axes: Axes, values: Floats, frame: Any, title: str, words: str, **style: Any) -> Any:
    """Draw a map on its grid, y upwards, with its colour bar below; returns the colour bar."""
    picture = axes.imshow(values, origin="lower", extent=tuple(frame), **style)
    axes.set_title(title, fontsize=10, parse_math=False)
    return axes.figure.colorbar(picture, ax=axes, location="bottom", label=words, shrink=0.85)


def _mass_panel(axes: Axes, masses: Floats, half: float) -> None:
    """Draw the truth head's masses, Msun, on a logarithmic scale."""
    ticks, grid = np.log1p(np.array(MASSES, dtype=np.float64) / MASS_UNIT_MSUN), (-half, half, -half, half)
    shade, words = np.log1p(masses / MASS_UNIT_MSUN), "truth head: Msun in a cell"
    bar = _panel(axes, shade, grid, "predicted substructure", words, vmin=0, vmax=ticks[-1])
    bar.set_ticks(ticks, labels=MASSES)


def _contours(axes: Axes, light: Floats, frame: Any) -> None:
    """Draw contours of the light, where there is any."""
    smooth = ndimage.gaussian_filter(light, 1.5)
    if smooth.any():
        heights = [smooth.max() * height for height in CONTOURS]
        axes.contour(smooth, heights, origin="lower", extent=frame, colors="white", linewidths=0.6, alpha=0.7)


def _mark_peak(axes: Axes, explanation: Explanation) -> None:
    """Draw a circle around the peak, where there is evidence."""
    if explanation.saliency.any():
        radius = CELL / 2 * _scale(explanation)
        axes.add_patch(Circle(explanation.peak, radius, fill=False, edgecolor="cyan"))


def _title(explanation: Explanation) -> str:
    """The image's name and its probabilities."""
    row = explanation.row
    assert row.prediction is not None
    name = row.path.name if row.number is None else f"{row.path.name}#{row.number}"
    probs = ", ".join(f"{label} {prob:.3f}" for label, prob in row.prediction.probs.items())
    return f"{name}:  {probs}{'  (out of distribution)' if row.prediction.is_ood else ''}\n"


def save(explanation: Explanation, method: Method, path: Path) -> None:
    """Draw the figure of an image into a .png file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names may have letters that no font here has
        figure(explanation, method).savefig(path, dpi=110)


def record(result: Explanation | Row, picture: str = "") -> dict[str, Any]:
    """One line on an image: the class, its picture and the position of the peak; or the error."""
    if isinstance(result, Row):
        return {"path": result.name, "error": result.error}
    x, y = result.peak
    return {
        "path": result.row.name,
        "picture": picture,
        "class": result.label,
        "probability": round(result.probability, 4),
        "peak_x": round(x, 3),
        "peak_y": round(y, 3),
        "unit": result.unit,
    }


def explain_images(
    name: str,
    inputs: Iterable[Path],
    out: Path,
    *,
    method: Method,
    label: str | None = None,
    selector: ImageSelector | None = None,
    pixel_scale: float | None = None,
    force: bool = False,
    bar: Bar = silent,
) -> Iterator[dict[str, Any]]:
    """Draw the evidence for a class in image files: pictures NUMBER-NAME.png, and their list in `explain.json`.

    name: that of a network that comes with sublens, or a folder. inputs: files, folders and patterns.
    label: the class; of each image the most probable one if none. Yields `explain.record` of each
    image. Raises `ConfigError` where the network has no such class, `BundleError` where it has
    nothing to explain it by, and `ImageError` where no image could be explained.
    """
    inputs = list(inputs)
    files.refuse_overlap(out, bundle.locate(name), *listing.named(inputs))
    predictor, paths = Predictor.load(name, "torch", device()), list(listing.list_images(inputs))
    if label is not None and label not in predictor.classes:
        raise ConfigError(
            f"{name} has no class {label!r}",
            need=f"one of {', '.join(predictor.classes)}",
            next=nearest(label, predictor.classes),
        )
    records: list[dict[str, Any]] = []
    with (
        files.whole_folder(out, kind=files.Kind.EXPLANATIONS, force=force) as folder,
        bar("explaining", len(paths)) as advance,
    ):
        with reader.Reader(selector or ImageSelector(), predictor.companions()) as child:
            images = child.read(paths)
            results = explain_each(predictor, images, method=method, label=label, pixel_scale=pixel_scale)
            for item in _drawn(results, method, folder, len(paths), Count(advance)):
                records.append(item)
                yield item
        if not any("picture" in item for item in records):
            raise _nothing_explained(len(records))
        about = {"bundle": name, "method": method, "images": records}
        (folder / "explain.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _drawn(
    results: Iterable[Explanation | Row], method: Method, folder: Path, n_files: int, count: Count
) -> Iterator[dict[str, Any]]:
    """Draw each explanation into `folder`; yields the record of every image, and counts the files done."""
    n_done = 0
    for number, result in enumerate(results, start=1):
        row, picture = result if isinstance(result, Row) else result.row, ""
        if isinstance(result, Explanation):
            picture = files.fitting_name(f"{number:0{len(str(n_files))}}-{row.path.stem}", ".png")
            save(result, method, folder / picture)
        count.add(row.source_index[0] - n_done)
        n_done = row.source_index[0]
        yield record(result, picture)
    count.add(n_files - n_done)


def _nothing_explained(n_images: int) -> ImageError:
    return ImageError(
        f"None of {n_images} images could be explained",
        need="at least one that can be read",
        next="The lines above give the reason for each.",
    )
