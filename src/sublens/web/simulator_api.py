"""The live simulator: scenes, their images and predictions, detection limits, and the speed of a network."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray
from starlette.responses import StreamingResponse

from sublens.errors import ConfigError, SublensError
from sublens.evaluation.detection_limit import N_NOISE, Classifier, Step, smallest_mass
from sublens.images import signal_to_noise
from sublens.images.pixels import Companions, Image
from sublens.inference.predictor import BATCH
from sublens.parallel.threads import n_threads
from sublens.sim import scene
from sublens.sim.scene import MASSES_MSUN, Scene
from sublens.surveys import presets
from sublens.surveys.survey import Survey
from sublens.web import problem
from sublens.web.answers import (
    NetworkPrediction,
    SearchResult,
    SearchStep,
    SimulatedImage,
    Speed,
    SurveyList,
    SurveySummary,
    array,
    as_json,
    failed_prediction,
    plane,
)
from sublens.web.problem import ERROR_RESPONSES, Problem, ProblemDetails, overloaded
from sublens.web.service import NamedImage, ServedNetwork, Service, together, unless_gone

BENCHMARK_SECONDS = 0.5
"""Computing time after which a speed is known."""
BUSY_SECONDS = 2.0
"""Time after which a speed is taken from what a busy network has done so far."""
SLIDERS = ("theta_e", "halo_q", "gamma", "psf_fwhm", "background", "noise_rms")
NO_NETWORK = "none"
"""Name with which a request leaves out all networks."""
SMOOTH = "no"
"""Class of a lens without substructure."""

Networks = Annotated[list[str], Query(max_length=50, description="Networks that predict: all by default, or `none`.")]
Position = Annotated[float, Query(ge=-10, le=10, allow_inf_nan=False, description="Arcsec from the centre.")]
LINES = {200: {"content": {"application/x-ndjson": {"schema": {"$ref": "#/components/schemas/SearchLine"}}}}}


def routes(service: Service) -> APIRouter:
    """`/v1/surveys`, `/v1/scene`, `/v1/simulate`, `/v1/smallest-mass` and `/v1/benchmark`."""
    router = APIRouter(prefix="/v1", tags=["Simulator"], responses=ERROR_RESPONSES)
    measuring = asyncio.Lock()

    @router.get("/surveys")
    async def surveys() -> SurveyList:
        """List the surveys whose camera can be used."""
        return await service.pool.run(lambda: SurveyList(surveys=[_summary(name) for name in presets.names()]))

    @router.get("/scene")
    async def drawn(
        survey: Annotated[str, Query(max_length=64)] = "common-test-1",
        label: Literal["no", "sphere", "vort"] = "sphere",
        seed: Annotated[int, Query(ge=0, lt=2**53)] = 1,
    ) -> Scene:
        """Draw a scene from a survey's own distributions."""
        return await service.pool.run(lambda: scene.drawn(survey, label, seed))

    @router.post("/simulate", response_model=SimulatedImage)
    async def simulate(request: Request, lens: Scene, network: Networks = []) -> Response:  # noqa: B006
        """Render the image of a scene and the residual of its substructure, and let the networks predict."""
        networks = [] if network == [NO_NETWORK] else service.select(network)
        return as_json(await _simulate(service, request, lens, networks))

    @router.post("/smallest-mass", response_class=StreamingResponse, responses=LINES)  # type: ignore[arg-type]
    async def smallest(lens: Scene, network: str, x: Position, y: Position) -> StreamingResponse:
        """Find the smallest subhalo that a network detects at a position, by bisection: a line of JSON a step."""
        served = service.network(network)
        if SMOOTH not in served.card.classes:
            raise Problem(
                422,
                f"{network} has the classes {', '.join(served.card.classes)}",
                need=f"a network with the class {SMOOTH!r}",
                next="Choose another network.",
            )
        if err := _misfit(served, await service.pool.run(lambda: scene.survey_of(lens))):
            raise err
        await service.pool.run(lambda: scene.truth(lens))  # so that a scene that cannot be gets its 422
        return StreamingResponse(_search(service, served, lens, (x, y)), media_type="application/x-ndjson")

    @router.post("/benchmark")
    async def benchmark(request: Request, network: str) -> Speed:
        """Measure the speed of a network on this machine, in about a second."""
        served = service.network(network)
        if measuring.locked():
            raise overloaded("Another network is being measured")
        async with measuring:
            deadline = service.deadline()
            single = await unless_gone(request, _images_per_second(served, 1, deadline), deadline)
            full = await unless_gone(request, _images_per_second(served, BATCH, deadline), deadline)
        return Speed(
            network=served.name,
            one_ms=1e3 / single,
            one_per_s=single,
            batch=BATCH,
            batch_per_s=full,
            threads=n_threads(),
        )

    return router


def _summary(name: str) -> SurveySummary:
    survey = presets.preset(name)
    return SurveySummary(
        name=name,
        description=survey.description.strip(),
        n_pixels=survey.camera.n_pixels,
        pixel_scale=survey.camera.pixel_scale,
        sliders={key: _range(key) for key in SLIDERS},
    )


def _range(name: str) -> tuple[float, float]:
    """The least and the greatest value of one of a scene's numbers."""
    rules = {type(rule).__name__: rule for rule in Scene.model_fields[name].metadata}
    return float(rules["Ge"].ge), float(rules["Le"].le)


def warm_up() -> None:
    """Render a first scene, which takes half a second, before a request waits for it."""
    _render(scene.drawn("common-test-1", "sphere", 1))


def _render(lens: Scene) -> tuple[NDArray[np.uint16], NDArray[np.float32], NDArray[np.float32]]:
    """Counts or codes of signal to noise, and the noiseless images with and without substructure."""
    return scene.observed(lens)[0], scene.noiseless(lens), scene.noiseless(scene.smooth(lens))


async def _simulate(
    service: Service, request: Request, lens: Scene, networks: Sequence[ServedNetwork]
) -> SimulatedImage:
    deadline, start = service.deadline(), time.perf_counter()
    pixels, noiseless, smooth = await unless_gone(request, service.pool.run(lambda: _render(lens)), deadline)
    render_ms = round(1e3 * (time.perf_counter() - start), 3)
    survey = scene.survey_of(lens)
    image = NamedImage("the simulated image", _image(pixels, survey))
    work = together(_predict(service, network, image, survey, deadline) for network in networks)
    return SimulatedImage(
        counts=plane(pixels, survey.camera.pixels),
        pixels=survey.camera.pixels,
        noiseless=array(noiseless),
        residual=array(noiseless - smooth),
        pixel_scale=survey.camera.pixel_scale,
        halo_mass_msun=scene.halo_msun(lens),
        render_ms=render_ms,
        predictions=await unless_gone(request, work, deadline),
    )


def _image(pixels: NDArray[np.uint16], survey: Survey) -> Image:
    """The image of counts, or of codes of signal to noise, in which the noise of each pixel is 1."""
    scale = survey.camera.pixel_scale
    if survey.camera.pixels == "counts":
        return Image(pixels.astype(np.float64), pixel_scale=scale)
    noise = Companions(noise=np.ones(pixels.shape), noise_source="map")
    return Image(signal_to_noise.decode(pixels).astype(np.float64), pixel_scale=scale, companions=noise)


def _misfit(network: ServedNetwork, survey: Survey) -> ConfigError | None:
    """The error of a network that cannot take the images of a survey, or None."""
    if survey.camera.pixels == "counts" or network.predictor.input.takes_noise:
        return None
    return ConfigError(
        f"{network.name} takes counts of photons and knows {network.card.data.name} only, "
        f"while {survey.name} has signal to noise",
        need="a network for signal to noise",
        next="Choose another network or survey.",
    )


async def _predict(
    service: Service, network: ServedNetwork, image: NamedImage, survey: Survey, deadline: float
) -> NetworkPrediction:
    """The prediction for an image of the survey; out of distribution where the network was trained on another."""
    if err := _misfit(network, survey):
        return failed_prediction(network.name, err)
    ((prediction, _),) = await network.predict([image], deadline, service.pool)
    known = network.card.data.name
    if known == survey.name or prediction.error:
        return prediction
    note = f"{network.name} knows {known} only: its answer is flagged out of distribution"
    flags = {"ood": True, "prediction_set": None, "limit_msun": None, "notes": [*prediction.notes, note]}
    return prediction.model_copy(update=flags)


async def _search(
    service: Service, network: ServedNetwork, lens: Scene, position: tuple[float, float]
) -> AsyncIterator[str]:
    """Lines of a bisection, each as soon as it is known; the search ends when the client leaves."""
    bisection, steps = smallest_mass(lens, *position, _classifier(service, network, lens)), list[Step]()
    try:
        while step := await service.pool.run(lambda: next(bisection, None)):
            steps.append(step)
            yield _line(SearchStep(**asdict(step)))
        yield _line(_result(steps))
    except SublensError as err:
        yield _line(problem.details(problem.from_error(err)))
    except Problem as err:
        yield _line(problem.details(err))


def _classifier(service: Service, network: ServedNetwork, lens: Scene) -> Classifier:
    """The probability of substructure in images of the scene's survey; it waits for the network's own thread."""
    survey, smooth = scene.survey_of(lens), network.card.classes.index(SMOOTH)

    def substructure(pixels: NDArray[np.uint16]) -> NDArray[np.float64]:
        framed = np.stack([network.predictor.framed(_image(image, survey), None).counts() for image in pixels])
        result = network.batcher.submit(len(framed), lambda: framed, service.deadline()).result()
        return np.asarray(1 - result.output.probs[:, smooth])

    return substructure


def _line(answer: SearchStep | SearchResult | ProblemDetails) -> str:
    return answer.model_dump_json() + "\n"


def _result(steps: Sequence[Step]) -> SearchResult:
    return SearchResult(
        smallest_msun=min((step.mass_msun for step in steps if step.visible), default=None),
        low_msun=MASSES_MSUN[0],
        high_msun=steps[1].mass_msun,
        n_noise=N_NOISE,
    )


async def _images_per_second(network: ServedNetwork, n: int, deadline: float) -> float:
    """Images a second of computing time, n at a time."""
    counts = np.random.default_rng(0).poisson(30, (n, *network.card.image_shape)).astype(np.uint16)
    await network.submit(counts, deadline, is_alone=True)  # the first of a size takes longer
    seconds, n_done, end = 0.0, 0, time.monotonic() + BUSY_SECONDS
    while not n_done or (seconds < BENCHMARK_SECONDS and time.monotonic() < end):
        result = await network.submit(counts, deadline, is_alone=True)
        seconds, n_done = seconds + result.seconds, n_done + n
    return n_done / seconds
