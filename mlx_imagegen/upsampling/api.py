"""`upsample`: a caption from a request; and the upsampler that a model's pictures are to begin with.

In: an upsampler's name, repository or folder. Out: captions, or an open `Upsampler`.
Must not know: pictures that are drawn from captions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import RequestError, file_errors
from ..escaping import quoted
from ..hub.download import Notify, notify_stderr
from ..hub.manifest import Manifest
from ..hub.networks import locate_network, network_headers, network_to_fetch
from ..image import Picture
from ..loading.transforms import Progress, WeightTransforms
from ..packing.recipes import read_recipe, recipe_of
from ..request.options import check_callable
from ..text.generation import OnToken
from .upsampler import MOST_TOKENS, Upsampler, default_upsampler

PARAMETER = "upsample"  # that names one


@file_errors()
def upsample(
    prompt: str,
    *,
    references: Sequence[Picture] = (),
    boxes: Sequence[Mapping[str, Any]] | None = None,
    model: str | Path | None = None,
    quant: str | None = None,
    max_tokens: int | None = None,
    on_token: OnToken | None = None,
    on_load: Progress | None = None,
    on_download: Notify | None = None,
) -> str:
    """The long caption for a short request, in the words that the upsampler's model was trained on.

    prompt: what the picture should show; of an edit, what is to change
    references: the pictures of an edit, up to ten
    boxes: where things are to be: {"id", "desc", "bbox": [y_min, x_min, y_max, x_max]} from 0 to 1; of an edit
        {"id", "desc", "from": "ref_image_0" or "target", "src_bbox", "tgt_bbox"}
    model: an upsampler's name, its folder, or that of an MLX conversion (flux3-pup)
    quant: pack its weights while they are loaded: q8, q6, q4 or a recipe's file
    max_tokens: of the caption, at most (3584)
    on_token: called after each token with how many are written
    """
    if not isinstance(prompt, str):
        raise RequestError(f"prompt {quoted(prompt)}: give text, what the picture should show.")
    if max_tokens is not None and (type(max_tokens) is not int or not 1 <= max_tokens <= MOST_TOKENS):
        raise RequestError(f"max_tokens {quoted(max_tokens)}: give a whole number from 1 to {MOST_TOKENS}.")
    check_callable(on_token=on_token, on_load=on_load, on_download=on_download)
    tell = on_download or notify_stderr
    upsampler = open_upsampler(model, recipe_of(quant), None, tell, on_load)
    return upsampler.write(prompt, references, boxes, max_tokens, on_token, lambda note: tell(f"note: {note}"))


def open_upsampler(
    name: str | Path | None,
    quant: str | None,
    model: Manifest | None = None,
    tell: Notify = notify_stderr,
    on_load: Progress | None = None,
) -> Upsampler:
    """By name or folder, downloaded if need be. `model`: what its captions are for, which `quant` is of then: weights
    that are packed already stay so."""
    manifest = default_upsampler()
    name = manifest.name if name is None else str(name)
    refuse_before_download(name, quant, model or manifest)
    folder = locate_network(name, model or manifest, PARAMETER, tell)
    upsampler = _opened(folder, quant, model is not None, on_load)
    upsampler.prompts  # noqa: B018  # what is missing is said before weights are read
    return upsampler


def _opened(folder: Path, quant: str | None, for_model: bool, on_load: Progress | None = None) -> Upsampler:
    """`for_model`: packed as the model that its captions are for, unless it is packed already."""
    upsampler = Upsampler(folder, transforms(None, on_load))
    if quant is None or (for_model and upsampler.weights.stored):
        return upsampler
    return Upsampler(folder, transforms(quant, on_load))


def transforms(quant: str | None, on_load: Progress | None = None) -> WeightTransforms:
    plain = WeightTransforms(progress=on_load)
    return read_recipe(quant, default_upsampler().family).applied_to(plain) if quant else plain


def refuse_before_download(name: str, quant: str | None, model: Manifest) -> None:
    """Raises where a download would be for nothing: the weights alone are too many for this machine."""
    if network_to_fetch(name, model, PARAMETER) is not None:
        headers_of(name, quant, model).check_fits(0, 0)


def headers_of(name: str, quant: str | None, model: Manifest) -> Upsampler:
    """For plans: nothing may be read from it."""
    with network_headers(name, model, PARAMETER) as folder:
        return _opened(folder, quant, True)
