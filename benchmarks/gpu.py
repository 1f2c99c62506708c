"""What a GPU makes of sublens: every path tried, rates of rendering, training and prediction, minutes to an AUC.

    python benchmarks/gpu.py --out gpu
    python benchmarks/gpu.py --out gpu --tiny      # the same on small images, on a processor too: a rehearsal

Prints one line of JSON for each result as it comes, and keeps them in OUT/results.jsonl; the run trained on the
fly is left in OUT/lensnet. Each stage has a time limit, and an error in one is printed and does not end the next.
"""

import argparse
import json
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import get_args

import numpy as np
import torch
from torch import nn

from sublens.config import InputConfig, ModelConfig, RunConfig, SplitConfig, TrainConfig, input_side
from sublens.data import survey_stream
from sublens.data.dataset import Dataset, open_dataset
from sublens.data.survey_stream import Cells, SurveyStream
from sublens.evaluation import evaluate
from sublens.inference import predict_dataset
from sublens.inference.predictor import Predictor
from sublens.inference.torch_engine import FullNetwork
from sublens.models import bundle, networks
from sublens.models.heads import Moments
from sublens.observation import camera
from sublens.observation.defects import marks
from sublens.observation.exposure import observe
from sublens.parallel.torchrun import ALONE
from sublens.sim.population import CLASSES, draw, noise_seeds
from sublens.sim.render import render
from sublens.surveys import presets
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth
from sublens.training import loop, run
from sublens.training.recorder import LOG

NAMES = ("lensnet", "mobilenetv3-small", "resnet18", "efficientnet-b5")
TARGET = 0.995
DEVICE = networks.device()


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    survey: Path
    """Survey of common-test-1, or one of smaller images."""
    images: int
    """Images rendered together."""
    batches: tuple[int, ...]
    """Images in a batch of prediction."""
    train_batches: tuple[int | None, ...]
    """Images in a batch of training; None for the network's own number."""
    seconds: float
    """Length of each timing."""
    minutes: tuple[float, ...]
    """Lengths of the trainings to the AUC."""
    epoch: int
    """Images an epoch of these."""


@dataclass(frozen=True)
class Results:
    """Where results go."""

    out: Path

    def add(self, stage: str, **values: object) -> None:
        """Print one result, and keep it."""
        line = json.dumps({"stage": stage, **values})
        print(line, flush=True)
        with (self.out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def attempt(self, stage: str, limit_s: int, work: Callable[[], object]) -> None:
        """Do one piece of work within its time; what it returns, or its error, is a result."""
        start = perf_counter()
        signal.signal(signal.SIGALRM, partial(_late, stage))
        signal.alarm(limit_s)
        try:
            value = work()
        except Exception as err:
            signal.alarm(0)
            traceback.print_exc()
            self.add(stage, error=f"{type(err).__name__}: {err}"[:500], seconds=round(perf_counter() - start, 1))
        else:
            signal.alarm(0)
            self.add(stage, value=value, seconds=round(perf_counter() - start, 1))


def _late(stage: str, number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"{stage} took longer than its limit")


def wait() -> None:
    """Wait for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def rate(work: Callable[[], int], seconds: float) -> float:
    """Images a second of `work`, which returns their number, after a first call that is not timed."""
    work()
    wait()
    start, n = perf_counter(), 0
    while perf_counter() - start < seconds:
        n += work()
        wait()
    return round(n / (perf_counter() - start), 1)


# Every path, once.


def rendered_alike(name: str) -> float:
    """The greatest difference between images rendered here and on the processor, over the brightest pixel."""
    survey = presets.preset(name)
    truth = draw(survey, 1, "train", range(6))
    here, there = (render(truth, survey, device).double().cpu() for device in (DEVICE, "cpu"))
    return float((here - there).abs().max() / there.max())


def noised_alike(survey: Survey, n: int) -> dict[str, float]:
    """Mean and variance of the noise of a pixel over its expectation, which is 1, on this device."""
    truth = draw(survey, 1, "train", range(3))
    truth = truth.take(np.zeros(n, np.int64))
    images, scenes = render(truth, survey, DEVICE), truth.scenes
    rates = images[0].double().cpu() + float(scenes["background"][0])
    generator = torch.Generator(DEVICE).manual_seed(1)
    background = scenes["background"]
    counts = camera.expose_together(images, background, scenes["noise_rms"], survey.camera.gain, generator).double()
    spread = (counts - counts.mean(0)).square().mean(0).cpu()
    counts_mean = (counts.mean(0).cpu() - counts.mean(0).cpu().min()) - (rates - rates.min())
    return {
        "mean_error": float(counts_mean.abs().mean() / rates.mean()),
        "variance": float(spread.mean() / rates.mean()),
    }


def one_step(dataset: Dataset, name: str, teacher: str | None) -> list[float | None]:
    """The losses of one step of a network that is trained on fresh images."""
    train = TrainConfig(epoch_images=64, batch_size=32, epochs=1, teacher=teacher)
    config = run.resolve_settings(RunConfig(model=ModelConfig(name=name), train=train), dataset)
    state = run.build_state(dataset, config, ALONE)
    steps: list[loop.Step] = []
    with closing(state.batches.epochs()) as epochs:
        loop.fit(
            state.model,
            state.head,
            state.optimizer,
            epochs,
            config=config.train,
            share_done=lambda step: step / 2,
            on_step=steps.append,
            on_epoch=lambda epoch: None,
            student=state.student,
            has_bf16=state.has_bf16,
            log_every=state.batches.log_every,
        )
    return [steps[-1].loss, steps[-1].truth_loss, steps[-1].distill_loss]


def whole_run(dataset: Dataset, survey: Path, out: Path) -> dict[str, object]:
    """Train, resume and measure a lensnet for a few steps, with calibration and graph."""
    from sublens.evaluation import saliency  # slow to import, also for the processes that draw

    config = RunConfig(train=TrainConfig(epoch_images=640, epochs=2))
    run.train_run(dataset, config, out, force=True)
    again = run.train_run(dataset, config, out, resume=True)
    card = bundle.read_card(out)
    _, _, scores = evaluate.measure_network(out, survey, force=True)
    predictor = Predictor.load(out, "torch", DEVICE)
    part = dataset.selection.few(4)
    maps = {
        m: saliency.saliency(predictor, part.counts(np.arange(4)), part.labels, m).shape
        for m in get_args(saliency.Method)
    }
    return {
        "resumed": again,
        "graph": card.graph is not None,
        "n": scores["n"],
        "maps": maps,
        "engine": scores["engine"],
    }


def predicted_alike(name: str, survey: Survey) -> dict[str, float]:
    """Greatest difference of a shipped network's probabilities from those of its graph on the processor."""
    folder = bundle.locate(name)
    truth = draw(survey, 2, "test", range(48))
    struck = marks(survey, truth.extra_or_blank())
    counts = observe(truth, render(truth, survey), survey, struck, noise_seeds(2, "test", range(48)))
    reference = Predictor.load(folder).probs(counts)
    engines = {"float32": Predictor.load(folder, "torch", DEVICE).probs(counts)}
    with torch.autocast(DEVICE, torch.bfloat16):
        engines["bfloat16"] = Predictor.load(folder, "torch", DEVICE).probs(counts)
    return {kind: float(np.abs(probs - reference).max()) for kind, probs in engines.items()}


# Rates.


def sphere_truth(survey: Survey, n: int) -> Truth:
    """Scenes of the class with subhaloes."""
    first = CLASSES.index("sphere")
    return draw(survey, 0, "train", range(first, first + n * len(CLASSES), len(CLASSES)))


def rendering(survey: Survey, n: int, seconds: float) -> dict[str, float]:
    """Images a second: with subhaloes only, without and with noise; of all classes, drawn by processes as well."""
    truth = sphere_truth(survey, n)
    generator, scenes = torch.Generator(DEVICE).manual_seed(0), truth.scenes

    def noiseless() -> int:
        return len(render(truth, survey, DEVICE))

    def noisy() -> int:
        images = render(truth, survey, DEVICE)
        args = scenes["background"], scenes["noise_rms"], survey.camera.gain, generator
        return len(camera.expose_together(images, *args))

    rates = {"subhaloes": float(len(truth.subhaloes) / n), "noiseless": rate(noiseless, seconds)}
    rates["noisy"] = rate(noisy, seconds)
    stream = SurveyStream(survey, 256, 0, Cells(12, 4.8))
    with closing(stream.rendered(0, DEVICE)) as samples:
        rates["drawn_and_noisy"] = rate(lambda: len(next(samples).labels), seconds)
    return rates


def training(dataset: Dataset, name: str, batch_size: int | None, seconds: float) -> dict[str, float]:
    """Images a second of a training on fresh images, after a start that is not timed."""
    train = TrainConfig(batch_size=batch_size, epoch_images=10**9)
    config = run.resolve_settings(RunConfig(model=ModelConfig(name=name), train=train), dataset)
    state = run.build_state(dataset, config, ALONE)
    ticks: list[tuple[float, int]] = []

    def on_step(step: loop.Step) -> None:
        ticks.append((perf_counter(), step.n_images))

    def share_done(step: int) -> float:
        return 0.5 + (perf_counter() - ticks[0][0]) / (2 * seconds) if ticks else 0.5

    with closing(state.batches.epochs()) as epochs:
        loop.fit(
            state.model,
            state.head,
            state.optimizer,
            epochs,
            config=config.train,
            share_done=share_done,
            on_step=on_step,
            on_epoch=lambda epoch: None,
            has_bf16=state.has_bf16,
            log_every=state.batches.log_every,
        )
    begun, ended = ticks[len(ticks) // 3][0], ticks[-1][0]
    images = sum(n for _, n in ticks[len(ticks) // 3 + 1 :])
    return {"batch": state.batches.size, "images_per_s": round(images / max(ended - begun, 1e-9), 1)}


def shape_of(survey: Survey) -> tuple[int, int]:
    """Height and width of the survey's images, pixels."""
    return survey.camera.n_pixels, survey.camera.n_pixels


def untrained(name: str, survey: Survey) -> tuple[nn.Module, InputConfig]:
    """A new network on the device, and how it takes the survey's images."""
    network_input = networks.resolved(RunConfig(model=ModelConfig(name=name)), shape_of(survey)).input
    assert network_input is not None
    return networks.to_device(networks.build(name, 3, network_input.n_channels), DEVICE), network_input


def stepping(name: str, batch_size: int, survey: Survey, seconds: float) -> float:
    """Images a second of training steps alone, on one batch over and over."""
    model, network_input = untrained(name, survey)
    config = networks.resolved(RunConfig(model=ModelConfig(name=name)), shape_of(survey))
    side = input_side(network_input, shape_of(survey))
    images = torch.randn(batch_size, network_input.n_channels, side, side, device=DEVICE)
    batch = loop.Batch(images, torch.arange(batch_size, device=DEVICE) % 3)
    optimizer, n_steps = loop.make_optimizer([model], config.train), 20

    def steps() -> int:
        loop.fit(
            model,
            None,
            optimizer,
            [[batch] * n_steps],
            config=config.train,
            share_done=lambda step: 0.5 if step < n_steps else 1.0,
            on_step=lambda step: None,
            on_epoch=lambda epoch: None,
            has_bf16=networks.has_bf16_gain(name, DEVICE, side),
            log_every=n_steps,
        )
        return n_steps * batch_size

    return rate(steps, seconds)


def predicting(name: str, survey: Survey, batch: int, seconds: float) -> dict[str, float]:
    """Images a second from counts on the device to logits, in both precisions."""
    model, network_input = untrained(name, survey)
    whole = FullNetwork(model.eval(), network_input, None, Moments(model))
    counts = torch.randint(0, 800, (batch, *shape_of(survey)), device=DEVICE).float()
    rates = {}
    for kind, is_bf16 in (("float32", False), ("bfloat16", True)):

        def forward(is_bf16: bool = is_bf16) -> int:
            with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16, enabled=is_bf16):
                for _ in range(5):
                    whole(counts)
            return 5 * batch

        rates[kind] = rate(forward, seconds)
    return rates


def predicting_from_host(name: str, survey: Survey, batch: int, seconds: float) -> float:
    """Images a second of the engine in float32, counts from the processor's memory and probabilities back."""
    model, network_input = untrained(name, survey)
    predictor = predict_dataset.eager(model.eval(), CLASSES, shape_of(survey), network_input, DEVICE)
    counts = np.random.default_rng(0).poisson(30, (batch, *shape_of(survey))).astype(np.uint16)
    return rate(lambda: len(predictor.probs(counts)), seconds)


# To an AUC.


def to_the_auc(dataset: Dataset, minutes: float, epoch: int, out: Path) -> dict[str, object]:
    """Train lensnet on fresh images for so long, and the time at which its selection AUC reaches `TARGET`."""
    config = RunConfig(train=TrainConfig(minutes=minutes, epoch_images=epoch))
    run.train_run(dataset, config, out, force=True)
    rows = [json.loads(line) for line in (out / LOG).read_text(encoding="utf-8").splitlines()]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    reached = [row for row in epochs if row["selection_auc"] >= TARGET]
    first = {key: reached[0][key] for key in ("seconds", "images", "selection_auc")} if reached else None
    training = bundle.read_card(out).training
    curve = [(row["seconds"], row["images"], round(row["selection_auc"], 4)) for row in epochs]
    curve = curve[:: max(1, len(curve) // 25)]
    return {"reached": first, "images": training.images, "selection_auc": training.selection_auc, "curve": curve}


def measured(out: Path, survey: Path) -> dict[str, object]:
    """Scores of a run on the test part, rendered on the processor."""
    _, _, scores = evaluate.measure_network(out, survey, force=True)
    return {key: scores[key] for key in ("n", "auc_macro", "accuracy", "loss")}


def stages(sizes: Sizes, results: Results) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """Name, time limit in seconds, and work of each stage."""
    survey, smoke = presets.preset(str(sizes.survey)), results.out / "smoke"

    @cache
    def fixed() -> Dataset:
        return open_dataset(sizes.survey, SplitConfig())

    def on_fixed(work: Callable[..., object], *args: object) -> object:
        return work(fixed(), *args)

    yield "device", 60, facts
    for name in presets.names():
        yield f"smoke render {name}", 30, partial(rendered_alike, name)
    yield "smoke noise", 30, partial(noised_alike, survey, 256)
    yield "fixed images", 120, lambda: len(fixed().selection)
    for name in NAMES:
        yield f"smoke step {name}", 60, partial(on_fixed, one_step, name, None)
    yield "smoke run", 90, partial(on_fixed, whole_run, sizes.survey, smoke)
    yield "smoke distil", 60, partial(on_fixed, one_step, "mobilenetv3-small", str(smoke))
    for name in bundle.shipped_for("common-test-1"):
        yield f"smoke predict {name}", 30, partial(predicted_alike, name, presets.preset("common-test-1"))
    yield "render", 60, partial(rendering, survey, sizes.images, sizes.seconds)
    for name in ("lensnet", "resnet18"):
        for size in sizes.train_batches:
            yield f"train {name} {size}", 60, partial(on_fixed, training, name, size, sizes.seconds)
            yield f"steps {name} {size}", 30, partial(stepping, name, size or 64, survey, sizes.seconds / 2)
    for minutes in sizes.minutes:
        limit, out = int(60 * minutes) + 60, results.out / f"lensnet-{minutes:g}"
        yield f"auc in {minutes:g}", limit, partial(on_fixed, to_the_auc, minutes, sizes.epoch, out)
        yield f"test {minutes:g}", 90, partial(measured, out, sizes.survey)
    for name in NAMES:
        for batch in sizes.batches:
            yield f"predict {name} {batch}", 30, partial(predicting, name, survey, batch, sizes.seconds / 4)
        yield f"predict from host {name}", 20, partial(predicting_from_host, name, survey, 256, sizes.seconds / 4)


def facts() -> dict[str, object]:
    """The device and the versions."""
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__, "threads": torch.get_num_threads()}


def tiny_sizes(out: Path) -> Sizes:
    """Little of everything, on small images."""
    text = presets.source("common-test-1").read_text(encoding="utf-8")
    survey = out / "tiny.toml"
    small = text.replace("n_pixels = 150", "n_pixels = 48").replace("pixel_scale = 0.05", "pixel_scale = 0.15")
    small = small.replace("fwhm = 0.20522256694", "fwhm = 0.45")
    survey.write_text(small, encoding="utf-8")
    survey_stream.SELECTION, survey_stream.REFERENCE, survey_stream.TEST = 60, 60, 60
    survey_stream.LEAST_POOL = 200
    return Sizes(survey, 64, (8,), (None,), 1.0, (0.1,), 640)


WHOLE = Sizes(Path("common-test-1"), 4096, (32, 512, 4096), (None, 512), 3.0, (2.0,), 60_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--tiny", action="store_true", help="small images, little of everything")
    parser.add_argument("--only", default="", help="run only stages whose name holds this, and the fixed images")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out)
    sizes = tiny_sizes(args.out) if args.tiny else WHOLE
    for name, limit_s, work in stages(sizes, results):
        if args.only in name or name == "fixed images":
            results.attempt(name, limit_s * (10 if args.tiny else 1), work)


if __name__ == "__main__":
    main()
