"""Faults of disks: flipped bits in every kind of file that sublens writes and reads again, two writers, a full disk.

    python benchmarks/faults.py --flips 500
    python benchmarks/faults.py --parts writers space

Files of each kind are written, one random bit of one of them is flipped, and it is read as a command reads it. Prints
for each kind how often the fault was noticed (an error of ours, or a warning and an older state), changed nothing that
is read, changed what is read without a word, or ended in another exception. Then each command runs twice at once with
one output, and on a disk that fills up (a tmpfs, which only root can mount): its exit must be 0 or 1, its error one
sentence, and the output, made again where need be, that of a command left alone.

Exits with 1 where a change went unnoticed, or a command did any other thing than that.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel
from torch import nn

from sublens.config import ModelConfig, RunConfig, SplitConfig, TrainConfig
from sublens.data import generate, store
from sublens.data.dataset import open_dataset
from sublens.data.store import Chunk, Origin
from sublens.errors import DataError, SublensError
from sublens.evaluation.evaluate import measure_run
from sublens.inference import onnx_export, tables
from sublens.inference.journal import Journal
from sublens.inference.predictor import Prediction, Row
from sublens.models import bundle, weights
from sublens.report import runs
from sublens.storage import files
from sublens.surveys import presets
from sublens.surveys.survey import Survey
from sublens.training import checkpoint
from sublens.training.run import train_run
from sublens.web import keys

CLASSES = ("no", "sphere", "vort")
N_ROWS, N_KEPT = 200, 170
"""Rows of a table of predictions, and of its journal."""
PLAN = {"inputs": "these"}
SIZES: dict[Any, int] = {"train": 60, "test": 12}
SPLIT = SplitConfig(selection=0.2)
SPACE = (0.02, 0.6)
"""Room for the output, as a share of the most that it takes."""
MEMORY = Path("/dev/shm")
"""Folder in memory, where flushing a file takes no time."""
Read = Callable[[], object]

# --- samples ----------------------------------------------------------------------------------


class Kind(NamedTuple):
    """One kind of file, and how it is read."""

    file: Path
    read: Read
    """A function that returns all that is read; it raises an error of ours, or warns, where it notices a fault."""
    changes: Path | None = None
    """Folder that reading changes, so that it is put back each time."""


def small_survey() -> Survey:
    """common-test-1 on 48 pixels."""
    tree = presets.preset("common-test-1").model_dump(exclude_none=True)
    camera = {**tree["camera"], "n_pixels": 48, "pixel_scale": 0.15}
    return Survey.model_validate({**tree, "name": "small", "camera": camera})


def make_run(folder: Path, data: Path) -> Path:
    """A lensnet that was trained for one epoch and measured."""
    dataset = open_dataset(data, SPLIT)
    config = RunConfig(model=ModelConfig(name="lensnet"), train=TrainConfig(epochs=1), split=SPLIT)
    train_run(dataset, config, folder)
    measure_run(folder, dataset)
    return folder


def read_store(path: Path) -> object:
    dataset = open_dataset(path, SPLIT)
    parts = (dataset.train, dataset.selection, dataset.test)
    arrays = [(part.counts(np.arange(len(part))), part.labels, part.ids, part.truth) for part in parts]
    manifest = store.read_manifest(path)
    maps = [store.read_map(path, manifest, "train", name) for name in ("convergence", "noiseless")]
    return dataset.hash, dataset.classes, dataset.survey, arrays, maps


def read_network(folder: Path) -> object:
    """What `Predictor.load` and the torch engine make of a bundle, as far as they read files."""
    card = bundle.read_card(folder)
    model = None if card.graph and card.graph.is_alone else weights.load(folder, card)[0].state_dict()
    return card, model, bundle.load_calibration(folder, card), bundle.graph(folder, card).read_bytes()


def write_rows(journal: Journal, stop: int) -> None:
    first, second = journal.resume_at
    for number in range(first + second, stop):
        probs = dict(zip(CLASSES, np.random.default_rng(number).dirichlet(np.ones(3)).tolist(), strict=True))
        row = Row(
            Path(f"{number}.fits"), None, Prediction("no", probs, CLASSES[:2], number / 9, False), ra=1.5 * number
        )
        journal.add((number, 0), tables.record(row, CLASSES, "lensnet 0123", "1.0"))


def finish_table(path: Path) -> bytes:
    with Journal(path, PLAN) as journal:
        write_rows(journal, N_ROWS)
        journal.finish(tables.columns(CLASSES))
    return path.read_bytes()


def is_complete(path: Path) -> bool:
    """Whether `predict` leaves a table alone; it refuses to replace one of another plan."""
    if not tables.is_complete(path, PLAN):
        raise DataError("exists already", need="a new name", next="Choose another name.", path=path)
    return True


def write_store(out: Path, n_shards: int | None = None) -> object:
    """Go on with a store, stopped again after some shards if there is a number."""

    def chunks(n_done: int) -> Iterator[Chunk]:
        for number in range(n_done, 4):
            if number == n_shards:
                raise KeyboardInterrupt
            counts = np.random.default_rng(number).integers(0, 900, (16, 24, 24)).astype(np.uint16)
            ids = np.array([f"train/{16 * number + row:04d}" for row in range(16)])
            yield Chunk(counts, np.arange(16) % 3, ids)

    store.write(out, CLASSES, Origin(source="faults"), {"train": chunks}, plan="a plan")
    return read_arrays(out)


def read_arrays(path: Path) -> object:
    return [(name, np.load(path / name, allow_pickle=False)) for name in store.read_manifest(path).files]


def write_checkpoint(run: Path) -> None:
    model = nn.Linear(64, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in (1, 2):
        model(torch.ones(1, 64)).sum().backward()
        optimizer.step()
        checkpoint.save(run, checkpoint.captured(step, {"model": model}, optimizer, {"step": step}))


def read_checkpoint(run: Path) -> object:
    last, damaged = checkpoint.latest(run)
    for path in damaged:
        warnings.warn(f"{path} is damaged", stacklevel=1)
    return last


def sample_kinds(top: Path) -> dict[str, Kind]:
    """Files of all kinds, written below `top`."""
    data, kinds = top / "data", dict[str, Kind]()
    generate.simulate(small_survey(), SIZES, data, seed=5, save_maps=True)
    for name in sorted(store.read_manifest(data).files):
        if name.startswith("train/"):
            kinds[f"store: {name.removeprefix('train/')}"] = Kind(data / name, partial(read_store, data))
    kinds["store: manifest.json"] = Kind(data / store.MANIFEST, partial(read_store, data))
    kinds |= unfinished_store(top / "unfinished" / "data")
    run = make_run(top / "run", data)
    for name in (bundle.CARD, bundle.WEIGHTS, bundle.GRAPH, bundle.CALIBRATION):
        kinds[f"network: {name}"] = Kind(run / name, partial(read_network, run))
    for name in ("log.jsonl", "scores.json", "predictions.csv", "gallery.npz", bundle.CARD):
        kinds[f"run: {name}"] = Kind(run / name, lambda: runs.read_comparable([run]))
    exported = top / "exported"
    onnx_export.export(run, open_dataset(data, SPLIT), exported)
    for name in (bundle.CARD, bundle.GRAPH, bundle.CALIBRATION):
        kinds[f"exported: {name}"] = Kind(exported / name, partial(read_network, exported))
    write_checkpoint(top / "stopped")
    last = max((top / "stopped" / checkpoint.FOLDER).iterdir())
    kinds["checkpoint"] = Kind(last, partial(read_checkpoint, top / "stopped"))
    keys.add(top / "keys.txt")
    kinds["keys"] = Kind(top / "keys.txt", lambda: keys.read(top / "keys.txt"))
    return kinds | sample_tables(top / "tables")


def unfinished_store(out: Path) -> dict[str, Kind]:
    partial_folder = files.partial_folder(out)
    try:
        write_store(out, n_shards=2)
    except KeyboardInterrupt:
        names = sorted(path.relative_to(partial_folder) for path in partial_folder.rglob("*") if path.is_file())
    chosen = [name for name in names if name.stem.endswith("00000") or name.name == files.PLAN]
    return {
        f"unfinished store: {name.name}": Kind(partial_folder / name, partial(write_store, out), out.parent)
        for name in chosen
    }


def sample_tables(folder: Path) -> dict[str, Kind]:
    kept = folder / "kept" / "a.csv"
    with Journal(kept, PLAN) as journal:
        write_rows(journal, N_KEPT)
    kinds = {"journal": Kind(kept.with_name(".a.csv.journal"), partial(finish_table, kept), kept.parent)}
    for suffix in sorted(tables.WRITERS.keys() - set(tables.PLAIN)):
        path = folder / f"a{suffix}"
        finish_table(path)
        kinds[f"table: {suffix}"] = Kind(path, partial(is_complete, path))
    return kinds


# --- flipped bits -----------------------------------------------------------------------------


def digest(value: object) -> str:
    """A text that is the same for equal values only."""
    if isinstance(value, torch.Tensor):
        return digest(value.numpy())
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    if is_dataclass(value):
        return digest([getattr(value, field.name) for field in fields(value)])
    if isinstance(value, Mapping):
        return digest(list(value.items()))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"[{', '.join(map(digest, value))}]"
    return repr(value)


def flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def outcome(read: Read, reference: str) -> str:
    """What comes of reading a file: see `OUTCOMES`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = digest(read())
        except SublensError as err:
            return "noticed" if "\n" not in str(err) else "exception"
        except Exception as err:  # counted; it must not happen
            return f"exception {type(err).__name__}"
    if value == reference:
        return "no change"
    return "noticed" if any(warning.category is UserWarning for warning in caught) else "UNNOTICED"


def count_flips(kind: Kind, n_flips: int, rng: random.Random) -> Counter[str]:
    content, counts = kind.file.read_bytes(), Counter[str]()
    with put_back(kind.changes) as restore:
        reference = digest(kind.read())
        for _ in range(n_flips):
            restore()
            kind.file.write_bytes(flipped(content, rng))
            counts[outcome(kind.read, reference)] += 1
            kind.file.write_bytes(content) if kind.changes is None else None
    return counts


@contextmanager
def put_back(folder: Path | None) -> Iterator[Callable[[], None]]:
    """A function that puts a folder back to what it is now."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "copy"
        if folder:
            shutil.copytree(folder, copy)

        def restore() -> None:
            if folder:
                shutil.rmtree(folder)
                shutil.copytree(copy, folder)

        yield restore
        restore()


def flip_bits(kinds: Mapping[str, Kind], n_flips: int, seed: int) -> bool:
    """Print the table of flipped bits; returns whether all were noticed or changed nothing."""
    print("| file | bytes | noticed | no change | UNNOTICED | exception |\n|---|---:|---:|---:|---:|---:|", flush=True)
    is_good = True
    for name, kind in kinds.items():
        counts = count_flips(kind, n_flips, random.Random(f"{seed} {name}"))
        others = [f"{n} {what.removeprefix('exception ')}" for what, n in counts.items() if "exception" in what]
        cells = [f"{counts[what]:,}" for what in ("noticed", "no change", "UNNOTICED")]
        print(f"| {name} | {kind.file.stat().st_size:,} | {' | '.join(cells)} | {', '.join(others) or 0} |", flush=True)
        is_good &= not others and not counts["UNNOTICED"]
    return is_good


# --- two writers, and a full disk -------------------------------------------------------------


def commands(top: Path) -> dict[str, list[str]]:
    """A command for each output, without its --out, on the samples below `top`."""
    data, run, images = str(top / "data"), str(top / "run"), str(top / "folders" / "test")
    (top / "small.toml").write_text(presets_toml(), encoding="utf-8")
    generate.simulate(small_survey(), SIZES, top / "folders", seed=6, form="folder")
    simulated = ["simulate", str(top / "small.toml"), "--train", "60", "--test", "12"]
    train = ["--set", "train.epochs=1"]
    return {
        "simulate": simulated,
        "simulate --format fits": [*simulated, "--format", "fits"],
        "simulate --format folder": [*simulated, "--format", "folder"],
        "pack": ["pack", str(top / "folders")],
        "import-legacy": ["import-legacy", images],
        "train": ["train", data, "--model", "lensnet", "--resume", *train],
        "evaluate": ["evaluate", run, data],
        "run": ["run", data, "--models", "lensnet", *train],
        "compare": ["compare", run],
        "publish": ["publish", data, run],
        "export": ["export", run, data],
        "export .onnx": ["export", run, data],
        **{f"predict {suffix}": ["predict", run, images] for suffix in (".csv", ".parquet", ".fits", ".vot")},
        "predict --map": ["predict", run, images],
        "explain": ["explain", run, images],
        "presets .png": ["presets", str(top / "small.toml")],
        "serve --new-key": ["serve"],
    }


OPTIONS = {"predict --map": "--map", "presets .png": "--show", "serve --new-key": "--new-key"}
"""Option that names the output, where it is not --out."""
VARYING = (bundle.CARD, "log.jsonl", "scores.json", "report.html", "report.md")
"""Files that hold times, so that no two are the same."""


def presets_toml() -> str:
    """The small survey as a user writes it."""
    changes = {
        "common-test-1": "small",
        "n_pixels = 150": "n_pixels = 48",
        "pixel_scale = 0.05": "pixel_scale = 0.15",
        "fwhm = 0.2": "fwhm = 0.4",
    }
    text = presets.source("common-test-1").read_text(encoding="utf-8")
    for before, after in changes.items():
        text = text.replace(before, after)
    return text


def start(name: str, arguments: Sequence[str], out: Path) -> "subprocess.Popen[str]":
    """The command, writing `out`, in a process of its own."""
    command = [sys.executable, "-m", "sublens.cli", *arguments, OPTIONS.get(name, "--out"), str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


class End(NamedTuple):
    """How a command ended."""

    code: int
    errors: str

    @property
    def is_good(self) -> bool:
        """Whether it did its work, or said in one sentence why not."""
        said = [line for line in self.errors.splitlines() if line.startswith("sublens")]
        return self.code == 0 or (self.code == 1 and len(said) == 1 and "Traceback" not in self.errors)


def end(process: "subprocess.Popen[str]") -> End:
    errors = process.communicate()[1]
    return End(process.returncode, errors)


def output_of(name: str, folder: Path) -> Path:
    """The place of a command's output in a folder."""
    suffix = name.partition(" .")[2]
    return folder / (f"out.{suffix}" if suffix else "out")


def result(out: Path) -> object:
    """What a command left: its files, those that vary by name alone, and what is read of networks and runs."""
    if (out / "scores.json").is_file():
        runs.read_comparable([out])
    elif (out / bundle.CARD).is_file():
        read_network(out)
    paths = sorted(path for path in out.rglob("*") if path.is_file()) if out.is_dir() else [out]
    if out.name == "out" and out.is_file():  # keys, which are random
        return len(keys.read(out)) > 0
    return [(path.relative_to(out), "" if path.name in VARYING else files.sha256(path)) for path in paths]


def others(out: Path) -> list[str]:
    """Names that a command left beside its output."""
    return sorted(path.name for path in out.parent.iterdir() if path not in (out, out.parent / BALLAST))


class Case(NamedTuple):
    """A command, and what it leaves when nothing goes wrong."""

    name: str
    arguments: Sequence[str]
    reference: object
    n_bytes: int
    """Size of what it leaves."""


def run_alone(name: str, arguments: Sequence[str], folder: Path) -> Case:
    out = output_of(name, folder)
    alone = end(start(name, arguments, out))
    assert alone.code == 0, f"{name}: {alone.errors}"
    paths = [path for path in out.rglob("*") if path.is_file()] if out.is_dir() else [out]
    return Case(name, arguments, result(out), sum(path.stat().st_size for path in paths))


def write_twice(case: Case, folder: Path) -> str:
    """The outcome of the same command twice at once, with one output."""
    out = output_of(case.name, folder)
    ends = [end(process) for process in [start(case.name, case.arguments, out) for _ in range(2)]]
    codes = "exits " + " and ".join(str(code) for code in sorted(command.code for command in ends))
    if not all(command.is_good for command in ends):
        return f"BAD: {codes}: {' / '.join(last_line(command) for command in ends)}"
    if all(command.code for command in ends):
        return f"BAD: none wrote it: {' / '.join(last_line(command) for command in ends)}"
    return f"{codes}, {compared(case, out)}"


def compared(case: Case, out: Path) -> str:
    """Whether an output is as when the command is left alone, and alone in its folder."""
    try:
        is_equal = digest(result(out)) == digest(case.reference)
    except (SublensError, OSError) as err:
        return f"BAD: {err}"
    return f"BAD: leaves {others(out)}" if others(out) else "equal" if is_equal else "BAD: another output"


def last_line(command: End) -> str:
    return (command.errors.strip().splitlines() or ["(no word)"])[-1]


BALLAST = "ballast"
"""Name of the file that fills a disk."""


def fill_disk(case: Case, folder: Path, share: float) -> str:
    """The outcome of a command with room for a share of its output, and of the same command with room for all."""
    out, ballast = output_of(case.name, folder), folder / BALLAST
    size = 8 * case.n_bytes + 2**24
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        room = int(share * case.n_bytes) // PAGE * PAGE
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - room)
        full = end(start(case.name, case.arguments, out))
        if not full.is_good:
            return f"BAD: exit {full.code}: {last_line(full)}"
        ballast.unlink()
        again = end(start(case.name, case.arguments, out)) if full.code else full
        if again.code:
            return f"BAD: again: {last_line(again)}"
        return f"exit {full.code}, again {compared(case, out)}"
    finally:
        subprocess.run(["umount", folder], check=True)


PAGE = os.sysconf("SC_PAGE_SIZE")


def try_commands(cases: Sequence[tuple[str, list[str]]], parts: Sequence[str], top: Path) -> bool:
    """Print the table of two writers and of full disks; returns whether all did as they must."""
    shares = SPACE if "space" in parts and os.geteuid() == 0 else ()
    if "space" in parts and not shares:
        print("Only root can mount a tmpfs: no disk is filled.")
    titles = [*(["two at once"] if "writers" in parts else []), *(f"room for {share:.0%}" for share in shares)]
    print(f"| command | {' | '.join(titles)} |\n|---{'|---' * len(titles)}|", flush=True)
    is_good = True
    for name, arguments in cases:
        case = run_alone(name, arguments, new_folder(top))
        cells = [write_twice(case, new_folder(top))] if "writers" in parts else []
        cells += [fill_disk(case, new_folder(top), share) for share in shares]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        is_good &= not any("BAD" in cell for cell in cells)
    return is_good


def new_folder(top: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=top))


PARTS = ("flips", "writers", "space")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--kinds", nargs="+", default=[""], help="beginnings of the names of files, or of commands")
    parser.add_argument("--flips", type=int, default=500, help="of each file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    is_good, beginnings = True, tuple(options.kinds)
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as scratch:
        top = Path(scratch)
        kinds = sample_kinds(top)
        if "flips" in options.parts:
            chosen = {name: kind for name, kind in kinds.items() if name.startswith(beginnings)}
            is_good &= flip_bits(chosen, options.flips, options.seed)
        if {"writers", "space"} & set(options.parts):
            cases = [(name, arguments) for name, arguments in commands(top).items() if name.startswith(beginnings)]
            is_good &= try_commands(cases, options.parts, top)
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
