"""The page: static files of the package, under a few names.

Must not know: what is on it.
"""

import hashlib
import mimetypes
from functools import cache
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from .answers import route

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"


@cache
def files() -> dict[str, tuple[bytes, str, str]]:
    """By name: content, media type, and the content's fingerprint."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        content = path.read_bytes()
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        kind = "text/javascript" if path.suffix == ".js" else kind
        kind = f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
        found[path.name] = content, kind, f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    return found


async def page(request: Request) -> Response:
    name = request.path_params.get("name", INDEX)
    if name not in files():
        raise HTTPException(404, "the page has no such file.")
    content, kind, tag = files()[name]
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)


ROUTES = [route("/", page), route("/page/{name}", page)]
