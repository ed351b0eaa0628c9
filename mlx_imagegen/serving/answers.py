"""Answers over HTTP: JSON, errors in one shape, streams of events, and waiting for a job.

The shape of an error serves OpenAI's clients, which read `error`, and A1111's, which read `detail`.
Must not know: routes.
"""

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ..errors import ImagegenError
from .jobs import Failure, Job
from .service import BusyError, Service, StoppingError
from .worker import INTERNAL, failure_of, log_error

Handler = Callable[[Request], Awaitable[Response]]
KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found", 429: "rate_limit_error"}
CLIENT_GONE = 499  # nobody reads it
HEARTBEAT_SECONDS = 10.0
LONGEST_MESSAGE = 1000


class JSON(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumped(content)


def dumped(content: Any) -> bytes:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")  # half a surrogate pair has no bytes


def refusal(status: int, message: str, kind: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    message = message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}…"
    kind = kind or KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSON({"error": error, "detail": message}, status, dict(headers or {}))


def refusal_of(failure: Failure) -> Response:
    return refusal(failure.status, failure.message, failure.kind)


def route(path: str, handler: Handler, method: str = "GET") -> Route:
    """What goes wrong becomes an answer; a traceback stays in the log."""

    @functools.wraps(handler)
    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except BusyError as error:
            return refusal(429, str(error), headers={"Retry-After": str(error.seconds)})
        except StoppingError as error:
            return refusal(503, str(error))
        except ImagegenError as error:
            return refusal_of(failure_of(error))
        except HTTPException as error:
            return refusal(error.status_code, error.detail)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        except Exception as error:
            log_error(f"{request.method} {request.url.path}", error)
            return refusal(500, INTERNAL)

    return Route(path, answered, methods=[method])


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def client_of(request: Request, named: Any = None) -> str:
    """Whose turn a job counts for: who the caller says it asks for, else its address."""
    headers = request.headers
    name = headers.get("x-client-id") or named or headers.get("x-openwebui-user-id")
    address = request.client.host if request.client else "?"
    return f"{address} {ascii(name)[1:-1][:32]}" if isinstance(name, str) and name else address


async def until_finished(request: Request, job: Job) -> None:
    """Waits for the job; a client that goes away cancels it. The request's body must have been read."""
    finished = asyncio.create_task(job.wait())
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({finished, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not job.finished:
            raise ClientDisconnect
    finally:
        finished.cancel()
        gone.cancel()
        if not job.finished:
            service_of(request).cancel(job)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def event(name: str, data: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), dumped(data))


def comment(text: str) -> bytes:
    """Clients of event streams pass over it."""
    return f": {text}\n\n".encode()


def events(stream: AsyncIterator[bytes], headers: Mapping[str, str] | None = None) -> Response:
    own = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=own | dict(headers or {}))
