"""The command line: parse, call, print. Results go to standard output, all else to standard error."""

import errno
import os
import platform
import signal
import sys
import warnings
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from sublens.errors import DataError, SublensError
from sublens.storage import scratch
from sublens.storage.object_store import Remote, parse_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sublens.config import RunConfig
    from sublens.data.dataset import Dataset
    from sublens.inference.predict_files import Query
    from sublens.inference.predictor import Row
    from sublens.inference.tables import Cell, Totals
    from sublens.models.bundle import Card
    from sublens.surveys.survey import Survey

GROUPS = {
    "Predict": ("predict", "serve", "explain"),
    "Train and compare": ("run", "train", "evaluate", "compare", "demo"),
    "Make data sets": ("presets", "match", "simulate", "fidelity", "pack", "verify", "import-legacy"),
    "Networks": ("networks", "export", "publish"),
    "Help": ("doctor",),
}
"""Commands as the help lists them."""


class _Command(TyperCommand):
    """A command that answers a setting given as an option with what to type."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {option for parameter in self.params for option in parameter.opts}
        for arg, after in zip(args, [*args[1:], "VALUE"], strict=True):
            name, equals, value = arg.partition("=")
            if name.startswith("--") and name not in known and (key := _setting(name)):
                raise typer.BadParameter(f"{name} is a setting. Type: --set {key}={value if equals else after}")
        return super().parse_args(ctx, args)


class _Group(TyperGroup):
    """The commands, grouped by what they are for."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(80)) for name in names])


def _setting(option: str) -> str | None:
    """The section.key that an option like --batch-size means, if there is one."""
    from sublens import config

    key = option.removeprefix("--").replace("-", "_")
    sections: dict[str, type[config.Frozen]] = {
        "train": config.TrainConfig,
        "model": config.ModelConfig,
        "split": config.SplitConfig,
        "input": config.InputConfig,
    }
    return next((f"{section}.{key}" for section, kind in sections.items() if key in kind.model_fields), None)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        print(f"sublens {version('sublens')}")
        raise typer.Exit


app = typer.Typer(
    name="sublens",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    help="Tell dark-matter substructure apart in images of strong gravitational lenses.\n\n"
    "To see it all work: sublens demo",
)

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
"""Numbers of the errors of a disk that is full, limited, failing or read-only."""
STOPPED = 130
"""Exit code after Ctrl-C."""
DEFAULT_BUNDLE = "lensnet"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that no other machine can reach."""
MASS_FROM = 1e6
"""Number from which on a cell is a mass, solar masses, and is shown as a power of ten."""
NOT_SHOWN = ("id", "ra", "dec", "bundle", "version")
"""Columns of a table of predictions that are not printed."""
LOOK_UP_ERRORS = (errno.ENAMETOOLONG, errno.EACCES)
"""Errors of the operating system for a name that cannot be looked up."""
IMBALANCED = 1.5
"""Ratio of the largest class to the smallest above which it is mentioned."""


def _local_path(value: str | Path) -> Path:
    if isinstance(parse_path(value), Remote):
        raise typer.BadParameter(f"{value} must be a local path.")
    return Path(value)


Out = Annotated[Path, typer.Option("--out", parser=_local_path, metavar="PATH", help="Where to leave the result.")]
AnyOut = Annotated[
    Path,
    typer.Option(
        "--out", parser=parse_path, metavar="PATH", help="Where to leave the result; may be s3://BUCKET/NAME."
    ),
]
Data = Annotated[
    Path, typer.Argument(metavar="DATASET", parser=parse_path, help="Store, or folder of class folders; may be s3://.")
]
DataOrSurvey = Annotated[
    Path,
    typer.Argument(
        metavar="DATASET",
        parser=parse_path,
        help="Store, or folder of class folders; may be s3://. Or a survey, by name or SURVEY.toml, whose images are "
        "rendered as they are needed.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Settings = Annotated[Path | None, typer.Option("--settings", help="TOML file of settings.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="One setting, as section.key=value; may be repeated.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**62, help="Seed of all random draws.")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes to use.")]
Cluster = Annotated[
    str | None,
    typer.Option("--cluster", help="Compute on Dask workers: local[:N], tcp://HOST:PORT, or slurm:FILE.toml."),
]
Arguments = Annotated[
    list[Path],
    typer.Argument(
        metavar="[BUNDLE] IMAGE...",
        parser=parse_path,
        help="A trained network, lensnet if none is named or fits (see `sublens networks`), and images: files, "
        "folders, patterns; .npy, .npz, FITS, PNG, TIFF, JPEG, HDF5 or zarr.",
    ),
]
Hdu = Annotated[str | None, typer.Option("--hdu", help="FITS extension, by number or name.")]
FlipY = Annotated[
    bool, typer.Option("--flip-y", help="The first row of each image is its top, as in FITS files of PyAutoLens.")
]
Array = Annotated[str | None, typer.Option("--array", help="Array in an .npz, HDF5 or zarr file.")]
Plane = Annotated[
    str | None,
    typer.Option("--plane", help="Band or colour, by number or name, of a cube or a picture; 0 is the first."),
]
PixelScale = Annotated[
    float | None, typer.Option("--pixel-scale", min=1e-6, max=1e3, help="Arcsec a pixel, where the files do not tell.")
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out the images of a folder that cannot be used, and list them.")
]
Preset = Annotated[
    str, typer.Argument(metavar="PRESET", help="A survey: a name that `sublens presets` lists, or a TOML file.")
]


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def simulate(
    preset: Preset,
    out: AnyOut,
    train: Annotated[int, typer.Option("--train", min=1, help="Number of training images.")] = 30_000,
    test: Annotated[int, typer.Option("--test", min=0, help="Number of test images.")] = 7_500,
    seed: Seed = 1,
    workers: Workers = 1,
    cluster: Cluster = None,
    form: Annotated[
        Literal["store", "folder", "fits"],
        typer.Option("--format", help="Our store, the ML4SCI folders of .npy files, or folders of FITS files."),
    ] = "store",
    save_maps: Annotated[
        bool, typer.Option("--save-maps", help="Keep the convergence and the noiseless image as well.")
    ] = False,
    force: Force = False,
) -> None:
    """Simulate a data set of lenses.

    Run it again to continue an interrupted store.

    sublens simulate common-test-1 --train 30000 --test 7500 --seed 1 --workers 2 --out data/ct1
    """
    from sublens.data import generate
    from sublens.progress import visible
    from sublens.storage import files
    from sublens.surveys import presets

    sizes: dict[Literal["train", "test"], int] = {"train": train, "test": test}
    options = {
        "seed": seed,
        "workers": workers,
        "cluster": cluster,
        "form": form,
        "save_maps": save_maps,
        "force": force,
    }
    files.refuse_overlap(out, *presets.files(preset))
    try:
        generate.simulate(presets.preset(preset), sizes, out, bar=visible, **options)  # type: ignore[arg-type]
    except (KeyboardInterrupt, SublensError):
        kept = files.partial_folder(out)
        if kept.is_dir():
            _say(f"What is done is kept in {kept}.")
        raise
    print(_described(out) if form == "store" else out)


@app.command("presets")
def presets_(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[PRESET]...", help="Print these as TOML, to copy and edit.")
    ] = None,
    show: Annotated[
        Path | None, typer.Option("--show", help="Draw a contact sheet instead: a .png, .pdf or .svg file.")
    ] = None,
) -> None:
    """List the surveys to simulate, print one, or draw images.

    Print one to make it your own, or have one measured on your images with sublens match.

    sublens presets hst > mine.toml

    sublens presets euclid --show euclid.png
    """
    from sublens.errors import ConfigError
    from sublens.storage import files
    from sublens.surveys import presets

    if names and len(names) > 1 and not show:
        raise ConfigError(
            f"{len(names)} surveys to print", need="one at a time", next="Name one, or add --show to draw them."
        )
    if show and show.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigError(
            "no format of a contact sheet", need=".png, .pdf or .svg", next="End the name with one of these.", path=show
        )
    surveys = [presets.preset(name) for name in names or presets.names()]
    if show:
        files.refuse_overlap(show, *(file for name in names or presets.names() for file in presets.files(name)))
        from sublens.sim import contact_sheet

        contact_sheet.write(show, surveys)
        print(show)
    elif names:
        print(presets.source(names[0]).read_text(encoding="utf-8"))
    else:
        for survey in surveys:
            camera, words = survey.camera, survey.description.strip().splitlines()[0]
            print(f"{survey.name:14} {camera.n_pixels:4} px of {camera.pixel_scale:<5g} arcsec  {words}")


@app.command()
def match(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Images of lenses by one camera: files, folders, patterns.")
    ],
    out: Out,
    base: Annotated[
        str, typer.Option("--base", metavar="PRESET", help="Survey that all else is taken from, by name or .toml.")
    ] = "hst",
    pixel_scale: PixelScale = None,
    force: Force = False,
) -> None:
    """Write a first survey measured on images of your own.

    Pixels, point-spread function, exposure, noise and brightness are measured; each line says where it came from.

    sublens match cutouts/*.fits --base hst --out mine.toml
    """
    from sublens.errors import ConfigError
    from sublens.evaluation import lens_images
    from sublens.evaluation import match as matching
    from sublens.images import listing
    from sublens.progress import visible
    from sublens.storage import files
    from sublens.surveys import presets

    files.refuse_overlap(out, *presets.files(base), *listing.named(images))
    files.refuse_existing_file(out, mark=matching.MARK.encode(), force=force)
    if out.suffix != ".toml":
        raise ConfigError("a survey is a TOML file", need="a name that ends in .toml", next="Rename it.", path=out)
    result = matching.match(lens_images.read(images, visible), base, matching.survey_name(out), pixel_scale)
    result.write(out)
    for line in result.lines():
        print(line)
    print(out)


@app.command()
def fidelity(
    preset: Preset,
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="Folder of real images, or an .npz with an array `counts`.")
    ],
    label: Annotated[
        Literal["no", "sphere", "vort"], typer.Option("--class", help="What the real images show.")
    ] = "no",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", parser=_local_path, metavar="PATH", help="JSON file of it all, for surveys of signal to noise."
        ),
    ] = None,
    seed: Seed = 1,
    force: Force = False,
) -> None:
    """Compare a survey's simulated images with real ones.

    sublens fidelity common-test-1 common_test_1/train/no --class no
    """
    from sublens.errors import ConfigError
    from sublens.evaluation import fidelity, lens_fidelity
    from sublens.progress import visible
    from sublens.storage import files
    from sublens.surveys import presets

    if out:
        files.refuse_overlap(out, images, *presets.files(preset))
        files.refuse_existing_file(out, mark=lens_fidelity.MARK, force=force)
    survey = presets.preset(preset)
    if survey.camera.pixels == "signal-to-noise":
        _compare_lenses(survey, images, label, seed=seed, out=out)
        return
    if out:
        need = 'a survey whose camera.pixels is "signal-to-noise"'
        raise ConfigError(f"{survey.name} simulates counts", need=f"{need} for --out", next="Leave --out away.")
    rows, chance, separation = fidelity.fidelity(survey, images, label, seed=seed, bar=visible)
    print(f"{'statistic':26} {'real':>20} {'simulated':>20} {'KS':>6} {'p':>6}")
    for row in rows:
        values = " ".join(f"{mean:10.4f} ±{sigma:8.4f}" for mean, sigma in (row.real, row.simulated))
        print(f"{row.name:26} {values} {row.distance:6.3f} {row.p:6.3f}")
    print(f"Were all images alike, the least of these {len(rows)} p would be as small with a chance of {chance:.3f}.")
    print(f"A network tells them apart with AUC {separation.auc:.4f}, p {separation.p:.3g}; 0.5 is chance.")


def _compare_lenses(survey: "Survey", images: Path, label: str, *, seed: int, out: Path | None) -> None:
    """Compare lenses in signal to noise, print what differs most first, and save it."""
    from sublens.evaluation import lens_fidelity, lens_images
    from sublens.progress import visible

    planes = lens_images.planes(lens_images.read([images], visible), survey.camera)
    result = lens_fidelity.lens_fidelity(survey, planes, label, seed=seed, bar=visible)
    print(f"{'statistic':20} {'real':>19} {'simulated':>19} {'shift':>6} {'KS':>6} {'p':>8}")
    for row in result.rows:
        values = " ".join(f"{median:9.3f} ±{half:8.3f}" for median, half in (row.real, row.simulated))
        print(f"{row.name:20} {values} {row.shift:+6.2f} {row.distance:6.3f} {row.p:8.2g}")
    print(f"Were all lenses alike, some statistic would differ as much with a chance of {result.chance:.3f}.")
    separation = result.separation
    print(
        f"Networks tell {len(planes)} real lenses from simulated ones with AUC {separation.value:.3f} "
        f"({separation.low:.3f} to {separation.high:.3f}); 0.5 is chance."
    )
    if out:
        result.write(out, survey.name)
        print(out)


@app.command()
def pack(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            parser=parse_path,
            help="Folder of class folders, with train/ and test/ or val/ above them or not; may be s3://.",
        ),
    ],
    out: AnyOut,
    cluster: Cluster = None,
    skip_bad: SkipBad = False,
    force: Force = False,
) -> None:
    """Convert a folder of images into a store, which loads faster.

    sublens pack common_test_1 --out data/ct1
    """
    from sublens.data import dataset
    from sublens.progress import visible

    _say_notes(dataset.pack(folder, out, cluster=cluster, skip_bad=skip_bad, force=force, bar=visible))
    print(_described(out))


@app.command("import-legacy")
def import_legacy(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="FOLDER_OR_FILE...", help=".npy files, and folders and patterns of them.")
    ],
    out: Out,
    force: Force = False,
) -> None:
    """Convert DeepLenseSim's pickled .npy files into plain ones.

    Only arrays and numbers are taken out of a file, in a process that may do nothing else; a file
    that asks for more is refused. Plain .npy files are copied, folders stay as they are. The number
    beside an image (the axion's mass in eV, or the logarithm of it) goes into legacy.csv.

    sublens import-legacy Model_I/train --out data/model-1
    """
    from sublens.data import legacy
    from sublens.progress import visible

    n_files, n_failed = legacy.convert(inputs, out, on_error=lambda err: _say(str(err)), force=force, bar=visible)
    print(out)
    if n_failed:
        _say(f"{n_failed} of {n_files} files could not be converted.")


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(metavar="STORE", parser=parse_path, help="Store to check; may be s3://.")],
) -> None:
    """Check every byte of a store against its manifest.

    sublens verify data/ct1
    """
    from sublens.data import store
    from sublens.progress import visible
    from sublens.storage import object_store

    store_path = object_store.local(path, visible)
    manifest = store.read_manifest(store_path)
    damaged = []
    with visible(f"verifying {path}", len(manifest.files)) as advance:
        for number, (name, problem) in enumerate(store.damage(store_path, manifest), start=1):
            advance(number, "files")
            damaged += [f"{name}: {problem}"] if problem else []
    if damaged:
        raise DataError(
            f"{len(damaged)} files are not as they were written",
            need="the bytes of its manifest",
            next="Copy the store again, or make it again:\n  " + "\n  ".join(damaged),
            path=path,
        )
    print(_described(path))


@app.command()
def networks(
    pattern: Annotated[
        str | None, typer.Option("--all", metavar="PATTERN", help="List timm's networks whose name matches instead.")
    ] = None,
) -> None:
    """List the networks, and the trained ones that are shipped.

    sublens networks --all 'convnext*'

    sublens networks
    """
    from sublens.errors import ConfigError
    from sublens.models import bundle
    from sublens.models.networks import NETWORKS, describe_input, timm_names

    if pattern is not None:
        if not (names := timm_names(pattern)):
            raise ConfigError(
                f"no network of timm matches {pattern!r}",
                need="a part of a name, or a pattern",
                next="Try --all resnet.",
            )
        print("\n".join(names))
        return
    for name, network in NETWORKS.items():
        print(f"{name:18} {network.n_parameters / 1e6:6.2f} M parameters   {describe_input(network.input)}")
    for name, folder in bundle.shipped().items():
        card = bundle.read_card(folder)
        best = card.scores[0]
        auc = f"AUC {best.auc:.4f} [{best.auc_low:.4f}, {best.auc_high:.4f}]"
        print(f"{name:18} trained, knows {card.data.name}: {auc}   {folder}")


@app.command(cls=_Command)
def train(
    dataset: DataOrSurvey,
    out: Out,
    model: Annotated[
        str | None, typer.Option("--model", help="Network: see `sublens networks`; any timm name works.")
    ] = None,
    cache: Annotated[
        int | None,
        typer.Option("--cache", min=1, help="Images of a survey kept at a time, on a processor; 10,000 if not set."),
    ] = None,
    settings: Settings = None,
    set_: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where this training was stopped or killed; begin if it was not.")
    ] = False,
    skip_bad: SkipBad = False,
    force: Force = False,
) -> None:
    """Train one network.

    Ctrl-C keeps the best weights so far, and --resume goes on. From a survey the network learns from fresh images,
    rendered as the training goes, and no data set is stored.

    On several processors or GPUs: torchrun --nproc-per-node 4 --no-python sublens train ...

    sublens train data/ct1 --model resnet18 --out runs/resnet18 --set train.epochs=10
    """
    from sublens.data.dataset import open_dataset
    from sublens.errors import ConfigError
    from sublens.parallel.torchrun import joined
    from sublens.progress import silent, visible
    from sublens.storage import files
    from sublens.training import run

    if force and resume:
        raise ConfigError("--force starts again, --resume goes on", need="one of them", next="Leave out the other.")
    files.refuse_overlap(out, dataset, *([settings] if settings else []))
    kept = [f"train.cache={cache}"] if cache else []
    begun = None if settings or set_ or kept or model or not resume else run.settings_of(out)
    config = begun or _config(settings, [*(set_ or []), *kept], model)
    run.refuse_teacher(out, config)
    if not resume:
        files.refuse_existing(out, kind=files.Kind.RUN, force=force)  # before the data set is read
    with joined() as ranks:
        bar = visible if ranks.is_first else silent
        data = open_dataset(dataset, config.split, bar, skip_bad=skip_bad)
        if ranks.is_first:
            _say(_parts(data))
            _say_notes(data.notes)
        say = _say if ranks.is_first else None
        is_whole = run.train_run(data, config, out, force=force, resume=resume, ranks=ranks, bar=bar, say=say)
    if ranks.is_first:
        print(out)
        option = " --skip-bad" if skip_bad else ""
        again = f"sublens train {dataset} --out {out} --resume{option}"
        _say(
            f"Measure it on the test part: sublens evaluate {out} {dataset}{option}"
            if is_whole
            else f"Stopped early; the best weights so far were kept. To go on: {again}"
        )
    if not is_whole:
        raise typer.Exit(STOPPED)


def _parts(data: "Dataset") -> str:
    """How large the parts of a data set are, and whether its classes are."""
    if data.is_endless:
        return (
            f"{data.name}: fresh training images, {len(data.selection):,} selection images of {', '.join(data.classes)}"
        )
    sizes = (
        f"{data.name}: {len(data.train):,} training, {len(data.selection):,} selection, "
        f"{len(data.test):,} test images of {', '.join(data.classes)}"
    )
    if data.imbalance <= IMBALANCED:
        return sizes
    return (
        f"{sizes}\nThe largest class has {data.imbalance:.1f} times as many training images as the smallest: "
        "probabilities will favour it as much."
    )


@app.command()
def evaluate(
    network: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", parser=parse_path, help="What `sublens train` left; or, with --out, a name: see `networks`."
        ),
    ],
    dataset: DataOrSurvey,
    out: Annotated[
        Path | None,
        typer.Option("--out", parser=_local_path, metavar="FOLDER", help="Measure a copy of the network, made here."),
    ] = None,
    cluster: Cluster = None,
    skip_bad: SkipBad = False,
    force: Force = False,
) -> None:
    """Measure a trained network on a data set's test part.

    All images of a folder of class folders that it was not trained on are the test part. That of a survey is
    rendered: 7,500 images.

    sublens evaluate runs/resnet18 data/ct1
    """
    from sublens.evaluation import calibration_scores, evaluate
    from sublens.models import bundle
    from sublens.progress import visible

    folder, data, scores = evaluate.measure_network(
        network, dataset, out, cluster=cluster, skip_bad=skip_bad, force=force, bar=visible
    )
    _say_notes(data.notes)
    if data.hash != bundle.read_card(folder).data.hash:
        _say(f"{folder} was trained on other data than {dataset}.")
    print(f"{folder}: on {scores['n']:,} test images")
    for name in ("auc_macro", "accuracy", "loss"):
        if scores[name]:
            print(f"  {name:10} {scores[name]['value']:.4f}  [{scores[name]['low']:.4f}, {scores[name]['high']:.4f}]")
    for sentence in calibration_scores.sentences(calibration_scores.CalibrationScores(**scores["calibration"])):
        print(f"  {sentence}")
    for name, maps in scores["map"].items():
        print(
            f"  map of {name}: cells above 1e9 Msun ({maps['share']:.1%} are) found with precision "
            f"{maps['precision']:.2f}, recall {maps['recall']:.2f}; total mass x{maps['total_ratio']:.2f}, "
            f"off by {maps['total_error']:.0%} (medians)"
        )


@app.command("publish")
def publish_(
    dataset: Annotated[Path, typer.Argument(help="Store on whose selection part the network is calibrated.")],
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Measured runs of one network.")],
    out: Out,
    skip_bad: SkipBad = False,
    force: Force = False,
) -> None:
    """Make a bundle to give away of the best of several runs.

    It has 16-bit weights, is calibrated, and holds the scores of all runs.

    The best is the one with the least selection loss among those trained on the same data as the
    first; the others' scores go into its card.

    sublens publish data/ct1 runs/lensnet-0 runs/lensnet-1 runs/lensnet-2 --out bundles/lensnet
    """
    from sublens.evaluation.publish import publish
    from sublens.inference import predict_dataset
    from sublens.models import bundle
    from sublens.progress import visible
    from sublens.storage import files

    files.refuse_overlap(out, dataset, *runs)
    files.refuse_existing(out, kind=files.Kind.BUNDLE, force=force)
    data = predict_dataset.open_unseen_dataset(dataset, bundle.read_card(runs[0]), visible, skip_bad=skip_bad)
    print(publish(runs, data, out, force=force, bar=visible))


@app.command()
def predict(
    arguments: Arguments,
    at: Annotated[
        Path | None,
        typer.Option(
            "--at",
            parser=parse_path,
            metavar="PATH",
            help="Catalogue of positions to cut out of one big FITS image: text, .ecsv, .fits or .vot with the columns "
            "ra, dec (degrees) or x, y (pixels, the first is 0); a column id or name is kept.",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            metavar="ra=NAME,dec=NAME,id=NAME",
            help="Columns of the catalogue, where its names leave a doubt.",
        ),
    ] = None,
    table: Annotated[
        str | None, typer.Option("--table", metavar="N|NAME", help="Table of a catalogue that holds several.")
    ] = None,
    hdu: Hdu = None,
    array: Array = None,
    flip_y: FlipY = False,
    plane: Plane = None,
    pixel_scale: PixelScale = None,
    noise: Annotated[
        Path | None,
        typer.Option(
            "--noise",
            parser=_local_path,
            metavar="PATH",
            help="Standard deviation of each pixel, for networks that take it: a file, or a folder with one of each "
            "image's name.",
        ),
    ] = None,
    psf: Annotated[
        Path | None,
        typer.Option("--psf", parser=_local_path, metavar="PATH", help="Point-spread function, in the same way."),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", parser=_local_path, metavar="PATH", help="Masked pixels (not 0), in the same way."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=parse_path,
            metavar="PATH",
            help="Table to write: .csv, .jsonl, .parquet, .fits, .ecsv, .vot; may be s3://. It can be resumed.",
        ),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(
            "--map", parser=parse_path, metavar="PATH", help="Folder for a FITS map of the substructure in each image."
        ),
    ] = None,
    engine: Annotated[
        Literal["onnxruntime", "openvino", "torch"] | None,
        typer.Option(
            help="What runs the network: onnxruntime, if it can; openvino; or torch, on a GPU if there is one."
        ),
    ] = None,
    fit: Annotated[
        bool,
        typer.Option(
            "--fit",
            help="Fit a lens to each image, some ten seconds each: the Einstein radius is then the fit's. Needs a "
            "network for images of telescopes, and their PSF.",
        ),
    ] = False,
    cluster: Cluster = None,
    force: Force = False,
) -> None:
    """Predict the class of each image.

    A line for each image: its label, the probability of each class, and how far to trust them.

    Where no network is named, one for images of telescopes is taken whose pixel scale fits the first of
    them, if it comes with sublens; else lensnet.
    The prediction set holds the true class of nine images in ten ({}: no class is probable enough for that).
    An image that is out of distribution is unlike the training images: its prediction cannot be trusted.
    A table with --out goes on where it was when the command is run again, and begins anew where its images
    or settings have changed.

    sublens predict lensnet mosaic.fits --at positions.csv --out lenses.fits

    sublens predict lensnet cutouts/*.fits --pixel-scale 0.05 --out lenses.fits
    """
    _keep_blas_single()
    from sublens.errors import ImageError
    from sublens.images.catalogue import CatalogueSelector, parse_columns
    from sublens.images.formats import CompanionFiles, ImageSelector
    from sublens.inference import predict_files
    from sublens.models import bundle
    from sublens.progress import visible
    from sublens.storage import files

    named, inputs = _network_and_images(arguments)
    chosen = CatalogueSelector(parse_columns(columns) if columns else {}, table)
    selector = ImageSelector(hdu, array, plane, flip_y)
    own = CompanionFiles(*(None if path is None else str(path) for path in (noise, psf, mask)))
    query = predict_files.Query(named or DEFAULT_BUNDLE, inputs, at, selector, pixel_scale, engine, chosen, own, fit)
    query = query if named else _with_network(query)
    name = query.network
    card = bundle.read_card(bundle.locate(name))
    query.refuse_fit(card)
    if maps:
        files.refuse_overlap(maps, *query.sources())
        files.refuse_existing(maps, kind=files.Kind.MAPS, force=force)
    if out:
        written = predict_files.predict_to_table(query, out, maps=maps, cluster=cluster, force=force, bar=visible)
        print(out)
        if written is None:
            _say(f"{out}: complete already. Add --force to make it again.")
            return
        totals = written
    else:
        rows = predict_files.predict(query, maps=maps, cluster=cluster, force=force, bar=visible)
        totals = _shown(rows, card, has_fit=fit)
    if totals.n_failed == totals.n_images:
        raise ImageError(
            f"None of {totals.n_images} images could be used",
            need="images that the network can be run on",
            next="The column `error` says what is wrong with each.",
        )
    if totals.n_failed:
        _say(f"{totals.n_failed} of {totals.n_images} images could not be used; the column `error` says why.")
    if line := predict_files.closing_line(name, card, totals):
        _say(line)


def _keep_blas_single() -> None:
    """Have numpy multiply matrices with one thread: more have nothing to gain, and burn the network's time waiting."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _with_network(query: "Query") -> "Query":
    """The query with the network that fits its images, if one does, and a line on stderr that says so."""
    from dataclasses import replace

    from sublens.inference import choice

    if fitting := choice.choose(query):
        name, scale = fitting
        _say(f"{name} predicts, since the first image is of a telescope with {scale:g} arcsec a pixel; or name another")
        return replace(query, network=name)
    return query


def _network_and_images(arguments: list[Path]) -> tuple[str | None, list[Path]]:
    """The network that the first argument names, None if it names none, and the images.

    A folder that is no bundle holds images; a name that is neither a file nor a pattern is that of a network.
    """
    from sublens.models import bundle

    first, *rest = arguments
    is_name = not (first.suffix or any(sign in str(first) for sign in "*?[") or first.exists())
    name, inputs = (str(first), rest) if bundle.is_bundle(first) or is_name else (None, arguments)
    if not inputs:
        raise typer.BadParameter("name at least one image after the bundle")
    return name, inputs


def _shown(rows: "Iterable[Row]", card: "Card", *, has_fit: bool) -> "Totals":
    """Print rows as a table; returns their numbers."""
    from sublens.inference import tables

    totals, heads = tables.Totals(), tables.heads(card, has_fit=has_fit)
    names = [column.name for column in tables.columns(card.classes, **heads) if column.name not in NOT_SHOWN]
    for row in rows:
        if not totals.n_images:  # nothing is printed before it is clear that images can be used
            print("\t".join(names))
        record = {**tables.record(row, card.classes, "", "", **heads), "path": row.name}
        totals = totals.after(record)
        print("\t".join(_cell(record[name]) for name in names))
    return totals


def _cell(value: "Cell") -> str:
    if isinstance(value, bool):
        return "ood" if value else "in-distribution"
    if isinstance(value, float):
        return f"{value:.4f}" if value < MASS_FROM else f"{value:.2e}"
    return "" if value is None else str(value)


@app.command("export")
def export_(
    network: Annotated[str, typer.Argument(metavar="BUNDLE", help="A trained network: its folder, or a name.")],
    dataset: Annotated[Path, typer.Argument(help="Data set like the one it was trained on, to compare on.")],
    out: Out,
    int8: Annotated[
        bool, typer.Option("--int8", help="Convolutions in 8 bits: two to three times as fast, where it does not harm.")
    ] = False,
    mirrors: Annotated[
        bool,
        typer.Option("--mirrors", help="Predict by the mean over an image's four mirror images: 4 times the work."),
    ] = False,
    skip_bad: SkipBad = False,
    force: Force = False,
) -> None:
    """Write a trained network as one ONNX file.

    The file needs neither sublens nor torch.

    It is compared with torch, in double precision, on the selection part, and refused where any
    probability differs by more than 1e-5; with --int8, where the AUC differs by more than 0.0005; with
    --mirrors, where it is lower by more than that. `sublens predict` takes the folder; where --out ends
    in .onnx, the file alone is written.

    sublens export resnet18 data/ct1 --int8 --out resnet18-int8
    """
    from sublens.inference import onnx_export, predict_dataset
    from sublens.models import bundle
    from sublens.progress import visible
    from sublens.storage import files

    is_file = out.suffix == ".onnx"
    source = bundle.locate(network)
    files.refuse_overlap(out, source, dataset)
    if is_file:
        files.refuse_existing_file(out, mark=onnx_export.MARK, force=force)
    else:
        files.refuse_existing(out, kind=files.Kind.BUNDLE, force=force)
    card = bundle.read_card(source)
    data = predict_dataset.open_unseen_dataset(dataset, card, visible, skip_bad=skip_bad)
    write = onnx_export.export_file if is_file else onnx_export.export
    comparison = write(network, data, out, int8=int8, mirrors=mirrors, force=force, bar=visible)
    print(out if is_file else out / bundle.GRAPH)
    reference = "the float32 graph" if int8 else "torch"
    n, deviation = comparison.n, comparison.deviation
    print(f"  probabilities of {n:,} images differ from those of {reference} by {deviation:.1e} at most")
    if comparison.auc_change:
        print("  8 bits change the macro AUC by {:+.5f} [{:+.5f}, {:+.5f}]".format(*comparison.auc_change))
    if comparison.mirror_gain:
        print("  mirror images change the macro AUC by {:+.5f} [{:+.5f}, {:+.5f}]".format(*comparison.mirror_gain))


@app.command()
def explain(
    arguments: Arguments,
    out: Out,
    method: Annotated[
        Literal["hires-cam", "grad-cam", "occlusion"],
        typer.Option("--method", help="How it is found; docs/explain.md says how often each is right."),
    ] = "hires-cam",
    label: Annotated[
        str | None, typer.Option("--class", help="Class to explain; the most probable one if none is named.")
    ] = None,
    hdu: Hdu = None,
    array: Array = None,
    flip_y: FlipY = False,
    plane: Plane = None,
    pixel_scale: PixelScale = None,
    force: Force = False,
) -> None:
    """Draw what in each image speaks for a class.

    A PNG for each image, and a line on where the saliency peaks.

    Where the network draws maps of the substructure, the picture shows that as well.

    sublens explain lensnet cutouts/*.fits --out explained
    """
    from sublens.evaluation import explain
    from sublens.images import listing
    from sublens.images.formats import ImageSelector
    from sublens.models import bundle
    from sublens.progress import visible
    from sublens.storage import files

    named, inputs = _network_and_images(arguments)
    name = named or DEFAULT_BUNDLE
    files.refuse_overlap(out, bundle.locate(name), *listing.named(inputs))
    files.refuse_existing(out, kind=files.Kind.EXPLANATIONS, force=force)
    n_images = n_failed = 0
    for record in explain.explain_images(
        name,
        inputs,
        out,
        method=method,
        label=label,
        selector=ImageSelector(hdu, array, plane, flip_y),
        pixel_scale=pixel_scale,
        force=force,
        bar=visible,
    ):
        n_images, n_failed = n_images + 1, n_failed + ("error" in record)
        if "error" in record:
            _say(record["error"])
        else:
            if n_images - n_failed == 1:
                print(*record, sep="\t")
            print(*record.values(), sep="\t")
    if n_failed:
        _say(f"{n_failed} of {n_images} images could not be explained.")
    _say(f"Pictures: {out}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs that `sublens evaluate` has measured.")],
    out: Out,
    force: Force = False,
) -> None:
    """Compare measured runs in a report.

    sublens compare runs/resnet18 runs/lensnet --out comparison
    """
    from sublens.report import page

    print(page.write(runs, out, force=force))


@app.command("run", cls=_Command)
def run_(
    dataset: Data,
    out: Out,
    models: Annotated[
        str, typer.Option("--models", help="Networks, separated by commas.")
    ] = "lensnet,mobilenetv3-small,resnet18,efficientnet-b5",
    settings: Settings = None,
    set_: Set = None,
    skip_bad: SkipBad = False,
    force: Force = False,
) -> None:
    """Train, measure and compare networks on your data.

    Run it again to continue.

    sublens run common_test_1 --models lensnet,resnet18 --out results
    """
    from sublens import workflows
    from sublens.data.dataset import open_dataset
    from sublens.progress import visible
    from sublens.storage import files

    files.refuse_overlap(out, dataset)
    configs = [_config(settings, set_, name) for name in map(str.strip, models.split(",")) if name]
    for folder in workflows.folders(out, configs):
        files.refuse_overlap(folder, *([settings] if settings else []))
    data = open_dataset(dataset, configs[0].split, visible, skip_bad=skip_bad)
    _say_notes(data.notes)
    _finish(workflows.run_all(data, configs, out, force=force, bar=visible, say=_say))


@app.command()
def serve(
    bundles: Annotated[
        list[str] | None,
        typer.Argument(metavar="[BUNDLE]...", help="Trained networks; those that come with sublens if none is named."),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; any but this machine's own needs --keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes any that is free.")] = 8000,
    report: Annotated[
        Path | None, typer.Option("--report", help="A report that `sublens compare` or `demo` made, to show as well.")
    ] = None,
    keys: Annotated[Path | None, typer.Option("--keys", help="File of keys, one of which a request must hold.")] = None,
    new_key: Annotated[
        Path | None, typer.Option("--new-key", help="Add a key to this file, print it, and serve nothing.")
    ] = None,
) -> None:
    """Open the page and the inference service.

    The page predicts images and simulates lenses live.

    sublens serve
    """
    _keep_blas_single()
    if new_key:
        from sublens.web import keys as keys_

        print(keys_.add(new_key))
        return
    if host not in LOOPBACK and not keys:
        raise typer.BadParameter(
            f"others can reach {host}, so that a key is needed. Make one with `sublens serve --new-key keys.txt`, "
            "and add --keys keys.txt; or leave out --host."
        )
    if report and not report.is_file():
        raise typer.BadParameter(f"{report}: no such file. `sublens compare` makes a report.")
    if report and keys:
        raise typer.BadParameter("the page cannot show a report where a key is needed. Leave out --report.")
    from sublens.web import server

    _say("Loading the networks. Ctrl-C ends the service.")
    server.serve(bundles or [], host=host, port=port, key_file=keys, report=report)


@app.command()
def demo(
    out: Out = Path("demo"),
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.2, max=100_000, help="Time for everything, on two cores.")
    ] = 10,
    seed: Seed = 3,
    workers: Workers = 2,
    force: Force = False,
) -> None:
    """Measure the shipped networks, and one trained live.

    They are measured on freshly simulated images.

    sublens demo --minutes 10 --out demo
    """
    from sublens import workflows
    from sublens.progress import visible

    _finish(workflows.demo(out, minutes, seed=seed, workers=workers, force=force, bar=visible))


@app.command()
def doctor() -> None:
    """Describe this installation and machine, for a bug report.

    Versions, engines, processor, cores, memory, GPUs, folders and bundles. Nothing is sent anywhere.

    sublens doctor
    """
    from sublens.report import doctor as report

    for line in report.lines():
        print(line, flush=True)


def _config(settings: Path | None, overrides: list[str] | None, model: str | None) -> "RunConfig":
    from sublens import config

    named = [f"model.name='{model}'"] if model else []
    return config.load(settings, [*(overrides or []), *named])


def _described(path: Path) -> str:
    from sublens.data import store
    from sublens.storage.files import sha256

    manifest = store.read_manifest(path)
    sizes = " + ".join(f"{n:,} {name}" for name, n in manifest.splits.items())
    return f"{path}: {sizes} images of {', '.join(manifest.classes)}; manifest sha256 {sha256(path / store.MANIFEST)}"


def _finish(html: Path) -> None:
    print(html.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"Report: {html}")


def _say_notes(notes: "Iterable[str]") -> None:
    """Print notes on a data set, one a line."""
    for note in notes:
        _say(f"Note: {note}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _process() -> str:
    """Number of this process under torchrun, in words; empty for the first."""
    number = os.environ.get("RANK", "0")
    return "" if number == "0" else f", process {number} on {platform.node()}"


def _cannot_look_up(err: OSError) -> SublensError:
    """The error for a name that cannot even be looked up, such as one that is too long."""
    return DataError(
        f"cannot be read ({err.strerror})",
        need="names of 255 bytes at most, in folders that you may open",
        next="Check the name, or the permissions.",
        path=err.filename,
    )


@contextmanager
def _translate_disk_errors() -> "Iterator[None]":
    """Turn what a full or failing disk refuses, standard output's included, into a `SublensError`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as err:
        if err.errno not in (*DISK_ERRORS, errno.EPIPE):
            raise
        _drop_output()
        if err.errno == errno.EPIPE:  # nobody reads on, as after `| head`
            sys.exit(1)
        raise SublensError(
            f"is refused by the disk ({err.strerror})",
            need="a disk with free space that can be written and read",
            next="Free some space or mend the disk, then run the command again.",
            path=err.filename or "the output",
        ) from err


def _drop_output() -> None:
    """Let standard output hold nothing back that Python would try to write again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; exit 0 done, 1 with a `SublensError` in plain words, 2 wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a plain terminal shows ? where it knows no ±
    warnings.showwarning = lambda message, *rest: _say(f"sublens: {message}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what clusters send: end as after Ctrl-C
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with _translate_disk_errors(), scratch.blamed():
            app(arguments)
    except SublensError as err:
        _say(f"sublens{_process()}: {err}")
        sys.exit(1)
    except OSError as err:
        if err.errno not in LOOK_UP_ERRORS:
            raise
        _say(f"sublens{_process()}: {_cannot_look_up(err)}")
        sys.exit(1)
    except SystemExit as end:
        if end.code == STOPPED and arguments[0] != "train":  # which has said how to go on
            _say("sublens: stopped. Run the same command again to continue or start over.")
        raise
    sys.exit(0)


if __name__ == "__main__":
    main()
