"""What is asked for: a prompt, a file or standard input, and a picture to make again -> requests for `Pipeline.jobs`.

Out: how to open the model, and for each request a dict of generate()'s parameters. Nothing is checked here that job.py
checks.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import MissingFileError, RequestError

# Parameters that a flag, a job's line or a picture's record can give.
PLAIN = (
    "negative_prompt", "steps", "width", "height", "guidance", "true_cfg", "max_sequence_length", "strength", "layout",
    "keep_original_aspect", "sampler", "shift", "timesteps", "noise_scale", "noise_clip", "blend_seams",
)  # fmt: skip
SHAPE = ("aspect",)  # a record has the width and height that came of it
FILES = ("image", "references", "noise", "step_noise")
OF_A_JOB = ("prompt", "seed", "count", *PLAIN, *SHAPE, *FILES)
LOAD_FIELDS = ("model", "quant", "lora", "lora_partial")  # how the model is opened: for all jobs alike
OF_ANY_MODEL = ("prompt", "negative_prompt", "seed", "width", "height")  # what another model makes of a record
# What a picture was made from cannot be kept in it: record's key -> the parameter to give again.
HASHED_FIELDS = {f"{name}_sha256": name for name in FILES}


def read_requests(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How to open the model, and the requests: flags over the record of --from, a job's own line over both."""
    given = _flags(args)
    opening = {name: value for name in (*LOAD_FIELDS, "resident") if (value := getattr(args, name)) is not None}
    record = _record(args.replay, given, opening) if args.replay else {}
    opening = {name: record[name] for name in LOAD_FIELDS if name in record} | opening
    shared = {name: record[name] for name in ("seed", *PLAIN) if name in record} | given
    prompts = list(_prompts(args)) or [{"prompt": record.get("prompt")}]
    if prompts[0].get("prompt") is None:
        raise RequestError("no prompt is given; write it in quotes, or use --prompt-file FILE or - for standard input.")
    return opening, [_opened(shared | prompt) for prompt in prompts]


def _flags(args: argparse.Namespace) -> dict[str, Any]:
    named = (*PLAIN, *SHAPE, *FILES, "count")
    given = {name: value for name in named if (value := getattr(args, name)) is not None}
    if args.size:
        if "width" in given or "height" in given:
            raise RequestError("give --size or --width and --height, not both.")
        given |= {"width": args.size[0], "height": args.size[1]}
    if args.seed:
        given["seed"] = args.seed[0] if len(args.seed) == 1 else args.seed
    return given


def _record(path: Path, given: dict[str, Any], opening: dict[str, Any]) -> dict[str, Any]:
    """The record of --from, less what the flags put something else in place of."""
    from ..hub.recognition import requested_as
    from ..image import read_metadata

    record = read_metadata(path.expanduser())
    _check_record(path, record)
    if "model" in opening and requested_as(opening["model"]) != record.get("model"):
        return {name: record[name] for name in OF_ANY_MODEL if name in record}
    for key, name in HASHED_FIELDS.items():
        if key in record and name not in given:
            raise RequestError(
                f"{path} was made from {name}, which is not kept in it; give it again with --{name.replace('_', '-')}."
            )
    replaced = {"steps": ("timesteps",), "aspect": ("width", "height"), "count": ("seed",)}
    gone = {name for flag, names in replaced.items() if flag in given for name in names}
    return {name: value for name, value in record.items() if name not in gone}


def _check_record(path: Path, record: dict[str, Any]) -> None:
    """What can be seen without the model: every field is of its kind. The limits are checked with those of flags."""
    from ..request.options import check_types

    empty = [name for name in ("prompt", "seed", *LOAD_FIELDS, *PLAIN) if name in record and record[name] is None]
    if empty:
        raise RequestError(f"{path}: its record is damaged: '{empty[0]}' holds nothing.")
    try:
        check_types(record)
    except RequestError as error:
        raise RequestError(f"{path}: its record is damaged: {error}") from error


def _prompts(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The prompts that are given directly, or in a file; each with the parameters of its own line."""
    if args.prompt is not None and args.prompt_file is not None:
        raise RequestError("give a prompt or --prompt-file, not both.")
    if args.prompt_file is not None:
        yield from _lines(_text(args.prompt_file, "--prompt-file"), str(args.prompt_file))
    elif args.prompt == "-":
        try:
            yield from _lines(sys.stdin.read(), "standard input")
        except UnicodeDecodeError as error:
            raise RequestError(f"standard input is not {error.encoding} text ({error.reason}).") from error
    elif args.prompt is not None:
        yield {"prompt": args.prompt}


def read_jobs(path: Path, flag: str) -> list[dict[str, Any]]:
    """A file's prompts, each with the parameters of its own line, for commands that draw nothing but those."""
    return [_opened(job) for job in _lines(_text(path, flag), str(path))]


def readable(references: Sequence[Path]) -> list[str]:
    """The pictures' paths, for a process that opens them itself; one that cannot be opened is refused now."""
    from ..image import open_picture

    for path in references:
        open_picture(path, "references")
    return [str(path.expanduser()) for path in references]


def _text(path: Path, flag: str) -> str:
    path = path.expanduser()
    if path.suffix.lower() in (".toml", ".json"):  # each of its lines would become a picture
        raise RequestError(
            f"{flag}: {path} is not read as such; write a prompt, or a job as a JSON object, on each line."
        )
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark, which would hide a {
    except FileNotFoundError as error:
        raise MissingFileError(f"{flag}: {path} is not there.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{flag}: {path} cannot be read as UTF-8 text ({error}).") from error


def _lines(text: str, where: str) -> Iterator[dict[str, Any]]:
    """One prompt a line; a line that begins with { is a job with parameters of its own."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise RequestError(f"{where} holds no prompt; write one on each line.")
    for number, line in lines:
        yield _job(line, f"{where}, line {number}") if line.startswith("{") else {"prompt": line}


def _job(line: str, where: str) -> dict[str, Any]:
    try:
        job = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where}: not valid JSON ({error}).") from error
    if not isinstance(job.get("prompt"), str):
        raise RequestError(f"{where}: a job needs a prompt, as text.")
    for name in job:
        if name in LOAD_FIELDS:
            raise RequestError(f"{where}: '{name}' is the same for all jobs: give it as --{name.replace('_', '-')}.")
        if name not in OF_A_JOB:
            near = difflib.get_close_matches(name, OF_A_JOB, n=1)
            raise RequestError(
                f"{where}: a job has no '{name}'; "
                + (f"did you mean {near[0]}?" if near else f"known: {', '.join(OF_A_JOB)}.")
            )
    return job


def _opened(request: dict[str, Any]) -> dict[str, Any]:
    """With the noise read from its files."""
    arrays: dict[str, Any] = {}
    if "noise" in request:
        arrays["noise"] = _array("noise", request["noise"])
    if "step_noise" in request:
        paths = request["step_noise"]
        arrays["step_noise"] = [_array("step_noise", path) for path in (paths if isinstance(paths, list) else [paths])]
    return request | arrays


def _array(name: str, path: str | Path) -> Any:
    import numpy as np

    try:
        loaded = np.load(Path(path).expanduser(), allow_pickle=False)
        return np.asarray(loaded, np.float32)
    except FileNotFoundError as error:
        raise MissingFileError(f"{name}: {path} is not there.") from error
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise RequestError(f"{name}: {path} is not a NumPy array file ({error}); write it with numpy.save.") from error
