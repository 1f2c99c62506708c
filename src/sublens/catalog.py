"""Prediction tables on disk: CSV."""

import csv
import io
from pathlib import Path

import numpy as np

from sublens.errors import DataError
from sublens.evaluate import Predictions
from sublens.files import write_bytes


def write(predictions: Predictions, path: Path) -> None:
    """Columns id, label (the true class) and p_<class>, one row an image."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["id", "label", *(f"p_{name}" for name in predictions.classes)])
    for name, label, probs in zip(predictions.ids, predictions.labels, predictions.probs, strict=True):
        table.writerow([name, predictions.classes[label], *(f"{prob:.9g}" for prob in probs)])
    write_bytes(path, text.getvalue().encode())


def read(path: Path) -> Predictions:
    """The table that `write` left at `path`; `DataError` where it is missing or damaged."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file))
        classes = tuple(name.removeprefix("p_") for name in header[2:])
        return Predictions(
            ids=np.array([row[0] for row in rows]),
            labels=np.array([classes.index(row[1]) for row in rows]),
            probs=np.array([[float(value) for value in row[2:]] for row in rows]),
            classes=classes,
        )
    except OSError as err:
        raise DataError(
            f"{path}: cannot be read ({err.strerror}). Measure the run again with `sublens evaluate`."
        ) from err
    except (ValueError, IndexError) as err:
        raise DataError(f"{path}: is damaged. Measure the run again with `sublens evaluate`.") from err
