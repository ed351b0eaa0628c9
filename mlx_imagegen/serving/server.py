"""All routes as one application behind the checks of safety.py, and serving it: the socket, the signals, and an end
within a second.

In: a service, who may ask, and an address. Out: nothing, once a signal has come.
Must not know: what a route does, models.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from ..errors import RequestError
from . import a1111_api, job_routes, openai_api, page
from .answers import refusal
from .safety import Access, SafetyMiddleware
from .service import Service

STOP_SECONDS = 0.5  # for the running job's step, and again for connections to close
SWITCH_SECONDS = 0.001
SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


def bind(host: str, port: int) -> socket.socket:
    """The socket, before anything is loaded: a port that is taken is refused at once."""
    if not 0 <= port < 2**16:  # the system would take its last 16 bits
        raise RequestError(f"--port {port}: give a number from 1 to {2**16 - 1}, or 0 for any that is free.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise RequestError(f"--host {host}: this is no address of this machine ({error.strerror or error}).") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise RequestError(
            f"{host}, port {port}: {error.strerror or error}. Choose another with --port, or end what uses this one."
        ) from error
    return bound


def address_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's, whose signals end the jobs first and are not raised again afterwards."""

    def __init__(self, config: uvicorn.Config, on_exit: Callable[[], object]):
        super().__init__(config)
        self.on_exit = on_exit

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        if not self.should_exit:
            self.should_exit = True
            asyncio.get_running_loop().run_in_executor(None, self.on_exit)


def configured(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=1
    )


def run(service: Service, access: Access, bound: socket.socket) -> NoReturn:
    """Until SIGINT or SIGTERM; the process ends with it."""
    # An answer passes from thread to thread, and waits at each for a drawing thread in Python to let go.
    sys.setswitchinterval(SWITCH_SECONDS)
    with bound:
        server = Server(configured(make_app(service, access)), lambda: service.stop(STOP_SECONDS))
        asyncio.run(server.serve(sockets=[bound]))
    end_process()


def end_process() -> NoReturn:
    """Without waiting for anybody: the worker may be in the middle of a step, which nothing interrupts, and MLX's own
    threads abort a process that takes its interpreter down under them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
