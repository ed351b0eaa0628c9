"""`generate`, light to import: MLX and the rest come in when it is called.

Its parameters, and what they mean, are in request/parameters.py.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Unpack, overload

from .errors import file_errors
from .request.parameters import DEFAULT_MODEL, LOAD, LOAD_FIELDS, PICTURE_FIELDS, PICTURE_ROWS, Parameters, check_names
from .request.signatures import documented

if TYPE_CHECKING:
    from .result import Result, StepEvent


@overload
def generate(
    prompt: str, *, seed: int | None = None, count: None = None,
    on_step: "Callable[[StepEvent], None] | None" = None, **parameters: Unpack[Parameters],
) -> "Result": ...  # fmt: skip


@overload
def generate(
    prompt: str, *, seed: Sequence[int], count: None = None,
    on_step: "Callable[[StepEvent], None] | None" = None, **parameters: Unpack[Parameters],
) -> "list[Result]": ...  # fmt: skip


@overload
def generate(
    prompt: str, *, seed: int | None = None, count: int,
    on_step: "Callable[[StepEvent], None] | None" = None, **parameters: Unpack[Parameters],
) -> "list[Result]": ...  # fmt: skip


@overload
def generate(
    prompt: list[str] | tuple[str, ...], *, seed: int | Sequence[int] | None = None, count: int | None = None,
    on_step: "Callable[[StepEvent], None] | None" = None, **parameters: Unpack[Parameters],
) -> "list[Result]": ...  # fmt: skip


@documented(*PICTURE_ROWS, *LOAD)
@file_errors()
def generate(
    prompt: str | Sequence[str],
    *,
    seed: int | Sequence[int] | None = None,
    count: int | None = None,
    on_step: "Callable[[StepEvent], None] | None" = None,
    **parameters: Any,
) -> "Result | list[Result]":
    """Makes one picture, or a list of them for several prompts, seeds or a count."""
    from . import pipeline
    from .hub.comfy import using_folder
    from .preflight import manifest_before_opening, resolve_before_opening
    from .request.job import is_single

    check_names(parameters, (*PICTURE_FIELDS, *LOAD_FIELDS))
    opening = {name: parameters.pop(name) for name in LOAD_FIELDS if name in parameters}
    with using_folder(opening.get("comfy")):
        manifest = manifest_before_opening(DEFAULT_MODEL if opening.get("model") is None else opening["model"])
    jobs = (
        resolve_before_opening(manifest, opening.get("lora"), prompt, seed, count, **parameters) if manifest else None
    )
    opened = pipeline.load(**opening)
    jobs = opened.jobs(prompt, seed=seed, count=count, **parameters) if jobs is None else opened.check(jobs)
    results = list(opened.stream(jobs, on_step))
    return results[0] if is_single(prompt, seed, count) else results
