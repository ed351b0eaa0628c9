"""A request's body -> fields: a JSON object, or a form with files.

In: a body whose size safety.py bounds. Out: a dict; a form's files as bytes, its texts as their parameters take them.
Must not know: what a field means.
"""

from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from ..errors import RequestError
from .pictures import shortened
from .requests import from_text, parse_json

FORM_FIELDS, FORM_FILES = 100, 32
FORM_TEXT_BYTES = 2**20


async def read_json(request: Request) -> dict[str, Any]:
    """An object; an empty body is an empty one."""
    body = await request.body()
    fields = parse_json(body) if body.strip() else {}
    if not isinstance(fields, dict):
        raise RequestError(f"the body must be a JSON object, not {shortened(fields)}.")
    return fields


async def read_body(request: Request) -> dict[str, Any]:
    """A form with files; everything else is read as JSON, for curl sends JSON as a form unless a header is given. A
    form's lists, as in `image[]`, are lists."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await read_json(request)
    values: dict[str, list[Any]] = {}
    lists: set[str] = set()
    # Starlette answers 400 to forms that it cannot read or that have too many parts.
    async with request.form(max_files=FORM_FILES, max_fields=FORM_FIELDS, max_part_size=FORM_TEXT_BYTES) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            read = await value.read() if isinstance(value, UploadFile) else from_text(name, value)
            values.setdefault(name, []).append(read)
            lists |= {name} if name != key else set()
    return {name: each if name in lists or len(each) > 1 else each[0] for name, each in values.items()}
