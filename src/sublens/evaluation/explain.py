"""Image files -> pictures of what in each speaks for a class."""

import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from sublens.models.heads import CELL
from sublens.progress import Bar, Count, silent
from sublens.storage import files

if TYPE_CHECKING:
    from sublens.evaluation.saliency import Method


@dataclass(frozen=True)
class Explanation:
    """What in one image speaks for a class."""

    row: Row
    label: str
    """The class; not always the most probable one."""
    counts: NDArray[np.uint16]
    """The image in the network's frame, [h, w]."""
    saliency: Floats
    """[h, w]"""
    side: int
    """Pixels of the central square that the network looks at."""
    pixel_scale: float | None
    """Arcsec a pixel of the frame, where it is known."""

    @property
    def unit(self) -> str:
        """Of lengths."""
        return "arcsec" if self.pixel_scale else "pixels"

    @property
    def peak(self) -> tuple[float, float]:
        """Where the saliency is greatest."""
        x, y = peaks(self.saliency[None], self.pixel_scale or 1.0)[0]
        return float(x), float(y)

    @property
    def probability(self) -> float:
        """Of the class."""
        assert self.row.prediction is not None
        return self.row.prediction.probs[self.label]


def explain_each(
    predictor: Predictor,
    found: Iterable[ReadResult],
    *,
    method: Method = METHOD,
    label: str | None = None,
    pixel_scale: float | None = None,
) -> Iterator[Explanation | Row]:
    """Explain what was found, in order; what cannot be used is a row with its error.

    label: the class; of each image the most probable one if none. pixel_scale: as in `Predictor.rows`.
    """
    side = field_of_view(predictor.input, predictor.image_shape)
    for one in found:
        row = next(predictor.rows([one], pixel_scale))
        if row.prediction is None or not isinstance(one.image, Image):
            yield row
            continue
        frame = predictor.framed(one.image, pixel_scale)
        counts, name = frame.counts(), label or row.prediction.label
        shown = saliency(predictor, counts[None], np.array([predictor.classes.index(name)]), method)[0]
        scale = predictor.pixel_scale or pixel_scale or one.image.pixel_scale
        yield Explanation(row, name, counts, shown, side, scale)


CONTOURS = 0.1, 0.3, 0.6
"""Their heights over the brightest of the smoothed light."""
MASSES = ("0", "1e9", "3e9", "1e10", "3e10")
"""Ticks of the scale of masses, Msun; the last has full colour."""


def figure(of: Explanation, method: Method) -> Figure:
    """The image, beside it what speaks for the class, and where the network draws maps, the mass that it sees."""
    assert of.row.prediction is not None
    masses, scale = of.row.prediction.masses, of.pixel_scale or 1.0
    n_panels = 2 if masses is None else 3
    drawn = Figure(figsize=(0.4 + 3.3 * n_panels, 4.5), facecolor="white", layout="constrained")
    panels = drawn.subplots(1, n_panels)
    light = of.counts.astype(np.float64)
    light = (light - np.median(light)).clip(0)
    frame = scale * np.array([-1, 1, -1, 1]) * np.repeat(light.shape[::-1], 2) / 2
    half = scale * of.side / 2
    _panel(panels[0], np.sqrt(light), frame, "image", "brightness above sky, square root", cmap="inferno")
    _panel(panels[1], of.saliency, frame, f"speaks for {of.label}", f"{method}, peak is 1", vmin=0, vmax=1)
    if masses is not None:
        ticks, grid = np.log1p(np.array(MASSES, dtype=np.float64) / MASS_UNIT_MSUN), (-half, half, -half, half)
        shade, words = np.log1p(masses / MASS_UNIT_MSUN), "truth head: Msun in a cell"
        bar = _panel(panels[2], shade, grid, "substructure that the network sees", words, vmin=0, vmax=ticks[-1])
        bar.set_ticks(ticks, labels=MASSES)
    smooth = ndimage.gaussian_filter(light, 1.5)
    for axes in panels:
        axes.set(xlim=(-half, half), ylim=(-half, half), xlabel=f"x, {of.unit}")
        if axes is not panels[0] and smooth.any():
            heights = [smooth.max() * height for height in CONTOURS]
            axes.contour(smooth, heights, origin="lower", extent=frame, colors="white", linewidths=0.6, alpha=0.7)
        if of.saliency.any():
            axes.add_patch(Circle(of.peak, CELL / 2 * scale, fill=False, edgecolor="cyan"))
    panels[0].set_ylabel(f"y, {of.unit}")
    drawn.suptitle(_title(of), fontsize=10, parse_math=False)
    return drawn


def save(of: Explanation, method: Method, path: Path) -> None:
    """Draw the figure of an image into a .png file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names may have letters that no font here has
        figure(of, method).savefig(path, dpi=110)


def record(of: Explanation | Row, picture: str = "") -> dict[str, Any]:
    """One line on an image: what was explained, in which picture, and where the peak lies; or what failed."""
    if isinstance(of, Row):
        return {"path": of.name, "error": of.error}
    x, y = of.peak
    return {
        "path": of.row.name,
        "picture": picture,
        "class": of.label,
        "probability": round(of.probability, 4),
        "peak_x": round(x, 3),
        "peak_y": round(y, 3),
        "unit": of.unit,
    }


def _title(of: Explanation) -> str:
    """What the image is, and what the network says of it."""
    assert of.row.prediction is not None
    name = of.row.path.name if of.row.number is None else f"{of.row.path.name}#{of.row.number}"
    probs = ", ".join(f"{label} {prob:.3f}" for label, prob in of.row.prediction.probs.items())
    return f"{name}:  {probs}{'  (a strange image)' if of.row.prediction.is_ood else ''}\n"


def _panel(axes: Axes, values: Floats, frame: Any, title: str, words: str, **look: Any) -> Any:
    """A map on its grid, y upwards, with its scale below; returns the scale."""
    picture = axes.imshow(values, origin="lower", extent=tuple(frame), **look)
    axes.set_title(title, fontsize=10, parse_math=False)
    return axes.figure.colorbar(picture, ax=axes, location="bottom", label=words, shrink=0.85)


def explain_images(
    name: str,
    inputs: Iterable[Path],
    out: Path,
    *,
    method: "Method",
    label: str | None = None,
    wanted: ImageSelector | None = None,
    pixel_scale: float | None = None,
    force: bool = False,
    bar: Bar = silent,
) -> Iterator[dict[str, Any]]:
    """Draw what in image files speaks for a class: pictures NUMBER-NAME.png, and their list in `explain.json`.

    name: that of a network that comes with sublens, or a folder. inputs: files, folders and patterns.
    label: the class; of each image the most probable one if none. Yields `explain.record` of each
    image. Raises `ConfigError` where the network knows no such class, `BundleError` where it has
    nothing to explain it by, and `ImageError` where no image could be explained.
    """
    from sublens.models.networks import device

    predictor, paths = Predictor.load(name, "torch", device()), list(listing.list_images(inputs))
    if label is not None and label not in predictor.classes:
        raise ConfigError(f"{name} knows no class {label!r}. {nearest(label, predictor.classes)}")
    records: list[dict[str, Any]] = []
    done = 0
    with files.whole_folder(out, force=force) as folder, bar("explaining", len(paths)) as advance:
        count = Count(advance)
        with reader.Reader(wanted or ImageSelector()) as child:
            read = child.read(paths)
            found = explain_each(predictor, read, method=method, label=label, pixel_scale=pixel_scale)
            for number, one in enumerate(found, start=1):
                row, picture = one if isinstance(one, Row) else one.row, ""
                if not isinstance(one, Row):
                    picture = f"{number:0{len(str(len(paths)))}}-{row.path.stem}.png"
                    save(one, method, folder / picture)
                count.add(row.place[0] - done)
                done = row.place[0]
                records.append(record(one, picture))
                yield records[-1]
        count.add(len(paths) - done)
        if not any("picture" in one for one in records):
            raise ImageError(f"None of {len(records)} images could be explained; the lines above say why.")
        about = {"bundle": name, "method": method, "images": records}
        (folder / "explain.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
