import base64
import io
import json
import random
import re
import shutil
from collections.abc import Callable, Sequence
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score

from sublens import metrics
from sublens.config import ModelConfig, RunConfig, TrainConfig
from sublens.errors import DataError
from sublens.evaluation import calibration_scores, evaluate
from sublens.inference.predictor import PredictionTable
from sublens.models import bundle, networks, weights
from sublens.models.calibration import Calibration
from sublens.report import figures, page, runs
from sublens.training.recorder import GALLERY, LOG, PREDICTIONS, SCORES

LENSES = ("no", "sphere", "vort")
HOSTILE = ("<script>alert(1)</script>", 'a|b "$x^2$" & _c')
SIDE = 12

SELECTED = {"selection_loss": 0.5, "selection_accuracy": 0.8, "selection_auc": 0.9}


def predictions(classes: Sequence[str], skill: float, n: int, seed: int) -> PredictionTable:
    """Predictions of a network whose logit of the true class is `skill` above the noise; 0 is a guess."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(classes)
    logits = rng.normal(size=(n, len(classes))) + skill * np.eye(len(classes))[labels]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return PredictionTable(np.array([f"test/{i:04d}" for i in range(n)]), labels, probs, tuple(classes))


def log_lines() -> str:
    steps = [{"kind": "step", "loss": 1 / (i + 1), "images": 8 * (i + 1), "seconds": i} for i in range(40)]
    epochs = [{"kind": "epoch", "selection_auc": 0.5 + i / 10, "images": 80 * i, "seconds": 10 * i} for i in (1, 2, 3)]
    return "".join(json.dumps(row) + "\n" for row in [*steps, *epochs])


def make_run(
    folder: Path,
    *,
    network: str = "lensnet",
    classes: Sequence[str] = LENSES,
    skill: float = 2.0,
    n: int = 90,
    seed: int = 0,
    minutes: float | None = None,
    data: str = "strangers",
    digest: str = "abc",
    interrupted: bool = False,
    engine: str | None = None,
) -> Path:
    """A measured run that was never trained."""
    folder.mkdir(parents=True)
    table = predictions(classes, skill, n, seed)
    config = RunConfig(model=ModelConfig(name=network), train=TrainConfig(minutes=minutes, teacher=None))
    settings = networks.resolved(config, (SIDE, SIDE))
    assert settings.input is not None
    fields: dict[str, Any] = {
        "log": bundle.CardLog.of(log_lines().encode()),
        "weights_sha256": weights.save(folder, networks.build("lensnet", len(classes))),
        "network": network,
        "classes": tuple(classes),
        "image_shape": (SIDE, SIDE),
        "input": settings.input,
        "settings": settings,
        "data": {"name": data, "hash": digest, "train": 300, "selection": 30, "test": n},
        "training": {"steps": 40, "images": 320, "seconds": 40.0, "best_epoch": 2, "interrupted": interrupted}
        | SELECTED,
        "versions": {"sublens": "0.1.0", "commit": "0123456789ab"},
        "machine": {"processor": "a processor", "threads": 1, "device": "cpu"},
    }
    bundle.save_card(folder, bundle.Card(**fields))
    calibration = Calibration(1.1, (0.2,) * len(classes), ood_threshold=2.0)
    scores = {
        **metrics.score(table.probs, table.labels, classes),
        "calibration": calibration_scores.score(calibration, table).model_dump(exclude_none=True),
        "latency_ms": {"batch_1": 1.25, "batch_32": 16.0},
        "data": {"name": data, "hash": digest},
        **({"engine": engine} if engine else {}),
        **{"parameters": 310_243, "threads": 1, "device": "cpu", "weights_bytes": 7, "processor": "a processor"},
    }
    evaluate.write_predictions(table, folder / PREDICTIONS)
    (folder / LOG).write_text(log_lines())
    counts = np.random.default_rng(9).poisson(20, (n, SIDE, SIDE)).astype(np.uint16)
    np.savez(folder / GALLERY, counts=counts, ids=table.ids, labels=table.labels)
    evaluate.write_scores(folder, scores)
    return folder


@pytest.fixture(scope="module")
def lenses(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three networks trained by the clock on common-test-1; the last is at chance."""
    root = tmp_path_factory.mktemp("lenses")
    networks = (("resnet18", 1.2), ("lensnet", 3.0), ("mobilenetv3-small", 0.0))
    return [
        make_run(
            root / name, network=name, skill=skill, seed=seed, minutes=2.0, data="common-test-1", engine="onnxruntime"
        )
        for seed, (name, skill) in enumerate(networks)
    ]


@pytest.fixture(scope="module")
def lenses_page(lenses: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page.write(lenses, tmp_path_factory.mktemp("pages") / "lenses")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network, two classes with hostile names, trained for as long as it took."""
    return make_run(tmp_path_factory.mktemp("stranger") / "lensnet", classes=HOSTILE, skill=4.0, n=40)


@pytest.fixture(scope="module")
def stranger_page(stranger: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page.write([stranger], tmp_path_factory.mktemp("pages") / "stranger")


class Elements(HTMLParser):
    """Every start tag of a page, with its attributes."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


def text_of(page: Path) -> str:
    """What a reader sees, in one line."""
    body = re.sub(r"(?s)<style.*?</style>", "", page.read_text(encoding="utf-8"))
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).replace("\xa0", " ").split())


def rows_of(page: Path) -> list[str]:
    """The main table's rows, as text."""
    table = page.read_text(encoding="utf-8").split('<table class="scores">')[1].split("</table>")[0]
    return [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in table.split("<tr")[1:]]


def scores_in(folder: Path) -> dict[str, Any]:
    scores: dict[str, Any] = json.loads((folder / SCORES).read_text())
    return scores


def markdown(page: Path) -> str:
    return page.with_suffix(".md").read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_page_loads_nothing_from_elsewhere(lenses_page: Path) -> None:
    elements = Elements(lenses_page)
    loaded = elements.all("src") + elements.all("href") + elements.all("xlink:href")
    assert all(place.startswith(("data:", "#")) for place in loaded)
    assert not {"script", "iframe", "object"} & {tag for tag, _ in elements.tags}
    assert not re.findall(r"url\((?!#)|@import", lenses_page.read_text())


def test_no_two_elements_share_an_id_and_every_reference_is_met(lenses_page: Path) -> None:
    ids = Elements(lenses_page).all("id")
    references = re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', lenses_page.read_text())
    assert len(ids) == len(set(ids))
    assert {name or other for name, other in references} <= set(ids)


def test_the_page_names_every_network_and_class(lenses_page: Path) -> None:
    text = text_of(lenses_page)
    assert all(name in text for name in ("lensnet", "resnet18", "mobilenetv3-small", *LENSES))


def test_the_first_sentence_is_the_outcome(lenses: list[Path], lenses_page: Path) -> None:
    auc = scores_in(lenses[1])["auc_macro"]
    sentence = (
        f"Of 3 networks, lensnet does best: its macro one-vs-rest ROC AUC is {auc['value']:.4f} "
        f"(95 % interval {auc['low']:.4f} to {auc['high']:.4f}) on 90 test images of common-test-1."
    )
    assert sentence in text_of(lenses_page)
    assert sentence in " ".join(markdown(lenses_page).split())


def test_the_table_says_what_scores_say_best_first(lenses: list[Path], lenses_page: Path) -> None:
    rows = rows_of(lenses_page)[1:4]
    for row, folder in zip(rows, (lenses[1], lenses[0], lenses[2]), strict=True):
        scores = scores_in(folder)
        assert folder.name in row
        for key, scale, form in (("loss", 1, ".4f"), ("accuracy", 100, ".2f"), ("auc_macro", 1, ".4f")):
            assert all(format(scale * scores[key][end], form) in row for end in ("value", "low", "high"))
        assert "1.25 ms 800 images/s ONNX Runtime" in row
        assert "16.0 ms 2,000 images/s" in row
    assert ["best" in row for row in rows] == [True, False, False]


@pytest.mark.parametrize(("seed", "is_clear"), [(0, True), (6, False)])
def test_networks_are_told_apart_by_their_difference_on_the_same_images(
    tmp_path: Path, seed: int, is_clear: bool
) -> None:
    """With the same seed each image has the same noise for both, and only the skill differs."""
    best = make_run(tmp_path / "resnet18", network="resnet18", skill=2.2, n=300)
    other = make_run(tmp_path / "lensnet", skill=2.0, n=300, seed=seed)
    text = text_of(page.write([best, other], tmp_path / "page"))
    assert scores_in(other)["auc_macro"]["high"] > scores_in(best)["auc_macro"]["low"]
    assert ("the AUC of resnet18 is not clearly greater than that of lensnet" in text) is not is_clear


def test_markdown_has_the_same_rows_one_a_network(lenses: list[Path], lenses_page: Path) -> None:
    for title in ("Scores", "Cost"):
        table = [line for line in section(markdown(lenses_page), title).splitlines() if line.startswith("|")]
        assert [line.split()[1] for line in table[2:]] == ["lensnet", "resnet18", "mobilenetv3-small"]
        assert len({len(line) for line in table}) == 1
    assert f"{scores_in(lenses[1])['auc_macro']['value']:.4f}" in section(markdown(lenses_page), "Scores")


def test_markdown_is_narrow(lenses_page: Path) -> None:
    assert max(map(len, markdown(lenses_page).splitlines())) <= 90


def test_confusion_counts_are_those_of_the_scores(lenses: list[Path], lenses_page: Path) -> None:
    text = markdown(lenses_page)
    for folder in lenses:
        table = text.split(f"### {folder.name}\n")[1].split("#")[0]
        counts = [list(map(int, re.findall(r"\d+", line))) for line in table.splitlines() if line.startswith("|")][2:]
        assert counts == scores_in(folder)["confusion"]


def test_the_auc_beside_a_roc_curve_is_that_of_the_scores_and_of_scikit_learn(
    lenses: list[Path], lenses_page: Path
) -> None:
    text = text_of(lenses_page)
    for folder in lenses:
        table = evaluate.read_predictions(folder / PREDICTIONS)
        for label, name in enumerate(LENSES):
            auc = scores_in(folder)["auc"][name]["value"]
            assert f"{auc:.4f} {folder.name}" in text
            assert auc == pytest.approx(roc_auc_score(table.labels == label, table.probs[:, label]))


def test_hostile_names_are_shown_and_not_obeyed(stranger_page: Path) -> None:
    assert "<script>" not in stranger_page.read_text()
    assert "script" not in {tag for tag, _ in Elements(stranger_page).tags}
    assert all(name in text_of(stranger_page) for name in HOSTILE)
    assert "\\<script>" in markdown(stranger_page)
    assert "a\\|b" in markdown(stranger_page)


def test_two_classes_and_one_network_are_enough(stranger: Path, stranger_page: Path) -> None:
    text = text_of(stranger_page)
    assert text.count("against the rest") == 2
    assert f"lensnet: the macro one-vs-rest ROC AUC is {scores_in(stranger)['auc_macro']['value']:.4f}" in text
    assert "★" not in text


def test_the_same_runs_give_the_same_bytes(stranger: Path, stranger_page: Path, tmp_path: Path) -> None:
    again = page.write([stranger], tmp_path / "again")
    assert again.read_bytes() == stranger_page.read_bytes()
    assert markdown(again) == markdown(stranger_page)


def test_published_rows_stand_beside_common_test_1_only(lenses_page: Path, stranger_page: Path) -> None:
    rows = rows_of(lenses_page)
    assert rows[-3].endswith("EfficientNet-B5 0.1710 95.88 % 0.9931 20 epochs")
    assert rows[-2].endswith("ResNet18 0.2997 93.63 % 0.9871 20 epochs")
    assert rows[-1].endswith("MobileNetV3-small 0.3270 88.67 % 0.9741 20 epochs")
    assert "7,500 images of the original val folder after 20 epochs" in text_of(lenses_page)
    assert not re.search("EfficientNet|Published", text_of(stranger_page) + markdown(stranger_page))


def test_a_budget_of_minutes_is_told_with_the_time_of_a_full_run(lenses_page: Path) -> None:
    for text in (text_of(lenses_page), markdown(lenses_page)):
        assert "Trained by the clock" in text
        assert "a floor, not a network's limit" in text
        assert "20.8 h" in text  # 600,000 images at 320 in 40 s


def test_no_budget_is_told_where_there_was_none(stranger_page: Path) -> None:
    assert "Trained by the clock" not in text_of(stranger_page) + markdown(stranger_page)


def test_a_network_at_chance_is_called_so_and_no_other(lenses_page: Path, stranger_page: Path) -> None:
    for text in (text_of(lenses_page), markdown(lenses_page)):
        assert text.count("has not left chance level yet") == 1
        assert "mobilenetv3-small has not left chance level yet" in " ".join(text.split())
    assert "chance level" not in text_of(stranger_page) + markdown(stranger_page)


def test_mistakes_are_real_and_the_surest_come_first(lenses: list[Path], lenses_page: Path) -> None:
    table = evaluate.read_predictions(lenses[1] / PREDICTIONS)
    captions = re.findall(r"is (\w+) predicted (\w+) ?, ([\d.]+) %", text_of(lenses_page))
    wrong = [row for row in range(90) if table.probs[row].argmax() != table.labels[row]]
    surest = sorted(wrong, key=lambda row: -table.probs[row].max())[:8]
    assert captions == [
        (LENSES[table.labels[row]], LENSES[table.probs[row].argmax()], f"{100 * table.probs[row].max():.1f}")
        for row in surest
    ]


def test_images_are_the_gallery_s_with_words_for_them(lenses: list[Path], lenses_page: Path) -> None:
    images = [attributes for tag, attributes in Elements(lenses_page).tags if tag == "img"]
    with np.load(lenses[1] / GALLERY) as gallery:
        first = gallery["counts"][0]
    file = io.BytesIO(base64.b64decode((images[0]["src"] or "").split(",")[1]))
    shown = np.asarray(Image.open(file))
    assert images[0]["alt"] == "Test image test/0000 of class no"
    assert np.array_equal(shown, np.round(255 * np.sqrt(first / first.max())))


def test_how_it_was_made_is_told(lenses_page: Path) -> None:
    for text in (text_of(lenses_page), markdown(lenses_page)):
        for fact in ("sha256 abc", "0123456789ab", "a processor, 1 threads, cpu", "train.minutes = 2.0"):
            assert fact in text


def test_every_figure_has_words_for_those_who_do_not_see_it(lenses_page: Path) -> None:
    figures = [attributes for tag, attributes in Elements(lenses_page).tags if tag == "svg"]
    assert len(figures) == len(LENSES) + 3 + 3
    assert all(figure["role"] == "img" and figure["aria-label"] for figure in figures)


@pytest.mark.parametrize("has_hash", [True, False])
def test_a_log_that_was_cut_while_being_written_is_read(
    stranger: Path, stranger_page: Path, tmp_path: Path, has_hash: bool
) -> None:
    run = shutil.copytree(stranger, tmp_path / "run")
    with (run / LOG).open("a") as log:
        log.write('{"kind": "step", "lo')
    card = bundle.read_card(run)
    bundle.save_card(run, card.model_copy(update={"log": card.log if has_hash else None}))
    evaluate.write_scores(run, scores_in(run))
    html = page.write([run], tmp_path / "report")
    assert html.read_bytes() == stranger_page.read_bytes()


def test_what_is_there_is_kept_without_force(stranger: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="--force"):
        page.write([stranger], out)
    with pytest.raises(DataError, match="not written by sublens"):
        page.write([stranger], out, force=True)
    assert (out / "mine.txt").read_text() == "precious"


def test_an_older_report_is_replaced_with_force(stranger: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    page.write([stranger], out)
    (out / "old.txt").touch()
    page.write([stranger], out, force=True)
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.md"]


def test_a_report_never_replaces_a_run_it_reads(stranger: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stranger, tmp_path / "out" / "run")
    with pytest.raises(DataError, match="overlaps .*run, which is read"):
        page.write([run], tmp_path / "out", force=True)
    assert (run / SCORES).is_file()


def test_runs_of_one_network_go_by_their_folder_and_a_stopped_one_is_told(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"seed-{seed}", seed=seed, n=30, interrupted=seed == 1) for seed in (1, 2)]
    html = page.write(runs, tmp_path / "report")
    lines = section(markdown(html), "Scores")
    assert "seed-1" in lines
    assert "seed-2" in lines
    assert "lensnet" not in lines
    assert "Settings of seed-1: stopped by hand" in markdown(html)
    assert "Settings of seed-2: all defaults" in markdown(html)


Spoil = Callable[[Path], object]


def edit(path: Path, old: bytes, new: bytes) -> None:
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))


def remeasured(run: Path, name: str, data: bytes) -> None:
    """Put another file into a run, with scores that hold its hash."""
    (run / name).write_bytes(data)
    evaluate.write_scores(run, scores_in(run))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "card.json").unlink(), "not a trained model"),
        (lambda run: (run / SCORES).unlink(), "not measured.*sublens evaluate .*run DATASET"),
        (lambda run: (run / SCORES).write_text('{"n": 90'), "damaged.*sublens evaluate"),
        (lambda run: (run / SCORES).write_text('{"n": 90}'), "damaged.*sublens evaluate"),
        (lambda run: (run / SCORES).write_text(json.dumps({**scores_in(run), "n": 3})), "damaged.*sublens evaluate"),
        (lambda run: evaluate.write_scores(run, {**scores_in(run), "n": 3}), "do not fit"),
        (lambda run: evaluate.write_scores(run, {"n": 90, "auc": {}}), "of another version.*sublens evaluate"),
        (lambda run: (run / PREDICTIONS).unlink(), r"predictions.csv: is missing, or has changed.*sublens evaluate"),
        (lambda run: edit(run / PREDICTIONS, b"7", b"8"), r"predictions.csv: is missing, or has changed"),
        (lambda run: remeasured(run, PREDICTIONS, b"id,label,p_no\n1,no,nan\n"), "do not fit"),
        (lambda run: (run / LOG).unlink(), "missing or damaged.*train again"),
        (lambda run: (run / LOG).write_text('{"kind": \n' + log_lines()), "missing or damaged"),
        (lambda run: (run / LOG).write_text('{"kind": "step"}\n'), "missing or damaged"),
        (lambda run: (run / GALLERY).unlink(), r"gallery.npz: is missing, or has changed.*sublens evaluate"),
        (lambda run: edit(run / GALLERY, b"counts", b"covnts"), r"gallery.npz: is missing, or has changed"),
        (lambda run: remeasured(run, GALLERY, b"PK\3\4"), "missing or damaged"),
        (lambda run: edit(run / "card.json", b" ", b"  "), r"card.json: is missing, or has changed"),
    ],
)
def test_a_run_that_cannot_be_read_is_an_error_that_says_what_to_do(
    lenses: list[Path], tmp_path: Path, spoil: Spoil, message: str
) -> None:
    run = shutil.copytree(lenses[0], tmp_path / "run")
    spoil(run)
    with pytest.raises(DataError, match=message):
        page.write([run], tmp_path / "report")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"classes": ("no", "sphere", "string")}, "no, sphere, string.*same classes"),
        ({"n": 60}, "same test images"),
        ({"digest": "def"}, "same data set"),
        ({"network": "lensnet"}, "2 runs would be called twin"),
    ],
)
def test_runs_that_cannot_be_compared_are_an_error(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    first = make_run(tmp_path / "a" / "twin")
    second = make_run(tmp_path / "b" / "twin", **{"network": "resnet18", **other})
    with pytest.raises(DataError, match=message):
        page.write([first, second], tmp_path / "report")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_no_runs_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sublens evaluate"):
        page.write([], tmp_path / "report")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("heights", [[0.5], [0.5, 0.5, 0.5], [0.0, 1.0, 0.99, 0.98], [0.01, 0.0, 0.02]])
def test_names_beside_points_never_overlap(heights: list[float]) -> None:
    moved = sorted(figures._apart(heights, 0.1))
    assert all(above - below > 0.0999 for below, above in pairwise(moved))
    assert moved[-1] <= 1
    assert moved[0] >= 0


@pytest.mark.parametrize(
    ("value", "text"), [(0.034127, "0.0341"), (1.2, "1.20"), (35.16, "35.2"), (1234.4, "1,234"), (0, "0")]
)
def test_numbers_keep_threedigits(value: float, text: str) -> None:
    assert figures.digits(value) == text


def test_scores_from_before_engines_were_named_are_of_torch(stranger_page: Path) -> None:
    assert "images/s torch" in rows_of(stranger_page)[1]
    assert re.search(r"\| lensnet +\|.*\| +torch \|", section(markdown(stranger_page), "Cost"))


def test_former_scores_of_trust_are_read(stranger: Path, stranger_page: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stranger, tmp_path / "lensnet")
    former = {"trust": {"ece": 0.01, "strange": 0.02}}
    evaluate.write_scores(run, scores_in(run) | former)
    assert page.write([run], tmp_path / "report").read_bytes() == stranger_page.read_bytes()


def test_scores_without_hashes_are_to_be_measured_again(stranger: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stranger, tmp_path / "lensnet")
    former = {key: value for key, value in scores_in(run).items() if key not in ("files", "sha256")}
    (run / SCORES).write_text(json.dumps(former))
    with pytest.raises(DataError, match="that kept no hashes.*sublens evaluate .*lensnet DATASET --force"):
        page.write([run], tmp_path / "report")


def test_any_flipped_bit_of_a_measured_run_is_noticed(stranger: Path, tmp_path: Path) -> None:
    run, rng = shutil.copytree(stranger, tmp_path / "lensnet"), random.Random(0)
    for name in rng.choices((SCORES, PREDICTIONS, GALLERY, LOG, bundle.CARD), k=200):
        data = bytearray((run / name).read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (run / name).write_bytes(data)
        with pytest.raises(DataError):
            runs.read_comparable([run])
        shutil.copyfile(stranger / name, run / name)
    assert runs.read_comparable([run])


def test_an_exported_network_needs_no_log(stranger: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stranger, tmp_path / "int8")
    graph = bundle.CardGraph(sha256="0", precision="int8", is_alone=True, n=30, deviation=0)
    bundle.save_card(run, bundle.read_card(run).model_copy(update={"graph": graph}))
    (run / LOG).unlink()
    evaluate.write_scores(run, scores_in(run))
    assert "int8" in markdown(page.write([stranger, run], tmp_path / "report"))


@given(st.floats(0, 1e7))
def test_a_duration_is_the_one_that_it_names(seconds: float) -> None:
    number, unit = page._duration(seconds).split()
    length = {"s": 1, "min": 60, "h": 3600, "days": 86_400}[unit]
    assert float(number.replace(",", "")) * length == pytest.approx(seconds, rel=0.006, abs=0.5)
    assert float(number.replace(",", "")) < {"s": 91, "min": 91, "h": 37}.get(unit, np.inf)


@pytest.mark.parametrize(("seconds", "text"), [(52, "52 s"), (231, "3.85 min"), (9_000, "2.50 h"), (4e5, "4.63 days")])
def test_durations_are_in_the_unit_a_person_would_use(seconds: float, text: str) -> None:
    assert page._duration(seconds) == text


def test_the_report_says_how_far_the_calibration_holds(lenses: list[Path], lenses_page: Path) -> None:
    listed = " ".join(section(markdown(lenses_page), "Calibration").split())
    for folder in lenses:
        scores = calibration_scores.CalibrationScores(**scores_in(folder)["calibration"])
        sentences = list(calibration_scores.sentences(scores))
        assert len(sentences) == 3
        assert all(sentence in text_of(lenses_page) and page._escaped(sentence) in listed for sentence in sentences)
