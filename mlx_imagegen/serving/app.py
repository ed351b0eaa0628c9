"""All routes as one ASGI application, behind the checks of safety.py.

In: a service that has started. Out: the application.
Must not know: how it is served.
"""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from . import a1111_api, job_routes, openai_api, page
from .answers import refusal
from .safety import Access, SafetyMiddleware
from .service import Service


def make_app(service: Service, access: Access) -> Starlette:
    app = Starlette(
        routes=[*openai_api.ROUTES, *a1111_api.ROUTES, *job_routes.ROUTES, *page.ROUTES],
        middleware=[Middleware(SafetyMiddleware, access=access)],
        exception_handlers={HTTPException: _no_route},
    )
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.access = access
    app.state.checkpoint = None  # the model that A1111's clients have chosen
    return app


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: "there is nothing at this address.", 405: "this address does not take that method."}
    return refusal(error.status_code, what.get(error.status_code, str(error.detail)), headers=error.headers)
