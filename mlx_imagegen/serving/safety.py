"""Who may ask: which hosts and pages, with which token, and how much they may send. Pure ASGI, before any route.

A browser on this machine shows pages of other sites, and any of them may try to reach 127.0.0.1: by a cross-site
request (which Origin and Sec-Fetch-Site show), or under a domain whose DNS it points here (which Host shows).
Must not know: routes, models.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import refusal

BODY_BYTES = 64 * 2**20
BODY_SECONDS = 60.0
COOKIE = "mlx_imagegen"
SHORTEST_TOKEN = 16
# Names of this machine that nobody else can give to an address; the second is this machine for programs in Docker.
OWN_NAMES = ("localhost", "host.docker.internal")
# Without the token: the page's own files, the page's login, and pictures, whose addresses cannot be guessed.
OPEN_PATHS, OPEN_FOLDERS = ("/", "/session"), ("/page/", "/pictures/")
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Access:
    token: str | None = None
    hosts: frozenset[str] = field(default_factory=frozenset)  # names that may stand in a Host header
    body_bytes: int = BODY_BYTES

    @classmethod
    def of(cls, token: str | None, hosts: Iterable[str] = ()) -> "Access":
        machine = socket.gethostname().lower()
        names = {*OWN_NAMES, machine, f"{machine.removesuffix('.local')}.local", *(host.lower() for host in hosts)}
        return cls(token, frozenset(names))

    def refused(self, method: str, path: str, headers: Mapping[str, str]) -> Response | None:
        """The answer to a request that goes no further; None for one that may."""
        host = headers.get("host", "")
        if not self._is_own(host):
            return refusal(403, "the Host header names another machine; --allow-host NAME allows a name.")
        if not _is_same_site(method, path, headers, host):
            return refusal(403, "a page of another site may not use this server.")
        if self.token is None or path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
            return None
        if not self.knows(headers):
            message = "a token is needed: send Authorization: Bearer TOKEN, or Basic with the token as the password."
            return refusal(401, message, headers={"WWW-Authenticate": "Bearer"})
        return None

    def knows(self, headers: Mapping[str, str]) -> bool:
        kind, _, value = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.matches(value.strip())
        if kind.lower() == "basic":
            return any(map(self.matches, _basic(value)))
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        return hmac.compare_digest(cookie.encode(), self.session().encode())

    def matches(self, token: str) -> bool:
        return self.token is not None and hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode())

    def session(self) -> str:
        """What the page's cookie holds: the token cannot be computed from it."""
        return hashlib.sha256(f"session of {self.token}".encode()).hexdigest()

    def _is_own(self, host: str) -> bool:
        """An address cannot be a name that was pointed here; names can, and are known."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and host.rpartition(":")[0] else host
        name = name.lower().rstrip(".")
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name in self.hosts
        return True


def _is_same_site(method: str, path: str, headers: Mapping[str, str], host: str) -> bool:
    origin = headers.get("origin")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        return False
    site = headers.get("sec-fetch-site", "none")
    opened = method == "GET" and path == "/" and headers.get("sec-fetch-mode") == "navigate"
    return site in ("none", "same-origin") or opened  # a link to the page may stand anywhere


def _basic(value: str) -> tuple[str, ...]:
    try:
        text = base64.b64decode(value.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return ()
    return text, text.partition(":")[2]


class SafetyMiddleware:
    def __init__(self, app: ASGIApp, access: Access):
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self.access.refused(scope["method"], scope["path"], headers)
        length = headers.get("content-length", "")
        if refused is None and length.isdigit() and int(length) > self.access.body_bytes:
            refused = refusal(413, _too_large(self.access.body_bytes))
        await (refused or self.app)(scope, self._bounded(receive), _with_headers(send))

    def _bounded(self, receive: Receive) -> Receive:
        """Counts what comes, for bodies that do not say how long they are, and stops waiting after a while."""
        left, ends_at, complete = self.access.body_bytes, time.monotonic() + BODY_SECONDS, False

        async def bounded() -> Message:
            nonlocal left, complete
            if complete:
                return await receive()  # the news that the client has gone
            try:
                message = await asyncio.wait_for(receive(), ends_at - time.monotonic())
            except TimeoutError:
                raise HTTPException(408, f"the body did not come within {BODY_SECONDS:.0f} s.") from None
            complete = not message.get("more_body", False)
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, _too_large(self.access.body_bytes))
            return message

        return bounded


def _too_large(limit: int) -> str:
    return f"the body is larger than {limit / 2**20:.0f} MB, the most that this server reads."


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return wrapped
