"""Pictures to change, a mask and a prompt -> generate()'s parameters, by what the model can do.

Must not know: where the pictures come from, HTTP.
"""

from collections.abc import Mapping
from typing import Any

from PIL import Image

from ..errors import RequestError
from .catalogue import Catalogue
from .pictures import mask_from_alpha, read_picture


def edit_fields(fields: Mapping[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    """`image` (or `images`, or `references`) becomes references for a model that edits, else the picture to start from.
    A mask belongs to a picture to start from."""
    fields = dict(fields)
    given = next((value for name in ("image", "images", "references") if (value := fields.pop(name, None))), None)
    if given is None:
        raise RequestError("image is missing: send the picture to change.")
    pictures = [_read(value, "image") for value in (given if isinstance(given, list) else [given])]
    edits = catalogue.model(fields.get("model")).manifest.edits
    if not edits and len(pictures) > 1:
        raise RequestError(f"image: {len(pictures)} pictures are given, and this model starts from one; send one.")
    mask = fields.pop("mask", None)
    if mask is None:
        return fields | ({"references": pictures} if edits else {"image": pictures[0]})
    # What a mask covers is drawn from scratch, if nothing else is asked for. The library shows a single
    # picture to the model.
    drawn = {"strength": 1.0} | fields | {"image": pictures[0], "mask": mask_from_alpha(_read(mask, "mask"))}
    return drawn | ({"references": pictures} if edits and len(pictures) > 1 else {})


def _read(value: Any, name: str) -> Image.Image:
    """Of a form (bytes), or of a JSON body: {"image_url": "data:…"}, or the text alone."""
    value = value.get("image_url") if isinstance(value, dict) else value
    return value if isinstance(value, Image.Image) else read_picture(value, name)
