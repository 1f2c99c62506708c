"""The live simulator: a scene in, its image and what the networks see of it out."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from numpy.typing import NDArray
from starlette.responses import StreamingResponse

from sublens.errors import SublensError
from sublens.evaluation.detection_limit import N_NOISE, Step, smallest_mass
from sublens.images.pixels import Image
from sublens.inference.engines import n_threads
from sublens.inference.predictor import BATCH
from sublens.sim import presets, scene
from sublens.sim.scene import MASSES_MSUN, Scene
from sublens.web.problem import ERROR_RESPONSES, Problem, overloaded
from sublens.web.service import ServedNetwork, Service, array, together, unless_gone

BENCHMARK_SECONDS = 0.5
"""Of each of the two rates."""
SLIDERS = ("theta_e", "halo_q", "gamma", "psf_fwhm", "background", "noise_rms")
NOBODY = "none"
SMOOTH = "no"

Networks = Annotated[list[str], Query(max_length=50, description="Networks to ask: all if none is named, or `none`.")]
Position = Annotated[float, Query(ge=-10, le=10, allow_inf_nan=False, description="Arcsec from the centre.")]
STREAM = {200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}}


def routes(service: Service) -> APIRouter:
    """`/v1/surveys`, `/v1/scene`, `/v1/simulate`, `/v1/smallest-mass` and `/v1/benchmark`."""
    router = APIRouter(prefix="/v1", tags=["Simulator"], responses=ERROR_RESPONSES)
    measuring = asyncio.Lock()

    @router.get("/surveys")
    async def surveys() -> dict[str, Any]:
        """The surveys whose camera can be used."""
        return {"surveys": await service.pool.run(lambda: [_survey(name) for name in presets.names()])}

    @router.get("/scene")
    async def drawn(
        survey: Annotated[str, Query(max_length=64)] = "common-test-1",
        label: Literal["no", "sphere", "vort"] = "sphere",
        seed: Annotated[int, Query(ge=0, lt=2**53)] = 1,
    ) -> Scene:
        """A scene drawn from a survey's own distributions."""
        return await service.pool.run(lambda: scene.drawn(survey, label, seed))

    @router.post("/simulate")
    async def simulate(request: Request, asked: Scene, network: Networks = []) -> dict[str, Any]:  # noqa: B006
        """The image of a scene, what its substructure changed in it, and what the networks say."""
        networks = [] if network == [NOBODY] else service.chosen(network)
        deadline = service.deadline()
        start = time.perf_counter()
        rendering = service.pool.run(lambda: _rendered(asked))
        counts, noiseless, smooth = await unless_gone(request, rendering, deadline)
        render_ms = 1e3 * (time.perf_counter() - start)
        pixel_scale = scene.survey_of(asked).camera.pixel_scale
        image = Image(counts.astype(np.float64), pixel_scale=pixel_scale)
        answers = together(one.judge([image], deadline, service.pool) for one in networks)
        said = await unless_gone(request, answers, deadline)
        return {
            "counts": array(counts),
            "noiseless": array(noiseless),
            "residual": array(noiseless - smooth),
            "pixel_scale": pixel_scale,
            "halo_mass_msun": scene.total_msun(asked) - asked.substructure_msun,
            "render_ms": round(render_ms, 3),
            "predictions": [one[0][0] for one in said],
        }

    @router.post("/smallest-mass", response_class=StreamingResponse, responses=STREAM)  # type: ignore[arg-type]
    async def smallest(asked: Scene, network: str, x: Position, y: Position) -> StreamingResponse:
        """The smallest subhalo that a network sees at a place: a line of JSON for each step of a bisection."""
        seen = service.network(network)
        if SMOOTH not in seen.card.classes:
            raise Problem(422, f"{network} has no class {SMOOTH!r}.", "a network that has", "Choose another one.")
        await service.pool.run(lambda: scene.truth(asked))  # or tell at once what is wrong
        return StreamingResponse(_steps(service, seen, asked, (x, y)), media_type="application/x-ndjson")

    @router.post("/benchmark")
    async def benchmark(request: Request, network: str) -> dict[str, Any]:
        """How fast a network is on this machine, while nothing else is measured: takes a second."""
        seen = service.network(network)
        if measuring.locked():
            raise overloaded("Another network is being measured.")
        async with measuring:
            one = await unless_gone(request, service.pool.run(lambda: _rate(seen, 1)), service.deadline())
            many = await unless_gone(request, service.pool.run(lambda: _rate(seen, BATCH)), service.deadline())
        return {
            "network": seen.name,
            "one_ms": 1e3 / one,
            "one_per_s": one,
            "batch": BATCH,
            "batch_per_s": many,
            "threads": n_threads(),
        }

    return router


def _survey(name: str) -> dict[str, Any]:
    survey = presets.preset(name)
    return {
        "name": name,
        "description": survey.description.strip(),
        "n_pixels": survey.camera.n_pixels,
        "pixel_scale": survey.camera.pixel_scale,
        "sliders": {key: _range(key) for key in SLIDERS},
    }


def _range(name: str) -> tuple[float, float]:
    """The least and the greatest that a scene may have."""
    found = {type(rule).__name__: rule for rule in Scene.model_fields[name].metadata}
    return float(found["Ge"].ge), float(found["Le"].le)


def warm_up() -> None:
    """Make the first scene, which takes half a second, before somebody waits for it."""
    _rendered(scene.drawn("common-test-1", "sphere", 1))


def _rendered(asked: Scene) -> tuple[NDArray[np.uint16], NDArray[np.float32], NDArray[np.float32]]:
    """Counts, and the noiseless images with and without substructure."""
    return scene.observed(asked)[0], scene.noiseless(asked), scene.noiseless(scene.smooth(asked))


async def _steps(service: Service, seen: ServedNetwork, asked: Scene, place: tuple[float, float]) -> AsyncIterator[str]:
    """Lines as they are found; the search ends with the caller."""
    pixel_scale, smooth = scene.survey_of(asked).camera.pixel_scale, seen.card.classes.index(SMOOTH)

    def judge(counts: NDArray[np.uint16]) -> NDArray[np.float64]:
        images = [Image(one.astype(np.float64), pixel_scale=pixel_scale) for one in counts]
        framed = [seen.predictor.framed(image, None).counts() for image in images]
        return np.asarray(1 - seen.predictor.probs(np.stack(framed))[:, smooth])

    steps, found = smallest_mass(asked, *place, judge), list[Step]()
    try:
        while step := await service.pool.run(lambda: next(steps, None)):
            found.append(step)
            yield json.dumps(asdict(step)) + "\n"
        yield json.dumps(_answer(found)) + "\n"
    except SublensError as err:
        yield json.dumps({"error": str(err)}) + "\n"


def _answer(found: Sequence[Step]) -> dict[str, Any]:
    visible = [step.mass_msun for step in found if step.visible]
    return {
        "done": True,
        "smallest_msun": min(visible, default=None),
        "low_msun": MASSES_MSUN[0],
        "high_msun": found[1].mass_msun,
        "n_noise": N_NOISE,
    }


def _rate(seen: ServedNetwork, n: int) -> float:
    """Images a second, n at a time."""
    counts = np.random.default_rng(0).poisson(30, (n, *seen.card.image_shape)).astype(np.uint16)
    seen.predictor.forward(counts)
    n_done, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < BENCHMARK_SECONDS or not n_done:
        seen.predictor.forward(counts)
        n_done += n
    return n_done / seconds
