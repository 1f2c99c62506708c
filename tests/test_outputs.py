"""No command writes where it reads, or replaces another kind of thing, whatever its options."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_cli import refused, sublens
from typer.main import get_command

from sublens import cli
from sublens.errors import DataError
from sublens.inference import predict_files, tables
from sublens.models import bundle
from sublens.storage import files
from sublens.surveys import presets

TEACHER = ("--set", "train.teacher='NETWORK'")
READS = {
    "simulate": ("SURVEY",),
    "presets": ("SURVEY",),
    "match": ("IMAGES", "--base", "SURVEY"),
    "fidelity": ("SURVEY", "IMAGES"),
    "pack": ("DATA",),
    "import-legacy": ("IMAGES",),
    "train": ("DATA", "--settings", "SETTINGS", *TEACHER),
    "evaluate": ("NETWORK", "DATA"),
    "publish": ("DATA", "NETWORK"),
    "export": ("NETWORK", "DATA"),
    "predict": ("NETWORK", "IMAGES", "--at", "CATALOGUE"),
    "explain": ("NETWORK", "IMAGES"),
    "compare": ("NETWORK",),
    "run": ("DATA", "--models", "lensnet"),
    "demo": (),
}
"""Inputs of every command that writes, by their names in the fixture `inputs`."""
COMMANDS = vars(get_command(cli.app))["commands"]
"""All commands, by name."""
OUTPUTS = {"--out", "--map", "--show"}


def outputs(command: str) -> list[str]:
    """The options of a command that name what it writes."""
    return [option for parameter in COMMANDS[command].params for option in parameter.opts if option in OUTPUTS]


FILES = {("predict", "--out"), ("presets", "--show"), ("match", "--out"), ("fidelity", "--out")}
"""Outputs that are always files; they are tested by themselves."""
CASES = [
    (command, option, name)
    for command, words in READS.items()
    for option in outputs(command)
    for word in words
    for name in ("NETWORK", "DATA", "IMAGES", "SURVEY", "SETTINGS", "CATALOGUE")
    if name in word and (command, option) not in FILES
]


def test_every_command_that_writes_is_tested_here() -> None:
    options = {name: {option for each in command.params for option in each.opts} for name, command in COMMANDS.items()}
    assert {name for name in COMMANDS if options[name] & {*OUTPUTS, "--force"}} == set(READS)


@pytest.fixture
def inputs(tmp_path: Path, small_store: Path) -> dict[str, Path]:
    """What commands read, each in a folder of its own."""
    paths = {name: tmp_path / name.lower() / "own" for name in ("NETWORK", "DATA", "IMAGES")}
    shutil.copytree(bundle.shipped()["lensnet"], paths["NETWORK"])
    shutil.copytree(small_store, paths["DATA"])
    paths["IMAGES"].mkdir(parents=True)
    for number in range(2):
        np.save(paths["IMAGES"] / f"{number}.npy", np.random.default_rng(number).poisson(20, (150, 150)))
    texts = {"SURVEY": presets.source("common-test-1").read_text(), "SETTINGS": "", "CATALOGUE": "ra dec\n1 1\n"}
    for name, text in texts.items():
        paths[name] = tmp_path / name.lower() / ("a.ecsv" if name == "CATALOGUE" else "a.toml")
        paths[name].parent.mkdir()
        paths[name].write_text(text)
    return paths


def filled(words: tuple[str, ...], paths: dict[str, Path]) -> Iterator[str]:
    for word in words:
        for name, path in paths.items():
            word = word.replace(name, str(path))
        yield word


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def places(source: Path, links: Path) -> Iterator[str]:
    """Names of places on, in and above a source: plain, relative, through links and `..`, with a slash at the end."""
    (links / "link").symlink_to(source)
    (links / "above").symlink_to(source.parent)
    yield from map(str, (source, source.parent, links / "link", links / "above", links / "above" / source.name))
    yield from (f"{source}/", f"{source.parent}/x/../{source.name}", os.path.relpath(source))
    yield from ([str(source / "new"), str(links / "link" / "new")] if source.is_dir() else [])


@pytest.mark.parametrize(("command", "option", "name"), CASES)
def test_no_output_may_lie_on_in_or_above_what_is_read(
    command: str,
    option: str,
    name: str,
    inputs: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(inputs[name].parent)
    for place in places(inputs[name], tmp_path_factory.mktemp("links")):
        words = refused(capsys, command, *filled(READS[command], inputs), option, place, "--force")
        assert "overlaps" in words, (place, words)
    assert contents(inputs[name].parent) == before


@pytest.mark.parametrize(
    ("images", "table"),
    [
        ("IMAGES", "CATALOGUE"),
        ("IMAGES", "IMAGES/0.fits"),
        ("IMAGES", "NETWORK/new.csv"),
        ("IMAGES/0.npy", "IMAGES/../own/link.fits"),
        ("IMAGES/*.npy", "IMAGES/link.fits"),
    ],
)
def test_a_table_may_not_replace_what_is_read(
    images: str, table: str, inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (inputs["IMAGES"] / "link.fits").symlink_to("0.npy")
    before = contents(tmp_path)
    words = filled(("NETWORK", images, "--at", "CATALOGUE", "--out", table, "--force"), inputs)
    assert "overlaps" in refused(capsys, "predict", *words)
    assert contents(tmp_path) == before


def test_a_table_may_lie_beside_the_images_but_not_in_the_folder_of_maps(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ("predict", inputs["NETWORK"], inputs["IMAGES"], "--map", tmp_path / "maps", "--out")
    assert "overlaps" in refused(capsys, *start, tmp_path / "maps" / "a.csv")
    assert sublens(*start, inputs["IMAGES"] / "a.csv") == 0


@pytest.mark.parametrize("name", ["SURVEY", "IMAGES"])
@pytest.mark.parametrize("command", ["match", "fidelity"])
def test_a_survey_or_a_comparison_may_not_replace_what_is_read(
    command: str, name: str, inputs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(inputs[name].parent)
    words = filled(READS[command], inputs)
    assert "overlaps" in refused(capsys, command, *words, "--out", inputs[name], "--force")
    assert contents(inputs[name].parent) == before


def test_a_contact_sheet_may_not_replace_its_survey(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sheet.png").symlink_to(inputs["SURVEY"])
    assert "overlaps" in refused(capsys, "presets", inputs["SURVEY"], "--show", tmp_path / "sheet.png")
    assert inputs["SURVEY"].read_text() == presets.source("common-test-1").read_text()


def test_a_graph_may_not_replace_its_network(inputs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    network = inputs["NETWORK"]
    before = contents(network)
    words = refused(capsys, "export", network, inputs["DATA"], "--out", network / bundle.GRAPH, "--force")
    assert "overlaps" in words
    assert contents(network) == before


@pytest.mark.parametrize("command", [("evaluate",), ("export",), ("publish",)])
def test_a_network_that_is_named_may_not_be_replaced(
    command: tuple[str, ...],
    inputs: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = inputs["NETWORK"]
    monkeypatch.setattr(bundle, "BUNDLE_FOLDERS", (network.parent,))
    words = ("own", inputs["DATA"]) if command != ("publish",) else (inputs["DATA"], network)
    assert "overlaps" in refused(capsys, *command, *words, "--out", network.parent, "--force")


@pytest.mark.parametrize("option", [("--settings", "SETTINGS"), ("--set", "train.teacher='SETTINGS/..'")])
def test_several_trainings_may_not_replace_a_teacher_or_their_settings(
    option: tuple[str, str], inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "out" / "runs" / "lensnet"
    shutil.copytree(inputs["NETWORK"], run)
    (run / "own.toml").touch()
    words = filled(("DATA", "--models", "lensnet", *option), {**inputs, "SETTINGS": run / "own.toml"})
    existing = [word.replace("own.toml/..", "") for word in words]
    assert "overlaps" in refused(capsys, "run", *existing, "--out", tmp_path / "out", "--force")
    assert (run / "own.toml").exists()


def test_a_demo_may_not_replace_the_networks_that_it_measures(
    inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo").mkdir()
    inputs["NETWORK"].parent.rename(tmp_path / "demo" / "runs")
    monkeypatch.setattr(bundle, "BUNDLE_FOLDERS", (tmp_path / "demo" / "runs",))
    assert "overlaps" in refused(capsys, "demo", "--out", tmp_path / "demo", "--force")


WRITES = {
    "simulate": files.Kind.DATASET,
    "pack": files.Kind.DATASET,
    "train": files.Kind.RUN,
    "evaluate": files.Kind.BUNDLE,
    "publish": files.Kind.BUNDLE,
    "export": files.Kind.BUNDLE,
    "predict": files.Kind.MAPS,
    "explain": files.Kind.EXPLANATIONS,
    "compare": files.Kind.REPORT,
    "import-legacy": files.Kind.ARRAYS,
}
"""Kind of folder that a command leaves; those of `run` and `demo` are tested below."""
OTHERS = {**{kind: name for name, kind in files.MARKERS.items()}, files.Kind.BUNDLE: bundle.CARD}
"""A file that marks each kind."""


def marked(folder: Path, kind: files.Kind) -> Path:
    folder.mkdir(parents=True)
    (folder / OTHERS[kind]).write_text('{"rounding": 0.001}' if kind is files.Kind.BUNDLE else "{}")
    return folder


@pytest.mark.parametrize("kind", files.Kind)
@pytest.mark.parametrize("command", WRITES)
def test_force_replaces_the_same_kind_alone(
    command: str, kind: files.Kind, inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind is WRITES[command]:
        files.refuse_existing(marked(tmp_path / "out", kind), kind=kind, force=True)
        return
    out = marked(tmp_path / "out", kind)
    option = "--map" if command == "predict" else "--out"
    words = refused(capsys, command, *filled(READS[command], inputs), option, out, "--force")
    assert f"holds {kind}, so --force does not put" in words
    assert len(contents(out)) == 1


@pytest.mark.parametrize("folder", ["runs/lensnet", "report"])
def test_several_trainings_replace_runs_and_a_report_alone(
    folder: str, inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marked(tmp_path / "out" / folder, files.Kind.DATASET)
    words = refused(capsys, "run", inputs["DATA"], "--models", "lensnet", "--out", tmp_path / "out", "--force")
    assert "holds a data set, so --force does not put" in words


def test_force_looks_for_other_kinds_below(tmp_path: Path) -> None:
    marked(marked(tmp_path / "out", files.Kind.DATASET) / "runs" / "one", files.Kind.RUN)
    with pytest.raises(DataError, match="holds a run, so --force"):
        files.refuse_existing(tmp_path / "out", kind=files.Kind.DATASET, force=True)


@pytest.mark.parametrize("suffix", tables.WRITERS)
def test_force_replaces_a_table_of_predictions_alone(suffix: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    query = predict_files.Query(str(inputs["NETWORK"]), [inputs["IMAGES"]])
    out = tmp_path / f"a{suffix}"
    for _ in range(2):
        assert (predict_files.predict_to_table(query, out, force=True) or ())[:2] == (2, 0)
    out.write_text("id,ra,dec")
    with pytest.raises(DataError, match="was not written by this command, so --force does not replace it"):
        predict_files.predict_to_table(query, out, force=True)


LONG = 256 * "a"


@pytest.mark.parametrize(("command", "option"), [(command, option) for command in READS for option in outputs(command)])
def test_a_name_that_is_too_long_is_refused_before_work_begins(
    command: str, option: str, inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ending = {"presets": ".png", "predict": ".csv"}.get(command, "") if option != "--map" else ""
    words = [word for word in filled(READS[command], inputs) if word != str(inputs["CATALOGUE"]) and word != "--at"]
    before = contents(tmp_path)
    message = refused(capsys, command, *words, option, tmp_path / f"{LONG}{ending}")
    assert "a name of 2" in message
    assert "bytes is too long; needs names of 255 bytes at most. Choose a shorter one." in message
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", READS)
def test_a_name_of_an_input_that_is_too_long_is_explained(
    command: str, inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DATA", "IMAGES", "NETWORK", "SURVEY"):
        words = [*filled(READS[command], {**inputs, name: tmp_path / f"{LONG}.toml"})]
        if any(LONG in word for word in words):
            option = "--show" if command == "presets" else "--out"
            refused(capsys, command, *words, option, tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_a_folder_that_may_not_be_opened_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stat = Path.stat

    def forbid(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if str(path) == "closed/a":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", forbid)
    words = refused(capsys, "pack", "closed/a", "--out", "new")
    assert "closed/a: cannot be read (Permission denied); needs names of 255 bytes at most, in folders that" in words


TWICE = """
import sys, pathlib
from sublens.storage import files
for _ in range(int(sys.argv[3])):
    files.write_bytes(pathlib.Path(sys.argv[1]), sys.argv[2].encode() * 100_000)
"""


def test_two_processes_that_write_one_file_both_leave_it_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWICE, str(tmp_path / "a")]
    writers = [subprocess.Popen([*command, letter, "150"], stderr=subprocess.PIPE) for letter in "xy"]
    while any(writer.poll() is None for writer in writers):
        content = (tmp_path / "a").read_bytes() if (tmp_path / "a").exists() else b""
        assert content in (b"", b"x" * 100_000, b"y" * 100_000)
    assert [writer.communicate()[1] for writer in writers] == [b"", b""]
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
