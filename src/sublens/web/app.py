"""The application: routes, pages and error handlers; tests pass networks of their own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sublens.errors import SublensError, nearest
from sublens.web import answers, oip, predict_api, problem, prometheus, simulator_api
from sublens.web.answers import NetworkList, SearchLine
from sublens.web.guard import GONE
from sublens.web.problem import ERROR_RESPONSES, Problem, ProblemDetails
from sublens.web.service import Service

STATIC = Path(__file__).parent / "static"
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; font-src data:; "
    "frame-ancestors 'self'; sandbox allow-scripts"
)
"""Policy of a report, which holds all that it needs and may run its own scripts, but not as the page."""


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
        dependencies=[Depends(_refuse_unknown_parameters)],
    )
    _add_pages(app, service)
    app.include_router(oip.routes(service))
    app.include_router(predict_api.routes(service, parsers))
    app.include_router(simulator_api.routes(service))
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(SublensError, _sublens_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_exception_handler(Exception, _bug)
    components = app.openapi()["components"]["schemas"]  # FastAPI adds no schema to which a route only refers
    components.update(answers.schemas(oip.InferRequest, SearchLine, ProblemDetails))
    return app


async def _refuse_unknown_parameters(request: Request) -> None:
    """Raise `Problem` 422 for a query parameter that the route does not know."""
    route = request.scope["route"]
    if not isinstance(route, APIRoute) or not route.include_in_schema:
        return
    known = [parameter.alias for parameter in route.dependant.query_params]
    if unknown := next((name for name in request.query_params if name not in known), None):
        raise Problem(
            422,
            f"There is no query parameter {unknown!r}",
            need=f"one of {', '.join(known)}" if known else "none for this path",
            next=nearest(unknown, known) if known else "Leave it out.",
        )


def _add_pages(app: FastAPI, service: Service) -> None:
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/report", include_in_schema=False)
    async def report() -> Response:
        if service.report is None:
            raise Problem(
                404,
                "The service was started without a report",
                need="a report of `sublens compare`",
                next="Start the service with --report REPORT.html.",
            )
        headers = {"content-security-policy": REPORT_POLICY, "x-frame-options": "SAMEORIGIN"}
        return Response(service.report.read_bytes(), media_type="text/html", headers=headers)

    @app.get("/metrics", tags=["Operation"], responses={200: {"content": {"text/plain": {}}}}, response_class=Response)
    async def counters() -> Response:
        """Count requests, batches and waiting images, in the text format of Prometheus."""
        return Response(service.metrics.text(), media_type=prometheus.MEDIA_TYPE)

    @app.get("/v1/networks", tags=["Images"], responses=ERROR_RESPONSES)
    async def networks() -> NetworkList:
        """List the networks with their cards."""
        return NetworkList(
            networks=[network.summary() for network in service.networks.values()],
            formats=list(predict_api.FORMATS),
            report=service.report is not None,
            version=version("sublens"),
        )


async def _http_error(request: Request, err: Exception) -> Response:
    """Answer with our own problem, or put one of the framework's into words."""
    assert isinstance(err, HTTPException)
    own = err if isinstance(err, Problem) else _framework_problem(request, err)
    return problem.response(own, problem.request_id(request))


def _framework_problem(request: Request, err: HTTPException) -> Problem:
    """No such path, no such method, or a body that is no JSON."""
    path, headers = request.url.path, err.headers or {}
    if err.status_code == HTTPStatus.NOT_FOUND:
        what, need = f"There is no {path!r}", "a path that GET /openapi.json lists"
        return Problem(404, what, need=need, next="Check the path.", headers=headers)
    if err.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = headers.get("Allow", "another method")
        what = f"{path!r} does not take {request.method}"
        return Problem(405, what, need=allowed, next=f"Send the request with {allowed}.", headers=headers)
    need = f"a body as GET /openapi.json describes it for {path!r}"
    return Problem(err.status_code, str(err.detail), need=need, next="Correct the body.", headers=headers)


async def _invalid_request(request: Request, err: Exception) -> Response:
    assert isinstance(err, RequestValidationError)
    faults = {".".join(map(str, fault["loc"][1:])) or "body": fault["msg"] for fault in err.errors()[:5]}
    invalid = Problem(
        422,
        "; ".join(f"{name}: {message}" for name, message in faults.items()),
        need=f"values as GET /openapi.json describes them for {request.url.path!r}",
        next=f"Correct {', '.join(faults)}.",
    )
    return problem.response(invalid, problem.request_id(request))


async def _sublens_error(request: Request, err: Exception) -> Response:
    assert isinstance(err, SublensError)
    return problem.response(problem.from_error(err), problem.request_id(request))


async def _client_gone(request: Request, err: Exception) -> Response:
    """Answer with a status for the log, which is all that a client that has left gets."""
    return Response(status_code=GONE)


async def _bug(request: Request, err: Exception) -> Response:
    bug = Problem(
        500,
        "The service failed",
        need="a fix of sublens itself",
        next="Report the request and the service's log to the sublens developers.",
    )
    return problem.response(bug, problem.request_id(request))
