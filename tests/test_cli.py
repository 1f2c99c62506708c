import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from astropy.io import fits
from PIL import Image

from sublens import cli
from sublens.data import store
from sublens.inference import predictor, tables
from sublens.inference.journal import Journal
from sublens.inference.predictor import Predictor
from sublens.models import bundle
from sublens.sim.render import simulate
from sublens.storage.files import sha256
from sublens.surveys import presets
from sublens.training import recorder
from sublens.training.loop import Step

COMMANDS = (
    "doctor",
    "simulate",
    "presets",
    "match",
    "fidelity",
    "pack",
    "import-legacy",
    "verify",
    "networks",
    "train",
    "evaluate",
    "publish",
    "export",
    "predict",
    "explain",
    "compare",
    "run",
    "serve",
    "demo",
)


def sublens(*arguments: str | Path) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What a command that exits 1 says on standard error."""
    capsys.readouterr()
    assert sublens(*arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert printed.err.splitlines()[-1].startswith(("sublens: ", "  ", "Copy", "Give"))
    return printed.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_ends_in_a_line_to_paste(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sublens(command, "--help") == 0
    described = capsys.readouterr().out.split("Arguments:")[0].split("Options:")[0]
    assert re.search(rf"\n\s+sublens {command}", described)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert sublens("--help") == 0
    printed = capsys.readouterr().out
    assert all(f"  {command} " in printed for command in COMMANDS)
    assert {command.name or command.callback.__name__ for command in cli.app.registered_commands} == set(COMMANDS)  # type: ignore[union-attr]


def test_help_groups_all_commands_with_whole_summaries(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert sublens("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(name for names in cli.GROUPS.values() for name in names) == sorted(COMMANDS)
    assert all(any(line.startswith(f"  {name} ") and line.endswith(".") for line in lines) for name in COMMANDS)
    assert max(map(len, lines)) <= 80


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert sublens("--version") == 0
    assert re.fullmatch(r"sublens \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_a_setting_given_as_an_option_is_answered_with_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert sublens("train", "data", "--out", "run", "--batch-size=8") == 2
    assert "Type: --set train.batch_size=8" in " ".join(capsys.readouterr().err.split())
    assert sublens("run", "data", "--out", "run", "--epochs", "3") == 2
    assert "Type: --set train.epochs=3" in " ".join(capsys.readouterr().err.split())
    assert sublens("run", "data", "--out", "run", "--nothing", "3") == 2
    assert "No such option" in capsys.readouterr().err


def test_help_does_not_import_anything_heavy() -> None:
    heavy = {"torch", "timm", "numpy", "astropy", "matplotlib"}
    script = f"import sys; from sublens.cli import app; print(*{heavy} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == ""
    )


def test_the_story_from_nothing_to_a_comparison(
    tmp_path: Path, easy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, out = tmp_path / "store", tmp_path / "runs" / "lensnet"
    quick = ("--set", "train.epochs=8", "--set", "train.batch_size=16")
    assert sublens("pack", easy_folder, "--out", packed) == 0
    assert sublens("verify", packed) == 0
    assert sublens("train", packed, "--model", "lensnet", "--out", out, *quick) == 0
    assert sublens("evaluate", out, packed) == 0
    printed = capsys.readouterr().out
    assert float(re.findall(r"auc_macro +(\S+)", printed)[0]) > 0.95
    assert sublens("compare", out, "--out", tmp_path / "comparison") == 0
    assert (tmp_path / "comparison" / "report.html").is_file()


def test_simulate_writes_a_store_that_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sublens("simulate", "common-test-1", "--train", "6", "--test", "3", "--out", tmp_path / "ct1") == 0
    assert "6 train + 3 test images of no, sphere, vort" in capsys.readouterr().out
    assert sublens("verify", tmp_path / "ct1") == 0


def test_simulate_writes_folders_too(tmp_path: Path) -> None:
    arguments = ("--train", "6", "--test", "3", "--format", "folder", "--out", tmp_path / "ct1")
    assert sublens("simulate", "common-test-1", *arguments) == 0
    assert np.load(tmp_path / "ct1" / "train" / "vort" / "2.npy").shape == (1, 150, 150)


def test_run_prints_the_table_and_the_reports_path(
    tmp_path: Path, easy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--models", "lensnet", "--set", "train.epochs=1", "--out", tmp_path / "out")
    assert sublens("run", easy_folder, *arguments) == 0
    printed = capsys.readouterr().out
    assert "lensnet" in printed
    assert printed.strip().endswith(str(Path("report", "report.html")))


@pytest.mark.parametrize("command", [("train",), ("run", "--models", "lensnet")])
def test_training_says_what_the_parts_are_and_leaves_out_what_is_unusable(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    (image_folder / "test").rename(image_folder / "Valid")
    (image_folder / "train" / "ring" / "3.npy").write_bytes(b"x")
    name, *models = command
    settings = ("--set", "train.epochs=1", "--set", "split.selection=0.3", "--set", "train.batch_size=8")
    arguments: tuple[str | Path, ...] = (name, image_folder, *models, "--out", tmp_path / "out", *settings)
    assert "leave them out with --skip-bad:\n  train/ring/3.npy: truncated" in refused(capsys, *arguments)
    assert sublens(*arguments, "--skip-bad") == 0
    printed = capsys.readouterr().err
    assert "Note: the test part is Valid/\n" in printed
    assert "left out, 1 in all:\n  train/ring/3.npy: truncated" in printed


def test_networks_lists_ours_and_what_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert sublens("networks") == 0
    rows = capsys.readouterr().out.splitlines()
    untrained, trained = ([row.split()[0] for row in rows if (" trained," in row) == is_it] for is_it in (False, True))
    assert untrained == ["mobilenetv3-small", "resnet18", "efficientnet-b5", "lensnet"]
    assert trained == list(bundle.shipped())
    assert any("lensnet " in row and "knows common-test-1: AUC 0.9989" in row for row in rows)
    assert not any("{" in row for row in rows)


def test_networks_of_timm_are_listed_by_a_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert sublens("networks", "--all", "convnextv2_t*") == 0
    assert capsys.readouterr().out.split() == ["convnextv2_tiny"]
    assert "Try --all resnet" in refused(capsys, "networks", "--all", "nothing-like-it")


def test_verify_names_a_changed_byte(small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in (path for path in small_store.rglob("*") if path.is_file()):
        copy = tmp_path / "s" / source.relative_to(small_store)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    shard = tmp_path / "s" / "test" / "images-00000.npy"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    assert "test/images-00000.npy: changed" in refused(capsys, "verify", tmp_path / "s")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("simulate", "common-test-2"), "Did you mean common-test-1?"),
        (("train", "nowhere"), "nowhere: no such folder"),
        (("run", "FOLDER", "--models", "resnet18,lensnett"), "Did you mean lensnet, "),
        (("train", "FOLDER", "--model", "resnet81"), "Did you mean resnet"),
        (("train", "FOLDER", "--set", "train.epoch=3"), "train.epoch: no such setting. Did you mean epochs?"),
        (("train", "FOLDER", "--set", "train.epochs=many"), "train.epochs"),
        (("train", "FOLDER", "--set", "input.crop=99"), "input.crop is 99 pixels but the images are 16 x 16"),
        (("train", "FOLDER", "--settings", "none.toml"), "none.toml: cannot be read"),
        (("train", "FOLDER", "--model", "resnet18.no_such_tag"), "no network called 'resnet18.no_such_tag'"),
        (("train", "FOLDER", "--model", "vit_tiny_patch16_224"), "cannot take images of 16 x 16 pixels"),
        (("run", "FOLDER", "--models", "lensnet,lensnet"), "A network is named twice"),
        (("train", "FOLDER", "--set", "train.seed=99999999999999999999"), "train.seed"),
        (("compare", "FOLDER"), "not a trained model"),
        (("pack", "FOLDER/train/empty"), "needs at least two"),
    ],
)
def test_a_users_mistake_is_explained_and_leaves_nothing(
    arguments: tuple[str, ...], words: str, easy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("FOLDER", str(easy_folder)) for argument in arguments]
    assert words in refused(capsys, *given, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.full((1, 16, 16), np.inf), "pixels are infinite"),
        (np.ones((1, 16, 16)), "every pixel is 1"),
        (np.eye(17), "is 17 x 17 pixels but"),
        (np.array([[None, 1], [2, 3]]), "pickled object array"),
        (np.zeros((2, 16, 16)), "holds a stack of images"),
    ],
)
def test_a_bad_image_is_named_and_leaves_nothing(
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
    words: str,
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.save(image_folder / "train" / "ring" / "5.npy", pixels)
    told = refused(capsys, "train", image_folder, "--out", tmp_path / "out")
    assert "5.npy" in told
    assert words in told
    assert not (tmp_path / "out").exists()


def test_a_truncated_image_is_named(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = image_folder / "test" / "ring" / "2.npy"
    path.write_bytes(path.read_bytes()[:900])
    assert "2.npy: truncated" in refused(capsys, "pack", image_folder, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [("simulate", "common-test-1"), ("pack", "FOLDER"), ("train", "FOLDER")])
def test_existing_output_needs_force(
    command: tuple[str, ...], easy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    given = [argument.replace("FOLDER", str(easy_folder)) for argument in command]
    assert "exists already" in refused(capsys, *given, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_force_never_replaces_the_working_folder(
    tmp_path: Path, easy_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    monkeypatch.chdir(tmp_path)
    told = refused(capsys, "pack", easy_folder, "--out", ".", "--force")
    assert "is or holds the working folder" in told
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_tampered_bundle_is_refused(tmp_path: Path, easy_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sublens("train", easy_folder, "--out", tmp_path / "run", "--set", "train.epochs=1") == 0
    with (tmp_path / "run" / bundle.WEIGHTS).open("ab") as file:
        file.write(b"x")
    assert "not what its card was written for" in refused(capsys, "evaluate", tmp_path / "run", easy_folder)
    assert not (tmp_path / "run" / recorder.SCORES).exists()


def test_a_disk_that_takes_no_more_is_explained_and_left_clean(tmp_path: Path) -> None:
    def allow_little() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-m", "sublens.cli", "simulate", "common-test-1", "--train", "30", "--out", "store"]
    done = subprocess.run(command, cwd=tmp_path, preexec_fn=allow_little, capture_output=True, text=True)
    assert done.returncode == 1
    assert "store: could not be written (File too large)" in done.stderr
    assert "Free some space" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".store.partial"]  # to be continued


def test_a_full_standard_output_is_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "sublens.cli", "presets"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"sublens: .*is refused by the disk \(No space left on device\); needs .*\n", done.stderr)


def test_a_reader_that_leaves_ends_a_command_without_a_word() -> None:
    command = [sys.executable, "-m", "sublens.cli", "presets", "common-test-1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout
        assert job.stderr
        job.stdout.close()
        assert job.stderr.read() == ""
    assert job.returncode == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_what_a_disk_refuses_anywhere_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*names: str) -> None:
        raise OSError(number, os.strerror(number), "disk/file")

    monkeypatch.setattr(presets, "names", refuse)
    words = refused(capsys, "presets")
    assert words.startswith(f"sublens: disk/file: is refused by the disk ({os.strerror(number)}); needs")
    assert words.count("\n") == 1


@pytest.mark.slow
def test_a_terminated_simulation_says_how_to_go_on(tmp_path: Path) -> None:
    arguments = ("simulate", "common-test-1", "--train", "20000", "--workers", "2", "--out", "store")
    command = [sys.executable, "-m", "sublens.cli", *arguments]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as job:
        while not list(tmp_path.glob(".store.partial/train/images-*.npy")):
            assert job.poll() is None
            time.sleep(0.05)
        job.terminate()
        assert job.stderr is not None
        words = job.stderr.read()
    assert "sublens: stopped. Run the same command again" in words
    assert f"What is done is kept in {tmp_path / '.store.partial'}" in words
    assert job.returncode == cli.STOPPED
    assert [path.name for path in tmp_path.iterdir()] == [".store.partial"]


def test_presets_are_listed_and_printed_as_toml(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert sublens("presets") == 0
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed for name in presets.names())
    assert sublens("presets", "hst") == 0
    (tmp_path / "mine.toml").write_text(capsys.readouterr().out)
    assert presets.preset(str(tmp_path / "mine.toml")) == presets.preset("hst")


def test_a_preset_of_ones_own_is_named_by_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = presets.source("model-2").read_text().replace("n_pixels = 64", "n_pixels = 32")
    (tmp_path / "mine.toml").write_text(text)
    assert sublens("simulate", tmp_path / "mine.toml", "--train", "3", "--test", "0", "--out", tmp_path / "s") == 0
    assert store.read_manifest(tmp_path / "s").shape == (32, 32)


def test_a_contact_sheet_is_drawn(tmp_path: Path) -> None:
    assert sublens("presets", "model-2", "rubin", "--show", tmp_path / "sheet.png") == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 500


def test_a_contact_sheet_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sublens("presets", "--show", tmp_path / "sheet.doc") == 1
    assert "needs .png, .pdf or .svg" in capsys.readouterr().err


def test_wrong_usage_exits_2() -> None:
    assert sublens("simulate") == 2


def test_ctrl_c_keeps_the_run_and_says_so(
    tmp_path: Path, easy_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sublens.training.run._fit", stopped)
    assert sublens("train", easy_folder, "--out", tmp_path / "run") == 130
    assert "best weights so far were kept" in capsys.readouterr().err
    assert bundle.read_card(tmp_path / "run").training.interrupted


def test_a_pool_for_a_data_set_on_disk_is_refused(
    tmp_path: Path, easy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sublens("train", easy_folder, "--cache", "10", "--out", tmp_path / "run") == 1
    assert "needs a survey to train from" in capsys.readouterr().err


def test_a_store_says_what_it_is(small_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sublens("verify", small_store) == 0
    assert sha256(small_store / store.MANIFEST) in capsys.readouterr().out


@pytest.fixture(scope="module")
def mapper(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that draws maps, measured."""
    out = tmp_path_factory.mktemp("runs") / "mapper"
    quick = ("--set", "train.epochs=1", "--set", "split.selection=0.2")
    assert sublens("train", small_store, "--out", out, *quick) == 0
    assert sublens("evaluate", out, small_store) == 0
    return out


@pytest.fixture
def cutouts(small_store: Path, tmp_path: Path) -> list[Path]:
    images = np.load(small_store / "test" / "images-00000.npy")
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", images[number] / images[number].max())
    return [tmp_path / f"{number}.npy" for number in range(3)]


def test_force_replaces_a_table_and_maps_that_are_there(
    mapper: Path, cutouts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str | Path] = ["predict", mapper, *cutouts, "--out", tmp_path / "a.csv", "--map", tmp_path / "maps"]
    assert sublens(*asked) == 0
    assert "exists already" in refused(capsys, *asked)
    assert sublens(*asked, "--force") == 0
    assert len(list((tmp_path / "maps").glob("*.fits"))) == len(cutouts)


def test_export_writes_a_graph_that_predicts(
    mapper: Path, small_store: Path, cutouts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sublens("export", mapper, small_store, "--out", tmp_path / "alone") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(str(tmp_path / "alone" / "graph.onnx"))
    assert "differ from those of torch by" in printed
    assert sublens("predict", tmp_path / "alone", *cutouts, "--map", tmp_path / "maps") == 0


def test_export_to_a_name_that_ends_in_onnx_writes_that_file(
    mapper: Path, small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.onnx"
    assert sublens("export", mapper, small_store, "--out", out) == 0
    assert capsys.readouterr().out.startswith(str(out))
    assert [output.name for output in onnx.load(out).graph.output][:1] == ["logits"]
    assert "exists" in refused(capsys, "export", mapper, small_store, "--out", out)


def test_comparing_a_shipped_network_is_answered_with_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "compare", "lensnet", "--out", tmp_path / "report")
    assert "sublens evaluate lensnet DATASET --out runs/lensnet" in message


def test_predict_prints_a_line_an_image_and_leaves_maps(
    mapper: Path, cutouts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sublens("predict", mapper, *cutouts, "--map", tmp_path / "maps") == 0
    header, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert header == [
        *("path", "label", "p_no", "p_sphere", "p_vort", "prediction_set", "ood_score", "ood", "notes", "error")
    ]
    predictions = Predictor.load(mapper).files(cutouts)
    assert [row[:2] for row in rows] == [[str(path), one.label] for path, one in zip(cutouts, predictions, strict=True)]
    assert all(sum(map(float, row[2:5])) == pytest.approx(1, abs=2e-4) for row in rows)
    caution = "out-of-distribution threshold from 27 images alone: up to 14.3% false alarms in a class"
    assert {tuple(row[8:]) for row in rows} == {(f"pixel scale not in the file; taken as 0.15 arcsec; {caution}", "")}
    drawn, header = fits.getdata(tmp_path / "maps" / "2-1.fits", header=True)
    masses = predictions[1].masses
    assert masses is not None
    assert np.allclose(drawn, masses, rtol=1e-5)
    assert header["CDELT1"] * drawn.shape[1] == pytest.approx(48 * 0.15)
    assert header["BUNIT"] == "solMass"


def test_one_bad_image_costs_one_row(
    mapper: Path, cutouts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cutouts[1].write_bytes(b"nothing")
    np.savez(tmp_path / "stack.npz", np.stack([np.load(cutouts[0]), np.zeros((48, 48))]))
    assert sublens("predict", mapper, *cutouts, tmp_path / "stack.npz", tmp_path / "none.fits") == 0
    told = capsys.readouterr()
    rows = [line.split("\t") for line in told.out.splitlines()[1:]]
    names = [Path(row[0]).name for row in rows if row[-1]]
    assert names == ["1.npy", "stack.npz#1", "none.fits"]
    assert "3 of 6 images could not be used" in told.err
    assert sublens("predict", mapper, cutouts[1]) == 1


def test_a_killed_table_goes_on_where_it_was(
    mapper: Path, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = np.load(small_store / "test" / "images-00000.npy")
    np.savez(tmp_path / "many.npz", counts[:20])
    np.save(tmp_path / "one.npy", counts[20])
    inputs = (tmp_path / "one.npy", tmp_path / "none.npy", tmp_path / "many.npz", tmp_path / "one.npy")
    # what shares a batch may show in the last digit
    monkeypatch.setattr("sublens.inference.journal.BATCH", 4)
    monkeypatch.setattr(predictor, "BATCH", 4)
    assert sublens("predict", mapper, *inputs, "--out", tmp_path / "whole.csv") == 0
    add, seen = Journal.add, []

    def killed(self: Journal, index: tuple[int, int], one: tables.Record) -> None:
        if index == (2, 7):
            raise KeyboardInterrupt
        seen.append(index)
        add(self, index, one)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", killed)
        assert sublens("predict", mapper, *inputs, "--out", tmp_path / "killed.csv") == 130
    assert seen[-1] == (2, 6)
    assert not (tmp_path / "killed.csv").exists()
    assert sublens("predict", mapper, *inputs, "--out", tmp_path / "killed.csv") == 0
    assert (tmp_path / "killed.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_an_image_of_another_scale_is_resampled(
    mapper: Path, cutouts: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(cutouts[0], np.kron(np.load(cutouts[0]), np.ones((3, 3))))
    assert sublens("predict", mapper, cutouts[0], "--pixel-scale", "0.05") == 0
    assert "resampled from 0.05 to 0.15 arcsec a pixel" in capsys.readouterr().out


def test_predict_takes_the_shipped_network_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, counts = simulate(presets.preset("common-test-1"), 9, "test", range(6))
    paths = [tmp_path / f"{number}.npy" for number in range(6)]
    for path, one in zip(paths, counts, strict=True):
        np.save(path, one / one.max())
    assert sublens("predict", *paths) == 0
    labels = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert labels == ["no", "sphere", "vort", "no", "sphere", "vort"]


def test_predict_says_which_network_it_chose_and_why(
    weigher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sky = np.random.default_rng(1).standard_normal((60, 60))
    sky[30, 30] = 40
    axes = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -0.15 / 3600, "CDELT2": 0.15 / 3600}
    fits.writeto(tmp_path / "a.fits", sky, fits.Header(axes))
    monkeypatch.setattr(bundle, "shipped", lambda: {"lensnet-hst": weigher})
    assert sublens("predict", tmp_path / "a.fits") == 0
    printed = capsys.readouterr()
    assert "lensnet-hst predicts, since the first image is of a telescope with 0.15 arcsec a pixel" in printed.err
    assert "theta_e" in printed.out.splitlines()[0].split("\t")


def test_a_network_without_a_truth_head_draws_no_maps(
    easy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sublens("train", easy_folder, "--out", tmp_path / "run", "--set", "train.epochs=1") == 0
    image = next((easy_folder / "test" / "square").iterdir())
    told = refused(capsys, "predict", tmp_path / "run", image, "--map", tmp_path / "maps")
    assert "draws no maps" in told
    assert not (tmp_path / "maps").exists()


def test_a_misspelt_network_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean lensnet?" in refused(capsys, "predict", "lensnets", "1.npy")


def test_maps_replace_nothing_without_force(
    mapper: Path, cutouts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "1.fits").touch()
    assert "exists already" in refused(capsys, "predict", mapper, *cutouts, "--map", tmp_path / "maps")


def test_evaluate_scores_maps_against_the_truth(mapper: Path, small_store: Path) -> None:
    scores = json.loads((mapper / recorder.SCORES).read_text())["map"]
    assert set(scores) == {"sphere", "vort"}
    assert all(0 < drawn["share"] < 1 for drawn in scores.values())


def test_publish_makes_a_bundle_that_predicts_alike(mapper: Path, small_store: Path, tmp_path: Path) -> None:
    assert sublens("publish", small_store, mapper, "--out", tmp_path / "bundle") == 0
    card = bundle.read_card(tmp_path / "bundle")
    assert [score.track for score in card.scores] == ["simulator in the loop"]
    counts = np.load(small_store / "test" / "images-00000.npy")[:4]
    before, after = (Predictor.load(path).masses(counts) for path in (mapper, tmp_path / "bundle"))
    assert np.allclose(before, after, rtol=0.1, atol=1e7)


def test_a_stopped_training_is_resumed_without_its_settings_being_named_again(
    tmp_path: Path, easy_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, quick = tmp_path / "run", ("--set", "train.epochs=4", "--set", "train.batch_size=16")
    whole = recorder.TrainingRecorder.on_step

    def on_step(self: recorder.TrainingRecorder, step: Step) -> None:
        if step.number == 3:
            signal.raise_signal(signal.SIGTERM)
        whole(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(recorder.TrainingRecorder, "on_step", on_step)
        assert sublens("train", easy_folder, "--out", out, *quick) == 130
    told = capsys.readouterr().err
    assert f"To go on: sublens train {easy_folder} --out {out} --resume" in told
    assert "Run the same command again" not in told
    told = refused(capsys, "train", easy_folder, "--out", out, "--resume", "--set", "train.epochs=5")
    assert "train.epochs: 4 before, 5 now" in told
    assert sublens("train", easy_folder, "--out", out, "--resume") == 0
    assert bundle.read_card(out).settings.train.epochs == 4
    assert not bundle.read_card(out).training.interrupted
    assert sublens("train", easy_folder, "--out", out, "--resume") == 0  # complete: nothing to do


def test_classes_in_unequal_proportions_are_spoken_of(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(8):
        (image_folder / "train" / "ring" / f"{number}.npy").unlink()
    arguments = ("--set", "split.selection=0.3", "--set", "train.epochs=1")
    assert sublens("train", image_folder, "--out", tmp_path / "run", *arguments) == 0
    assert re.search(r"largest class has \d\.\d times as many", capsys.readouterr().err)
