"""The application: pages, answers and errors put together; tests pass networks of their own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sublens.errors import SublensError
from sublens.web import oip, predict_api, problem, prometheus, simulator_api
from sublens.web.guard import GONE
from sublens.web.problem import ERROR_RESPONSES, Problem
from sublens.web.service import Service

STATIC = Path(__file__).parent / "static"
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; font-src data:; "
    "frame-ancestors 'self'; sandbox allow-scripts"
)
"""A report holds all that it needs; it may run its own scripts, but not as this page."""


def create_app(service: Service) -> FastAPI:
    """The application around these networks; it closes the service when it ends."""
    parsers = predict_api.Parsers()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.pool.run(simulator_api.warm_up)
        yield
        parsers.close()
        service.close()

    app = FastAPI(
        title="sublens",
        version=version("sublens"),
        description="Tells dark-matter substructure apart in images of strong gravitational lenses.",
        docs_url=None,  # it would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    _add_pages(app, service)
    app.include_router(oip.routes(service))
    app.include_router(predict_api.routes(service, parsers))
    app.include_router(simulator_api.routes(service))
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(SublensError, _refused)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _bug)
    return app


def _add_pages(app: FastAPI, service: Service) -> None:
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/report", include_in_schema=False)
    async def report() -> Response:
        if service.report is None:
            raise Problem(404, "There is no report.", then="Start the service with --report REPORT.html.")
        content = service.report.read_bytes()
        own = {"content-security-policy": REPORT_POLICY, "x-frame-options": "SAMEORIGIN"}
        return Response(content, media_type="text/html", headers=own)

    @app.get("/metrics", tags=["Operation"], responses={200: {"content": {"text/plain": {}}}}, response_class=Response)
    async def counted() -> Response:
        """Counts, as Prometheus reads them."""
        return Response(service.metrics.text(), media_type=prometheus.MEDIA_TYPE)

    @app.get("/v1/networks", tags=["Images"], responses=ERROR_RESPONSES)
    async def networks() -> dict[str, Any]:
        """The networks that are served, and all that their cards tell."""
        return {
            "networks": [network.described() for network in service.networks.values()],
            "formats": predict_api.FORMATS,
            "report": service.report is not None,
            "version": version("sublens"),
        }


async def _http(request: Request, err: Exception) -> Response:
    """Of ours, or of the framework: no such path, no such method, a body that is no JSON."""
    assert isinstance(err, HTTPException)
    if isinstance(err, Problem):
        return problem.response(err, problem.request_id(request))
    told = Problem(err.status_code, str(err.detail), "what GET /openapi.json says", "Correct it.", err.headers)
    return problem.response(told, problem.request_id(request))


async def _invalid(request: Request, err: Exception) -> Response:
    assert isinstance(err, RequestValidationError)
    told = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in err.errors()[:5])
    wrong = Problem(422, told, "what GET /openapi.json says", "Correct it.")
    return problem.response(wrong, problem.request_id(request))


async def _refused(request: Request, err: Exception) -> Response:
    return problem.response(problem.from_error(err), problem.request_id(request))


async def _left(request: Request, err: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=GONE)


async def _bug(request: Request, err: Exception) -> Response:
    wrong = Problem(500, "Something went wrong here.", then="Tell the sublens developers what was asked.")
    return problem.response(wrong, problem.request_id(request))
