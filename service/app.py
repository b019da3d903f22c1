"""The web app over the parts of a process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp

from service import errors, openapi
from service.deps import IN_TURN
from service.gate import Gate
from service.parts import Parts
from service.routes import completions, files, health, jobs, keys, models, prefixes, tenants, usage, users

_ROUTES = (completions, models, prefixes, files, jobs, tenants, users, keys, usage)
_GATE = (400, 413)  # what the gate may answer to everybody
_ALL = (*_GATE, 401, 403, 500, 503, 507)
_ABOUT = "Generate with personal prefixes of one frozen GPT-2, train them, erase them. OpenAI's clients work."


def create_app(parts: Parts) -> ASGIApp:
    """The app behind its gate; its lifespan starts and stops the parts."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        parts.start()
        yield
        parts.stop()

    docs, document = ("/docs", "/openapi.json") if parts.settings.docs else (None, None)
    app = FastAPI(
        title="prefixserve",
        version="0.1.0",
        description=_ABOUT,
        lifespan=lifespan,
        docs_url=docs,
        redoc_url=None,
        openapi_url=document,
        generate_unique_id_function=openapi.operation_id,
        redirect_slashes=False,
        # Its spans and records hold paths, queries and messages of errors; see tracing.py.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.parts = parts
    errors.install(app)
    for module in _ROUTES:
        app.include_router(module.router, responses=openapi.refusals(*_ALL), dependencies=[IN_TURN])
    app.include_router(health.router, responses=openapi.refusals(*_GATE))
    openapi.describe(app)
    return parts.receiving.around(Gate(app, parts))
